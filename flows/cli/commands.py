"""The commands of ``clip-scgi`` and their options.

This module imports nothing heavy, so that help and shell completion are quick. Each command imports its own modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from data.artifacts.stages import STAGES, StageName
from flows.cli.corrections.commands import corrections
from flows.cli.explain import explain
from flows.cli.options import Cron, Home, OptionalRecipe, Overrides, RecipeName, RecipeNames, Reread, Until, WatchCron
from flows.cli.paper.commands import paper
from flows.cli.release.export import export
from flows.cli.retrieval.embed import embed
from flows.cli.retrieval.gallery import gallery
from flows.cli.scoring.compare import compare
from flows.cli.scoring.evaluate import evaluate
from flows.cli.serving.ui import ui

_RUN: Final = "Run the pipeline"
_RESULTS: Final = "Compare and search"
_RECIPES: Final = "Recipes"
_SERVE: Final = "Deploy and clean up"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
artifacts = typer.Typer(no_args_is_help=True)


class StudyGroup(StrEnum):
    """The parts of a study (`flows.study.plan.GROUPS`)."""

    MAIN = "main"
    QUERIES = "queries"
    DEPTH = "depth"
    SETTINGS = "settings"
    JOINT = "joint"
    WHY = "why"


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"clip-scgi {version('clip-scgi')}")
        raise typer.Exit


def _finite(value: float) -> float:
    if not 0 <= value < math.inf:
        raise typer.BadParameter("must be 0 or more")
    return value


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Person re-identification supervised by language: caption, train, evaluate and report."""


@app.command(rich_help_panel=_RUN)
def demo(*, overrides: Overrides, home: Home = None, reread: Reread = False) -> None:
    """Run the whole pipeline on synthetic people.

    The models are embedded; nothing is downloaded.

    Example: clip-scgi demo
    """
    from flows.cli.results import show_results
    from flows.cli.run import pipeline

    with pipeline("demo", overrides, home, STAGES[-1]) as flow:
        summary = flow(reread=reread)
    show_results(summary)


@app.command(rich_help_panel=_RUN, no_args_is_help=True)
def run(
    *,
    recipe: RecipeName,
    until: Until = STAGES[-1],
    overrides: Overrides,
    home: Home = None,
    reread: Reread = False,
) -> None:
    """Run a recipe from index to report.

    Stages whose inputs and settings are unchanged are not run again.

    Examples:
    clip-scgi run pku_reid --set data.root=/data/PKU-Reid
    clip-scgi run market1501 --set data.root=/data/Market-1501 --until audit
    """
    from flows.cli.results import show_results
    from flows.cli.run import pipeline

    with pipeline(recipe, overrides, home, until) as flow:
        summary = flow(reread=reread)
    show_results(summary)


