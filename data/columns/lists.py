"""List columns: a list per row, of which rows may have different lengths."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.columns.texts import Texts
from data.people import Mask

LIST_ROWS: Final = 1 << 13
"""Rows that are made at a time, because lists of texts are long."""


def lists_of(values: NDArray[Any] | Texts, filled: Mask) -> pa.ListArray:
    """Return a list per row, [N].

    filled: which of K places of each row have a value, [N, K]. values: these values, row by row.
    """
    offsets = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
