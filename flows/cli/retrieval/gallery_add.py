"""Action of ``clip-scgi gallery add``: entries from a source, with times and captions, embedded into the gallery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from captioning.corrections.stage import find_captions
from data.artifacts.contents import CAPTIONS_FILE
from data.artifacts.store import ArtifactStore
from data.columns.rejected import Rejected
from data.errors import ConfigError, counted
from data.index.stage import index
from data.index.survey import Survey
from data.readers.manifest import column_of
from data.stages.stage import RunContext
from flows.cli.inputs import artifact_store
from flows.cli.retrieval.sources import Source, images_of, own_model, source_of, surveyed
from flows.execution.gpu import uses_gpu
from flows.recipes import Recipe
from flows.terminal import notice_line, plain_console, progress_bar
from flows.worlds import dataset_of
from reid.gallery.entry import Entry
from reid.gallery.gallery import Added, Gallery
from reid.gallery.layout import HEADER, Space, check_new, check_space, read_header
from reid.gallery.sources import Features, entries_of_images, read_features, read_notes, with_notes
from reid.gallery.times import PathTimes, read_time

_TIME: Final = "time"
_SHOWN: Final = 3


@dataclass(frozen=True, kw_only=True)
class Addition:
    """The options of ``clip-scgi gallery add``."""

    source: str
    overrides: tuple[str, ...] = ()
    model: str | None = None
    mode: str | None = None
    captions: Path | None = None
    time_column: str | None = None
    time_pattern: str | None = None
    home: Path | None = None


def add_source(folder: Path, addition: Addition) -> None:
    """Add the images of a source to the gallery in `folder`, and print what was done.

    Raises:
        ConfigError: the source, the model or an option does not exist or does not fit the gallery.
        DataError: the images as a whole, a time, or the gallery are unusable.
    """
    folder = folder.expanduser().absolute()
    existing = read_header(folder).space if (folder / HEADER).exists() else None
    pattern = PathTimes(addition.time_pattern) if addition.time_pattern is not None else None
    features = _features(addition.source)
    if features is None:
        _add_images(folder, addition, existing, pattern)
    else:
        _add_features(folder, addition, features, pattern)


def _features(source: str) -> Features | None:
    path = Path(source)
    try:
        return read_features(path) if path.is_file() else None
    except (OSError, ValueError):  # too long, or with a NUL: not a path
        return None


def _add_features(folder: Path, addition: Addition, features: Features, pattern: PathTimes | None) -> None:
    for option, value in (("--model", addition.model), ("--mode", addition.mode)):
        if value is not None:
            raise ConfigError(f"gallery add: {features.path} has its embeddings already; remove {option}")
    if addition.time_column is not None:
        raise ConfigError("gallery add: --time-column needs a manifest; a features.parquet does not have times")
    entries = _timed(features.entries, {}, pattern)
    if addition.captions is not None:
        entries = with_notes(entries, read_notes(addition.captions))
    gallery = Gallery.open(folder, space=features.space)
    done: list[Added] = []
    with progress_bar("add") as progress:
        start = 0
        for some, vectors in features.batches(entries):
            done.append(gallery.add(some, vectors))
            start += len(some)
            progress(start, len(entries), "added")
    _show(folder, gallery, done, entries, ())


def _add_images(folder: Path, addition: Addition, existing: Space | None, pattern: PathTimes | None) -> None:
    wanted = source_of("gallery add", addition.source, addition.overrides)
    store = artifact_store(addition.home)
    config = wanted.recipe.evaluate
    uses_gpu(config.device, "evaluate.device")
    model = addition.model or (existing and existing.model)
    found = own_model("gallery add", wanted, addition.overrides, store, addition.home) if model is None else model
    from reid.embedding.embedder import Embedder
    from reid.gallery.images import add_images, space_of

    embedder = Embedder.load(found, home=store.root, device=config.device, batch_size=config.batch_size)
    mode = addition.mode or (existing.mode if existing else None)
    if existing is None:
        check_new(folder)
    else:
        check_space(folder, existing, space_of(embedder, mode))  # before an image is read
    survey = surveyed(wanted.recipe, store)
    entries = entries_of_images(images_of(survey), survey.root)
    entries = _timed(entries, _manifest_times(wanted, survey, addition.time_column), pattern)
    captions = addition.captions or _own_captions(wanted, store)
    if captions is not None:
        entries = with_notes(entries, read_notes(captions))
    with progress_bar("add") as progress:
        done = add_images(folder, embedder, entries, mode=mode, progress=progress)
    _show(folder, Gallery.open(folder), [done], entries, [*survey.rejected, *done.rejected])


def _manifest_times(wanted: Source, survey: Survey, name: str | None) -> dict[str, datetime]:
    """Return the known times of a manifest by absolute path."""
    data = wanted.recipe.data
    if data.reader != "manifest":
        if name is not None:
            raise ConfigError(f"gallery add: --time-column needs a manifest; the reader here is {data.reader}")
        return {}
    cells = column_of(Path(data.root), manifest=data.manifest, name=name or _TIME)
    if cells is None:
        if name is not None:
            raise ConfigError(f"gallery add: the manifest does not have the column {name!r} of --time-column")
        return {}
    times = {path: read_time(cell.cell, f"{cell.place}, column {name or _TIME}") for path, cell in cells.items()}
    return {str(survey.root / path): time for path, time in times.items() if time is not None}


def _timed(
    entries: Sequence[Entry], times: Mapping[str, datetime], pattern: Callable[[str], datetime | None] | None
) -> list[Entry]:
    """Return the entries with their times: from `times` by path, else by the pattern."""
    return [
        replace(entry, time=times.get(entry.path) or (pattern(entry.path) if pattern else None)) for entry in entries
    ]


def _own_captions(wanted: Source, store: ArtifactStore) -> Path | None:
    """Return the captions that the recipe made of its images with these settings, if they exist."""
    recipe: Recipe = wanted.recipe
    if not wanted.is_named:
        return None
    with progress_bar("index") as progress:
        run = RunContext(store=store, indexed=index(store, config=dataset_of(store, recipe), progress=progress).images)
    captions = find_captions(run, recipe.caption)
    if captions is None:
        notice = f"recipe {recipe.name} has no captions here for its images and settings, so none are added"
        plain_console(stderr=True).print(notice_line(notice), soft_wrap=True)
        return None
    return captions.folder / CAPTIONS_FILE


def _show(
    folder: Path, gallery: Gallery, done: Sequence[Added], entries: Sequence[Entry], rejected: Sequence[Rejected]
) -> None:
    """Print what was added, and what is unknown about it."""
    console = plain_console()
    added, updated, unchanged, copies = (
        sum(getattr(item, name) for item in done) for name in ("added", "updated", "unchanged", "copies")
    )
    info = gallery.info()
    parts = [f"{counted(added, 'image')} added", f"{updated:,} brought up to date", f"{unchanged:,} unchanged"]
    console.print(
        f"{folder}: {', '.join(parts)}; {counted(info.rows, 'image')}; {info.space}", highlight=False, soft_wrap=True
    )
    unknown = {"time": sum(entry.time is None for entry in entries), "label": sum(e.label is None for e in entries)}
    unknown |= {"camera": sum(e.camera is None for e in entries), "caption": sum(e.caption is None for e in entries)}
    missing = ", ".join(f"{name} of {count:,}" for name, count in unknown.items() if count)
    if missing:
        console.print(
            f"unknown in this source: {missing} of {counted(len(entries), 'image')}", highlight=False, soft_wrap=True
        )
    if copies:
        disagreeing = [path for item in done for path in item.disagreeing]
        more = f"; {len(disagreeing):,} with another label or camera, such as {disagreeing[0]}" if disagreeing else ""
        console.print(notice_line(f"{counted(copies, 'copy')} of other images left out{more}"), soft_wrap=True)
    if rejected:
        shown = ", ".join(f"{row.path} ({row.reason})" for row in rejected[:_SHOWN])
        console.print(notice_line(f"unusable: {counted(len(rejected), 'file')}, such as {shown}"), soft_wrap=True)
    for index_file in (item.index for item in done if item.index):
        console.print(f"index: {index_file}", highlight=False, soft_wrap=True)
