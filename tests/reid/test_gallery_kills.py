"""SIGKILL while images are added: what was reported is there, and the next command continues."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.artifacts.store import ArtifactStore
from reid.gallery.gallery import Gallery
from reid.gallery.layout import PARTS
from tests.helpers.data_trees import picture
from tests.helpers.galleries import SPACE, entry, vectors
from tests.helpers.places import REPO
from tests.helpers.small_models import write_model


def killed_after(words: list[str], reports: int, delay: float) -> int:
    """Run the child, kill it `delay` seconds after it has reported `reports` times, and return its last report."""
    command = [sys.executable, "-m", "tests.helpers.gallery_child", *words]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, text=True) as child:
        lines = [child.stdout.readline() for _ in range(reports)]
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
    whole = [int(line) for line in lines if line.endswith("\n")]
    return max(whole, default=0)


@pytest.mark.parametrize("point", range(5))
def test_what_was_reported_as_added_survives_sigkill(tmp_path, point):
    folder, count = tmp_path / "g", 1400
    chance = random.Random(point)
    reported = killed_after(["rows", str(folder), str(count)], 1 + 9 * point, 0.03 * chance.random())
    gallery = Gallery.open(folder)
    there = len(gallery)
    assert there >= reported > 0
    assert there < count, "the child was not killed in the middle"
    stored = gallery.snapshot()
    assert stored.take(np.arange(there)) == [entry(number) for number in range(there)]
    np.testing.assert_array_equal(stored.embeddings(np.arange(there)), vectors(count)[:there])
    gallery.add([entry(number) for number in range(count)], vectors(count))
    assert len(gallery) == count
    assert {path.name for path in (folder / PARTS).iterdir()} == gallery.snapshot().header.names
    assert gallery.remove(label="person 0").removed == 4


def test_a_killed_addition_of_images_continues(tmp_path):
    model = Path(write_model(ArtifactStore(tmp_path / "home")).path)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(400):
        (images / f"{number:03d}.jpg").write_bytes(picture(number))
    words = ["images", str(tmp_path / "g"), str(model), str(images)]
    first = killed_after(words, 3, 0.02)
    there = len(Gallery.open(tmp_path / "g"))
    assert 400 > there >= first > 0
    second = killed_after(words, 5, 0.0)
    assert second > first, "the second process reports what the first one added, and continues"
    again = len(Gallery.open(tmp_path / "g"))
    assert 400 >= again >= second


def test_a_child_killed_before_its_first_report_leaves_a_usable_folder(tmp_path):
    folder = tmp_path / "g"
    (folder / PARTS).mkdir(parents=True)
    (folder / "lock").touch()
    (folder / ".gallery.json.x.tmp").write_text("{")
    gallery = Gallery.open(folder, space=SPACE)
    assert gallery.add([entry(0)], vectors(1)).added == 1
    assert not list(folder.glob(".gallery.json.*"))
