"""Small image folders with the file names and quirks of the public datasets."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path

import numpy as np
from PIL import Image

LITTER = ("Thumbs.db", ".DS_Store", "._0002_c1s1_000451_03.jpg", "desktop.ini")


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (8, 16)) -> bytes:
    """Return the bytes of a small image. Each seed gives different pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 2, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize(size).save(stream, kind)
    return stream.getvalue()


TURNED = b"Exif\0\0II*\0" + struct.pack("<IHHHI4sHHI4sI", 8, 2, 0x0112, 3, 1, b"\6\0\0\0", 0x011A, 2, 3, b"72\0\0", 0)
"""EXIF with a rotation by 90 degrees and a resolution that is text. Pillow cannot apply the rotation, because it cannot
write the resolution back."""


def put(root: Path, *paths: str, first_seed: int = 0) -> None:
    """Write a different image to each path."""
    for seed, path in enumerate(paths, start=first_seed):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(seed, "PNG" if path.endswith("png") else "JPEG"))


def litter(*folders: Path) -> None:
    """Write to each folder the files that file managers leave behind."""
    for folder in folders:
        for name in LITTER:
            (folder / name).write_bytes(b"not an image")


MARKET_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
MARKET = {
    "bounding_box_train/0002_c1s1_000451_03.jpg": ("train", 2, 1),
    "bounding_box_train/0002_c3s1_000551_01.jpg": ("train", 2, 3),
    "bounding_box_train/0007_c6s4_002202_05.jpg": ("train", 7, 6),
    "bounding_box_train/0007_c2s3_071052_01.jpg": ("train", 7, 2),
    "query/0001_c1s1_001051_00.jpg": ("query", 1, 1),
    "query/0003_c5s1_015245_00.jpg": ("query", 3, 5),
    "bounding_box_test/0000_c1s1_000151_01.jpg": ("gallery", 0, 1),
    "bounding_box_test/0001_c2s1_000301_02.jpg": ("gallery", 1, 2),
    "bounding_box_test/0001_c1s1_001051_03.jpg": ("gallery", 1, 1),
    "bounding_box_test/0003_c1s6_015971_04.jpg": ("gallery", 3, 1),
}
MARKET_JUNK = ("bounding_box_test/-1_c1s1_000401_03.jpg", "bounding_box_test/-1_c6s3_072892_10.jpg")


def market(root: Path) -> Path:
    """Write a Market-1501 tree of ten images, two junk images and litter."""
    put(root, *MARKET, *MARKET_JUNK)
    litter(*(root / folder for folder in MARKET_FOLDERS))
    (root / "readme.txt").write_text("as in the archive")
    return root


def settle() -> None:
    """Wait until the files written so far are old enough for their digests to be kept."""
    time.sleep(0.12)
