"""Cost of bf16 training in mAP: a recipe trained in float32 and in bf16 over seeds, with paired differences.

    python benchmarks/precision_cost.py --home FOLDER [--recipe demo] [--seeds 0 1 2] [--set KEY=VALUE ...]

Not part of `make bench`: six trainings of the demo take half an hour on two idle cores. A stopped run continues.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from data.files import read_json
from flows.execution.server import prefect_server
from flows.recipes import build_recipe
from flows.study.statistics.means import SeedMean, seed_mean
from flows.summary import RunSummary

PRECISIONS = ("no", "bf16")
HEADER = "| mode | float32 | bf16 | bf16 - float32, paired, with its 95 % t interval |\n|---|---|---|---|\n"


def main() -> None:
    """Run the missing trainings and print a table: mAP in percent, mean ± standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="artifact root")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    with prefect_server(options.home):
        found = {precision: [scores(options, seed, precision) for seed in options.seeds] for precision in PRECISIONS}
    sys.stdout.write(HEADER)
    for mode in found["no"][0]:
        sys.stdout.write(line(mode, *([run[mode] for run in found[precision]] for precision in PRECISIONS)))


def scores(options: argparse.Namespace, seed: int, precision: str) -> dict[str, float]:
    """Run the recipe up to its evaluation; return the mAP of the trained model in percent, by mode."""
    from flows.pipeline import caption_and_train  # Prefect reads its settings when it is first imported

    settings = [*options.overrides, f"train.seed={seed}", f"train.precision={precision}"]
    done = caption_and_train(build_recipe(options.recipe, settings), home=str(options.home), until="evaluate")
    folder = RunSummary.model_validate(done)["evaluate"].artifact.folder
    rows = read_json(folder / "metrics.json")["results"]
    return {row["mode"]: 100 * row["mAP"] for row in rows if row["model"] == "trained"}


def line(mode: str, float32: Sequence[float], bf16: Sequence[float]) -> str:
    """Return one line of the table. The two lists belong to the same seeds, in order."""
    paired = seed_mean([low - full for low, full in zip(bf16, float32, strict=True)])
    low, high = paired.interval or (math.nan, math.nan)
    interval = f"{paired.mean:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"| {mode} | {described(seed_mean(float32))} | {described(seed_mean(bf16))} | {interval} |\n"


def described(values: SeedMean) -> str:
    """Return mean and deviation, and the value of each seed."""
    each = ", ".join(f"{value:.1f}" for value in values.values)
    return f"{values.mean:.1f} ± {values.deviation:.1f} ({each})"


if __name__ == "__main__":
    main()
