"""Action of ``clip-scgi study``: train and compare methods and controls over several seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from data.artifacts.inventory import try_lock
from data.config import build_config
from data.errors import ConfigError, counted, raise_problems
from flows.cli.inputs import artifact_store, recipe_of
from flows.preflight.check import problems_of
from flows.preflight.disk import check_output
from flows.preflight.finding import texts_of
from flows.preflight.plan import Plan
from flows.recipes import Recipe, ScaleConfig
from flows.study.loop import Done, do
from flows.study.plan import PRESETS, StudyConfig, Variant
from flows.study.rows import RunRow
from flows.study.run import TURN, Run, World, plan
from flows.terminal import duration, plain_console, progress_bar

_LOG_INTERVAL = 30.0  # seconds between two lines of progress if the output is not a terminal
_WRITE_INTERVAL = 30.0  # least seconds between two writings of the results
_WRITE_SHARE = 20  # the results of a large study take a minute: write at most for one twentieth of the time


def study_config(
    preset: str, *, seeds: int | None, groups: Sequence[str], resample: bool, recipe: str = ""
) -> StudyConfig:
    """Return the study of a preset; `seeds` and `groups` replace the preset's own unless they are None or empty.

    recipe: chooses the groups of the preset that are studied with it; by default all of them.
    """
    default = PRESETS[preset].config
    chosen = {
        "seeds": PRESETS[preset].seeds_of(recipe) if seeds is None else seeds,
        "sweep_seeds": default.sweep_seeds if seeds is None else None,
        "groups": groups or (PRESETS[preset].groups_of(recipe) if recipe else default.groups),
    }
    return build_config(StudyConfig, {**chosen, "resample": resample}, "study")


def preset_recipe(name: str, preset: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe `name` in the size of a preset; `overrides` win over the preset."""
    size = PRESETS[preset]
    draws = recipe_of(name, overrides)
    world = size.world if draws.synthetic is not None and not draws.data.root else ()
    return recipe_of(name, overrides, size=[*size.settings, *world, *size.own.get(name, ())])


def worlds_of(
    recipe: str | None,
    preset: str,
    overrides: Sequence[str],
    *,
    seeds: int | None,
    groups: Sequence[str],
    resample: bool,
) -> list[World]:
    """Return the world of `recipe` or, without one, those of the preset, each with its groups.

    groups: replace those of the preset; without a recipe, each world has those of them that make sense there. Raises
    ConfigError if none is left.
    """
    found = []
    for name in [recipe] if recipe else PRESETS[preset].worlds:
        known = PRESETS["full"].groups_of(name)
        chosen = groups if recipe else [group for group in groups if group in known]
        if groups and not chosen:
            continue
        config = study_config(preset, seeds=seeds, groups=chosen, resample=resample, recipe=name)
        found.append(World(preset_recipe(name, preset, overrides), config))
    if not found:
        raise ConfigError(f"study: none of the worlds of --preset {preset} has the groups {', '.join(groups)}")
    return found


def run_study(worlds: Sequence[World], *, home: Path | None, out: Path, dry_run: bool = False) -> int:
    """Run a study, rewrite its results in `out` as runs finish, and return the exit status: 1 if a run failed."""
    from flows.study.results.page import MARKDOWN, PAGE, ResultWriter

    check_output(out, "--out")
    settings = {
        world.recipe.name: {name: part.model_dump(mode="json") for name, part in world._asdict().items()}
        for world in worlds
    }
    writer = ResultWriter(out, settings, artifact_store(home))
    rows = run_worlds("study", worlds, home=home, write=writer.write, dry_run=dry_run)
    if rows is None:
        return 0
    writer.finish(rows)
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
    """Do the same as `run_worlds` in one world."""
    worlds = [World(recipe, config)]
    return run_worlds(command, worlds, home=home, write=write, dry_run=dry_run, wanted=wanted)


