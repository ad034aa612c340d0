"""Two Ray workers caption one dataset with the plain function of the stage.

`make test` has the workers of the flow instead: `test_two_workers_caption_one_dataset` in tests/flows/test_pipeline.py.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from captioning.config import CaptionConfig
from data.artifacts.store import ArtifactRef, ArtifactStore
from tests.helpers.caption_stub import Job, asked, fake_model, run_job
from tests.helpers.caption_worlds import captions_folder, captions_of, draw, index, written
from tests.helpers.places import REPO
from tests.helpers.stages import caption

ray = pytest.importorskip("ray", reason="ray is not installed here: pip install 'clip-scgi[ray]'")


@pytest.fixture
def cluster():
    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(REPO)}},
    )
    yield
    ray.shutdown()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_ray_workers_caption_one_dataset(tmp_path, cluster):
    store = ArtifactStore(tmp_path / "home")
    root = draw(tmp_path / "people", 120)
    config = fake_model(tmp_path / "model")
    job = Job(
        home=str(store.root),
        images=index(store, root).to_json(),
        root=str(root),
        settings=config.model_dump_json(),
        log=str(tmp_path / "log"),
        seconds=0.1,
    )
    work = ray.remote(run_job)
    results = ray.get([work.remote(replace(job, part=part, of=2)) for part in range(2)])
    assert len({pid for pid, _ in results} - {os.getpid()}) == 2
    assert sum(made for _, made in results) == len(asked(Path(job.log))) == 120
    assert len(set(written(captions_folder(store, config)))) == 120
    outcome = caption(
        store,
        images=ArtifactRef(**job.images),
        images_root=root,
        config=CaptionConfig.model_validate_json(job.settings),
    )
    assert outcome.note == "0 captions generated, 120 reused"
    assert captions_of(outcome.made)["image_path"].is_unique
