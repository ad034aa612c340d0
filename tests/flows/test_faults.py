"""Deployments on a real server: PostgreSQL, Redis, Prefect server, services and worker as processes of their own.

Each test breaks one thing on purpose and checks what follows. Times are shorter than on a site (a run counts as crashed
after 80 s without a heartbeat); the mechanisms are the same.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captioning.captioner import Captioner
from captioning.prompts.replies import Reply
from captioning.store.rows import CaptionRow
from captioning.store.snapshot import Snapshot
from captioning.store.store import CaptionStore
from data.artifacts.inventory import take_inventory
from data.artifacts.stages import STAGES
from data.artifacts.store import ArtifactStore
from data.errors import ClipScgiError
from flows.recipes import build_recipe
from flows.worlds import world_folder
from tests.helpers.places import REPO
from tests.helpers.service_processes import AUTH, PASSWORD, Topology, find_program, missing_programs, wait_for
from tests.helpers.small_disk import small_disk
from tests.helpers.small_runs import SMALL_BATCH, SMALL_WORLD
from tests.helpers.stages import make_artifact

SMALL = [*SMALL_WORLD, SMALL_BATCH]
# A site waits nine minutes for a heartbeat. The tests start the watcher themselves, so its schedule is out of the way.
DEPLOY = ["deploy", "demo", "--watch-cron", "0 0 1 1 *", "--crashed-after", "80"]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

services = [pytest.mark.services, pytest.mark.xdist_group("services"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def topology():
    missing = missing_programs()
    if missing:
        if os.environ.get("CLIP_SCGI_REQUIRE_SERVICES") == "1":
            pytest.fail(f"CLIP_SCGI_REQUIRE_SERVICES=1, but these are not installed: {', '.join(missing)}")
        pytest.skip(f"not installed: {', '.join(missing)} (`bash .ci/services` installs them)")
    folder = Path(tempfile.mkdtemp(prefix="clip-scgi-services-"))
    folder.chmod(0o755)  # the user postgres must reach its data
    running = Topology(folder)
    try:
        running.start_all()
        yield running
    finally:
        running.stop_all()
        shutil.rmtree(folder)


@pytest.fixture
def worker(topology):
    if "worker" not in topology.processes:
        topology.start_worker()
    return topology


@pytest.fixture
def api(topology):
    user, password = AUTH.split(":")
    with httpx.Client(base_url=topology.url, auth=(user, password), timeout=60) as client:
        yield client


def _deploy(topology: Topology, name: str, seed: int, *settings: str) -> str:
    changes = [f"data.name={name}", f"synthetic.seed={seed}", *SMALL, *settings]
    words = [word for change in changes for word in ("--set", change)]
    done = topology.run(sys.executable, "-m", "flows.cli.app", *DEPLOY, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return f"caption-and-train/{name}"


def _ask(api: httpx.Client, method: str, path: str, **body) -> dict | list:
    # Wait for a server that a test has just killed, as Prefect's own client does.
    for _ in range(60):
        try:
            answer = api.request(method, path, json=body or None)
        except httpx.HTTPError:
            time.sleep(1)
            continue
        if answer.status_code < 500:
            answer.raise_for_status()
            return answer.json()
        time.sleep(1)
    raise TimeoutError(path)


def _start(api: httpx.Client, deployment: str, **parameters) -> str:
    found = _ask(api, "GET", f"/deployments/name/{deployment}")
    run = _ask(api, "POST", f"/deployments/{found['id']}/create_flow_run", parameters=found["parameters"] | parameters)
    return run["id"]


def _state(api: httpx.Client, run: str) -> dict:
    return _ask(api, "GET", f"/flow_runs/{run}")["state"]


def _end(api: httpx.Client, run: str, seconds: float = 500) -> dict:
    return wait_for(
        f"the end of run {run}", lambda: (state := _state(api, run))["type"] in FINAL and state, seconds, pause=1
    )


def _task(api: httpx.Client, run: str, name: str) -> str | None:
    rows = _ask(api, "POST", "/task_runs/filter", flow_runs={"id": {"any_": [run]}})
    states = [row["state_type"] for row in rows if row["name"] == name]
    return states[-1] if states else None


def _wait_task(api: httpx.Client, run: str, name: str) -> None:
    def begun() -> bool:
        state = _state(api, run)
        assert state["type"] not in FINAL, f"ended before {name}: {state}"
        return _task(api, run, name) == "RUNNING"

    wait_for(f"stage {name}", begun, 180, pause=0.3)


def _wait_for_new(store: ArtifactStore, pattern: str, seen: set[Path]) -> None:
    """Wait for a path of the store that is not in `seen`, even if it exists only for a moment."""
    wait_for(f"a new {pattern}", lambda: set(store.root.glob(pattern)) - seen, 180, pause=0.001)


def _stages(store: ArtifactStore) -> dict[str, str]:
    return {entry.key: entry.created.isoformat() for entry in take_inventory(store).entries}


def _images(store: ArtifactStore, seed: int) -> Path:
    """Return the folder of the synthetic images that deployments with `seed` share."""
    world = build_recipe("demo", [f"synthetic.seed={seed}", *SMALL]).synthetic
    assert world is not None
    return world_folder(store, world)


class TestServices:
    """Tests in this order, on one server and the same few images; only runs killed before training have their own."""

    pytestmark = services

    def test_the_documented_commands_end_completed(self, worker):
        deployment = _deploy(worker, "first", 1, "train.schedule.epochs=1")
        done = worker.prefect("deployment", "run", deployment, "--watch", "--watch-interval", "2")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{worker.tail('worker')}"
        assert "Completed" in done.stdout
        stages = {entry.stage for entry in take_inventory(ArtifactStore(worker.home)).entries}
        assert {"index", "caption", "audit", "train", "evaluate", "report"} <= stages

    def test_after_one_new_image_the_watcher_gets_exactly_one_caption(self, worker, api):
        store = ArtifactStore(worker.home)
        folder = _images(store, 1)
        source = next((folder / "bounding_box_train").glob("*_01.jpg"))
        with Image.open(source) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
                source.with_name(source.name.replace("_01.jpg", "_77.jpg"))
            )
        time.sleep(1.5)
        before = _captions(store)
        look = _start(api, "watch-datasets/watch-datasets", settle_seconds=1, only=["first"])
        assert _end(api, look)["type"] == "COMPLETED", worker.tail("worker")
        found = _ask(api, "GET", "/deployments/name/caption-and-train/first")

        def triggered() -> str | None:
            runs = _ask(api, "POST", "/flow_runs/filter", deployments={"id": {"any_": [found["id"]]}})
            mine = [run["id"] for run in runs if (run["created_by"] or {}).get("type") == "AUTOMATION"]
            return mine[0] if mine else None

        run = wait_for("the run that the change triggers", triggered, 90, pause=1)
        assert _end(api, run)["type"] == "COMPLETED", worker.tail("worker")
        assert _captions(store) == before + 1

    def test_a_second_run_of_a_dataset_is_canceled_while_the_first_works(self, worker, api):
        deployment = _deploy(worker, "busy", 1, "train.schedule.epochs=60")
        first = _start(api, deployment)
        _wait_task(api, first, "train")
        second = _start(api, deployment)
        assert _end(api, second)["type"] == "CANCELLED"
        assert _end(api, first)["type"] == "COMPLETED", worker.tail("worker")

    def test_a_dead_worker_is_noticed_without_heartbeats_and_the_rerun_resumes(self, worker, api):
        """Worker and run are killed during training, and an earlier artifact is lost with them."""
        deployment = _deploy(worker, "dead", 1, "train.schedule.epochs=30", "train.checkpoint_every=5")
        store = ArtifactStore(worker.home)
        run = _start(api, deployment)
        _wait_task(api, run, "train")
        work = wait_for("a checkpoint", lambda: list((worker.home / "work/train").glob("*/step-*")), 240, pause=0.1)
        worker.kill_tree("worker")
        killed_log = (work[0].parent / "metrics.jsonl").read_text().splitlines()
        assert _state(api, run)["type"] == "RUNNING"  # no process is left to report its end
        before = _stages(store)
        audit = next(entry for entry in reversed(take_inventory(store, "audit").entries))
        shutil.rmtree(audit.folder)
        state = _end(api, run, 500)
        assert state["type"] == "CRASHED"
        assert "No heartbeat" in state["message"]
        worker.start_worker()
        again = _start(api, deployment)
        assert _end(api, again)["type"] == "COMPLETED", worker.tail("worker")
        after = _stages(store)
        # Of the finished artifacts, only the lost one was made again.
        assert {key: when for key, when in before.items() if key != audit.key} == {
            key: after[key] for key in before if key != audit.key
        }
        assert audit.key in after
        trained = next(entry for entry in reversed(take_inventory(store, "train").entries))
        assert trained.fingerprint == work[0].parent.name
        log = (trained.folder / "metrics.jsonl").read_text().splitlines()
        epochs = [row["epoch"] for row in map(json.loads, log) if row["kind"] == "epoch"]
        assert len(epochs) == len(set(epochs)) == 30
        # The first epoch's line, with its seconds, comes from the killed process: that epoch was not trained again.
        assert next(line for line in killed_log if '"kind": "epoch"' in line) in log

    def test_a_run_killed_in_every_stage_loses_nothing(self, worker, api):
        """The process of the run is killed in one stage after another; each time the next run resumes there."""
        # Another way of decoding is another captioner, so the caption stage generates instead of collecting.
        deployment = _deploy(worker, "killed", 3, "train.schedule.epochs=1", "caption.decoding=slots")
        store = ArtifactStore(worker.home)
        for stage in STAGES:
            before, finished = _stages(store), len(take_inventory(store, stage).entries)
            sign = "captions/*/claims" if stage == "caption" else f"stages/{stage}/.*"
            seen = set(store.root.glob(sign))
            run = _start(api, deployment)
            _wait_for_new(store, sign, seen)
            for child in worker.children("worker"):
                child.kill()
            assert _end(api, run)["type"] == "CRASHED", stage
            assert _stages(store).items() >= before.items(), stage
            assert len(take_inventory(store, stage).entries) == finished, f"killed after {stage}, not in it"
        before = _stages(store)
        assert _end(api, _start(api, deployment))["type"] == "COMPLETED", worker.tail("worker")
        assert _stages(store).items() > before.items()

    def test_a_run_outlives_its_servers(self, worker, api):
        """During training PostgreSQL restarts, Redis is silent for 40 s, and the Prefect server is killed."""
        deployment = _deploy(worker, "outlives", 1, "train.schedule.epochs=120")
        run = _start(api, deployment)
        _wait_task(api, run, "train")
        worker.stop("postgres", signal.SIGINT)
        worker.start_postgres()
        worker.pause("redis")
        time.sleep(40)  # with the 30 s between two heartbeats still below the 80 s after which a run counts as crashed
        worker.resume("redis")
        worker.stop("server", signal.SIGKILL)
        worker.start_server()
        state = _end(api, run, 500)
        assert state["type"] == "COMPLETED", f"{state}\n{worker.tail('worker')}"

    def test_a_clock_that_is_set_back_neither_hides_a_change_nor_repeats_work(self, topology, api):
        """The clock of the run is two days behind: artifacts are found, and the new image is captioned once."""
        store = ArtifactStore(topology.home)
        run = [find_program("faketime"), "-f", "-2d", sys.executable, "-m", "flows.cli.app", "run", "demo"]
        for change in ("data.name=behind", "synthetic.seed=1", "train.schedule.epochs=1", *SMALL):
            run += ["--set", change]
        captions, stages = _captions(store), _stages(store)
        source = next((_images(store, 1) / "bounding_box_train").glob("*_01.jpg"))
        with Image.open(source) as image:
            new = source.with_name(source.name.replace("_01.jpg", "_88.jpg"))
            image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(new)
        os.utime(new, (source.stat().st_mtime - 1e6,) * 2)
        first = topology.run(*run)
        assert first.returncode == 0, first.stderr[-3000:]
        assert _captions(store) == captions + 1
        assert _stages(store).items() > stages.items()
        again = topology.run(*run)
        assert again.returncode == 0, again.stderr[-3000:]
        assert again.stderr.count(" cached ") == 6, again.stderr

    def test_a_deleted_dataset_is_a_clear_failure_and_old_artifacts_stay(self, worker, api):
        store = ArtifactStore(worker.home)
        root = worker.home / "datasets" / "elsewhere"
        deployment = _deploy(worker, "gone", 1, f"data.root={root}", "train.schedule.epochs=1")
        # As after `rm -r`: the folder of the deployment does not exist any more.
        before = _stages(store)
        state = _end(api, _start(api, deployment))
        assert state["type"] == "FAILED"
        assert "elsewhere" in state["message"]
        assert _stages(store) == before

    def test_scheduled_runs_are_planned(self, worker, api):
        """The server's scheduler works on this database: it has planned the watcher's next run, on January 1."""

        def planned() -> list:
            runs = _ask(api, "POST", "/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
            return [run["expected_start_time"] for run in runs if run["auto_scheduled"]]

        starts = wait_for("a planned run", planned, 150, pause=2)
        assert all(start[5:16] == "01-01T00:00" for start in starts)

    def test_prefect_yaml_registers_everything(self, topology, api):
        variables = topology.environment | {"CLIP_SCGI_HOME": str(topology.home), "PKU_REID_ROOT": "/data/PKU-Reid"}
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
            env=variables,
            cwd=REPO,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        for name in ("caption-and-train/demo", "caption-and-train/pku_reid", "caption-and-train/market1501"):
            found = _ask(api, "GET", f"/deployments/name/{name}")
            assert found["entrypoint"] == "flows.pipeline.caption_and_train"
            assert found["pull_steps"] == []
            assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
            assert found["job_variables"]["env"]["CLIP_SCGI_HOME"] == str(topology.home)

    def test_the_api_asks_for_a_password_which_no_file_or_log_contains(self, worker):
        assert httpx.post(f"{worker.url}/flows/filter", json={}, timeout=30).status_code == 401
        assert PASSWORD not in worker.logs()
        kept = [path for path in worker.home.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
        assert kept == []


def _captions(store: ArtifactStore) -> int:
    """Return the number of captions of all captioners."""
    return sum(pq.read_metadata(shard).num_rows for shard in (store.root / "captions").glob("*/part-*.parquet"))


@pytest.fixture
def two_megabytes(tmp_path):
    """A disk of two megabytes."""
    with small_disk(tmp_path / "disk", "2m") as folder:
        yield folder


def test_a_full_disk_keeps_old_artifacts_and_leaves_no_partial_one(two_megabytes):
    store = ArtifactStore(two_megabytes / "home")
    kept = make_artifact(store, "audit", {"n": 1}, lambda folder: (folder / "a").write_bytes(b"1")).ref

    def too_much(folder: Path) -> None:
        (folder / "b").write_bytes(os.urandom(4 << 20))

    with pytest.raises(ClipScgiError, match="is full: stage train could not finish"):
        make_artifact(store, "train", {"n": 2}, too_much)
    assert store.problems("audit", kept.fingerprint) == []
    assert list((store.root / "stages" / "train").iterdir()) == []
    assert make_artifact(store, "train", {"n": 2}, lambda folder: (folder / "b").write_bytes(b"2")).cached is False


def test_a_full_disk_while_captioning_keeps_earlier_captions(two_megabytes):
    store = ArtifactStore(two_megabytes / "home")
    captioner = Captioner(fingerprint="0" * 32, model_id="some/model", model_revision="main", ingredients={})
    captions = CaptionStore(store.root, captioner)
    assert captions.append([_row(0, "a")]) is not None
    (two_megabytes / "filler").write_bytes(b"")
    with pytest.raises(OSError, match="No space"), (two_megabytes / "filler").open("wb") as stream:
        stream.write(os.urandom(4 << 20))
    with pytest.raises(ClipScgiError, match="newest captions could not be written"):
        captions.append([_row(number, os.urandom(500).hex()) for number in range(1, 400)])
    (two_megabytes / "filler").unlink()
    kept = Snapshot(captions)
    kept.refresh()
    assert kept.table().num_rows == 1


def _row(number: int, text: str) -> CaptionRow:
    return CaptionRow.of(f"{number:064x}", Reply(text=text, n_tokens=1, truncated=False))
