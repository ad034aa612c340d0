"""Action of ``clip-scgi evaluate --check-independence``: compare embeddings of images alone and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from flows.cli.inputs import artifact_store, recipe_of
from flows.cli.scoring.indexing import indexed_run
from flows.execution.gpu import uses_gpu
from flows.terminal import plain_console, progress_bar
from reid.embedding.embedder import Embedder
from reid.evaluation.independence import BATCH, Difference, Sample, check_independence, drawn_sample, indexed_sample


class Images(NamedTuple):
    """The recipe whose images are embedded, with its settings."""

    recipe: str
    overrides: Sequence[str]


def check_model(model: str, images: Images | None, *, mode: str | None, tolerance: float, home: Path | None) -> int:
    """Check a model in one mode or in all, print the differences, and return the exit status: 1 if one is too large.

    images: None for drawn people.

    Raises:
        ConfigError: the model or the mode does not exist.
        DataError: the images are unusable, or their embeddings are.
    """
    store = artifact_store(home)
    recipe = None if images is None else recipe_of(images.recipe, images.overrides)
    device = "auto" if recipe is None else recipe.evaluate.device
    uses_gpu(device, "evaluate.device")
    embedder = Embedder.load(model, home=store.root, device=device)
    modes = embedder.modes if mode is None else (embedder.resolve_mode(mode),)
    sample = drawn_sample(embedder) if recipe is None else indexed_sample(embedder, indexed_run(recipe, store).images)
    found = {name: _differences(embedder, sample, name) for name in modes}
    _show(found, sample, tolerance, embedder)
    return 0 if all(one.passes(tolerance) for results in found.values() for one in results) else 1


def _differences(embedder: Embedder, sample: Sample, mode: str) -> list[Difference]:
    with progress_bar(f"check {mode}") as progress:
        return check_independence(embedder, sample, mode=mode, progress=progress)


def _show(found: dict[str, list[Difference]], sample: Sample, tolerance: float, embedder: Embedder) -> None:
    console = plain_console()
    table = Table(
        title=Text(f"train/{embedder.fingerprint}: {len(sample.paths)} images alone and in batches of up to {BATCH}"),
        caption=f"greatest difference of a value of an embedding of length one; tolerance {tolerance:g}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for name in ("mode", "arrangement", "difference", "", "image"):
        table.add_column(name, justify="right" if name == "difference" else "left", overflow="fold")
    for mode, results in found.items():
        for one in results:
            passed = one.passes(tolerance)
            word = Text("passed" if passed else "FAILED", "green" if passed else "bold red")
            where = "" if passed else one.problem or one.path
            table.add_row(mode, one.arrangement, f"{one.largest:.1e}", word, Text(where))
    console.print(table)
    failed = [mode for mode, results in found.items() if not all(one.passes(tolerance) for one in results)]
    if failed:
        console.print(
            f"FAILED: embeddings in mode {', '.join(failed)} depend on the other images of a batch, or are random, so "
            "scores of this model are not valid",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print("passed: an embedding depends on its own image only", highlight=False)
