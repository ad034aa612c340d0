"""Many workers on one store: nothing is captioned twice or lost, even if workers are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pyarrow.parquet as pq
import pytest

from captioning.stage import worker as stage_work
from captioning.stage.stage import caption_part
from captioning.store.claims import Claims, bucket_of
from captioning.store.compaction import compact
from captioning.store.shards import Shards, is_pack
from captioning.store.snapshot import Snapshot
from data.artifacts.store import ArtifactRef, ArtifactStore
from tests.helpers import caption_filling as filling
from tests.helpers.caption_stub import Job, StubEngine, asked, fake_model, run_job
from tests.helpers.caption_worlds import captions_folder, captions_of, draw, index, written
from tests.helpers.fresh_processes import FORK_SERVER
from tests.helpers.places import REPO
from tests.helpers.stages import caption, run_on


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def job(store, tmp_path):
    """A worker's job on 120 images, and what is needed to collect its results."""
    return make_job(store, tmp_path, images=120, seconds=0.02)


def make_job(store: ArtifactStore, folder: Path, *, images: int, seconds: float) -> Job:
    root = draw(folder / "people", images)
    return Job(
        home=str(store.root),
        images=index(store, root).to_json(),
        root=str(root),
        settings=fake_model(folder / "model").model_dump_json(),
        log=str(folder / "log"),
        seconds=seconds,
    )


def config_of(job):
    return stage_work.CaptionConfig.model_validate_json(job.settings)


def collect(store, job, **options):
    return caption(
        store, images=ArtifactRef(**job.images), images_root=Path(job.root), config=config_of(job), **options
    )


def folder_of(store, job):
    return captions_folder(store, config_of(job))


# Claims


def hold(folder: str, ready: str) -> None:
    claims = Claims(Path(folder))
    claims.take(7)
    Path(ready).touch()
    time.sleep(60)


def test_the_kernel_releases_the_claims_of_a_killed_worker(tmp_path):
    ready = tmp_path / "ready"
    child = FORK_SERVER.Process(target=hold, args=(str(tmp_path), str(ready)))
    child.start()
    wait_for(ready.exists)
    claims = Claims(tmp_path)
    assert not claims.take(7)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert claims.take(7)


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


# Two processes


@pytest.mark.parametrize("parts", [((0, 1), (0, 1)), ((0, 2), (1, 2))], ids=["free", "fixed"])
def test_two_processes_caption_every_image_once(store, job, monkeypatch, parts):
    jobs = [replace(job, part=part, of=of) for part, of in parts]
    with ProcessPoolExecutor(2, mp_context=FORK_SERVER) as pool:
        results = list(pool.map(run_job, jobs))
    (first, mine), (second, yours) = results
    assert first != second
    assert mine + yours == 120
    made = asked(Path(job.log))
    assert Counter(pid for pid, _ in made) == Counter({first: mine, second: yours})  # one may find nothing left
    assert len(made) == len(set(made)) == 120
    assert len(written(folder_of(store, job))) == len(set(written(folder_of(store, job)))) == 120
    if parts[0] != parts[1]:
        assert {bucket_of(image) % 2 for pid, image in made if pid == first} == {0}

    def no_engine(_):
        raise AssertionError("nothing is left to caption")

    monkeypatch.setattr(stage_work, "load_engine", no_engine)
    outcome = collect(store, job)
    assert outcome.note == "0 captions generated, 120 reused"
    frame = captions_of(outcome.made)
    assert frame["image_path"].tolist() == [f"{i:04d}.png" for i in range(120)]
    assert set(frame["status"]) == {"ok"}


def test_two_runs_of_the_whole_stage_share_the_work(store, job, monkeypatch):
    engines = []

    def load(_):
        engines.append(StubEngine(Path(job.log), 0.02))
        return engines[-1]

    monkeypatch.setattr(stage_work, "load_engine", load)
    child = FORK_SERVER.Process(target=run_job, args=(job,))
    child.start()
    wait_for(Path(job.log).exists)
    outcome = collect(store, job)
    child.join()
    assert 0 < outcome.generated < 120
    assert outcome.generated + outcome.reused == len(asked(Path(job.log))) == 120
    assert len(captions_of(outcome.made)) == 120


def part_of(store, job, **options):
    return caption_part(run_on(store, ArtifactRef(**job.images), job.root), config_of(job), **options)


def test_images_captioned_by_others_since_the_start_are_not_captioned_again(store, job, monkeypatch):
    """The second worker starts and ends while the first one loads its model and holds its first bucket."""
    others = []

    def load(_):
        if not others:
            others.append(None)
            others[0] = part_of(store, job)
        return StubEngine(Path(job.log), 0)

    monkeypatch.setattr(stage_work, "load_engine", load)
    first = part_of(store, job)
    assert first.generated + others[0].generated == len(asked(Path(job.log))) == 120
    assert 0 < first.generated < 10


# Workers that die or fail


