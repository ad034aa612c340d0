"""``clip-scgi study``: train every method and control over seeds, and say what makes a difference."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from data.artifacts.store import ArtifactStore
from data.config import build_config
from data.errors import ConfigError, raise_problems
from flows.preflight.check import problems_of
from flows.preflight.disk import check_output
from flows.preflight.plan import Plan
from flows.recipes import Recipe, build_recipe
from flows.report.scores import duration
from flows.scale import ScaleConfig
from flows.study.plan import GROUPS, PRESETS, StudyConfig
from flows.study.run import Done, Row, Run, do, plan
from flows.terminal import plain_console, progress_bar

BENCHMARK = "benchmark"
"""The recipe that is studied unless another is named."""
_LOG_INTERVAL = 30.0  # seconds between two lines of progress where the output is no terminal


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the command to the subparsers of ``clip-scgi``; `shared` holds --home and --set."""
    parser = commands.add_parser("study", parents=[shared], help="train every method and control over seeds")
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", default=BENCHMARK, help=f"default: {BENCHMARK}")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="quick", help="how much is run (default quick)")
    parser.add_argument("--seeds", type=int, help="repetitions of every variant, instead of the preset's")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, help="parts of the study, instead of the preset's")
    parser.add_argument("--same-people", action="store_true", help="seeds change the training, not the people")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="say what it will cost, and stop")
    parser.set_defaults(handler=_handle)


def _handle(arguments: argparse.Namespace) -> int:
    preset = PRESETS[arguments.preset]
    recipe = preset_recipe(arguments.recipe, arguments.preset, arguments.overrides)
    changes = {"seeds": arguments.seeds, "groups": arguments.groups, "resample": not arguments.same_people}
    chosen = {name: value for name, value in changes.items() if value is not None}
    config = build_config(StudyConfig, preset.config.model_dump() | chosen, "study")
    store = ArtifactStore(arguments.home) if arguments.home else ArtifactStore.default()
    return study(store, recipe, config, out=arguments.out, dry_run=arguments.dry_run)


def preset_recipe(name: str, preset: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe `name` in the size of a preset; what the user has set wins."""
    size = PRESETS[preset]
    draws = build_recipe(name, overrides)
    world = size.world if draws.synthetic is not None and not draws.data.root else ()
    return build_recipe(name, overrides, size=[*size.settings, *world])


def study(store: ArtifactStore, recipe: Recipe, config: StudyConfig, *, out: Path, dry_run: bool = False) -> int:
    """Run a study and write its results into `out`, anew after each run; return 1 when a run failed."""
    from flows.study.page import MARKDOWN, PAGE, write_results

    check_output(out, "--out")
    console = plain_console()
    console.print(
        Text.assemble((f"clip-scgi study {recipe.name}", "bold"), f": artefacts in {store.root}"), soft_wrap=True
    )
    with progress_bar("prepare") as progress:
        runs = list(plan(store, recipe, config, progress))
    _check(runs)
    _say_cost(console, runs)
    if dry_run:
        return 0
    settings = {"recipe": recipe.model_dump(mode="json"), "study": config.model_dump(mode="json")}
    rows_of: dict[str, Sequence[Row]] = {}
    rows: list[Row] = []
    with progress_bar("study", interval=_LOG_INTERVAL) as progress:
        for done in do(runs, progress):
            console.print(_line(done), soft_wrap=True)
            rows_of[done.run.label] = done.rows
            if not done.cached or len(rows_of) == len(runs):
                rows = [row for run in runs for row in rows_of.get(run.label, ())]
                write_results(out, rows, settings)
    console.print((out / MARKDOWN).read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    console.print(f"page      {(out / PAGE).resolve()}", highlight=False, soft_wrap=True)
    return 1 if any(row["status"] == "failed" for row in rows) else 0


def _check(runs: Sequence[Run]) -> None:
    """Raise ConfigError for all that is known to fail in the runs that are to do."""
    left = [run for run in runs if not run.obstacle and run.find() is None]
    found = dict.fromkeys(problem for run in left for problem in problems_of(_plan_of(run)))
    raise_problems("study", found, ConfigError)


def _plan_of(run: Run) -> Plan:
    reads = run.variant.captions not in ("none", "true")
    captioned = not reads or run.inputs.find("captioner") is not None
    return Plan(
        store=run.inputs.store,
        images=run.inputs.images,
        caption=run.inputs.config,
        train=run.train,
        evaluate=run.evaluate,
        scale=ScaleConfig(),
        stages=frozenset(["train", "evaluate", *([] if captioned else ["caption"])]),
    )


def _say_cost(console: Console, runs: Sequence[Run]) -> None:
    """Say how many runs there are and about how long those will take that have not been done."""
    left = [run for run in runs if not run.obstacle and run.find() is None]
    console.print(f"{len(runs)} runs, {len(left)} of them to do", highlight=False)
    if not left:
        console.print("nothing to train: about 0 s", highlight=False)
        return
    from flows.study.cost import estimate

    cost = estimate(left)
    console.print(
        f"about {duration(cost.seconds)} of training: {cost.steps:,} steps in {cost.runs} runs, "
        f"{1000 * cost.seconds / cost.steps:.0f} ms a step on this machine as busy as it is",
        highlight=False,
        soft_wrap=True,
    )
    uncaptioned = {plan.images.fingerprint for plan in map(_plan_of, left) if "caption" in plan.stages}
    captioning = f"captioning {len(uncaptioned)} dataset(s) and " if uncaptioned else ""
    console.print(
        f"{captioning}evaluating come on top; their time is not known before a first run",
        highlight=False,
        soft_wrap=True,
    )


def _line(done: Done) -> Text:
    """Return one line about a finished run."""
    status = "cached" if done.cached else done.rows[0]["status"]
    line = Text().append("✗ " if status == "failed" else "✓ ", "red" if status == "failed" else "green")
    line.append(f"{done.run.label:<28}", "bold").append(f"{status:<8}").append(f"{duration(done.seconds):>10}  ")
    shown = [row for row in done.rows if row["status"] == "ok" and row["variant"] == done.run.variant.name]
    scores = ", ".join(f"{row['mode']} mAP {100 * row['mAP']:.1f}" for row in shown)
    return line.append(scores or str(done.rows[0]["error"]), "dim")
