"""Action of ``clip-scgi search``: find the gallery images nearest to a sentence or an image with a trained model."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.table import Table
from rich.text import Text

from captioning.corrections.stage import find_captions
from data.artifacts.stages import StageName
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.datasets import DatasetConfig
from data.errors import ClipScgiError, ConfigError, counted
from data.index.stage import IndexStage, index
from data.people import UNKNOWN_CAMERA, IdentityName
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.cli.inputs import artifact_store, recipe_of
from flows.cli.run import flow_of
from flows.execution.gpu import uses_gpu
from flows.recipes import Recipe
from flows.summary import RunSummary
from flows.terminal import plain_console, progress_bar
from flows.worlds import dataset_of
from reid.config.train import TrainConfig
from reid.training.stage import TrainStage

_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
_EXAMPLE: Final = "'a woman in a red coat'"


@dataclass(frozen=True, kw_only=True)
class Searchable:
    """The inputs of a search: index and train artifacts, and the folder that contains the images."""

    run: RunContext
    model: ArtifactRef


def find_people(
    name: str, overrides: Sequence[str], query: str | Path, *, top: int, train: bool, home: Path | None
) -> None:
    """Print the `top` gallery images nearest to `query`. train: first run the stages up to train if one is missing."""
    recipe = recipe_of(name, overrides)
    uses_gpu(recipe.evaluate.device, "evaluate.device")  # the search needs it, so check before anything runs
    store = artifact_store(home)
    if not recipe.data.has_identities:  # no model can be trained on them
        _show(recipe, _indexed(store, recipe.data), recipe.train, query, top)
        return
    found = find_trained(store, recipe)
    if not isinstance(found, Searchable) and train:
        with flow_of(recipe, store, "train") as flow:
            summary = flow()
        found = _trained(store, RunSummary.model_validate(summary))
    if not isinstance(found, Searchable):
        missing = missing_model("search", found, name, overrides, home)
        raise ClipScgiError(f"{missing}, or add --train to this command to do both")
    _show(recipe, found.run, found.model, query, top)


def read_query(given: str | None, *, image: str | None, text: str | None) -> str | Path:
    """Return the query: a sentence (str) or an existing image file (Path).

    given: the positional argument: the path of an image if that file exists, else a sentence.

    Raises:
        ConfigError: `given` looks like a path but is not a file; the sentence is empty; or not exactly one of the three
            is given.
        DataError: the image cannot be used.
    """
    if sum(value is not None for value in (given, image, text)) != 1:
        raise ConfigError(f"search: give one query: QUERY, --image FILE or --text SENTENCE, such as --text {_EXAMPLE}")
    if image is not None:
        return _image(image, f"search: --image: {image} is not a file; give the path of an image")
    if given is not None and (_is_file(given) or looks_like_path(given)):
        return _image(
            given,
            f"search: {given!r} looks like a path, but that file does not exist. Give the path of an image, or use"
            f" --text for a sentence: --text {shlex.quote(given)}",
        )
    sentence = given if given is not None else text or ""
    if not sentence.strip():
        raise ConfigError(f"search: the sentence is empty; describe a person, such as --text {_EXAMPLE}")
    return sentence


def looks_like_path(text: str) -> bool:
    """Return True if `text` contains a separator, begins with ``~`` or ends like the name of an image."""
    has_separator = any(separator in text for separator in {"/", os.sep, "\\"})
    return has_separator or text.startswith("~") or text.strip().lower().endswith(_SUFFIXES)


def _image(text: str, problem: str) -> Path:
    if not _is_file(text):
        raise ConfigError(problem)
    from reid.evaluation.search import open_query

    path = _path(text)
    open_query(path)  # report an unreadable image before a model is loaded
    return path


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name of an unknown user
        return Path(text)


def _is_file(text: str) -> bool:
    from data.sources.places import is_file

    try:
        return is_file(_path(text))
    except (OSError, ValueError):  # too long for a file name, or with a NUL: a sentence
        return False


def find_trained(store: ArtifactStore, recipe: Recipe) -> Searchable | list[StageName]:
    """Return the inputs of a search if the model of `recipe` is trained, else the missing stages.

    If the dataset was indexed before, it is indexed again, which reads only files that changed. Nothing is captioned or
    trained, and Prefect is not started.
    """
    stages: list[StageName] = ["index", "caption", "train"] if recipe.train.needs_captions else ["index", "train"]
    data = dataset_of(store, recipe)
    if data.root != recipe.data.root and not Path(data.root).is_dir():
        return stages  # synthetic people that are not drawn yet
    indexed = store.sidecars(IndexStage.name)
    if not any(item.ingredients.get("description", {}).get("name") == data.label for item in indexed):
        return stages
    run = _indexed(store, data)
    captions = None
    if recipe.train.needs_captions:
        captions = find_captions(run, recipe.caption)
        if captions is None:
            return stages[1:]
    model = TrainStage(captions=captions, config=recipe.train).find(run)
    if model is None:
        return stages[-1:]
    store.touch(model)
    return Searchable(run=run, model=model)


def _trained(store: ArtifactStore, summary: RunSummary) -> Searchable:
    indexed = summary["index"]
    images = IndexedImages(ref=indexed.artifact, root=Path(indexed.images_root or ""))
    return Searchable(run=RunContext(store=store, indexed=images), model=summary["train"].artifact)


def missing_model(command: str, stages: Sequence[str], recipe: str, overrides: Sequence[str], home: Path | None) -> str:
    """Return the message of `command` that a recipe has no trained model, and what to run first."""
    place = ["--home", str(home)] if home else []
    settings = [part for override in overrides for part in ("--set", override)]
    first = shlex.join(["clip-scgi", "train", recipe, *place, *settings])
    return (
        f"{command}: recipe {recipe} has no trained model here for its images and settings; missing stages: "
        f"{', '.join(stages)}. Run `{first}` first"
    )


def _indexed(store: ArtifactStore, data: DatasetConfig) -> RunContext:
    """Index the dataset, which reads only files that changed."""
    with progress_bar(IndexStage.name) as progress:
        return RunContext(store=store, indexed=index(store, config=data, progress=progress).images)


def _show(recipe: Recipe, run: RunContext, model: ArtifactRef | TrainConfig, query: str | Path, top: int) -> None:
    from reid.evaluation.search import search

    console = plain_console()
    with progress_bar("search") as progress:
        hits = search(
            run.with_progress(progress),
            model=model,
            query=query,
            top=top,
            device=recipe.evaluate.device,
        )
    table = Table(title=Text(f"gallery images nearest to: {query}"), title_justify="left")
    for column in ("rank", "similarity", "pid", "camera", "image"):
        table.add_column(column, justify="left" if column == "image" else "right", overflow="fold")
    for hit in hits:
        path = Text(str(run.images.root / hit.path))
        camera = "unknown" if hit.camid == UNKNOWN_CAMERA else str(hit.camid)
        table.add_row(str(hit.rank), f"{hit.score:.3f}", Text(str(IdentityName(hit.pid, hit.label))), camera, path)
    console.print(table)
    if len(hits) < top:
        every = "it is shown" if len(hits) == 1 else "all of them are shown"
        console.print(f"the gallery has {counted(len(hits), 'image')}; {every}", highlight=False)
