"""The command ``clip-scgi embed``: write the embeddings of a folder, a manifest or a recipe's images.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from data.errors import ConfigError
from flows.cli.options import Home, Overrides

if TYPE_CHECKING:
    from data.artifacts.store import ArtifactRef, ArtifactStore
    from data.index.stage import Survey
    from flows.recipes import Recipe
    from reid.embedding.embedder import Embedder
    from reid.embedding.files import Embedded
    from reid.embedding.table import ImageFile


def embed(
    *,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder of images, a manifest file, or a recipe.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The Parquet file to write.")] = Path(
        "features.parquet"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ARTIFACT|RECIPE",
            help="The trained model: a fingerprint, the folder of a train artifact, or the recipe that trained it.",
            show_default="the model of the recipe SOURCE",
        ),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="image, fused, or joint.", show_default="image")
    ] = None,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Write one row per image with its embedding: path, sha256, labels if known, a unit vector.

    A rerun, also after Ctrl-C, embeds only new images. Embeddings of the mode joint are comparable with sentences.

    Examples:
    clip-scgi embed /data/photos --model demo -o features.parquet
    clip-scgi embed demo --mode joint
    """
    run(source, overrides, out=out, model=model, mode=mode, home=home)


def run(
    source: str, overrides: Sequence[str], *, out: Path, model: str | None, mode: str | None, home: Path | None
) -> None:
    """Write the embeddings of the images of `source` to `out`, and print what was done.

    Raises:
        ConfigError: `source` or `model` does not exist or is ambiguous, or the model and the images do not fit.
        DataError: the images as a whole, or `out`, are unusable.
    """
    from flows.cli.inputs import artifact_store
    from flows.execution.gpu import uses_gpu
    from flows.terminal import progress_bar

    wanted = _source(source, overrides)
    store = artifact_store(home)
    uses_gpu(wanted.recipe.evaluate.device, "evaluate.device")
    found = _own_model(wanted, overrides, store, home) if model is None else model
    from reid.embedding.embedder import Embedder
    from reid.embedding.files import embed_files

    config = wanted.recipe.evaluate
    embedder = Embedder.load(found, home=store.root, device=config.device, batch_size=config.batch_size)
    embedder.resolve_mode(mode)
    survey = _surveyed(wanted.recipe, store)
    with progress_bar("embed") as progress:
        done = embed_files(
            embedder,
            _images(survey),
            root=survey.root,
            out=out,
            mode=mode,
            rejected=survey.rejected,
            progress=progress,
        )
    _show(out, done, embedder, embedder.resolve_mode(mode))


class _Source(NamedTuple):
    """The images to embed: a recipe whose data are they, and whether the user named it."""

    recipe: Recipe
    is_named: bool


def _source(text: str, overrides: Sequence[str]) -> _Source:
    from flows.cli.inputs import recipe_of
    from flows.recipes import RECIPES

    try:
        path = Path(text).expanduser()
        exists = bool(text) and path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, the home of an unknown user, with a NUL
        path, exists = Path(text), False
    if exists and text in RECIPES:
        raise ConfigError(f"embed: {text} is a recipe, and a file or folder here; write ./{text} for the latter")
    if exists:
        base = recipe_of("manifest", overrides)
        folder, manifest = (path, "") if path.is_dir() else (path.parent, str(path.absolute()))
        kind = {"reader": "manifest" if manifest else "images", "name": path.absolute().name[:100]}
        place = {"root": str(folder.absolute()), "manifest": manifest, **kind}
        return _Source(base.model_copy(update={"data": base.data.model_copy(update=place)}), False)
    if text not in RECIPES:
        raise ConfigError(
            f"embed: {text!r} is neither a folder, nor a manifest file, nor a recipe; `clip-scgi recipes` lists these"
        )
    return _Source(recipe_of(text, overrides), True)


def _own_model(wanted: _Source, overrides: Sequence[str], store: ArtifactStore, home: Path | None) -> ArtifactRef:
    """Return the model that the recipe trained with these settings."""
    from flows.cli.search import Searchable, find_trained, missing_model

    if not wanted.is_named:
        raise ConfigError(
            "embed: name the model, such as --model demo: a recipe that trained one, the fingerprint of a train "
            "artifact (`clip-scgi artifacts ls --stage train`), or its folder"
        )
    found = find_trained(store, wanted.recipe)
    if not isinstance(found, Searchable):
        raise ConfigError(missing_model("embed", found, wanted.recipe.name, overrides, home))
    return found.model


def _surveyed(recipe: Recipe, store: ArtifactStore) -> Survey:
    from data.index.stage import survey
    from flows.terminal import progress_bar
    from flows.worlds import ensure_dataset

    changes = {"require_splits": (), "allow_identical": True}  # embedding needs neither splits nor right labels
    data = ensure_dataset(store, recipe).model_copy(update=changes)
    with progress_bar("index") as progress:
        return survey(store, config=data, progress=progress)


def _images(survey: Survey) -> list[ImageFile]:
    """Return the usable images with the labels that are known; the reader `images` knows none."""
    from data.people import UNKNOWN_CAMERA
    from reid.embedding.table import ImageFile

    bare = survey.description["reader"] == "images"
    return [
        ImageFile(
            path=record.path,
            sha256=fact.sha256,
            split=None if bare else record.split,
            pid=None if bare else record.pid,
            camid=None if record.camid == UNKNOWN_CAMERA else record.camid,
            label=record.label or None,
        )
        for record, fact in zip(survey.records, survey.facts, strict=True)
    ]


def _show(out: Path, done: Embedded, embedder: Embedder, mode: str) -> None:
    from flows.terminal import notice_line, plain_console
    from reid.embedding.files import rejected_file

    console = plain_console()
    if done.replaced:
        console.print(notice_line(f"{out} had embeddings of another model or mode, which are replaced"), soft_wrap=True)
    console.print(
        f"{out}: {done.images:,} images, mode {mode}, {embedder.width(mode):,} values each; {done.computed:,} embedded "
        f"now; model train/{embedder.fingerprint}",
        highlight=False,
        soft_wrap=True,
    )
    if done.rejected:
        console.print(
            f"{len(done.rejected):,} files are rejected; {rejected_file(out)} says why", highlight=False, soft_wrap=True
        )