@app.command(rich_help_panel=_RUN, no_args_is_help=True)
def check(
    *,
    recipe: RecipeName,
    until: Until = STAGES[-1],
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Load the models and measure their speed for some seconds.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Print all problems of a recipe at once, and what it will cost.

    Indexes the dataset, and captions and trains nothing. The exit status is 1 if there is a problem.

    Examples:
    clip-scgi check market1501 --set data.root=/data/Market-1501
    clip-scgi check demo --until caption --no-probe
    """
    from flows.cli.check import check_recipe

    raise typer.Exit(check_recipe(recipe, overrides, home=home, until=until, probe=probe, as_json=as_json))


def _up_to(stage: StageName) -> Callable[..., None]:
    """Return the command that runs a recipe up to and including `stage`."""

    def command(*, recipe: RecipeName, overrides: Overrides, home: Home = None, reread: Reread = False) -> None:
        from flows.cli.results import show_results
        from flows.cli.run import pipeline

        with pipeline(recipe, overrides, home, stage) as flow:
            summary = flow(reread=reread)
        show_results(summary)

    command.__doc__ = f"""Run a recipe up to and including the stage {stage}.

    Example: clip-scgi {stage} market1501 --set data.root=/data/Market-1501
    """
    return command


for _stage in STAGES[1:]:
    _command = evaluate if _stage == "evaluate" else _up_to(_stage)
    app.command(_stage, rich_help_panel=_RUN, no_args_is_help=True)(_command)


@app.command(rich_help_panel=_RESULTS)
def study(
    *,
    recipe: OptionalRecipe = None,
    preset: Annotated[Literal["quick", "full"], typer.Option(help="How much to run.")] = "quick",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Repetitions of each variant; the preset's if not given.")
    ] = None,
    groups: Annotated[
        list[StudyGroup],
        typer.Option(
            default_factory=list, show_default=False, help="Part of the study; the preset's if not given. Repeatable."
        ),
    ],
    same_people: Annotated[
        bool, typer.Option("--same-people", help="Let seeds change the training only, not the people.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the results.")] = Path("runs/study"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cost and stop.")] = False,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Train and compare methods and controls over several seeds; without RECIPE, in all worlds of the preset.

    Examples:
    clip-scgi study --preset full --dry-run
    clip-scgi study benchmark --groups main --groups why --out runs/study
    """
    from flows.cli.study import run_study, worlds_of

    chosen = [group.value for group in groups]
    worlds = worlds_of(recipe, preset, overrides, seeds=seeds, groups=chosen, resample=not same_people)
    raise typer.Exit(run_study(worlds, home=home, out=out, dry_run=dry_run))


@app.command(rich_help_panel=_RESULTS, no_args_is_help=True)
def search(
    *,
    recipe: RecipeName,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="The path of an image, or else a sentence.")
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="Search for the person in this image.")] = None,
    text: Annotated[str | None, typer.Option(metavar="SENTENCE", help="Search for these words.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of images to list.")] = 10,
    train: Annotated[bool, typer.Option("--train", help="Train the model first if it is missing.")] = False,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Find people in the gallery by a sentence or an image.

    Give the recipe and the --set options of the run that trained the model.

    Examples:
    clip-scgi search demo 'a woman in a red coat'
    clip-scgi search demo --image query.jpg --top 5
    """
    from flows.cli.search import find_people, read_query

    wanted = read_query(query, image=image, text=text)
    find_people(recipe, overrides, wanted, top=top, train=train, home=home)


app.command(rich_help_panel=_RESULTS, no_args_is_help=True)(compare)
app.command(rich_help_panel=_RESULTS, no_args_is_help=True)(explain)
app.command(rich_help_panel=_RESULTS, no_args_is_help=True)(embed)
app.command(rich_help_panel=_RESULTS)(ui)
app.command(rich_help_panel=_RESULTS, no_args_is_help=True)(export)


@app.command(rich_help_panel=_RESULTS, no_args_is_help=True)
def sheet(
    *,
    recipe: RecipeName,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .png or .jpg file to write.")] = Path("captions.png"),
    identities: Annotated[int, typer.Option(min=1, help="Number of rows, one per person.")] = 6,
    each: Annotated[int, typer.Option(min=1, help="Images per person.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the people.")] = 0,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Draw people with their captions beside them, one row per person.

    Example: clip-scgi sheet demo --identities 4 --each 4 --out sheet.jpg
    """
    from flows.cli.run import draw_sheet

    draw_sheet(recipe, overrides, home, out, identities=identities, each=each, seed=seed)


