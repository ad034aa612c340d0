"""Parts of a computation: each is computed once, also by several workers, and those of a killed worker return."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from data.process.locks import try_lock
from data.process.parts import Parts, slices
from data.progress import silent


@pytest.mark.parametrize(
    ("rows", "batch", "sizes"),
    [
        (0, 4, []),
        (10, 4, [4, 4, 2]),
        (1_000, 4, [12] * 83 + [4]),
        (200_000, 64, [1024] * 195 + [320]),
        (200_000, 3_000, [3_000] * 66 + [2_000]),
    ],
)
def test_parts_have_whole_batches(rows, batch, sizes):
    found = slices(rows, batch)
    assert [part.stop - part.start for part in found] == sizes
    assert [row for part in found for row in range(part.start, part.stop)] == list(range(rows))


def test_workers_share_the_parts(tmp_path):
    asked, done = [], []

    def compute(number):
        asked.append(number)
        return {"square": np.array([number * number]), "text": np.array([f"ä{number}"])}

    threads = [
        threading.Thread(target=lambda: done.append(Parts(tmp_path, 20).work(compute, silent))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == list(range(20))
    assert sum(done) == 20
    parts = Parts(tmp_path, 20)
    assert parts.missing() == []
    assert [int(parts.read(number)["square"][0]) for number in range(20)] == [number**2 for number in range(20)]
    assert str(parts.read(7)["text"][0]) == "ä7"
    assert parts.work(compute, silent) == 0


def test_a_worker_waits_for_parts_that_others_hold_and_takes_them_over(tmp_path):
    held = try_lock(tmp_path / "claims" / "1")
    notes = []

    def progress(done, total, note):
        notes.append((done, total, note))
        if note and not held.closed:
            held.close()  # the kernel does so when a worker is killed

    assert Parts(tmp_path, 3).work(lambda number: {"x": np.array([number])}, progress) == 3
    assert (2, 3, "waiting for other workers") in notes


def test_a_part_that_fails_does_not_exist(tmp_path):
    def compute(number):
        if number == 1:
            raise KeyboardInterrupt
        return {"x": np.array([number])}

    parts = Parts(tmp_path, 3)
    with pytest.raises(KeyboardInterrupt):
        parts.work(compute, silent)
    assert parts.missing() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.npz", "claims"]
