"""What the commands that run a pipeline or print a recipe do."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from data.artifacts.stages import StageName
from data.artifacts.store import ArtifactStore
from data.config import build_config
from data.files import atomic_path, read_json
from flows.cli.inputs import artifact_store, recipe_of
from flows.execution.server import prefect_server
from flows.preflight.check import check_devices
from flows.preflight.disk import check_output
from flows.recipes import RECIPES, Recipe
from flows.summary import RunSummary
from flows.terminal import plain_console, results_table

Flow = Callable[..., dict[str, Any]]
"""The flow ``caption-and-train``, bound to a recipe, an artifact root and a last stage."""


@contextmanager
def pipeline(name: str, overrides: Sequence[str], home: Path | None, until: StageName) -> Iterator[Flow]:
    """Print what will run, and yield the flow of recipe `name`, while a Prefect server is there."""
    recipe, store = recipe_of(name, overrides), artifact_store(home)
    title = Text.assemble((f"clip-scgi {name}", "bold"), f": artifacts in {store.root}")
    plain_console().print(title, soft_wrap=True)
    with flow_of(recipe, store, until) as flow:
        yield flow


@contextmanager
def flow_of(recipe: Recipe, store: ArtifactStore, until: StageName) -> Iterator[Flow]:
    """Yield the flow of `recipe` while a Prefect server is there."""
    check_devices(store, recipe, until)  # the flow does so too; here it costs no start of a server
    with prefect_server(store.root):
        # Not earlier: Prefect reads its settings when it is first imported.
        from flows.pipeline import caption_and_train

        yield partial(caption_and_train, recipe, home=str(store.root), until=until)


def list_recipes() -> None:
    """Print the recipes, one per line."""
    console, width = plain_console(), max(map(len, RECIPES))
    for name, recipe in sorted(RECIPES.items()):
        about = (recipe.__doc__ or "").splitlines()[0]
        console.print(Text.assemble((f"{name:{width}}", "bold"), f" {about}"), soft_wrap=True)


def show_recipe(name: str, overrides: Sequence[str]) -> None:
    """Print every setting of one recipe as JSON."""
    recipe = recipe_of(name, overrides)
    plain_console().print_json(json.dumps(recipe.model_dump(mode="json")))


def draw_sheet(
    name: str, overrides: Sequence[str], home: Path | None, out: Path, *, identities: int, each: int, seed: int
) -> None:
    """Caption the images that have no caption yet, and write a contact sheet of the captions to `out`."""
    import pandas as pd

    from captioning.audit.contact_sheet import COLUMNS, SheetConfig, contact_sheet

    config = build_config(SheetConfig, {"identities": identities, "each": each, "seed": seed}, "sheet")
    check_output(out, "--out", suffixes=(".png", ".jpg", ".jpeg"))
    with flow_of(recipe_of(name, overrides), artifact_store(home), "caption") as flow:
        summary = RunSummary.model_validate(flow())
    captions = pd.read_parquet(summary["caption"].artifact.folder / "captions.parquet", columns=list(COLUMNS))
    sheet = contact_sheet(captions, Path(summary["index"].images_root or ""), config)
    with atomic_path(out) as temporary:
        sheet.save(temporary, "JPEG" if out.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=88, optimize=True)
    plain_console().print(f"sheet     {out.resolve()}", highlight=False, soft_wrap=True)


def show_results(run: Mapping[str, Any]) -> None:
    """Print the table of results, the paths of the artifacts, and commands that show them. run: the flow's result."""
    console, summary = plain_console(), RunSummary.model_validate(run)
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
    """Yield the name and the path of each result, and commands that show it."""
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
    """Return the shell command of this interpreter: ``python`` if that finds it, else its path (`make demo`)."""
    found = shutil.which("python")
    # Not resolved: the interpreters of two virtual environments are links to one file.
    same = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    return "python" if same else shlex.quote(sys.executable)
