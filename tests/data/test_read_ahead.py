"""Reading ahead: order, bound, errors and the end of the threads."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from data.process.read_ahead import map_ahead


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def wait_for_no_readers() -> None:
    deadline = time.monotonic() + 60
    while readers():
        assert time.monotonic() < deadline, "threads are left"
        time.sleep(0.01)


def test_results_come_in_order():
    def slow_first(number: int) -> int:
        time.sleep(0.05 if number % 4 == 0 else 0)
        return number * number

    assert list(map_ahead(slow_first, range(20), threads=4, ahead=6)) == [n * n for n in range(20)]
    assert list(map_ahead(slow_first, [], threads=4, ahead=6)) == []
    wait_for_no_readers()


def test_no_more_than_wanted_is_taken_from_the_source():
    taken = []

    def source():
        for number in range(100):
            assert threading.current_thread() is threading.main_thread()
            taken.append(number)
            yield number

    with closing(map_ahead(lambda number: number, source(), threads=2, ahead=5)) as results:
        assert taken == [], "nothing begins before the first result is wanted"
        for done in range(1, 4):
            next(results)
            assert len(taken) == 5 + done
    wait_for_no_readers()


def test_threads_work_beside_each_other():
    together = threading.Barrier(3, timeout=240)
    list(map_ahead(lambda _: together.wait(), range(6), threads=3, ahead=3))


@pytest.mark.parametrize("ahead", [1, 2, 50])
def test_an_error_comes_in_its_turn(ahead):
    def read(number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        return number

    results = map_ahead(read, range(20), threads=3, ahead=ahead)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)
    wait_for_no_readers()


def test_an_error_of_the_source_is_raised_and_ends_the_threads():
    def source():
        yield 1
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        list(map_ahead(lambda number: number, source(), threads=2, ahead=1))
    wait_for_no_readers()


def test_an_interrupted_reader_cancels_what_has_not_begun():
    begun, go_on = [], threading.Event()

    def read(number: int) -> None:
        begun.append(number)
        if number:
            go_on.wait(240)

    results = map_ahead(read, range(50), threads=2, ahead=50)
    next(results)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt())
    assert time.monotonic() - began < 30, "a reader that hangs is not waited for"
    assert len(begun) <= 3
    go_on.set()
    wait_for_no_readers()
    assert len(begun) <= 3
