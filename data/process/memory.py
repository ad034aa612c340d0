"""Memory that this process no longer uses, given back to the system."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def release_unused() -> None:
    """Return freed memory to the system. Arrow and malloc of glibc would keep most of it for later."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
