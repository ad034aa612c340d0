"""Arguments and options that several commands of ``clip-scgi`` share. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data.artifacts.stages import StageName


def _recipe_names(incomplete: str) -> list[str]:
    """Complete the name of a recipe in a shell."""
    from flows.recipes import RECIPES

    return sorted(name for name in RECIPES if name.startswith(incomplete))


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Name of a recipe; clip-scgi recipes lists them.", autocompletion=_recipe_names
    ),
]
OptionalRecipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE", help="Name of a recipe; clip-scgi recipes lists them.", autocompletion=_recipe_names
    ),
]
RecipeNames = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE", help="Names of recipes; clip-scgi recipes lists them.", autocompletion=_recipe_names
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        default_factory=list,
        show_default=False,
        help="Change one setting, such as data.root=/data/images. Repeatable.",
    ),
]
RunModels = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="MODEL",
        default_factory=list,
        show_default="trained",
        help="trained or untrained; once for all runs, or once per run.",
    ),
]
RunModes = Annotated[
    list[str],
    typer.Option(
        "--mode",
        metavar="MODE",
        default_factory=list,
        show_default="image",
        help="image or fused; once for all runs, or once per run.",
    ),
]
MovedImages = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="The images of the dataset, if they were moved since they were indexed."),
]
DifferentGalleries = Annotated[
    bool, typer.Option("--different-galleries", help="Compare runs on different galleries nevertheless.")
]
Home = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Artifact root (default: $CLIP_SCGI_HOME, else ./artifacts).")
]
Reread = Annotated[bool, typer.Option("--reread", help="Hash every image again, even if its size and times match.")]
Cron = Annotated[
    str | None,
    typer.Option(metavar="SCHEDULE", help="Also run on a schedule, such as '0 3 * * *', not only when data change."),
]
WatchCron = Annotated[
    str | None,
    typer.Option(metavar="SCHEDULE", help="When to look for changed datasets (default: every five minutes)."),
]
Until = Annotated[StageName, typer.Option(help="Stop after this stage.")]
