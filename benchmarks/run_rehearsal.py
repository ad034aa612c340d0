"""The published run, rehearsed on a CPU in under twenty minutes: recipes market1501 and msmt17 at their true shapes.

    python benchmarks/run_rehearsal.py [--out FOLDER]

ViT-B/16 at 256 x 128 in batches of 64, both stages of CLIP-ReID, CLIP-SCGI, and LLaVA-1.5-7B with two layers of its
language model run by command line for a few steps, on generated trees and random weights in the formats of the hub.
It prints a table with peak memory and seconds, and writes it to table.md and rehearsal.json in FOLDER
(rehearsal-report). The exit status is 1 if a shape, the memory or the time is a surprise. It needs 10 GiB of memory
(half of it where the processor computes in bf16) and 5 GiB of disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from checks.files import add_row, announce
from checks.part import run_checks
from checks.runner import Part, run_parts
from checks.table import failed, table, write_json

if TYPE_CHECKING:
    from rehearsal.loading import Loading
    from rehearsal.recipe import RecipeRun

PARTS: Final = (
    Part(name="material", seconds=100),
    Part(name="llava", seconds=40),
    Part(name="vit_b16", seconds=40),
    Part(name="market1501", seconds=680),
    Part(name="msmt17", seconds=340),
)


def main() -> int:
    """Run all parts, or (with --part, in a process of its own) one of them."""
    options = _options()
    if options.part:
        run_one(options)
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as work:
        # Read at import, so set before the processes of the parts start.
        os.environ.update(HF_HUB_CACHE=f"{work}/hub", HF_HUB_OFFLINE="1")
        rows = run_parts(PARTS, Path(__file__), ["--work", work], options.out)
    shown = table(rows)
    (options.out / "table.md").write_text(shown, encoding="utf-8")
    about = {"date": time.strftime("%Y-%m-%d %H:%M"), "seconds": round(time.monotonic() - started, 1)}
    write_json(options.out / "rehearsal.json", rows, about)
    print(f"\n{shown}\n{about['seconds']} s; {options.out / 'table.md'}, {options.out / 'rehearsal.json'}")
    return int(failed(rows, complete=True))


def run_one(options: argparse.Namespace) -> None:
    """Run the checks of one part, and write its rows."""
    checks = _part(options.part, options.work).checks()
    announce(options.rows, checks)
    for row in run_checks(options.part, checks, budget=options.seconds):
        print(row, flush=True)
        add_row(options.rows, row)


def _part(name: str, work: Path) -> Loading | RecipeRun:
    if name in ("market1501", "msmt17"):
        from rehearsal.recipe import RecipeRun

        return RecipeRun(work, name)
    from rehearsal.loading import Loading

    return Loading(work, name)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("rehearsal-report"), help="folder of the table and the logs")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
