"""Searching a gallery compared with the bare matrix product, at 100,000 and 1,000,000 embeddings of 512 values.

    python benchmarks/bench_gallery.py [100000] [1000000] [--folder FOLDER]

The embeddings are drawn: people with twenty images each, whose cosine is 0.5 on average, and who differ from each other
in 32 directions. Each size is built and measured in processes of its own. Printed per size, in milliseconds, best and
median of searches in turns: the product of the matrix in memory with one query; a search for the ten nearest without
and with filters; and by the index, with its recall@10. Targets: at most 3 times the product at 100,000; under 50 ms at
100,000 and under 200 ms at 1,000,000 with a filter; under 3 GB of memory; a recall of at least 0.98.

LanceDB (flat search), faiss (flat) and usearch (HNSW) are measured beside it if they are installed; none is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reid.gallery.entry import Entry
from reid.gallery.gallery import Gallery
from reid.gallery.index import build_index
from reid.gallery.layout import Space
from reid.gallery.writer import Writer

Float32s = NDArray[np.float32]
Work = Callable[[Float32s], object]

DIM: Final = 512
TOP: Final = 10
EACH: Final = 20
DIRECTIONS: Final = 32
CHUNK: Final = 50_000
HALF_YEAR: Final = 184 * 24 * 3600
TURNS: Final = 15
ASKED: Final = 200
COLORS: Final = ("red", "blue", "green", "black", "white")
WIDE: Final = "camera != 3"
NARROW: Final = "camera=3 and upper_color=red and time >= 2026-01-01 and confidence >= 0.8"


def people(start: int, stop: int) -> Float32s:
    """Return the embeddings of the images `start` to `stop` (multiples of EACH), float32 [N, D] of length one."""
    rng = np.random.default_rng(start)
    basis = np.random.default_rng(1).standard_normal((DIRECTIONS, DIM), dtype=np.float32)
    centers = rng.standard_normal(((stop - start) // EACH, DIRECTIONS), dtype=np.float32) @ basis / DIRECTIONS**0.5
    rows = np.repeat(centers, EACH, axis=0) + rng.standard_normal((stop - start, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def path_of(number: int) -> str:
    """Return the path of an image."""
    return f"/photos/person {number // EACH}/{number:07d}.jpg"


def entry(number: int) -> Entry:
    """Return what is known of one image."""
    return Entry(
        path=path_of(number),
        sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        label=f"person {number // EACH}",
        camera=number % 6,
        time=datetime(2025, 10, 1) + timedelta(seconds=number * 7919 % HALF_YEAR),
        caption="A man in a red coat.",
        attributes={"upper_color": COLORS[number // EACH % len(COLORS)]},
        confidences={"upper_color": number % 97 / 96},
    )


def chunks(count: int) -> Iterator[tuple[range, Float32s]]:
    """Yield the numbers and embeddings of `count` images."""
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        yield range(start, stop), people(start, stop)


def build(folder: Path, count: int) -> None:
    """Write the gallery."""
    started = time.perf_counter()
    gallery = Gallery.open(folder, space=Space(model="0" * 32, mode="joint", width=DIM))
    for numbers, rows in chunks(count):
        gallery.add([entry(number) for number in numbers], rows)
    print(f"{count:,} images written in {time.perf_counter() - started:.0f} s")


def queries(rows: Float32s) -> Float32s:
    """Return new images of people of the gallery."""
    rng = np.random.default_rng(99)
    noisy = rows[rng.choice(len(rows), ASKED)] + 0.7 * rng.standard_normal((ASKED, DIM), dtype=np.float32) / DIM**0.5
    return noisy / np.linalg.norm(noisy, axis=1, keepdims=True)


def measure(works: Mapping[str, Work], asked: Float32s) -> dict[str, list[float]]:
    """Return the milliseconds of each work for each query, in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work(asked[0])
    for query in asked[:TURNS]:
        for name, work in works.items():
            started = time.perf_counter()
            work(query)
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def show(times: Mapping[str, list[float]], bare: str) -> None:
    """Print best and median, and their ratios to those of the work `bare`."""
    best, middle = min(times[bare]), float(np.median(times[bare]))
    print(f"  {'':<44}{'best ms':>9}{'median':>9}{'ratio':>8}{'median':>8}")
    for name, values in times.items():
        low, mid = min(values), float(np.median(values))
        print(f"  {name:<44}{low:>9.1f}{mid:>9.1f}{low / best:>8.2f}{mid / middle:>8.2f}")


