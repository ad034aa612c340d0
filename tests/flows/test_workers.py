"""Workers that encode images together, the check of a Ray node, and what is refused before Ray starts."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from captioning.config import CaptionConfig
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import ConfigError, DataError
from data.process.locks import lock
from data.progress import silent
from data.stages.images import IndexedImages
from flows.recipes import ScaleConfig
from flows.workers import ray_run
from flows.workers.jobs import CaptionJob, FeatureJob, read_job
from flows.workers.local import device_of
from flows.workers.ray_run import RayOutcome, ray_problems, run_on_ray
from flows.workers.ray_worker import Probe, Worker, inspect, versions
from flows.workers.together import embed_together, encode_together
from reid import Embedder
from reid.config.evaluate import EvaluateConfig
from reid.embedding.files import embed_files
from reid.embedding.images import ImageFile
from reid.evaluation.features import FeatureStage, load_features
from reid.evaluation.stage import EvaluateStage
from tests.helpers.small_models import write_model, write_world
from tests.helpers.stages import run_on

TWO_THREADS = ScaleConfig(runner="threads", embed_workers=2)
TWO_PROCESSES = ScaleConfig(runner="processes", embed_workers=2)
CONFIG = EvaluateConfig(device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def base(module_folder):
    base = module_folder("workers")
    store = ArtifactStore(base / "home")
    return store, write_world(store, base / "images"), write_model(store), base / "images"


@pytest.fixture
def world(base, tmp_path):
    """The same with stages that a test may make and remove."""
    store, index, model, root = base
    shutil.rmtree(store.root / "stages" / "evaluate", ignore_errors=True)
    shutil.rmtree(store.root / "work", ignore_errors=True)
    return store, index, model, root


@pytest.mark.parametrize(
    "scale", [TWO_THREADS, pytest.param(TWO_PROCESSES, marks=pytest.mark.soak)], ids=["threads", "processes"]
)
def test_an_evaluation_by_workers_is_that_of_one_process(world, scale, one_thread, monkeypatch):
    store, index, model, root = world
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = run_on(store, index, root)
    stage = EvaluateStage(model=model, config=CONFIG)
    alone = stage.make(run).ref.folder
    kept = {name: (alone / name).read_bytes() for name in ("metrics.json", "rankings.parquet")}
    shutil.rmtree(alone)
    encode_together(stage, scale, run)
    monkeypatch.setattr("reid.training.checkpoint.load_task", None)  # the parts are all there is to read
    again = stage.make(run).ref.folder
    assert {name: (again / name).read_bytes() for name in kept} == kept
    assert not list((store.root / "work").glob("*/*")), "parts are removed"


def test_features_by_workers_are_those_of_one_process(world, one_thread):
    store, index, model, root = world
    run, stage = run_on(store, index, root), FeatureStage(model=model, config=CONFIG)
    alone = stage.make(run).ref
    expected = {(it.model, it.mode): np.array(it.features_ND) for it in load_features(alone)}
    shutil.rmtree(alone.folder)
    encode_together(stage, TWO_THREADS, run)
    found = {(it.model, it.mode): np.array(it.features_ND) for it in load_features(stage.make(run).ref)}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[which], expected[which]) for which in expected)
    shutil.rmtree(alone.folder)


def images_of(index: ArtifactRef) -> list[ImageFile]:
    rows = pq.read_table(index.folder / "images.parquet").to_pylist()
    return [ImageFile(row["path"], row["sha256"], row["split"], row["pid"], row["camid"]) for row in rows]


@pytest.mark.parametrize(
    "scale", [TWO_THREADS, pytest.param(TWO_PROCESSES, marks=pytest.mark.soak)], ids=["threads", "processes"]
)
def test_embeddings_by_workers_are_those_of_one_process(world, scale, tmp_path, one_thread, monkeypatch):
    store, index, model, root = world
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own = shutil.copytree(root, tmp_path / "images")
    images = images_of(index)
    (own / images[1].path).write_bytes(b"changed")
    images.insert(0, images[2]._replace(path="gone.jpg"))  # of two files with equal bytes, one can be opened
    embedder = Embedder.load(model, home=store.root, device="cpu", batch_size=3)
    alone = embed_files(embedder, images, root=own, out=tmp_path / "one.parquet")
    shared = embed_together(store, scale, "cpu", silent)
    together = embed_files(embedder, images, root=own, out=tmp_path / "two.parquet", embed=shared)
    assert together == alone
    assert [row.path for row in together.rejected] == [images[2].path]
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert not list((store.root / "work").glob("*/*"))


def test_the_parts_of_a_stopped_command_are_found_again(world, tmp_path, one_thread, monkeypatch):
    store, index, model, root = world
    images = images_of(index)[:12]
    embedder = Embedder.load(model, home=store.root, device="cpu", batch_size=3)

    def stop(done, total, note):
        if done >= 6:
            raise KeyboardInterrupt

    out = tmp_path / "features.parquet"
    with pytest.raises(KeyboardInterrupt):
        embed_files(embedder, images, root=root, out=out, embed=embed_together(store, TWO_THREADS, "cpu", stop))
    assert len(list((store.root / "work").glob("embed/*/3/*.npz"))) in (2, 3)
    opened = []
    from reid.embedding import batches

    real = batches.open_indexed
    monkeypatch.setattr(batches, "open_indexed", lambda *words: opened.append(words[1]) or real(*words))
    done = embed_files(embedder, images, root=root, out=out, embed=embed_together(store, TWO_THREADS, "cpu", silent))
    assert len(opened) in (3, 6)
    assert done.images == 12


def test_the_error_of_a_worker_is_the_error_of_the_command(world, tmp_path, monkeypatch):
    store, index, model, root = world
    copy = tmp_path / "model"
    shutil.copytree(model.folder, copy)
    broken = ArtifactRef(stage="train", fingerprint="f", content="c", path=str(copy))
    run = run_on(store, index, root)
    job = FeatureJob.of(run, FeatureStage(model=broken, config=CONFIG), tmp_path / "scratch")
    (copy / "model.safetensors").write_bytes(b"no weights")
    from flows.workers.local import run_here

    with pytest.raises(Exception, match="safetensors"):
        run_here(job, TWO_PROCESSES, 2, silent)


def test_jobs_are_plain_data(world):
    store, index, model, root = world
    run = run_on(store, index, root)
    for job in (
        FeatureJob.of(run, FeatureStage(model=model, config=CONFIG), Path("/x")),
        CaptionJob(home="/h", images=run.images.to_json(), config=CaptionConfig(batch_size=7, device="cpu")),
    ):
        assert read_job(job.model_dump_json()) == job


@pytest.fixture
def probe(tmp_path):
    file = tmp_path / "home" / "work" / "probe"
    file.parent.mkdir(parents=True)
    file.write_text("token")
    return Probe(str(file), "token", {str(file): 5}, versions())


def test_a_node_that_sees_everything_can_work(probe):
    with lock(Path(probe.file)):
        assert inspect(probe) == ([], [])


def test_a_node_says_what_it_lacks(probe, tmp_path):
    with lock(Path(probe.file)):
        (problem,) = inspect(probe._replace(token="another")).problems
        assert problem.startswith(f"the artifact root {tmp_path / 'home'} is another folder there")
        (problem,) = inspect(probe._replace(needed={"/nowhere/a.jpg": 3})).problems
        assert problem == "/nowhere/a.jpg is absent or another file there; mount the same folder under this path"
        older = {**probe.versions, "torch": "0.1"}
        (problem,) = inspect(probe._replace(versions=older)).problems
        assert problem.startswith("other versions: torch ")
        assert problem.endswith(" instead of 0.1; install the same ones there")
    (problem,) = inspect(probe._replace(file=str(tmp_path / "gone" / "work" / "probe"))).problems
    assert "does not exist there" in problem


def test_a_node_without_shared_locks_is_a_notice(probe):
    problems, (notice,) = inspect(probe)
    assert problems == []
    assert notice.startswith("file locks do not reach it")


def test_a_worker_stops_between_batches_and_returns_errors(monkeypatch, world):
    store, index, _, root = world
    job = CaptionJob(home=str(store.root), images=run_on(store, index, root).images.to_json(), config=CaptionConfig())

    def work(self, progress, device):
        progress(1, 4, "")
        raise DataError("no images")

    monkeypatch.setattr(CaptionJob, "work", work)
    worker = Worker(job.model_dump_json())
    assert worker.work("cpu") == (0, "no images", False, False)
    assert worker.shown() == (1, 4, "")
    worker.stop()
    assert worker.work("cpu") == (0, "", False, True)


def test_an_unreachable_cluster_is_a_problem_of_the_settings(monkeypatch):
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert ray_problems() == []
    (problem,) = ray_problems()
    assert problem.startswith(f"RAY_ADDRESS={address}: nothing answers there")
    monkeypatch.setenv("RAY_ADDRESS", "ray://host:10001")
    (problem,) = ray_problems()
    assert "the Ray client is not supported" in problem
    monkeypatch.setattr(ray_run, "find_spec", lambda name: None)
    (problem,) = ray_problems()
    assert problem.startswith("scale.runner=ray is not installed: ")


def test_the_note_says_what_is_not_counted():
    assert RayOutcome(7, 2, 0, []).note("captions generated") == "7 captions generated by 2 workers (ray)"
    lost = RayOutcome(7, 2, 1, [], losses=1).note("captions generated")
    assert lost == (
        "at least 7 captions generated by 2 workers (ray), 1 lost, after the cluster was lost and came back"
    )


def test_ray_selects_the_gpu(monkeypatch, world):
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    store, index, _, root = world
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    images = run_on(store, index, root).images.to_json()
    job = CaptionJob(home=str(store.root), images=images, config=CaptionConfig(device="cuda:1"))
    with pytest.raises(ConfigError, match=r"caption.device=cuda:1: Ray selects the GPU of a worker"):
        run_on_ray(job, ScaleConfig(runner="ray"), 0, silent)


def test_images_in_an_object_store_are_not_files_of_a_node(world):
    store, index, _, _ = world
    images = IndexedImages(ref=index, root=Path("s3:/people/set")).to_json()
    job = CaptionJob(home=str(store.root), images=images, config=CaptionConfig(device="cpu"))
    assert job.needed() == []


def test_a_device_that_does_not_exist_is_named_by_the_setting_of_the_job(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"evaluate\.device"):
        device_of("cuda", 0, FeatureJob.setting)
