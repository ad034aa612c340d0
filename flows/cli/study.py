"""Action of ``clip-scgi study``: train and compare methods and controls over several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from data.config import build_config
from data.errors import ConfigError, counted, raise_problems
from flows.cli.inputs import artifact_store, recipe_of
from flows.preflight.check import problems_of
from flows.preflight.disk import check_output
from flows.preflight.finding import texts_of
from flows.preflight.plan import Plan
from flows.recipes import Recipe, ScaleConfig
from flows.study.plan import PRESETS, StudyConfig, Variant
from flows.study.rows import RunRow
from flows.study.run import Done, Run, do, plan
from flows.terminal import duration, plain_console, progress_bar

_LOG_INTERVAL = 30.0  # seconds between two lines of progress if the output is not a terminal


def study_config(preset: str, *, seeds: int | None, groups: Sequence[str], resample: bool) -> StudyConfig:
    """Return the study of a preset; `seeds` and `groups` replace the preset's own unless they are None or empty."""
    default = PRESETS[preset].config
    chosen = {"seeds": default.seeds if seeds is None else seeds, "groups": groups or default.groups}
    return build_config(StudyConfig, {**chosen, "resample": resample}, "study")


def preset_recipe(name: str, preset: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe `name` in the size of a preset; `overrides` win over the preset."""
    size = PRESETS[preset]
    draws = recipe_of(name, overrides)
    world = size.world if draws.synthetic is not None and not draws.data.root else ()
    return recipe_of(name, overrides, size=[*size.settings, *world])


def run_study(recipe: Recipe, config: StudyConfig, *, home: Path | None, out: Path, dry_run: bool = False) -> int:
    """Run a study, rewrite its results in `out` after each run, and return the exit status: 1 if a run failed."""
    from flows.study.page import MARKDOWN, PAGE, write_results

    check_output(out, "--out")
    settings = {"recipe": recipe.model_dump(mode="json"), "study": config.model_dump(mode="json")}

    def write(rows: Sequence[RunRow]) -> None:
        write_results(out, rows, settings)

    rows = run_variants("study", recipe, config, home=home, write=write, dry_run=dry_run)
    if rows is None:
        return 0
    console = plain_console()
    console.print((out / MARKDOWN).read_text(encoding="utf-8"), highlight=False, soft_wrap=True)
    console.print(f"page      {(out / PAGE).resolve()}", highlight=False, soft_wrap=True)
    return exit_status(rows)


def run_variants(
    command: str,
    recipe: Recipe,
    config: StudyConfig,
    *,
    home: Path | None,
    write: Callable[[Sequence[RunRow]], None],
    dry_run: bool,
    wanted: Callable[[Variant], bool] = lambda _: True,
) -> list[RunRow] | None:
    """Print the cost of the runs of a study and execute them; return their rows, or None for a dry run.

    command: its name in the title. write: receives all rows so far after each run that was not found finished, and at
    the end. wanted: selects variants of the groups in `config`.
    """
    console, store = plain_console(), artifact_store(home)
    title = Text.assemble((f"clip-scgi {command} {recipe.name}", "bold"), f": artifacts in {store.root}")
    console.print(title, soft_wrap=True)
    with progress_bar("prepare") as progress:
        runs = [run for run in plan(store, recipe, config, progress) if wanted(run.variant)]
    _check(runs)
    _print_cost(console, runs)
    return None if dry_run else _train(console, runs, command, write)


def exit_status(rows: Sequence[RunRow]) -> int:
    """Return 1 if a run failed, else 0."""
    return 1 if any(row.status == "failed" for row in rows) else 0


def _train(
    console: Console, runs: Sequence[Run], command: str, write: Callable[[Sequence[RunRow]], None]
) -> list[RunRow]:
    """Do the runs one after another, print a line about each, write the results, and return the rows."""
    rows_of: dict[str, Sequence[RunRow]] = {}
    rows: list[RunRow] = []
    with progress_bar(command, interval=_LOG_INTERVAL) as progress:
        for done in do(runs, progress):
            console.print(_line(done), soft_wrap=True)
            rows_of[done.run.label] = done.rows
            if not done.cached or len(rows_of) == len(runs):
                rows = [row for run in runs for row in rows_of.get(run.label, ())]
                write(rows)
    return rows


def _check(runs: Sequence[Run]) -> None:
    """Raise ConfigError for everything that is known to fail in the pending runs."""
    found = texts_of(problem for run in _pending(runs) for problem in problems_of(_plan_of(run)))
    raise_problems("study", found, ConfigError)


def _plan_of(run: Run) -> Plan:
    reads = run.variant.captions not in ("none", "true")
    captioned = not reads or run.inputs.find("captioner") is not None
    return Plan(
        run=run.inputs.run,
        caption=run.inputs.config,
        train=run.train,
        evaluate=run.evaluate,
        scale=ScaleConfig(),
        data=run.inputs.data,
        stages=frozenset(["train", "evaluate", *([] if captioned else ["caption"])]),
    )


def _print_cost(console: Console, runs: Sequence[Run]) -> None:
    """Print the number of runs and an estimate of the time that the pending ones take."""
    pending = _pending(runs)
    console.print(f"{counted(len(runs), 'run')}, {len(pending)} of them pending", highlight=False)
    if not pending:
        console.print("nothing to train: about 0 s", highlight=False)
        return
    from flows.study.cost import estimate

    cost = estimate(pending)
    console.print(
        f"about {duration(cost.seconds)} of training: {counted(cost.steps, 'step')} in {counted(cost.runs, 'run')}, "
        f"{1000 * cost.seconds / cost.steps:.0f} ms per step under the current load",
        highlight=False,
        soft_wrap=True,
    )
    uncaptioned = {plan.run.images.ref.fingerprint for plan in map(_plan_of, pending) if "caption" in plan.stages}
    captioning = f"captioning of {counted(len(uncaptioned), 'dataset')} and " if uncaptioned else ""
    console.print(
        f"not included: {captioning}evaluation; their time is unknown before the first run",
        highlight=False,
        soft_wrap=True,
    )


def _pending(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that can be done and have no result yet."""
    return [run for run in runs if not run.obstacle and run.find() is None]


def _line(done: Done) -> Text:
    """Return one line for a finished run."""
    status = "cached" if done.cached else done.rows[0].status
    line = Text().append("✗ " if status == "failed" else "✓ ", "red" if status == "failed" else "green")
    line.append(f"{done.run.label:<28}", "bold").append(f"{status:<8}").append(f"{duration(done.seconds):>10}  ")
    shown = [row for row in done.rows if row.status == "ok" and row.variant == done.run.variant.name]
    scores = ", ".join(f"{row.mode} mAP {100 * row.scores['mAP']:.1f}" for row in shown)
    return line.append(scores or str(done.rows[0].error), "dim")
