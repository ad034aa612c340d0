"""Reading ahead: a stream of items is worked on in threads, before the results are wanted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each of `items`, in order, computed in `threads` threads.

    At most `ahead` results are computed or waiting at a time, and `items` is asked, in the caller's thread, for one
    more only when one of them has been taken. An error of `function` or of `items` is raised here. Close the generator
    unless it is used up: what has not begun is then canceled, and the threads end with the call that each is in.
    """
    remaining = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    try:
        waiting: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(remaining, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:
        # Not waited for: after an error the garbage collector may close this inside any thread, even a starting one.
        pool.shutdown(wait=False, cancel_futures=True)
