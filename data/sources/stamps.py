"""Size and times of a local file as numbers of 64 bits, by which a change of the file is noticed."""

from __future__ import annotations

import os
from typing import Final

_MOST: Final = (1 << 63) - 1
_WHOLE: Final = 1 << 64


def numbers_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return size, mtime and ctime in nanoseconds.

    After the year 2262, the mtime, which any program can set, continues at the least number of 64 bits: different times
    stay different. The ctime, which tells whether a file may still change, stays at the largest one.
    """
    mtime = (status.st_mtime_ns + _MOST + 1) % _WHOLE - _MOST - 1
    return status.st_size, mtime, min(status.st_ctime_ns, _MOST)
