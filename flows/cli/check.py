"""Action of ``clip-scgi check``: every problem of a recipe at once, then what a run of it will cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from data.artifacts.stages import StageName
from data.errors import counted
from flows.cli.inputs import artifact_store
from flows.costs.costs import Costs, StageCost, costs_of
from flows.preflight.finding import AREAS, Area, Finding
from flows.preflight.inspection import Inspection, inspect
from flows.recipes import examine_recipe
from flows.terminal import duration, plain_console, progress_bar, size, waiting

_WIDTH: Final = 10  # columns of the names of areas


def check_recipe(
    name: str, overrides: Sequence[str], *, home: Path | None, until: StageName, probe: bool, as_json: bool
) -> int:
    """Print the problems, notices and costs of a recipe; return the exit status: 1 if there is a problem."""
    store, examined = artifact_store(home), examine_recipe(name, overrides)
    console = plain_console()
    if not as_json:
        title = Text.assemble((f"clip-scgi check {name}", "bold"), f": artifacts in {store.root}")
        console.print(title, soft_wrap=True)
    with progress_bar("index") as progress:
        found = inspect(store, examined, until, progress)
    if not as_json:
        show_findings(console, found)
    measures = probe and not found.problems and bool({"caption", "train"} & found.plan.stages)
    with waiting("measuring the speed on this machine") if measures else nullcontext():
        costs = costs_of(found, probe=probe)
    if as_json:
        console.print_json(json.dumps(as_plain(found, costs)))
    else:
        show_costs(console, costs)
        show_verdict(console, found)
    return 1 if found.problems else 0


def show_findings(console: Console, found: Inspection) -> None:
    """Print one line per area, and below it the problems and notices."""
    for area in AREAS:
        problems = [finding for finding in found.problems if finding.area == area]
        notices = [finding for finding in found.notices if finding.area == area]
        if area == "server" and found.recipe.caption.engine != "openai":
            continue
        console.print(_heading(area, problems, notices, is_checked=area not in found.unchecked))
        for mark, style, findings in (("✗", "red", problems), ("!", "yellow", notices)):
            for finding in findings:
                text = Text.assemble((f"{mark} ", style), finding.text)
                console.print(Padding(_hanging(text), (0, 0, 0, 2)), highlight=False)


def _heading(area: Area, problems: Sequence[Finding], notices: Sequence[Finding], *, is_checked: bool) -> Text:
    mark, style = ("✗", "red") if problems else ("!", "yellow") if notices else ("✓", "green")
    told = ", ".join(filter(None, [_count(problems, "problem"), _count(notices, "notice")]))
    if not is_checked:
        mark, style = (mark, style) if told else ("?", "yellow")
        told = f"{told}; the rest is checked" if told else "checked"
        told += " when the images can be read"
    return Text.assemble((f"{mark} ", style), (f"{area:<{_WIDTH}}", "bold"), told or "ok")


def _count(findings: Sequence[Finding], noun: str) -> str:
    return counted(len(findings), noun) if findings else ""


def _hanging(text: Text) -> Table:
    """Return `text` with its lines after the first indented below the first word, not below the mark."""
    grid = Table.grid(padding=(0, 0))
    grid.add_column(width=2, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(text[:2], text[2:])
    return grid


def show_costs(console: Console, costs: Costs) -> None:
    """Print the table of costs and the disk."""
    table = Table(title="costs", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("stage", "work", "time"):
        table.add_column(column, overflow="fold")
    for column in ("writes", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in costs.stages:
        table.add_row(*_cells(stage))
    if not costs.stages:
        return
    console.print()
    console.print(table)
    console.print(f"time      {_total(costs)}", highlight=False, soft_wrap=True)
    if costs.load is not None and costs.load.is_busy:
        console.print(Text(f"busy      {costs.load.text}; an idle machine is faster", "yellow"), soft_wrap=True)
    n_bytes = costs.n_bytes
    written = "unknown" if n_bytes is None else f"{size(n_bytes)} to write"
    console.print(f"disk      {written}, {size(costs.free)} free", highlight=False, soft_wrap=True)


def _total(costs: Costs) -> str:
    """Return the sum of the measured times, and which stages it does not include."""
    if not costs.unmeasured:
        return duration(costs.seconds)
    missing = f"{', '.join(costs.unmeasured)} not measured"
    return f"{duration(costs.seconds)}, and {missing}" if costs.seconds else missing


def _cells(cost: StageCost) -> tuple[Text, Text, Text, Text, Text]:
    if cost.is_cached:
        return Text(cost.stage), Text("cached", "cyan"), Text("0 s"), Text(""), Text("")
    seconds, basis = cost.duration
    time = Text(basis, "dim") if seconds is None else Text.assemble(duration(seconds), (f"\n{basis}", "dim"))
    memory = Text("")
    if cost.memory is not None:
        style = "yellow" if cost.memory.needed > cost.memory.memory.free else ""
        memory = Text.assemble((cost.memory.needs, style), (f"\nof {cost.memory.has}", "dim"))
    written = Text("unknown", "dim") if cost.n_bytes is None else Text(size(cost.n_bytes))
    return Text(cost.stage), Text(cost.work), time, written, memory


def show_verdict(console: Console, found: Inspection) -> None:
    """Print whether the recipe can run."""
    n_problems = len(found.problems)
    if n_problems:
        text = Text(f"✗ {_count(found.problems, 'problem')} to fix before {found.recipe.name} can run", "red")
    else:
        text = Text(f"✓ {found.recipe.name} is ready to run", "green")
    console.print(text)


def as_plain(found: Inspection, costs: Costs) -> dict[str, Any]:
    """Return the result as plain JSON data."""
    return {
        "recipe": found.recipe.name,
        "ready": not found.problems,
        "problems": [finding._asdict() for finding in found.problems],
        "notices": [finding._asdict() for finding in found.notices],
        "costs": {
            "images_to_caption": costs.to_caption,
            "seconds": costs.seconds,
            "busy": costs.load is not None and costs.load.is_busy,
            "unmeasured": costs.unmeasured,
            "bytes": costs.n_bytes,
            "free_bytes": costs.free,
            "stages": [_plain_stage(stage) for stage in costs.stages],
        },
    }


def _plain_stage(cost: StageCost) -> dict[str, Any]:
    memory = None
    if cost.memory is not None:
        need = cost.memory
        memory = {"device": need.device, "needed": need.needed, "free": need.memory.free, "total": need.memory.total}
    return {
        "stage": cost.stage,
        "cached": cost.is_cached,
        "work": cost.work,
        "seconds": cost.duration.seconds,
        "basis": cost.duration.basis,
        "bytes": cost.n_bytes,
        "memory": memory,
    }
