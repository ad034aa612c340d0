"""The command ``clip-scgi evaluate``: rank the gallery of a recipe with its own model or with any other.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from data.errors import ConfigError
from flows.cli.options import Home, OptionalRecipe, Overrides, Reread

_CHECK: Final = "Check a model"


def evaluate(
    *,
    recipe: OptionalRecipe = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ARTIFACT|RECIPE",
            help="Evaluate this trained model: a fingerprint, the folder of a train artifact, or the recipe that "
            "trained it. Nothing is captioned or trained.",
            show_default="train the recipe's own",
        ),
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Evaluate the recipe's CLIP without any training.")
    ] = False,
    breakdown: Annotated[
        bool, typer.Option("--breakdown", help="Also print mAP and R1 per pair of cameras and per attribute.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Write features, rank lists, scores and the breakdown there."
        ),
    ] = None,
    check_independence: Annotated[
        str | None,
        typer.Option(
            metavar="ARTIFACT|RECIPE",
            help="Check that the embeddings of this model do not depend on the other images of a batch: images of "
            "RECIPE, or drawn ones. The exit status is 1 if they do.",
            rich_help_panel=_CHECK,
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE", help="Mode to check: image, fused or joint.", show_default="all", rich_help_panel=_CHECK
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, help="Greatest difference of a value that passes.", rich_help_panel=_CHECK),
    ] = 1e-4,
    overrides: Overrides,
    home: Home = None,
    reread: Reread = False,
) -> None:
    """Run a recipe up to and including the stage evaluate, or evaluate a model trained elsewhere.

    Examples:
    clip-scgi evaluate market1501 --set data.root=/data/Market-1501
    clip-scgi evaluate benchmark --model demo --breakdown
    clip-scgi evaluate demo --zero-shot
    clip-scgi evaluate --check-independence demo
    """
    if check_independence is not None:
        if model is not None or zero_shot or breakdown or out is not None:
            raise ConfigError("evaluate: --check-independence goes with --mode, --tolerance and a recipe's images only")
        from flows.cli.scoring.independence import Images, check_model

        images = None if recipe is None else Images(recipe, overrides)
        raise typer.Exit(check_model(check_independence, images, mode=mode, tolerance=tolerance, home=home))
    if mode is not None:
        raise ConfigError("evaluate: --mode goes with --check-independence; all modes of a model are evaluated")
    if recipe is None:
        raise ConfigError("evaluate: name a recipe, such as `clip-scgi evaluate demo`, or use --check-independence")
    if model is not None or zero_shot:
        from flows.cli.scoring.anywhere import Options, evaluate_anywhere

        options = Options(model=model, zero_shot=zero_shot, breakdown=breakdown, out=out, reread=reread)
        evaluate_anywhere(recipe, overrides, options, home)
        return
    from flows.cli.results import show_results
    from flows.cli.run import pipeline
    from flows.cli.scoring.details import check_folder

    check_folder(out)
    with pipeline(recipe, overrides, home, "evaluate") as flow:
        summary = flow(reread=reread)
    show_results(summary)
    if breakdown or out is not None:
        from flows.cli.scoring.anywhere import show_details_of_run

        show_details_of_run(recipe, overrides, summary, out=out, breakdown=breakdown, home=home)
