"""Sources of images that ``clip-scgi embed`` and ``clip-scgi gallery add`` accept: a folder, a manifest, a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.artifacts.store import ArtifactRef, ArtifactStore
from data.columns.texts import Texts
from data.errors import ConfigError
from data.index.stage import survey
from data.index.survey import Survey
from data.people import UNKNOWN_CAMERA, Mask
from data.readers.webdataset.reader import UNLABELED
from data.splits import SPLITS
from flows.cli.inputs import recipe_of
from flows.cli.search import Searchable, find_trained, missing_model
from flows.recipes import RECIPES, Recipe
from flows.terminal import progress_bar
from flows.worlds import ensure_dataset
from reid.embedding.images import ImageFiles


class Source(NamedTuple):
    """The images to embed: a recipe whose data are they, and whether the user named it."""

    recipe: Recipe
    is_named: bool


def source_of(command: str, text: str, overrides: Sequence[str]) -> Source:
    """Return the source that `text` names. Raises ConfigError if it names none, or two."""
    try:
        path = Path(text).expanduser()
        exists = bool(text) and path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, the home of an unknown user, with a NUL
        path, exists = Path(text), False
    if exists and text in RECIPES:
        raise ConfigError(f"{command}: {text} is a recipe, and a file or folder here; write ./{text} for the latter")
    if exists:
        base = recipe_of("manifest", overrides)
        if path.suffix == ".tar" and path.is_file():
            raise ConfigError(
                f"{command}: {text} is a tar file; give its folder, with --set data.reader=webdataset and --set"
                f" data.shards={path.name}"
            )
        folder, manifest = (path, "") if path.is_dir() else (path.parent, str(path.absolute()))
        given = base.data.reader if base.data.reader != "manifest" else "images"
        kind = {"reader": "manifest" if manifest else given, "name": path.absolute().name[:100]}
        place = {"root": str(folder.absolute()), "manifest": manifest, **kind}
        return Source(base.model_copy(update={"data": base.data.model_copy(update=place)}), False)
    if text not in RECIPES:
        raise ConfigError(
            f"{command}: {text!r} is neither a folder, nor a manifest file, nor a recipe; `clip-scgi recipes` lists "
            "these"
        )
    return Source(recipe_of(text, overrides), True)


def own_model(
    command: str, wanted: Source, overrides: Sequence[str], store: ArtifactStore, home: Path | None
) -> ArtifactRef:
    """Return the model that the recipe trained with these settings. Raises ConfigError if there is none."""
    if not wanted.is_named:
        raise ConfigError(
            f"{command}: name the model, such as --model demo: a recipe that trained one, the fingerprint of a train "
            "artifact (`clip-scgi artifacts ls --stage train`), or its folder"
        )
    found = find_trained(store, wanted.recipe)
    if not isinstance(found, Searchable):
        raise ConfigError(missing_model(command, found, wanted.recipe.name, overrides, home))
    return found.model


def surveyed(recipe: Recipe, store: ArtifactStore) -> Survey:
    """Return the usable images of a recipe. Embedding needs neither splits nor labels that agree."""
    changes = {"require_splits": (), "allow_identical": True}
    data = ensure_dataset(store, recipe).model_copy(update=changes)
    with progress_bar("index") as progress:
        return survey(store, config=data, progress=progress)


def images_of(found: Survey) -> ImageFiles:
    """Return the usable images with the labels that are known, if the reader knows any."""
    records = found.records
    bare = found.description["reader"] == "images" or found.description["version"] == UNLABELED
    known = np.array([bool(text) for text in records.texts])
    return ImageFiles(
        paths=Texts(records.paths),
        sha256=np.ascontiguousarray(found.facts.digests),
        splits=_coded(records.splits, SPLITS, np.full(len(records), bare)),
        pids=pa.array(records.pids, mask=np.full(len(records), bare)),
        camids=pa.array(records.camids, mask=records.camids == UNKNOWN_CAMERA),
        labels=_coded(records.labels, records.texts, ~known[records.labels]),
    )


def _coded(codes: NDArray[np.integer[Any]], texts: Sequence[str], unknown: Mask) -> pa.DictionaryArray:
    """Return texts by their places in `texts`, null where unknown."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=unknown), pa.array(texts, pa.string()))
