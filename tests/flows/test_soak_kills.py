"""The whole command, killed at random moments: the next run resumes, and nothing is lost or done twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pandas as pd
import pytest

from data.artifacts.store import ArtifactStore
from tests.helpers.places import REPO

KILLS = 20
COMMAND = [
    *(sys.executable, "-m", "flows.cli.app", "demo"),
    *("--set", "synthetic.train_identities=24"),
    *("--set", "synthetic.test_identities=12"),
    *("--set", "train.schedule.epochs=6"),
    *("--set", "train.checkpoint_every=3"),
]


@pytest.fixture
def orphans():
    """Process groups to end with the test, in case a killed command leaves processes behind."""
    groups: list[int] = []
    yield groups
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_run_killed_at_random_moments_ends_with_every_image_once(tmp_path, orphans):
    home = tmp_path / "home"
    environment = {**os.environ, "CLIP_SCGI_HOME": str(home)}
    rng = random.Random(0)
    killed = 0
    while killed < KILLS:
        process = subprocess.Popen(
            COMMAND, cwd=REPO, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        orphans.append(process.pid)
        # Prefect alone takes about ten seconds to start.
        time.sleep(rng.uniform(8, 45))
        if process.poll() is not None:
            break  # it finished before the next kill
        process.kill()
        process.wait()
        killed += 1
    assert killed > 3, "the run ended before it was killed a few times: make it longer"
    done = subprocess.run(COMMAND, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    store = ArtifactStore(home)
    for stage in ("index", "caption", "audit", "train", "evaluate", "report"):
        (folder,) = (home / "stages" / stage).iterdir()
        assert store.problems(stage, folder.name) == []
    (images,) = (home / "stages" / "index").glob("*/images.parquet")
    (captions,) = (home / "stages" / "caption").glob("*/captions.parquet")
    paths = pd.read_parquet(images)["path"]
    rows = pd.read_parquet(captions)
    assert sorted(rows["image_path"]) == sorted(paths)
    assert rows["image_path"].is_unique
    assert (rows["status"] == "ok").mean() > 0.9
    shards = pd.concat(pd.read_parquet(path) for path in (home / "captions").glob("*/part-*.parquet"))
    assert set(shards["image_sha256"]) == set(rows["image_sha256"])
    assert not list((home / "stages").glob("*/.*")), "a killed run left a partial artifact behind"