@app.command(rich_help_panel=_RUN, no_args_is_help=True)
def manifest(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the dataset.")],
    reader: Annotated[str, typer.Option(metavar="NAME", help="Reader that knows its layout.")] = "folders",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A .csv, .tsv or .parquet file (default: manifest.csv in DIR)."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Write the images of a dataset to a manifest, to edit by hand and read back with data.reader=manifest.

    Example: clip-scgi manifest /data/Market-1501 --reader market1501
    """
    from flows.cli.run import write_dataset_manifest

    write_dataset_manifest(folder, reader, overrides, home, output, overwrite=overwrite)


@app.command(rich_help_panel=_RECIPES)
def recipes() -> None:
    """List the recipes.

    Example: clip-scgi recipes
    """
    from flows.cli.run import list_recipes

    list_recipes()


@app.command(rich_help_panel=_RECIPES, no_args_is_help=True)
def show(
    *,
    recipe: RecipeName,
    explain: Annotated[str, typer.Option(metavar="KEY", help="Explain a setting, or all of a group: train.scgi.")] = "",
    overrides: Overrides,
) -> None:
    """Print every setting of a recipe as JSON, or explain some.

    Examples:
    clip-scgi show demo --set train.schedule.epochs=20
    clip-scgi show demo --explain train.scgi
    """
    from flows.cli.run import explain_settings, show_recipe

    if explain:
        explain_settings(recipe, explain, overrides)
    else:
        show_recipe(recipe, overrides)


@app.command(rich_help_panel=_SERVE, no_args_is_help=True)
def deploy(
    *,
    recipes: RecipeNames,
    pool: Annotated[str, typer.Option(metavar="NAME", help="Work pool; created if it does not exist.")] = "clip-scgi",
    cron: Cron = None,
    watch_cron: WatchCron = None,
    crashed_after: Annotated[
        float, typer.Option(metavar="SECONDS", help="Silence after which a run counts as crashed (heartbeat: 30 s).")
    ] = 540.0,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Register recipes as deployments of a Prefect server.

    Each deployment is named caption-and-train/DATASET.

    Example: clip-scgi deploy market1501 --set data.root=/data/Market-1501
    """
    from flows.cli.deploy import deploy as register

    register(recipes, overrides, home=home, pool=pool, cron=cron, watch_cron=watch_cron, crashed_after=crashed_after)


@app.command(rich_help_panel=_SERVE, no_args_is_help=True)
def serve(
    *,
    recipes: RecipeNames,
    limit: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    cron: Cron = None,
    watch_cron: WatchCron = None,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Run recipes as deployments in this process.

    They need a Prefect server, but no work pool.

    Example: clip-scgi serve demo --cron '0 3 * * *'
    """
    from flows.cli.deploy import serve as run_here

    run_here(recipes, overrides, home=home, cron=cron, watch_cron=watch_cron, limit=limit)


app.add_typer(gallery, name="gallery", rich_help_panel=_RESULTS)
app.add_typer(corrections, name="corrections", rich_help_panel=_RESULTS)
app.add_typer(paper, name="paper", rich_help_panel=_RESULTS)
app.add_typer(artifacts, name="artifacts", rich_help_panel=_SERVE)


@artifacts.callback()
def _artifact_root(context: typer.Context, home: Home = None) -> None:
    """List, check and clean up the artifacts of runs.

    Example: clip-scgi artifacts ls --stage evaluate
    """
    context.obj = home


ArtifactName = Annotated[
    str,
    typer.Argument(metavar="FINGERPRINT", help="Fingerprint or stage/fingerprint; the first few letters are enough."),
]


@artifacts.command("ls")
def artifacts_ls(
    context: typer.Context,
    stage: Annotated[str | None, typer.Option(metavar="STAGE", help="List this stage only.")] = None,
    home: Home = None,
) -> None:
    """List the artifacts with dataset, recipe, date, size and mAP.

    Example: clip-scgi artifacts ls --stage evaluate
    """
    from flows.cli.artifacts import list_artifacts

    list_artifacts(home or context.obj, stage=stage)


@artifacts.command("show", no_args_is_help=True)
def artifacts_show(context: typer.Context, name: ArtifactName, home: Home = None) -> None:
    """Print one artifact: its files and ingredients, what it uses and what uses it.

    Example: clip-scgi artifacts show train/3fa1
    """
    from flows.cli.artifacts import show_artifact

    show_artifact(home or context.obj, name)


@artifacts.command("verify")
def artifacts_verify(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="FINGERPRINT", help="Check this artifact only.")] = None,
    home: Home = None,
) -> None:
    """Compare every file with its digest; the exit status is 1 if any artifact is damaged.

    Example: clip-scgi artifacts verify
    """
    from flows.cli.artifacts import verify_artifacts

    raise typer.Exit(verify_artifacts(home or context.obj, name))


@artifacts.command("gc")
def artifacts_gc(
    context: typer.Context,
    keep: Annotated[int, typer.Option(min=0, help="Newest runs to keep of each recipe.")] = 5,
    days: Annotated[float, typer.Option(callback=_finite, help="Keep what was used in so many days.")] = 30.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the folders; without it they are only listed.")
    ] = False,
    home: Home = None,
) -> None:
    """List artifacts that nothing needs any more, and remove them with --delete.

    Example: clip-scgi artifacts gc --keep 3 --days 14 --delete
    """
    from flows.cli.artifacts import collect_garbage

    collect_garbage(home or context.obj, keep=keep, days=days, delete=delete)
