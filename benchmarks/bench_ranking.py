"""Ranking compared with the bare matrix product, at the sizes of Market-1501 and MSMT17, on random 512-d features.

    python benchmarks/bench_ranking.py [market1501] [msmt17] [--peer FOLDER]

It prints per size the best wall and CPU seconds of the product alone (blocks of rows into one buffer, and whole where
that fits) and of `evaluate_ranking`, measured in turns, their ratio, and the peak memory of the process. Targets: a
ratio of at most 1.25, and under 2 GB at the second size. FOLDER is a checkout of github.com/Syliz517/CLIP-ReID, whose
evaluation is then measured too at the first size (the second does not fit in memory).
"""

from __future__ import annotations

import argparse
import importlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reid.ranking.metrics import evaluate_ranking

Pair = tuple[NDArray[np.int64], NDArray[np.int64]]

DIM = 512
# queries, gallery, identities, cameras, repeats
SIZES = {"market1501": (3_368, 15_913, 750, 6, 7), "msmt17": (11_659, 82_161, 3_060, 15, 2)}


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_gib() -> float:
    """Return the peak resident memory of this process, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peer_evaluation(folder: Path) -> Callable[..., object]:
    """Return the public code's evaluation: distances of all pairs, then CMC and mAP."""
    sys.path.insert(0, str(folder))
    metrics = importlib.import_module("utils.metrics")

    def evaluate(q: torch.Tensor, g: torch.Tensor, pids: Pair, cams: Pair) -> object:
        return metrics.eval_func(metrics.euclidean_distance(q, g), *pids, *cams)

    return evaluate


def bench(name: str, peer: Path | None) -> None:
    """Measure one size in this process."""
    queries, gallery, people, cameras, repeats = SIZES[name]
    rng = np.random.default_rng(0)
    query = rng.standard_normal((queries, DIM), dtype=np.float32)
    others = rng.standard_normal((gallery, DIM), dtype=np.float32)
    pids = rng.integers(0, people, queries), rng.integers(0, people, gallery)
    cams = rng.integers(0, cameras, queries), rng.integers(0, cameras, gallery)
    q, g = torch.from_numpy(query), torch.from_numpy(others)
    rows = 1024
    buffer = torch.empty(rows, gallery)

    def blocks() -> None:
        for start in range(0, queries, rows):
            part = q[start : start + rows]
            torch.mm(part, g.T, out=buffer[: len(part)])

    def whole() -> None:
        if name == "market1501":
            torch.mm(q, g.T)

    def ours() -> None:
        evaluate_ranking(query, others, *pids, *cams)

    evaluate_ranking(query[:64], others[:640], pids[0][:64], pids[1][:640], cams[0][:64], cams[1][:640])  # compile
    works: dict[str, Callable[[], object]] = {"blocks": blocks, "whole": whole, "ours": ours}
    if peer is not None and name == "market1501":
        works["peer"] = partial(peer_evaluation(peer), q, g, pids, cams)
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in works}
    start = peak_gib()
    for _ in range(repeats):
        for label, work in works.items():
            times[label].append(measure(work))
    best = {label: [min(values) for values in zip(*runs, strict=True)] for label, runs in times.items()}
    bare = (
        best["blocks"]
        if name != "market1501"
        else [min(pair) for pair in zip(best["blocks"], best["whole"], strict=True)]
    )
    print(
        f"{name}: {queries:,} x {gallery:,} x {DIM}, {torch.get_num_threads()} threads\n"
        f"  bare product {bare[0]:.2f} s wall, {bare[1]:.2f} s CPU\n"
        f"  ranking      {best['ours'][0]:.2f} s wall, {best['ours'][1]:.2f} s CPU\n"
        f"  ratio        {best['ours'][0] / bare[0]:.3f} wall, {best['ours'][1] / bare[1]:.3f} CPU\n"
        f"  peak memory  {peak_gib():.2f} GiB ({start:.2f} GiB before: libraries, features, the product's buffer)"
    )
    if "peer" in best:
        print(f"  peer         {best['peer'][0]:.2f} s wall, {best['peer'][0] / best['ours'][0]:.1f} x ours")


def main() -> None:
    """Run each size in a separate process, so that its memory is measured separately."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"one of {', '.join(SIZES)}; default: all")
    parser.add_argument("--peer", type=Path, help="checkout of github.com/Syliz517/CLIP-ReID")
    arguments = parser.parse_args()
    if len(arguments.sizes) == 1:
        bench(arguments.sizes[0], arguments.peer)
        return
    peer = ["--peer", str(arguments.peer.resolve())] if arguments.peer else []
    for name in arguments.sizes or list(SIZES):
        subprocess.run([sys.executable, __file__, name, *peer], check=True)


if __name__ == "__main__":
    main()
