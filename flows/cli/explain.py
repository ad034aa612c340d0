"""The command ``clip-scgi explain``: draw what a trained model looks at when it compares two images.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import typer

from data.errors import ClipScgiError, ConfigError, RejectedRow
from flows.cli.options import Home, Overrides

if TYPE_CHECKING:
    from PIL import Image

    from data.artifacts.store import ArtifactStore
    from data.people import IdentityName
    from data.stages.images import IndexedImages
    from flows.recipes import Recipe
    from reid.relevance.pair import PairMaps

_SUFFIXES: Final = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options that name a trained model: `recipe` or `model`, exactly one of them."""

    recipe: str | None
    overrides: Sequence[str]
    model: str | None
    home: Path | None


class Found(NamedTuple):
    """A trained model.

    captions: sha256 of an image -> its caption, from the recipe's caption artifact. names: sha256 -> its identity, of
    a recipe whose dataset has text labels.
    """

    folder: Path
    captions: Mapping[str, str]
    names: Mapping[str, IdentityName]


def explain(
    *,
    query: Annotated[Path, typer.Argument(metavar="QUERY", help="The path of an image.")],
    gallery: Annotated[Path, typer.Argument(metavar="GALLERY", help="The path of the image to compare it with.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .png or .jpg file to write.")] = Path(
        "maps.png"
    ),
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Use the model that this recipe trained, with these --set.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Use this model: a fingerprint, a folder, or a recipe for the model it trained last."
        ),
    ] = None,
    mode: Annotated[
        Literal["image", "fused"] | None, typer.Option(show_default="image", help="Inference mode to explain.")
    ] = None,
    method: Annotated[
        Literal["gradient", "rollout"] | None,
        typer.Option(show_default="gradient", help="Gradient-weighted relevance or attention rollout."),
    ] = None,
    captions: Annotated[
        list[str],
        typer.Option(
            "--caption",
            metavar="SENTENCE",
            default_factory=list,
            show_default=False,
            help="Caption of both images, or first of QUERY and then of GALLERY, for the maps of CGI.",
        ),
    ],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Draw what makes two images similar to a trained model.

    Also prints how far the similarity falls if these parts of the query are deleted.

    Examples:
    clip-scgi explain query.jpg gallery.jpg --recipe demo -o maps.png
    clip-scgi explain query.jpg gallery.jpg --model train/3fa1 --mode fused
    """
    from data.artifacts.fingerprint import digest_file
    from data.device import resolve_device
    from flows.preflight.disk import check_output
    from flows.terminal import plain_console

    check_output(out, "--out", suffixes=_SUFFIXES)
    paths = (query, gallery)
    images = (_open(query, "QUERY"), _open(gallery, "GALLERY"))
    digests = [digest_file(path) for path in paths]
    found = _trained(ModelOptions(recipe=recipe, overrides=overrides, model=model, home=home), digests)

    import torch

    from reid.relevance.pair import explain_pair
    from reid.training.checkpoint import load_task

    where = resolve_device(device, torch.cuda, "--device")
    known = captions or _captions_of(paths, found.captions)
    pair = explain_pair(load_task(found.folder, where), images, mode=mode, method=method, captions=known, device=where)
    _write(pair, out, (_title("query", query, found.names), _title("gallery", gallery, found.names)))
    for line in (*pair.lines(), f"maps      {out.resolve()}"):
        plain_console().print(line, highlight=False, soft_wrap=True)


def _open(path: Path, name: str) -> Image.Image:
    from data.images.decode import open_rgb, unusable_image

    try:
        return open_rgb(path)
    except RejectedRow as rejected:
        raise unusable_image(f"explain: {name} {path}", rejected) from rejected


def _title(role: str, path: Path, names: Mapping[str, IdentityName]) -> str:
    """Return the title of the row of an image: its file name and, if it has a text label, its identity."""
    from data.artifacts.fingerprint import digest_file

    name = names.get(digest_file(path)) if names else None
    return f"{role}: {path.name}" if name is None else f"{role}: {path.name}, {name}"


def _write(pair: PairMaps, out: Path, titles: tuple[str, str]) -> None:
    from data.files import atomic_path

    sheet = pair.draw(titles)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        sheet.save(temporary, "PNG" if out.suffix.lower() == ".png" else "JPEG", quality=92, optimize=True)


def _captions_of(paths: Sequence[Path], captions: Mapping[str, str]) -> list[str]:
    """Return the captions of the images if all of them are known, else nothing."""
    from data.artifacts.fingerprint import digest_file

    found = [captions.get(digest_file(path)) for path in paths] if captions else []
    known = [caption for caption in found if caption]
    return known if len(known) == len(found) else []


def _trained(options: ModelOptions, digests: Sequence[str]) -> Found:
    """Return the model that the options name. digests: of the images."""
    from flows.cli.inputs import artifact_store, recipe_of

    store = artifact_store(options.home)
    if (options.recipe is None) == (options.model is None):
        raise ConfigError("explain: name one model: --recipe RECIPE, such as --recipe demo, or --model MODEL")
    if options.recipe is not None:
        return _of_recipe(store, options.recipe, recipe_of(options.recipe, options.overrides), digests)
    if options.overrides:
        raise ConfigError("explain: --set changes a recipe and cannot change a trained model: use it with --recipe")
    from reid.embedding.find import find_model

    return Found(find_model(options.model or "", store).folder, {}, {})


def _of_recipe(store: ArtifactStore, name: str, recipe: Recipe, digests: Sequence[str]) -> Found:
    from captioning.corrections.stage import find_captions
    from flows.cli.search import Searchable, find_trained

    found = find_trained(store, recipe)
    if not isinstance(found, Searchable):
        raise ClipScgiError(
            f"explain: recipe {name} has no trained model here for its images and settings; missing stages: "
            f"{', '.join(found)}. Run `clip-scgi train {name}` with the same --set and --home first, or name a trained "
            "model with --model"
        )
    captions = find_captions(found.run, recipe.caption) if recipe.train.method == "clip_scgi" else None
    texts = {} if captions is None else _read_captions(captions.folder / "captions.parquet", digests)
    return Found(found.model.folder, texts, _names_of(found.run.images, digests))


def _names_of(images: IndexedImages, digests: Sequence[str]) -> dict[str, IdentityName]:
    """Return sha256 -> the name of its identity, of the images with text labels."""
    from flows.report.gather import rows_where

    rows, names = rows_where(images.file, "sha256", digests, ("sha256", "pid")), images.names()
    return {row["sha256"]: names(row["pid"]) for row in rows if names(row["pid"]).label}


def _read_captions(path: Path, digests: Sequence[str]) -> dict[str, str]:
    from flows.report.gather import rows_where

    rows = rows_where(path, "image_sha256", digests, ("image_sha256", "caption"))
    return {row["image_sha256"]: row["caption"] for row in rows}
