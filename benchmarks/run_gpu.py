"""Everything that only a GPU can show, in one command of at most ten minutes; or its dry form, in tiny shapes on a CPU.

    python benchmarks/run_gpu.py [--dry] [--peer FOLDER] [--out FOLDER]

It prints a table of what was wanted and what was got, and writes it to table.md and gpu.json in FOLDER (gpu-report).
Every part has a budget; a check that does not fit into it is reported as not run. The exit status is 1 if a check
failed. The dry form judges no speeds. The model shapes are those of LLaVA-1.5-7B, ViT-B/16 and ResNet-50, with random
weights that are made on the device. --peer is a checkout of github.com/Syliz517/CLIP-ReID, to be measured beside.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from checks.files import add_row, announce
from checks.part import run_checks
from checks.runner import Part, run_parts
from checks.table import failed, table, write_json

PARTS: Final = (
    Part(name="ranking", seconds=35),
    Part(name="captioning", seconds=105),
    Part(name="compiled", seconds=130),
    Part(name="pipeline", seconds=80),
    Part(name="embedding", seconds=50),
    Part(name="training", seconds=190),  # last: what the others leave is added to it, and it has most checks
)
_DRY_FACTOR: Final = 2.0
"""Room for a busy machine: the dry form takes a minute and is there to show errors, not speed."""
_CLASSES: Final = {
    "captioning": ("gpu.captioning", "Captioning"),
    "compiled": ("gpu.captioning", "CompiledCaptioning"),
    "embedding": ("gpu.embedding", "Embedding"),
    "training": ("gpu.training", "Training"),
    "ranking": ("gpu.ranking", "RankingOnDevice"),
    "pipeline": ("gpu.pipeline", "Pipeline"),
}


def main() -> int:
    """Run all parts, or (with --part, in a process of its own) one of them."""
    options = _options()
    if options.part:
        run_one(options)
        return 0
    arguments = [*(["--dry"] if options.dry else []), *(["--peer", str(options.peer)] if options.peer else [])]
    started = time.monotonic()
    parts = [replace(part, seconds=_DRY_FACTOR * part.seconds) for part in PARTS] if options.dry else PARTS
    rows = run_parts(parts, Path(__file__), arguments, options.out)
    shown = table(rows)
    (options.out / "table.md").write_text(shown, encoding="utf-8")
    write_json(options.out / "gpu.json", rows, {**about(options), "seconds": round(time.monotonic() - started, 1)})
    print(f"\n{shown}\n{options.out / 'table.md'}\n{options.out / 'gpu.json'}")
    return int(failed(rows, complete=options.dry))


def run_one(options: argparse.Namespace) -> None:
    """Run the checks of one part, and write its rows."""
    from gpu.sizes import DRY, FULL
    from matrix_rate import ON_GPU

    if not ON_GPU and not options.dry:
        raise SystemExit("this machine has no usable CUDA device; the dry form needs none: make gpu DRY=1")
    module, name = _CLASSES[options.part]
    part = getattr(import_module(module), name)(replace(DRY if options.dry else FULL, peer=options.peer))
    checks = part.checks()
    if options.dry:
        checks = [replace(check, seconds=0) for check in checks]
    announce(options.rows, checks)
    for row in run_checks(options.part, checks, budget=options.seconds):
        print(row, flush=True)
        add_row(options.rows, row)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Return where and when the run took place."""
    import torch
    from matrix_rate import device_name

    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "device": device_name(),
        "form": "dry" if options.dry else "full",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="tiny shapes; runs on a CPU")
    parser.add_argument("--peer", type=lambda name: Path(name).resolve(), help="a checkout of Syliz517/CLIP-ReID")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of the table and the logs")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
