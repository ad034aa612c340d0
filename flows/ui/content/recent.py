"""A few objects that were used last, kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The `most` objects that were used last, by key. Each is made once, also if several threads want it.

    weight: of an object. heaviest: of all of them together; one is kept, whatever it weighs.
    """

    def __init__(self, most: int, *, weight: Callable[[T], int] = lambda _: 0, heaviest: int = 0) -> None:
        self._most = most
        self._weight = weight
        self._heaviest = heaviest
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the object of `key`; `make` it if it is not kept. After an error of `make`, nothing is."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            self._kept.move_to_end(key)
            while len(self._kept) > self._most or (len(self._kept) > 1 and self._weigh() > self._heaviest):
                self._kept.popitem(last=False)
            return self._kept[key]

    def _weigh(self) -> int:
        return sum(map(self._weight, self._kept.values()))
