"""The commands ``clip-scgi gallery ...``: a store of embeddings to fill, search and shrink.

`flows.cli.commands` imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Home, Overrides

gallery = typer.Typer(no_args_is_help=True)

GalleryFolder = Annotated[Path, typer.Argument(metavar="GALLERY", help="The folder of the gallery.")]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="ARTIFACT|RECIPE",
        help="The trained model: a fingerprint, its folder, or the recipe that trained it.",
        show_default="the model of the gallery, else of the recipe SOURCE",
    ),
]
WHERE_HELP = "Only images that pass, such as 'camera=3 and upper_color=red'."


@gallery.callback()
def _about() -> None:
    """Keep embeddings of images to search: add, search, remove, info.

    Example: clip-scgi gallery add people.gallery /data/photos --model demo
    """


@gallery.command("add", no_args_is_help=True)
def add(
    *,
    folder: GalleryFolder,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder of images, a manifest, a recipe, or a features.parquet.")
    ],
    model: Model = None,
    mode: Annotated[
        str | None,
        typer.Option(metavar="MODE", help="image, fused, or joint.", show_default="that of the gallery, else image"),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A captions.parquet.", show_default="the captions of the recipe SOURCE"),
    ] = None,
    time_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The manifest's column of times.", show_default="time, if it exists"),
    ] = None,
    time_pattern: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Where paths have the time, such as %Y-%m-%d_%H%M%S."),
    ] = None,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Add images with label, camera, time, caption and attributes.

    The gallery is made if it does not exist. Images whose bytes are known are not embedded again: what the source
    knows of them is brought up to date. Run it again after Ctrl-C or a crash; what was added is kept.

    Examples:
    clip-scgi gallery add people.gallery /data/photos --model demo
    clip-scgi gallery add people.gallery demo --mode joint
    """
    from flows.cli.retrieval.gallery_add import Addition, add_source

    addition = Addition(
        source=source,
        overrides=tuple(overrides),
        model=model,
        mode=mode,
        captions=captions,
        time_column=time_column,
        time_pattern=time_pattern,
        home=home,
    )
    add_source(folder, addition)


@gallery.command("search", no_args_is_help=True)
def search(
    *,
    folder: GalleryFolder,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="Search with an image.")] = None,
    text: Annotated[
        str | None, typer.Option(metavar="SENTENCE", help="Search with a sentence (galleries of mode joint).")
    ] = None,
    where: Annotated[str | None, typer.Option(metavar="FILTER", help=WHERE_HELP)] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of images.")] = 10,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with the images (HTML).")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Do not use the index of a large gallery.")] = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="ARTIFACT", help="Where the model is.", show_default="found by its fingerprint"),
    ] = None,
    overrides: Overrides,
    home: Home = None,
) -> None:
    """Print the images nearest to an image or a sentence.

    Examples:
    clip-scgi gallery search people.gallery --image query.jpg
    clip-scgi gallery search people.gallery --text 'a man in a red coat'
    """
    from flows.cli.retrieval.gallery_search import Request, search_gallery

    request = Request(
        image=image,
        text=text,
        where=where,
        top=top,
        page=page,
        exact=exact,
        model=model,
        overrides=tuple(overrides),
        home=home,
    )
    search_gallery(folder, request)


@gallery.command("remove", no_args_is_help=True)
def remove(
    *,
    folder: GalleryFolder,
    label: Annotated[str | None, typer.Option(metavar="LABEL", help="All images of a person.")] = None,
    path: Annotated[
        Path | None, typer.Option(metavar="PATH", help="An image, or a folder: all images below it.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="FILTER", help="All images that pass, such as 'time < 2026-01-01'.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
) -> None:
    """Remove images: when the command ends, no file of the gallery has them.

    Of several options, all must fit. The image files themselves stay.

    Examples:
    clip-scgi gallery remove people.gallery --label 'Ann Lee'
    clip-scgi gallery remove people.gallery --where 'time < 2026-01-01'
    """
    from flows.cli.retrieval.gallery_search import remove_images

    remove_images(folder, label=label, path=path, where=where, dry_run=dry_run)


@gallery.command("info", no_args_is_help=True)
def info(*, folder: GalleryFolder) -> None:
    """Print what a gallery contains, and its model.

    Example: clip-scgi gallery info people.gallery
    """
    from flows.cli.retrieval.gallery_search import show_info

    show_info(folder)
