"""What each command of ``clip-scgi`` does, after the arguments are parsed."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from data.artifacts.stages import STAGES, StageName
from data.artifacts.store import ArtifactStore
from data.config import build_config
from data.files import atomic_path, read_json
from flows.cli import search as commands_search
from flows.cli import study as commands_study
from flows.execution.server import prefect_server
from flows.preflight.check import check_devices
from flows.preflight.disk import check_output
from flows.recipes import RECIPES, Recipe, build_recipe
from flows.summary import RunSummary
from flows.terminal import plain_console, results_table

if TYPE_CHECKING:
    from captioning.audit.contact_sheet import SheetConfig


def add_parsers(commands: Any) -> None:
    """Add the commands that run, study, show and search to the subparsers of ``clip-scgi``."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home", type=Path, help="artefact root (default: $CLIP_SCGI_HOME, else ./artifacts)")
    shared.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one setting, for instance data.root=/images; may be repeated",
    )
    named = argparse.ArgumentParser(add_help=False, parents=[shared])
    named.add_argument("recipe", metavar="RECIPE", help="name of a recipe; `clip-scgi recipes` lists them")
    rereading = argparse.ArgumentParser(add_help=False)
    rereading.add_argument("--reread", action="store_true", help="hash every image again, unchanged times or not")

    demo = commands.add_parser("demo", parents=[shared, rereading], help="the whole pipeline on synthetic people")
    demo.set_defaults(handler=_run_recipe, recipe="demo", until=STAGES[-1])
    run = commands.add_parser("run", parents=[named, rereading], help="run a recipe from index to report")
    run.add_argument("--until", choices=STAGES, default=STAGES[-1], help="stop after this stage")
    run.set_defaults(handler=_run_recipe)
    for stage in STAGES[1:]:
        verb = commands.add_parser(stage, parents=[named, rereading], help=f"run a recipe up to and including {stage}")
        verb.set_defaults(handler=_run_recipe, until=stage)

    commands_study.add_parser(commands, shared)
    commands_search.add_parser(commands, named, _run)
    sheet = commands.add_parser("sheet", parents=[named], help="draw people with their captions beside them")
    sheet.add_argument("--out", type=Path, default=Path("captions.png"), help="a .png or .jpg (default captions.png)")
    sheet.add_argument("--identities", type=int, default=6, help="rows, one a person (default 6)")
    sheet.add_argument("--each", type=int, default=5, help="images of each person (default 5)")
    sheet.add_argument("--seed", type=int, default=0, help="who is shown")
    sheet.set_defaults(handler=_sheet)
    commands.add_parser("recipes", help="list the recipes").set_defaults(handler=lambda _: list_recipes())
    show = commands.add_parser("show", parents=[named], help="print every setting of a recipe as JSON")
    show.set_defaults(handler=lambda arguments: show_recipe(arguments.recipe, arguments.overrides))


def _run_recipe(arguments: argparse.Namespace) -> int:
    return run_recipe(
        arguments.recipe,
        arguments.overrides,
        home=arguments.home,
        until=arguments.until,
        reread=arguments.reread,
    )


def _sheet(arguments: argparse.Namespace) -> int:
    from captioning.audit.contact_sheet import SheetConfig

    config = build_config(
        SheetConfig, {name: getattr(arguments, name) for name in ("identities", "each", "seed")}, "sheet"
    )
    return draw_sheet(arguments.recipe, arguments.overrides, config, home=arguments.home, out=arguments.out)


def list_recipes() -> int:
    """Print the recipes, a line each."""
    console, width = plain_console(), max(map(len, RECIPES))
    for name, recipe in sorted(RECIPES.items()):
        about = (recipe.__doc__ or "").splitlines()[0]
        console.print(Text.assemble((f"{name:{width}}", "bold"), f" {about}"), soft_wrap=True)
    return 0


def show_recipe(name: str, overrides: Sequence[str]) -> int:
    """Print every setting of one recipe as JSON."""
    recipe = build_recipe(name, overrides)
    plain_console().print_json(json.dumps(recipe.model_dump(mode="json")))
    return 0


