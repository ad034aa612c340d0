"""Print what captions, storage, memory and searches cost at three sizes, with the formulas (docs/scaling.md).

    python benchmarks/scale_costs.py [--images 100000 --images 4000000]

Only the bytes per row are measured here; rates are those of docs/performance.md, and the rest is arithmetic.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from data.files import write_table
from data.schemas import CAPTIONS, IMAGES
from data.slots import SLOTS

SIZES: Final = (100_000, 4_000_000, 100_000_000)
RATE: Final = 73.4  # images/s on an H200: LLaVA-1.5-7B, slots, body tokens, not compiled (docs/performance.md)
LIMIT: Final = 96.5  # images/s there: the limit that the prompt of all tokens sets
EMBEDDED: Final = 979  # images/s there: JPEG files of 64 x 128 through ViT-B/16 in bf16, decoded by 16 cores
WIDTHS: Final = (512, 1280)  # values of the retrieval feature: a projected ViT-B/16; with the layer before it
SIDES: Final = (256, 128)  # pixels of a training image
EXACT_BYTES_PER_SECOND: Final = 1_000_000 * 512 * 4 / 0.0493  # exact search, two cores (docs/performance.md)
INDEX_SHARE: Final = 0.32  # of the exact search, by the gallery's index (docs/performance.md)
_ROWS: Final = 50_000
_WORDS: Final = ("black", "white", "red", "navy blue", "short", "long", "backpack", "coat", "jeans", "sneakers")


class Line(NamedTuple):
    """One line of the table. value: of a number of images, in `unit`."""

    what: str
    formula: str
    unit: str
    factor: float

    def cells(self, images: int) -> str:
        """Return the value at `images`, in its unit."""
        return f"{images * self.factor:,.3g}" if images * self.factor < 1000 else f"{images * self.factor:,.0f}"


def caption_bytes() -> float:
    """Return the bytes per row of a captions.parquet of drawn words."""
    rng = random.Random(0)
    rows = [_caption(rng, number) for number in range(_ROWS)]
    schema = pa.schema([*CAPTIONS])
    return _bytes(pa.Table.from_pylist(rows, schema), schema)


def _caption(rng: random.Random, number: int) -> dict[str, object]:
    words = [rng.choice(_WORDS) for _ in SLOTS]
    text = f"A {words[0]} person with {', '.join(words[1:-1])} and a {words[-1]} bag."
    given = {f"attr_{slot}": word for slot, word in zip(SLOTS, words, strict=True)}
    sure = {f"conf_{slot}": rng.random() for slot in SLOTS}
    about = {"caption": text, "raw_text": text, "status": "ok", "n_replies": 1, "n_tokens": 45, "truncated": False}
    model = {
        "template_id": "t",
        "model_id": "m",
        "model_revision": "r",
        "captioner_fingerprint": "f",
        "batch_size": 128,
    }
    return {**_image(number), **about, **model, **given, **sure}


def _image(number: int) -> dict[str, object]:
    path = f"train/{number % 4096:04d}/{number:09d}.jpg"
    digest = hashlib.sha256(path.encode()).hexdigest()
    return {"image_path": path, "image_sha256": digest, "split": "train", "pid": number // 20, "camid": number % 6}


def index_bytes() -> float:
    """Return the bytes per row of an images.parquet."""
    kinds = {field.name: field.type for field in IMAGES}
    rows = []
    for number in range(_ROWS):
        image = _image(number)
        known = {"path": image["image_path"], "sha256": image["image_sha256"], **image, "width": 64, "height": 128}
        rows.append({name: known.get(name, 0 if pa.types.is_integer(kinds[name]) else None) for name in kinds})
    return _bytes(pa.Table.from_pylist(rows, pa.schema([*IMAGES])), pa.schema([*IMAGES]))


def _bytes(table: pa.Table, schema: pa.Schema) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_table(path, table, schema)
        return path.stat().st_size / len(table)


@cache
def lines() -> list[Line]:
    """Return the lines of the table."""
    captions, index, giga = caption_bytes(), index_bytes(), 1e-9
    pixels, short = SIDES[0] * SIDES[1] * 3, WIDTHS[0] * 4
    return [
        Line("captions, measured rate", f"N / {RATE} / 3600", "GPU hours", 1 / RATE / 3600),
        Line("captions, limit of the prompt", f"N / {LIMIT} / 3600", "GPU hours", 1 / LIMIT / 3600),
        Line("embeddings, measured rate", f"N / {EMBEDDED} / 3600", "GPU hours", 1 / EMBEDDED / 3600),
        Line("images.parquet", f"N x {index:.0f} B", "GB", index * giga),
        Line(
            "captions.parquet, and once more in the caption store", f"2 N x {captions:.0f} B", "GB", 2 * captions * giga
        ),
        Line(f"pixel cache, {SIDES[0]} x {SIDES[1]}", f"N x {pixels:,} B", "GB", pixels * giga),
        *(
            Line(f"embeddings, {width} values, {kind}", f"N x {width} x {size} B", "GB", width * size * giga)
            for width in WIDTHS
            for kind, size in (("float32", 4), ("float16", 2))
        ),
        Line("gallery index: order of the lists", "N x 8 B + sqrt(N) x 2,048 B", "GB", 8 * giga),
        Line("memory of an exact search (mapped)", f"N x {short:,} B", "GB", short * giga),
        Line("exact search, two cores", f"N x {short:,} B / 41.5 GB/s", "ms", 1e3 * short / EXACT_BYTES_PER_SECOND),
        Line("search by the index", f"{INDEX_SHARE} of that", "ms", 1e3 * INDEX_SHARE * short / EXACT_BYTES_PER_SECOND),
    ]


def table(sizes: list[int]) -> str:
    """Return the table as Markdown."""
    head = ["what", "formula", "unit", *(f"{size:,}" for size in sizes)]
    rows = [[line.what, line.formula, line.unit, *(line.cells(size) for size in sizes)] for line in lines()]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, action="append", help="a number of images; may be repeated")
    print(table(parser.parse_args().images or list(SIZES)))