def recall(found: Callable[[Float32s], list[int]], rows: Float32s, asked: Float32s) -> float:
    """Return the share of the ten nearest rows that `found` returns too."""
    shared = 0
    for query in asked:
        exact = set(np.argpartition(-(rows @ query), TOP)[:TOP].tolist())
        shared += len(exact & set(found(query)))
    return shared / (TOP * len(asked))


def ours(folder: Path, count: int) -> None:
    """Measure searches beside the bare product."""
    rows = np.concatenate([rows for _, rows in chunks(count)])
    asked = queries(rows)
    gallery = Gallery.open(folder)
    number = {path_of(row): row for row in range(count)}
    works: dict[str, Work] = {"bare product, matrix in memory": lambda query: rows @ query}
    works["search, exact"] = lambda query: gallery.search(query, exact=True)
    passed = {where: gallery.search(asked[0], where=where).passed for where in (WIDE, NARROW)}
    works[f"search, filter that passes {passed[WIDE] / count:.0%}"] = lambda query: gallery.search(query, where=WIDE)
    works[f"search, four conditions that pass {passed[NARROW] / count:.1%}"] = lambda query: gallery.search(
        query, where=NARROW
    )
    show(measure(works, asked), next(iter(works)))
    exact = recall(lambda query: [number[hit.entry.path] for hit in gallery.search(query).hits], rows, asked)
    print(f"  exact search: recall@10 {exact:.4f}")
    started = time.perf_counter()
    with Writer(folder) as writer:
        writer.set_index(build_index(writer.snapshot))
    seconds = time.perf_counter() - started
    times = measure({"bare": works["bare product, matrix in memory"], "search by the index": gallery.search}, asked)
    show(times, "bare")
    found = recall(lambda query: [number[hit.entry.path] for hit in gallery.search(query).hits], rows, asked)
    print(f"  index: built in {seconds:.0f} s; {gallery.info().index}; of new queries {found:.4f}")
    with Writer(folder) as writer:
        writer.set_index(None)


def memory(folder: Path) -> None:
    """Search in a process that does nothing else, and print its peak memory."""
    gallery = Gallery.open(folder)
    query = people(0, EACH)[0]
    for where in (None, WIDE, NARROW):
        gallery.search(query, where=where)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  a process that only searches: {peak:.2f} GiB at its peak, the mapped files included")


def lancedb(folder: Path, count: int) -> None:
    """Measure LanceDB's flat search, without and with the same conditions, which it applies before the search."""
    import lancedb as lance  # type: ignore[import-not-found,unused-ignore]

    table: Any = None
    base = lance.connect(str(folder / "lance"))
    for numbers, rows in chunks(count):
        vector = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), DIM)
        entries = [entry(number) for number in numbers]
        part = pa.table(
            {
                "number": list(numbers),
                "camera": [item.camera for item in entries],
                "upper_color": [item.attributes["upper_color"] for item in entries],
                "time": [item.time for item in entries],
                "confidence": [item.confidence for item in entries],
                "vector": vector,
            }
        )
        table = base.create_table("g", part) if table is None else (table.add(part), table)[1]
    rows = np.concatenate([rows for _, rows in chunks(count)])
    asked = queries(rows)
    narrow = "camera = 3 and upper_color = 'red' and time >= timestamp '2026-01-01 00:00:00' and confidence >= 0.8"

    def flat(query: Float32s) -> Any:
        return table.search(query).distance_type("dot").select(["number", "_distance"]).limit(TOP).to_arrow()

    def filtered(query: Float32s) -> Any:
        asked_for = table.search(query).distance_type("dot").where(narrow, prefilter=True)
        return asked_for.select(["number", "_distance"]).limit(TOP).to_arrow()

    works: dict[str, Work] = {"bare product, matrix in memory": lambda query: rows @ query}
    works |= {"LanceDB, flat": flat, "LanceDB, flat, four conditions": filtered}
    print(f"  LanceDB {lance.__version__}")
    show(measure(works, asked), next(iter(works)))