def run_recipe(name: str, overrides: Sequence[str], *, home: Path | None, until: StageName, reread: bool) -> int:
    """Run the flow on one recipe and say where the results lie."""
    recipe = build_recipe(name, overrides)
    store = ArtifactStore(home) if home else ArtifactStore.default()
    console = plain_console()
    console.print(Text.assemble((f"clip-scgi {name}", "bold"), f": artefacts in {store.root}"), soft_wrap=True)
    show_results(console, _run(recipe, store, until, reread=reread))
    return 0


def _run(recipe: Recipe, store: ArtifactStore, until: StageName, *, reread: bool = False) -> RunSummary:
    check_devices(store, recipe, until)  # the flow does so too; here it costs no start of a server
    with prefect_server(store.root):
        # Not earlier: Prefect reads its settings when it is first imported.
        from flows.pipeline import caption_and_train

        return RunSummary.model_validate(caption_and_train(recipe, home=str(store.root), until=until, reread=reread))


def draw_sheet(name: str, overrides: Sequence[str], config: SheetConfig, *, home: Path | None, out: Path) -> int:
    """Caption what has no caption yet, and write a contact sheet of the captions to `out`."""
    import pandas as pd

    from captioning.audit.contact_sheet import COLUMNS, contact_sheet

    check_output(out, "--out", suffixes=(".png", ".jpg", ".jpeg"))
    store = ArtifactStore(home) if home else ArtifactStore.default()
    summary = _run(build_recipe(name, overrides), store, "caption")
    captions = pd.read_parquet(summary["caption"].artifact.folder / "captions.parquet", columns=list(COLUMNS))
    sheet = contact_sheet(captions, Path(summary["index"].images_root or ""), config)
    with atomic_path(out) as temporary:
        sheet.save(temporary, "JPEG" if out.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=88, optimize=True)
    plain_console().print(f"sheet     {out.resolve()}", highlight=False, soft_wrap=True)
    return 0


def show_results(console: Console, summary: RunSummary) -> None:
    """Print the table of results, where the artifacts lie, and how to look at them."""
    evaluation = summary.find("evaluate")
    if evaluation is not None:
        folder = evaluation.artifact.folder
        metrics = read_json(folder / "metrics.json")
        console.print(results_table(metrics, folder / "rankings.parquet"))
        console.print(Text(metrics["protocol"]["description"], "dim"))
    console.print(f"total stage time: {summary.seconds:.1f} s", highlight=False)
    for name, place in _places(summary):
        console.print(Text(f"{name:<9} {place}"), soft_wrap=True)


def _places(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """Yield what a person wants to open, each with its path, and the commands to look at it."""
    folders = {stage.stage: stage.artifact.folder for stage in summary.stages}
    indexed = folders["index"]
    yield "index", f"{indexed / 'images.parquet'}"
    n_rejected = read_json(indexed / "dataset.json")["rejected"]
    if n_rejected:
        yield "rejected", f"{indexed / 'rejected.parquet'} ({n_rejected:,} files or rows, each with its reason)"
    if "caption" in folders:
        path = folders["caption"] / "captions.parquet"
        yield "captions", f"{path}"
        read = f"pd.read_parquet({json.dumps(str(path), ensure_ascii=False)})"
        code = f'import pandas as pd; print({read}[["image_path", "caption"]].head().to_string())'
        yield "look", f"{python_command()} -c {shlex.quote(code)}"
    if "audit" in folders:
        yield "audit", f"{folders['audit'] / 'captions.audit.html'}"
    if "report" in folders:
        page = folders["report"] / "report.html"
        yield "report", f"{page}"
        yield "look", f"{python_command()} -m webbrowser {shlex.quote(page.as_uri())}"


def python_command() -> str:
    """Return what starts this interpreter in a shell: ``python`` where that is it, else its path (`make demo`)."""
    found = shutil.which("python")
    # Not resolved: the interpreters of two virtual environments are links to one file.
    same = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    return "python" if same else shlex.quote(sys.executable)
