"""Small image folders with the file names and quirks of the public datasets."""

from __future__ import annotations

import io
import json
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


def described(split: str, pid: int, path: str, *sentences: str, path_key: str = "file_path") -> dict[str, object]:
    """Return one row of the JSON file of a text-based person search dataset, with the tokens that some have."""
    tokens = [text.lower().rstrip(".").split() for text in sentences]
    return {"split": split, "captions": list(sentences), path_key: path, "processed_tokens": tokens, "id": pid}


CUHK_PEDES = (
    described("train", 1, "CUHK01/0363004.png", "A man in a red coat.", "He wears a red coat and blue jeans."),
    described("train", 1, "CUHK01/0363005.png", "A man in red.", "A red coat."),
    described("train", 2, "cam_a/002_45.jpg", "A woman in a green dress.", "She wears a green dress."),
    described("train", 2, "cam_b/002_90.jpg", "A green dress."),
    described("val", 11004, "Market/0002_c1s1_000451_03.jpg", "A man in gray.", "Gray trousers."),
    described("test", 12004, "test_query/p1_s2.jpg", "A woman in a white shirt.", "White shirt, black skirt."),
    described("test", 12004, "Market/0007_c2s3_071052_01.jpg", "A white shirt.", "A woman with a black skirt."),
    described("test", 12005, "CUHK03/1_2.png", "A man with a yellow bag.", "Yellow bag, brown trousers."),
    described("test", 12005, "CUHK03/1_1.png", "A man in brown trousers.", "He has a yellow bag.", "A bag."),
)
ICFG_PEDES = (
    described("train", 0, "test/0627/0627_010_05_0303morning_0029_1.jpg", "A man in a red coat."),
    described("train", 0, "train/0001/0001_000_01_0303noon_0015_0_ex.jpg", "A red coat and jeans."),
    described("test", 0, "test/0001/0001_003_14_0303noon_0113_1.jpg", "A woman in white."),
    described("test", 0, "train/0040/0040_001_02_0302noon_0113_1.jpg", "A white dress."),
)
RSTPREID = (
    described("train", 0, "0000_c14_0031.jpg", "A man in gray.", "A gray jacket.", path_key="img_path"),
    described("train", 0, "0000_c1_0004.jpg", "Gray and blue.", "Brown shoes.", path_key="img_path"),
    described("val", 3701, "3701_c2_0001.jpg", "A man.", "A man in black.", path_key="img_path"),
    described("test", 3901, "3901_c5_0022.jpg", "A woman in red.", "A red dress.", path_key="img_path"),
    described("test", 3901, "3901_c7_0015.jpg", "A dress.", "She wears red.", path_key="img_path"),
)
TEXT_SEARCH = {
    "cuhk_pedes": ("reid_raw.json", "file_path", CUHK_PEDES),
    "icfg_pedes": ("ICFG-PEDES.json", "file_path", ICFG_PEDES),
    "rstpreid": ("data_captions.json", "img_path", RSTPREID),
}
"""Reader -> name of its JSON file, field with the path of an image, and rows of a small tree."""


def text_search(root: Path, reader: str, *more: object) -> Path:
    """Write the tree of a reader of `TEXT_SEARCH`, images and JSON file, with `more` rows at the end."""
    name, path_key, rows = TEXT_SEARCH[reader]
    put(root, *(f"imgs/{row[path_key]}" for row in rows))
    (root / name).write_text(json.dumps([*rows, *more]), encoding="utf-8")
    return root
