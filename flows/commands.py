"""What each command of ``clip-scgi`` does, after the arguments are parsed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.artifacts import ArtifactStore
from data.files import read_json
from flows.recipes import RECIPES, Recipe, build_recipe
from flows.summary import RunSummary, StageName
from flows.terminal import results_table


def list_recipes() -> int:
    """Print the recipes, a line each."""
    console = Console()
    for name, recipe in sorted(RECIPES.items()):
        console.print(f"[bold]{name:14}[/] {(recipe.__doc__ or '').splitlines()[0]}", highlight=False)
    return 0


def show_recipe(name: str, overrides: Sequence[str]) -> int:
    """Print every setting of one recipe as JSON."""
    recipe = build_recipe(name, overrides)
    Console().print_json(json.dumps(recipe.model_dump(mode="json")))
    return 0


def run_recipe(name: str, overrides: Sequence[str], *, home: Path | None, until: StageName, reread: bool) -> int:
    """Run the flow on one recipe and say where the results lie."""
    recipe = build_recipe(name, overrides)
    store = ArtifactStore(home) if home else ArtifactStore.default()
    console = Console()
    console.print(f"[bold]clip-scgi {name}[/]: artefacts in {store.root}", highlight=False, soft_wrap=True)
    show_results(console, _run(recipe, store, until, reread=reread))
    return 0


def _run(recipe: Recipe, store: ArtifactStore, until: StageName, *, reread: bool = False) -> RunSummary:
    prepare_prefect(store.root)
    # Prefect reads its settings when it is first imported.
    from flows.pipeline import caption_and_train

    return RunSummary.model_validate(caption_and_train(recipe, home=str(store.root), until=until, reread=reread))


def search_gallery(name: str, overrides: Sequence[str], *, home: Path | None, query: str, top: int) -> int:
    """Print the gallery images nearest to a sentence, or to an image if `query` is the path of a file."""
    recipe = build_recipe(name, overrides)
    store = ArtifactStore(home) if home else ArtifactStore.default()
    summary = _run(recipe, store, "train")
    root = Path(summary["index"].images_root or "")
    from reid.search import search

    hits = search(
        store,
        images=summary["index"].artifact,
        model=summary["train"].artifact,
        images_root=root,
        query=Path(query) if Path(query).is_file() else query,
        top=top,
        device=recipe.evaluate.device,
    )
    table = Table(title=Text(f"gallery images nearest to: {query}"), title_justify="left")
    for column in ("rank", "similarity", "pid", "camera", "image"):
        table.add_column(column, justify="left" if column == "image" else "right")
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", str(hit.pid), str(hit.camid), Text(str(root / hit.path)))
    Console().print(table)
    return 0


def prepare_prefect(root: Path) -> None:
    """Choose quiet, local defaults for Prefect; anything the user has set wins.

    Without a server of the user's own, Prefect starts an ephemeral one on localhost whose database lies in the
    artefact root.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # The first start migrates a database, which takes longer than Prefect's own limit on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    # The stages speak for themselves on a terminal; Prefect's lines are on its server.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    has_own = os.environ.get("PREFECT_API_URL") or (Path.home() / ".prefect" / "profiles.toml").exists()
    if not has_own:
        folder = Path(os.environ.setdefault("PREFECT_HOME", str(root / "prefect")))
        folder.mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only


def show_results(console: Console, summary: RunSummary) -> None:
    """Print the table of results, where the artefacts lie, and how to look at them."""
    evaluation, captions, page = (summary.find(name) for name in ("evaluate", "caption", "report"))
    if evaluation is not None:
        console.print(results_table(read_json(evaluation.artifact.folder / "metrics.json")))
    console.print(f"stages took {summary.seconds:.1f} s together", highlight=False)
    if captions is not None:
        path = captions.artifact.folder / "captions.parquet"
        console.print(f"captions  {path}", highlight=False, soft_wrap=True)
        console.print(
            f"look      python -c \"import pandas as pd; print(pd.read_parquet('{path}')"
            "[['image_path', 'caption']].sample(5).to_string())\"",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    if page is not None:
        path = page.artifact.folder / "report.html"
        console.print(f"report    {path}", highlight=False, soft_wrap=True)
        console.print(f"look      python -m webbrowser {path.as_uri()}", highlight=False, soft_wrap=True)
