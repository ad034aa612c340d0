"""Small galleries of made-up entries."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from reid.gallery.entry import Entry, Float32s
from reid.gallery.gallery import Gallery
from reid.gallery.layout import Space

WIDTH = 16
SPACE = Space(model="a" * 32, mode="joint", width=WIDTH)
START = datetime(2026, 1, 1)
COLORS = ("red", "blue", "green")


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> Float32s:
    """Return random vectors of length one, float32 [count, width]."""
    rows = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def entry(number: int, **changes: object) -> Entry:
    """Return entry `number` of person number // 4, camera number % 3, one per hour; float32 holds its confidences."""
    values = {
        "path": f"/photos/person {number // 4}/{number:05d}.jpg",
        "sha256": hashlib.sha256(str(number).encode()).hexdigest(),
        "label": f"person {number // 4}",
        "camera": number % 3,
        "time": START + timedelta(hours=number),
        "caption": f"Somebody in {COLORS[number % 3]}, number {number}.",
        "attributes": {"upper_color": COLORS[number % 3], "shoes": "black shoes"},
        "confidences": {"upper_color": (number % 8) / 8, "shoes": 0.9375},
    }
    return Entry(**{**values, **changes})  # type: ignore[arg-type]


def small_gallery(folder: Path, count: int = 40) -> Gallery:
    """Make a gallery of `count` entries with the vectors of seed 0."""
    gallery = Gallery.open(folder, space=SPACE)
    gallery.add([entry(number) for number in range(count)], vectors(count))
    return gallery
