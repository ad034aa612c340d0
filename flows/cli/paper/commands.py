"""The commands ``clip-scgi paper ablation``, ``sweep``, ``top10`` and ``captions``.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from flows.cli.options import DifferentGalleries, Home, MovedImages, Overrides, RecipeName, RunModels, RunModes

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


@paper.command("top10", no_args_is_help=True)
def top10(
    *,
    run_a: Annotated[
        str, typer.Argument(metavar="RUN_A", help="An evaluation: a fingerprint, a folder, or a recipe for its newest.")
    ],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The evaluation to compare with it.")],
    model: RunModels,
    mode: RunModes,
    each: Annotated[int, typer.Option(min=0, max=50, help="Queries with the largest gains, and losses.")] = 3,
    sample: Annotated[int, typer.Option(min=0, max=50, help="Queries drawn at random from all others.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draw.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the figure.")] = Path("runs/paper"),
    images: MovedImages = None,
    different_galleries: DifferentGalleries = False,
    home: Home = None,
) -> None:
    """Show the first ten gallery images of two methods for the same queries, as a picture and a page.

    The queries are those with the largest gains, the largest losses, and a random sample of all others.

    Examples:
    clip-scgi paper top10 benchmark 3fa1
    clip-scgi paper top10 demo demo --mode image --mode fused
    """
    from flows.cli.paper.figures import make_top10

    make_top10(
        (run_a, run_b),
        home=home,
        out=out,
        models=model,
        modes=mode,
        choice={"each": each, "sample": sample, "seed": seed},
        images=images,
        different_galleries=different_galleries,
    )


@paper.command("captions", no_args_is_help=True)
def captions(
    *,
    name: Annotated[
        str,
        typer.Argument(
            metavar="CAPTIONS", help="Captions: a recipe for its newest ones, a fingerprint, or a folder of them."
        ),
    ],
    identities: Annotated[int, typer.Option(min=1, max=40, help="Number of people.")] = 6,
    each: Annotated[int, typer.Option(min=1, max=12, help="Images per person.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the people and their images.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the gallery.")] = Path("runs/paper"),
    images: MovedImages = None,
    home: Home = None,
) -> None:
    """Show people with their captions, and mark what the captions of one person disagree on.

    Example: clip-scgi paper captions demo --identities 3 --each 5
    """
    from flows.cli.paper.figures import make_captions

    make_captions(
        name, home=home, out=out, choice={"identities": identities, "each": each, "seed": seed}, images=images
    )
