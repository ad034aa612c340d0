"""The commands ``clip-scgi paper ablation``, ``sweep``, ``top10`` and ``captions``.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from flows.cli.options import Home, Overrides, RecipeName

paper: Final = typer.Typer(
    no_args_is_help=True,
    help="Make the tables and figures of the CLIP-SCGI paper from your own runs.\n\n"
    "Example: clip-scgi paper ablation --seeds 2 --dry-run",
)


class Sweep(StrEnum):
    """The settings that the sweep changes (groups of `flows.study.plan`)."""

    QUERIES = "queries"
    DEPTH = "depth"


Preset = Annotated[Literal["quick", "full"], typer.Option(help="How much to run, as in clip-scgi study.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Repetitions of each variant; the preset's if not given.")]
SamePeople = Annotated[bool, typer.Option("--same-people", help="Let seeds change the training only, not the people.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the cost and stop.")]


@paper.command("ablation")
def ablation(
    *,
    recipe: RecipeName = "benchmark",
    preset: Preset = "quick",
    seeds: Seeds = None,
    same_people: SamePeople = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the table.")] = Path("runs/paper"),
    dry_run: DryRun = False,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Make the ablation table: baseline, CGI, CFF and both, over seeds, beside the published figures.

    It shares its runs with the study, so nothing is trained twice.

    Example: clip-scgi paper ablation --preset full --seeds 3
    """
    from flows.cli.paper.studies import make_ablation
    from flows.cli.study import preset_recipe, study_config

    config = study_config(preset, seeds=seeds, groups=["main"], resample=not same_people)
    studied = preset_recipe(recipe, preset, overrides)
    raise typer.Exit(make_ablation(studied, config, home=home, out=out, dry_run=dry_run))


@paper.command("sweep")
def sweep(
    *,
    recipe: RecipeName = "benchmark",
    over: Annotated[
        list[Sweep],
        typer.Option(default_factory=list, show_default=False, help="One sweep only; both if not given. Repeatable."),
    ],
    preset: Preset = "quick",
    seeds: Seeds = None,
    same_people: SamePeople = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the charts.")] = Path("runs/paper"),
    dry_run: DryRun = False,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Draw mAP and R1 over K (1, 2, 4, 8) and over depth (1 to 6) with error bars.

    It shares its runs with the study, so nothing is trained twice.

    Example: clip-scgi paper sweep --over queries --seeds 3
    """
    from flows.cli.paper.studies import make_sweep, sweep_groups
    from flows.cli.study import preset_recipe, study_config

    config = study_config(preset, seeds=seeds, groups=sweep_groups(over), resample=not same_people)
    studied = preset_recipe(recipe, preset, overrides)
    raise typer.Exit(make_sweep(studied, config, home=home, out=out, dry_run=dry_run))
