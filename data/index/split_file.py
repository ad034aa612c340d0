"""split.csv: the splits by rule in a form that a person can read, one line per identity."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from data.columns.records import Ints, Records
from data.files import write_text
from data.people import UNKNOWN_CAMERA
from data.splits import SPLITS

SPLIT_FILE: Final = "split.csv"
COLUMNS: Final = ("pid", "label", *SPLITS, "cameras")
"""Identity, its label (empty without one), its images in each split, and its cameras (empty if unknown)."""


def write_split(file: Path, records: Records) -> None:
    """Write split.csv, ordered by identity."""
    pids, number = np.unique(records.pids, return_inverse=True)
    images = _counted(records.labels * np.int64(len(pids)) + number, records.splits, len(SPLITS))
    cameras, camera = np.unique(records.camids, return_inverse=True)
    seen: defaultdict[int, list[int]] = defaultdict(list)
    for pair in np.unique(number * len(cameras) + camera).tolist():
        if cameras[pair % len(cameras)] != UNKNOWN_CAMERA:
            seen[pair // len(cameras)].append(int(cameras[pair % len(cameras)]))
    rows = [
        (int(pids[pair % len(pids)]), records.texts[pair // len(pids)], counts, seen[pair % len(pids)])
        for pair, counts in images.items()
    ]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows([pid, label, *counts, " ".join(map(str, known))] for pid, label, counts, known in sorted(rows))
    write_text(file, text.getvalue())


def _counted(groups: Ints, codes: NDArray[np.int8], width: int) -> dict[int, list[int]]:
    """Return group -> how often each code below `width` occurs in it."""
    found, place = np.unique(groups, return_inverse=True)
    counts = np.bincount(place * width + codes, minlength=len(found) * width).reshape(-1, width)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
