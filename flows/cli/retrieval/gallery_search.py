"""Actions of ``clip-scgi gallery search``, ``remove`` and ``info``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from data.errors import ConfigError, counted
from data.people import IdentityName
from flows.cli.inputs import artifact_store, recipe_of
from flows.cli.retrieval.gallery_page import check_page, write_page
from flows.cli.search import read_query
from flows.execution.gpu import uses_gpu
from flows.terminal import plain_console, progress_bar, size
from reid.gallery.entry import Float32s
from reid.gallery.gallery import Found, Gallery, Info
from reid.gallery.where import parse_where


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of ``clip-scgi gallery search``."""

    image: str | None = None
    text: str | None = None
    where: str | None = None
    top: int = 10
    page: Path | None = None
    exact: bool = False
    model: str | None = None
    overrides: tuple[str, ...] = ()
    home: Path | None = None


def search_gallery(folder: Path, request: Request) -> None:
    """Print the nearest images, and write the page if it is asked for.

    Raises:
        ConfigError: not one query is given, the filter or the name of the page is wrong, or the model does not exist or
            does not fit.
        DataError: the query image or the gallery is unusable.
    """
    query = read_query(None, image=request.image, text=request.text)
    if request.where is not None:
        parse_where(request.where)  # report a wrong filter or page before a model is loaded
    if request.page is not None:
        check_page(request.page)
    gallery = Gallery.open(folder)
    found = gallery.search(
        _embedded(gallery, query, request), top=request.top, where=request.where, exact=request.exact
    )
    console = plain_console()
    if found.hits:
        console.print(_table(found, query))
    for line in _remarks(found, request, gallery):
        console.print(line, highlight=False, soft_wrap=True)
    if request.page is not None:
        write_page(request.page, found, query=query, where=request.where, gallery=gallery.folder)
        console.print(f"page      {request.page.absolute()}", highlight=False, soft_wrap=True)


def _embedded(gallery: Gallery, query: str | Path, request: Request) -> Float32s:
    config = recipe_of("manifest", request.overrides).evaluate
    uses_gpu(config.device, "evaluate.device")
    from reid.embedding.embedder import Embedder
    from reid.gallery.images import query_embedding

    home = artifact_store(request.home).root
    try:
        embedder = Embedder.load(request.model or gallery.space.model, home=home, device=config.device)
    except ConfigError as error:
        if request.model is not None:
            raise
        raise ConfigError(
            f"gallery search: the model of the gallery, train/{gallery.space.model}, is not in {home}; name its folder "
            "with --model, or its artifact root with --home"
        ) from error
    return query_embedding(embedder, gallery.space, query)


def _table(found: Found, query: str | Path) -> Table:
    folder = common_folder([hit.entry.path for hit in found.hits])
    below = f"\nimages below {folder}" if folder else ""
    table = Table(title=Text(f"images nearest to: {query}{below}"), title_justify="left")
    for column in ("rank", "similarity", "label", "camera", "time", "image"):
        left = column in ("label", "image")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for hit in found.hits:
        entry = hit.entry
        cells = [
            IdentityName(0, entry.label or "").short or "unknown",
            "unknown" if entry.camera is None else str(entry.camera),
            "unknown" if entry.time is None else f"{entry.time:%Y-%m-%d %H:%M:%S}",
            entry.path.removeprefix(folder),
        ]
        table.add_row(str(hit.rank), f"{hit.score:.3f}", *map(Text, cells))
    return table


def common_folder(paths: Sequence[str]) -> str:
    """Return the folder of all absolute paths with "/" at its end, "" for paths that share none."""
    parents = {Path(path).parent for path in paths}
    if not all(parent.is_absolute() for parent in parents):
        return ""
    folder = os.path.commonpath(parents)
    return "" if folder == "/" else f"{folder}/"


def _remarks(found: Found, request: Request, gallery: Gallery) -> Iterator[str]:
    if request.where is not None and not found.passed:
        yield f"no image passes the filter {request.where!r} (0 of {found.total:,})"
        for column in parse_where(request.where).columns if found.total else ():
            yield f"values of {column}: {gallery.values(column)}"
    elif not found.total:
        yield "the gallery is empty; add images with `clip-scgi gallery add`"
    elif request.where is not None:
        yield f"{found.passed:,} of {found.total:,} images pass the filter and were compared"
    elif found.index is None:
        yield f"{found.total:,} images were compared"
    else:
        yield f"{found.total:,} images were searched by the index ({found.index}); --exact compares all of them"


def remove_images(folder: Path, *, label: str | None, path: Path | None, where: str | None, dry_run: bool) -> None:
    """Remove what fits all options, and print how many images that were.

    Raises the errors of `Gallery.remove`, and ConfigError if a path or label fits nothing.
    """
    if label is None and path is None and where is None:
        raise ConfigError("gallery remove: give what to remove: --label, --path, or --where 'time < 2026-01-01'")
    gallery = Gallery.open(folder)
    with progress_bar("index") as progress:
        done = gallery.remove(label=label, path=path, where=where, dry_run=dry_run, progress=progress)
    verb = "would be removed" if dry_run else "removed"
    left = f"{done.left:,} {'would be ' if dry_run else ''}left"
    line = f"{gallery.folder}: {counted(done.removed, 'image')} {verb}, {left}"
    if done.kept:
        line += f"; {counted(len(done.kept), 'image')} also at another path, such as {done.kept[0]}, kept there"
    elif not done.removed and path is not None:
        raise ConfigError(f"{line}; no image at this path: {path.absolute()}")
    elif not done.removed and label is not None:
        near = ", ".join(map(repr, gallery.similar_labels(label)))
        raise ConfigError(f"{line}; the label {label!r} fits none" + (f" (did you mean {near}?)" if near else ""))
    plain_console().print(line, highlight=False, soft_wrap=True)


def show_info(folder: Path) -> None:
    """Print what a gallery contains. Raises the errors of `Gallery.open`."""
    gallery = Gallery.open(folder)
    console = plain_console()
    for name, value in _facts(gallery.info()):
        console.print(f"{name:<10}{value}", highlight=False, soft_wrap=True)


def _facts(info: Info) -> Iterator[tuple[str, str]]:
    yield "images", f"{info.rows:,} ({size(info.size_bytes)})"
    yield "model", f"train/{info.space.model}"
    yield "mode", f"{info.space.mode}, {info.space.width:,} values each"
    yield "labels", f"{info.labels:,} different ones, of {info.with_label:,} images"
    yield "cameras", f"{', '.join(map(str, info.cameras)) or 'none'}; of {info.with_camera:,} images"
    known = f"{info.since:%Y-%m-%d %H:%M:%S} to {info.until:%Y-%m-%d %H:%M:%S} UTC" if info.since else "none"
    yield "times", f"{known}; of {info.with_time:,} images"
    yield "captions", f"of {info.with_caption:,} images"
    yield "index", str(info.index) if info.index else "none: every search is exact"