def test_an_error_keeps_earlier_captions_and_releases_the_rest(store, job, monkeypatch):
    class Failing(StubEngine):
        def batch(self, items):
            if len(asked(self.log)) >= 24:
                raise RuntimeError("the device is gone")
            return super().batch(items)

    Path(job.log).touch()
    monkeypatch.setattr(stage_work, "load_engine", lambda _: Failing(Path(job.log), 0))
    with pytest.raises(RuntimeError, match="the device is gone") as kept_alive:
        part_of(store, job)
    assert len(written(folder_of(store, job))) == 24
    monkeypatch.setattr(stage_work, "load_engine", lambda _: StubEngine(Path(job.log), 0))
    assert part_of(store, job).generated == 96
    assert kept_alive.value


@pytest.fixture
def stuck(store, job):
    """A worker that holds some buckets and makes no progress."""
    child = FORK_SERVER.Process(target=run_job, args=(replace(job, seconds=600),))
    child.start()
    claims = folder_of(store, job) / "claims"
    wait_for(lambda: claims.is_dir() and len(list(claims.iterdir())) >= 8)
    time.sleep(0.2)
    yield child
    child.kill()
    child.join()


def test_a_part_skips_buckets_of_others_and_the_whole_waits_for_them(store, job, stuck, monkeypatch):
    monkeypatch.setattr(stage_work, "load_engine", lambda _: StubEngine(Path(job.log), 0))
    outcome = part_of(store, job)
    held = 120 - outcome.generated
    assert 0 < held < 60
    notes = []
    Timer(0.5, stuck.kill).start()
    outcome = collect(store, job, progress=lambda done, total, note: notes.append((done, total, note)))
    assert outcome.note == f"{held} captions generated, {120 - held} reused"
    assert (120 - held, 120, "waiting for other workers") in notes
    assert notes[-1][:2] == (120, 120)
    assert len(asked(Path(job.log))) == 120


SOAK = pytest.param(50, 2000, 0.2, marks=[pytest.mark.soak, pytest.mark.timeout(900)])


@pytest.mark.parametrize(("kills", "images", "seconds"), [(6, 240, 0.3), SOAK])
def test_killed_at_random_moments_two_writers_caption_every_image_once(store, tmp_path, kills, images, seconds):
    job = make_job(store, tmp_path, images=images, seconds=seconds)
    rng = random.Random(kills)
    folder = folder_of(store, job)
    writers = [start(job), start(job)]
    killed = set()
    while len(killed) < kills and any(writer.is_alive() for writer in writers):
        turn = rng.randrange(2)
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0.05, 0.5))
        else:  # during a write, if possible
            deadline = time.monotonic() + rng.uniform(0.1, 0.6)
            while not list(folder.glob(".part-*")) and time.monotonic() < deadline:
                time.sleep(0.0005)
        if writers[turn].is_alive():
            os.kill(writers[turn].pid, signal.SIGKILL)
            writers[turn].join()
            killed.add(writers[turn].pid)
        writers[turn] = start(job)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0

    assert killed, "done before the first kill: make the run longer"
    made = asked(Path(job.log))
    assert len(written(folder)) == len(set(written(folder))) == images
    assert not (folder / "quarantine").exists()
    assert all(pq.read_table(path).num_rows for path in folder.glob("part-*.parquet"))
    # Only captions that a killed writer had not saved are made twice: at most two shards of 16 and two batches of 8.
    again = Counter(image for _, image in made)
    assert set(again) == set(written(folder))
    assert len(made) - images <= kills * 48
    last = {image: pid for pid, image in made}
    assert all(pid in killed for pid, image in made if pid != last[image])
    outcome = collect(store, job)
    assert (outcome.generated, outcome.reused) == (0, images)
    rows = captions_of(outcome.made)
    assert rows["image_path"].tolist() == sorted(path.name for path in Path(job.root).iterdir())


LARGE = pytest.param(400_000, 40, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])


@pytest.mark.parametrize(("images", "kills"), [(2_000, 4), LARGE])
def test_four_workers_killed_and_resumed_fill_a_store_that_is_compacted_meanwhile(tmp_path, images, kills):
    """A tenth of four million images in the soak: no images on the disk, and an engine that answers at once."""
    home, rng = tmp_path / "home", random.Random(kills)
    shards = Shards(filling.folder_of(home))
    workers = [filling.start(FORK_SERVER, home, images) for _ in range(4)]
    for _ in range(kills):
        time.sleep(rng.uniform(0.1, 0.4) * (1 if images < 10_000 else 20))
        turn = rng.randrange(4)
        workers[turn].kill()
        workers[turn].join()
        compact(shards, most_parts=8, pack_rows=images // 4)
        workers[turn] = filling.start(FORK_SERVER, home, images)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    compact(shards, most_parts=0)
    snapshot = Snapshot(shards)
    snapshot.refresh()
    assert snapshot.check_packs()
    assert len(snapshot) == shards.count() == images
    assert snapshot.has(filling.digests(images)).all()
    assert not (shards.folder / "quarantine").exists()
    assert all(is_pack(name) for name in shards.shards())


def start(job):
    child = FORK_SERVER.Process(target=run_job, args=(job,))
    child.start()
    return child