def run_worlds(
    command: str,
    worlds: Sequence[World],
    *,
    home: Path | None,
    write: Callable[[Sequence[RunRow]], None],
    dry_run: bool,
    wanted: Callable[[Variant], bool] = lambda _: True,
) -> list[RunRow] | None:
    """Print the cost of the runs of a study and execute them; return their rows, or None for a dry run.

    command: its name in the title. write: receives all rows so far, now and then after a run that was not found
    finished, and at the end. wanted: selects variants of the groups of a world.
    """
    console, store = plain_console(), artifact_store(home)
    names = ", ".join(world.recipe.name for world in worlds)
    title = Text.assemble((f"clip-scgi {command} {names}", "bold"), f": artifacts in {store.root}")
    console.print(title, soft_wrap=True)
    with progress_bar("prepare") as progress:
        runs = [run for run in plan(store, worlds, progress) if wanted(run.variant)]
    pending = [run for run in runs if not run.obstacle and run.find() is None]
    _check(pending)
    console.print(f"{counted(len(runs), 'run')}, {len(pending)} of them pending", highlight=False)
    # One process measures: the others of this study would only disturb it.
    with try_lock(store, TURN, "estimate") as is_first:
        if is_first or dry_run:
            _print_cost(console, pending)
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
    due, width = -math.inf, max((len(run.label) for run in runs), default=0)
    with progress_bar(command, interval=_LOG_INTERVAL) as progress:
        for done in do(runs, progress):
            console.print(_line(done, width), soft_wrap=True)
            rows_of[done.run.label] = done.rows
            started, is_last = time.monotonic(), len(rows_of) == len(runs)
            if is_last or (started > due and not done.cached):
                rows = [row for run in runs for row in rows_of.get(run.label, ())]
                write(rows)
                now = time.monotonic()
                due = now + max(_WRITE_INTERVAL, _WRITE_SHARE * (now - started))
    return rows


def _check(pending: Sequence[Run]) -> None:
    """Raise ConfigError for everything that is known to fail in the pending runs."""
    found = texts_of(problem for run in pending for problem in problems_of(_plan_of(run)))
    raise_problems("study", found, ConfigError)


def _plan_of(run: Run) -> Plan:
    captioned = run.inputs.find("captioner") is not None
    return Plan(
        run=run.inputs.run,
        caption=run.inputs.config,
        train=run.train,
        evaluate=run.evaluate,
        scale=ScaleConfig(),
        data=run.inputs.data,
        stages=frozenset(["train", "evaluate", *([] if captioned else ["caption"])]),
    )


def _print_cost(console: Console, pending: Sequence[Run]) -> None:
    """Print an estimate of the time that the pending runs take."""
    if not pending:
        console.print("nothing to train: about 0 s", highlight=False)
        return
    from flows.study.cost import estimate

    cost = estimate(pending)
    for world, steps in cost.steps.items():
        console.print(f"{world:<20} {counted(steps, 'step')}", highlight=False)
    console.print(
        f"about {duration(cost.seconds)} of training: {counted(cost.all_steps, 'step')} in "
        f"{counted(cost.runs, 'training')} (equal ones are done once), {1000 * cost.seconds / cost.all_steps:.0f} ms "
        "per step under the current load",
        highlight=False,
        soft_wrap=True,
    )
    uncaptioned = _uncaptioned(pending)
    captioning = f"captioning of {counted(uncaptioned, 'dataset')} and " if uncaptioned else ""
    console.print(
        f"not included: {captioning}evaluation; their time is unknown before the first run",
        highlight=False,
        soft_wrap=True,
    )


def _uncaptioned(runs: Iterable[Run]) -> int:
    """Return the number of datasets of the runs without captions."""
    return len({run.inputs.turn for run in runs if run.inputs.find("captioner") is None})


def _line(done: Done, width: int) -> Text:
    """Return one line for a finished run. width: of the labels of all runs."""
    status = "cached" if done.cached else done.rows[0].status
    line = Text().append("✗ " if status == "failed" else "✓ ", "red" if status == "failed" else "green")
    line.append(f"{done.run.label:<{width}}  ", "bold").append(f"{status:<8}{duration(done.seconds):>10}  ")
    shown = [row for row in done.rows if row.status == "ok" and row.variant == done.run.variant.name]
    scores = ", ".join(_scores(row) for row in shown)
    return line.append(scores or str(done.rows[0].error), "dim")


def _scores(row: RunRow) -> str:
    text = f"{row.mode} mAP {100 * row.scores['mAP']:.1f}"
    return f"{text}, text mAP {100 * row.scores['t2i_mAP']:.1f}" if "t2i_mAP" in row.scores else text
