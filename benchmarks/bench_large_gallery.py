"""Ranking of a gallery too large for whole rows of scores: time beside the bare product, memory beside the features.

    python benchmarks/bench_large_gallery.py [--queries 1024] [--gallery 2000000] [--folder FOLDER]

It writes random features of 512 values (4.1 GB at the default size) to a file in FOLDER, maps it into memory, and ranks
it. The memory is that of the process without the pages of that file, before and at its highest during the ranking.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reid.ranking.metrics import evaluate_ranking

DIM, IMAGES_EACH, CAMERAS = 512, 10, 6
_AT_ONCE = 1 << 16
_EVERY = 0.02  # seconds


def write_gallery(path: Path, rows: int) -> NDArray[np.float32]:
    """Write random features and return their memory map."""
    rng = np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIM))
    for start in range(0, rows, _AT_ONCE):
        out[start : start + _AT_ONCE] = rng.standard_normal((min(_AT_ONCE, rows - start), DIM), dtype=np.float32)
    out.flush()
    del out
    mapped: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return mapped


def own_memory() -> float:
    """Return the memory of this process without pages of files, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@contextmanager
def highest_memory() -> Iterator[list[float]]:
    """Yield a list whose only number is the highest memory so far."""
    highest, ended = [own_memory()], threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY):
            highest[0] = max(highest[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        ended.set()
        watcher.join()


def product(query: NDArray[np.float32], gallery: NDArray[np.float32]) -> None:
    """Multiply all queries with the gallery, some rows of it at a time."""
    for start in range(0, len(gallery), 8192):
        torch.mm(torch.from_numpy(query), torch.from_numpy(np.array(gallery[start : start + 8192])).T)


def main(queries: int, rows: int, folder: Path) -> None:
    """Measure and print."""
    rng = np.random.default_rng(1)
    gallery = write_gallery(folder / "gallery.npy", rows)
    query = rng.standard_normal((queries, DIM), dtype=np.float32)
    pids = [rng.integers(0, max(1, rows // IMAGES_EACH), count) for count in (queries, rows)]
    cameras = [rng.integers(0, CAMERAS, count) for count in (queries, rows)]
    evaluate_ranking(query, query, pids[0], pids[0], cameras[0], cameras[0], exclude="none")  # compiles the loops
    before = own_memory()
    started = time.process_time()
    product(query, gallery)
    bare = time.process_time() - started
    with highest_memory() as highest:
        started = time.process_time()
        evaluate_ranking(query, gallery, *pids, *cameras)
        ranked = time.process_time() - started
    print(
        f"{queries:,} x {rows:,} x {DIM}, {torch.get_num_threads()} threads\n"
        f"  bare product {bare:.1f} s of CPU\n"
        f"  ranking      {ranked:.1f} s of CPU, {ranked / bare:.2f} x\n"
        f"  memory       {before:,.0f} MB before, {highest[0]:,.0f} MB at most"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--gallery", type=int, default=2_000_000, help="images of the gallery")
    parser.add_argument("--folder", type=Path, help="where to write the features; a temporary folder if not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        main(given.queries, given.gallery, Path(name))
