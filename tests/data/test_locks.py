"""File locks: who waits, who is refused, and what a killed holder leaves."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from data.process.locks import is_locked, lock, try_lock


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "deep" / "file"


def test_one_holder_at_a_time(path):
    with lock(path):
        assert is_locked(path)
        assert try_lock(path) is None
    assert not is_locked(path)
    held = try_lock(path)
    assert held is not None
    assert try_lock(path) is None
    held.close()
    with lock(path):
        pass


def test_a_waiter_goes_on_when_the_holder_is_done(path):
    order = []

    def wait() -> None:
        with lock(path):
            order.append("waiter")

    with lock(path):
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.2)
        order.append("holder")
    waiter.join(60)
    assert order == ["holder", "waiter"]


def test_asking_changes_nothing_and_needs_no_write_access(path):
    lock(path).close()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert not is_locked(path)
    finally:
        path.parent.chmod(0o755)
    assert path.read_bytes() == b""


def _hold(path: Path, ready) -> None:
    with lock(path):
        ready.set()
        time.sleep(600)


def test_a_killed_holder_leaves_the_lock_free(path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(path, ready))
    holder.start()
    assert ready.wait(120)
    assert try_lock(path) is None
    holder.kill()
    holder.join()
    assert not is_locked(path)
    assert try_lock(path) is not None
