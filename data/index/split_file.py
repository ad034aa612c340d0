"""split.csv: the splits by rule in a form that a person can read, one line per identity."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from data.files import write_text
from data.people import UNKNOWN_CAMERA
from data.readers.base import ImageRecord
from data.splits import SPLITS

SPLIT_FILE: Final = "split.csv"
COLUMNS: Final = ("pid", "label", *SPLITS, "cameras")
"""Identity, its label (empty without one), its images in each split, and its cameras (empty if unknown)."""


def write_split(file: Path, records: Sequence[ImageRecord]) -> None:
    """Write split.csv, ordered by identity."""
    images: defaultdict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    cameras: defaultdict[int, set[int]] = defaultdict(set)
    for record in records:
        images[record.pid, record.label][record.split] += 1
        cameras[record.pid].add(record.camid)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for (pid, label), counts in sorted(images.items()):
        known = sorted(cameras[pid] - {UNKNOWN_CAMERA})
        lines.writerow([pid, label, *(counts[split] for split in SPLITS), " ".join(map(str, known))])
    write_text(file, text.getvalue())
