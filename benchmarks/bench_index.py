"""Time of indexing: a first and an unchanged run at the size of Market-1501, and manifests of growing length.

    python benchmarks/bench_index.py [--images 32668] [--rows 50000 100000 200000]

Small JPEG files are written to a temporary folder. Each manifest is measured in a separate process, because of its peak
memory. Targets: the unchanged run stays below 1.5 s, 200,000 rows below 1 GB, and time grows linearly with the rows.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.index.stage import IndexOutcome, index

T = TypeVar("T")
_CAMERAS = 6
_PER_IDENTITY = 16


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32_668, help="images of the Market-1501 tree")
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 100_000, 200_000], help="rows of the manifests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench_tree(folder / "market", options.images)
        for rows in options.rows:
            bench_manifest(folder / f"manifest-{rows}", rows)


def bench_tree(folder: Path, images: int) -> None:
    """Measure a first run and unchanged runs on a Market-1501 tree."""
    write_tree(folder / "set", images)
    time.sleep(0.2)  # digests of files younger than a clock tick are not kept
    store = ArtifactStore(folder / "store")
    config = DatasetConfig(reader="market1501", root=str(folder / "set"))
    report(f"tree, {images:,} images, first run", *timed(lambda: index(store, config=config)))
    for _ in range(3):
        report(f"tree, {images:,} images, unchanged", *timed(lambda: index(store, config=config)))
    report(f"tree, {images:,} images, read again", *timed(lambda: index(store, config=config, reread=True)))


def bench_manifest(folder: Path, rows: int) -> None:
    """Measure a manifest of `rows` rows, one file per row, in a new process."""
    write_manifest(folder, rows)
    time.sleep(0.2)
    process = multiprocessing.get_context("spawn").Process(target=_measure_manifest, args=(folder, rows))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _measure_manifest(folder: Path, rows: int) -> None:
    store = ArtifactStore(folder / "store")
    config = DatasetConfig(reader="manifest", root=str(folder))
    for label in ("first run", "unchanged"):
        result = timed(lambda: index(store, config=config))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report(f"manifest, {rows:,} rows, {label}", *result, f", peak {peak:,.0f} MB")


def timed(work: Callable[[], T]) -> tuple[float, float, T]:
    """Return wall seconds, CPU seconds and the result of one call."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - start, time.process_time() - start_cpu, result


def report(what: str, seconds: float, cpu: float, outcome: IndexOutcome, more: str = "") -> None:
    """Print one measurement. On a busy machine CPU seconds say more than wall seconds."""
    images = sum(counts["images"] for counts in outcome.images.description.counts.values())
    print(f"{what}: {seconds:.2f} s ({cpu:.2f} s of CPU), {images / seconds:,.0f} images/s, {outcome.note}{more}")


def labels(count: int) -> list[tuple[str, int, int]]:
    """Return (split, pid, camid) of `count` images: half of the identities train, one image in eight is a query."""
    rows = []
    for number in range(count):
        pid, turn = number // _PER_IDENTITY + 1, number % _PER_IDENTITY
        split = "train" if pid % 2 else "query" if turn % 8 == 0 else "gallery"
        rows.append((split, pid, turn % _CAMERAS + 1))
    return rows


def write_tree(folder: Path, count: int) -> None:
    """Write `count` JPEG crops of 128 x 64 under Market-1501's names; 256 contents repeat."""
    contents = [_jpeg(seed) for seed in range(256)]
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    for name in folders.values():
        (folder / name).mkdir(parents=True)
    for number, (split, pid, camid) in enumerate(labels(count)):
        name = f"{pid:04d}_c{camid}s1_{number:06d}_01.jpg"
        # The trailing number makes the bytes of each file unique; decoders ignore what follows the image.
        (folder / folders[split] / name).write_bytes(contents[number % 256] + number.to_bytes(4, "big"))


def write_manifest(folder: Path, count: int) -> None:
    """Write `count` tiny image files and the manifest.parquet that lists them."""
    content = _png()
    rows = labels(count)
    paths = [f"{number // 1000:03d}/{number:06d}.png" for number in range(count)]
    for path, number in zip(paths, range(count), strict=True):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content + number.to_bytes(4, "big"))
    splits, pids, camids = zip(*rows, strict=True)
    table = pa.table({"path": paths, "split": list(splits), "pid": list(pids), "camid": list(camids)})
    pq.write_table(table, folder / "manifest.parquet")


def _jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    return _encoded(Image.fromarray(noise).resize((64, 128)), "JPEG")


def _png() -> bytes:
    return _encoded(Image.new("RGB", (8, 16), (90, 120, 40)), "PNG")


def _encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


if __name__ == "__main__":
    main()