def faiss(_: Path, count: int) -> None:
    """Measure faiss's flat search."""
    import faiss as engine  # type: ignore[import-not-found,unused-ignore]

    rows = np.concatenate([rows for _, rows in chunks(count)])
    asked = queries(rows)
    index = engine.IndexFlatIP(DIM)
    index.add(rows)
    works: dict[str, Work] = {"bare product, matrix in memory": lambda query: rows @ query}
    works["faiss, flat"] = lambda query: index.search(query[None], TOP)
    lists = round(count**0.5)
    started = time.perf_counter()
    inverted = engine.index_factory(DIM, f"IVF{lists},Flat", engine.METRIC_INNER_PRODUCT)
    inverted.train(rows[:: max(1, count // (64 * lists))])
    inverted.add(rows)
    seconds = time.perf_counter() - started
    for probes in (4, 8, 16, 32, 64, 128):
        inverted.nprobe = probes
        found = recall(lambda query: inverted.search(query[None], TOP)[1][0].tolist(), rows, asked)
        if found >= 0.98:
            break
    works[f"faiss, IVF{lists}, {probes} probes"] = lambda query: inverted.search(query[None], TOP)
    print(f"  faiss {engine.__version__}: IVF built in {seconds:.0f} s, recall@10 {found:.4f}")
    show(measure(works, asked), next(iter(works)))


def usearch(_: Path, count: int) -> None:
    """Measure usearch's graph with its default settings."""
    from usearch.index import Index  # type: ignore[import-not-found,unused-ignore]

    rows = np.concatenate([rows for _, rows in chunks(count)])
    asked = queries(rows)
    index = Index(ndim=DIM, metric="ip", dtype="f32")
    started = time.perf_counter()
    index.add(np.arange(count), rows)
    seconds = time.perf_counter() - started
    found = recall(lambda query: index.search(query, TOP).keys.tolist(), rows, asked)
    print(f"  usearch: graph built in {seconds:.0f} s, recall@10 {found:.4f}, {index.memory_usage / 2**30:.2f} GiB")
    works: dict[str, Work] = {"bare product, matrix in memory": lambda query: rows @ query}
    works["usearch, graph"] = lambda query: index.search(query, TOP)
    show(measure(works, asked), next(iter(works)))


def half(_: Path, count: int) -> None:
    """Measure a product in bfloat16, whose hundred best are compared again in float32."""
    import torch

    rows = np.concatenate([rows for _, rows in chunks(count)])
    asked = queries(rows)
    low = torch.from_numpy(rows).bfloat16()

    def search(query: Float32s) -> list[int]:
        scores = torch.mv(low, torch.from_numpy(query).bfloat16()).float()
        near = torch.topk(scores, 100).indices.numpy()
        return near[np.argsort(-(rows[near] @ query))][:TOP].tolist()

    print(f"  bfloat16: recall@10 {recall(search, rows, asked):.4f}")
    works: dict[str, Work] = {"bare product, matrix in memory": lambda query: rows @ query}
    works["bfloat16 product (torch), 100 again in float32"] = search
    show(measure(works, asked), next(iter(works)))


OTHERS: Final[dict[str, Callable[[Path, int], None]]] = {
    "lancedb": lancedb,
    "faiss": faiss,
    "usearch": usearch,
}
ALL: Final = {"half": half, **OTHERS}


def run_part(part: str, folder: Path, count: int) -> None:
    """Run one part in this process."""
    if part == "build":
        build(folder, count)
    elif part == "ours":
        ours(folder, count)
    elif part == "memory":
        memory(folder)
    else:
        ALL[part](folder, count)


def main() -> None:
    """Measure each size, every part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the galleries are written (default: a temporary folder)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        run_part(given.part, given.folder, given.sizes[0])
        return
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{DIM} values each, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}, {datetime.now():%Y-%m-%d}")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for count in given.sizes:
            place = Path(folder) / str(count)
            parts = ["build", "memory", "ours", *(["half", *OTHERS] if count == given.sizes[0] else [])]
            for part in parts:
                if part in OTHERS and find_spec(part) is None:
                    print(f"  {part}: not installed, not measured")
                    continue
                command = [sys.executable, __file__, str(count), "--folder", str(place), "--part", part]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
