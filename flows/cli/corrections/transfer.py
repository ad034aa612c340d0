"""Actions of ``clip-scgi corrections import`` and ``export``, and the images that both are about."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.text import Text

from captioning.corrections.current import Current
from captioning.corrections.exchange import (
    SHOWN,
    ImportPlan,
    Outcome,
    export_rows,
    plan_import,
    save_import,
)
from captioning.corrections.images import DatasetImages, ModelCaptions
from captioning.corrections.record import Correction, ModelCaption
from captioning.corrections.store import Corrections
from captioning.corrections.table import SUFFIXES, read_rows, write_rows
from captioning.stage.stage import CaptionStage
from data.artifacts.contents import CAPTIONS_FILE
from data.columns.source import ParquetRows
from data.errors import ConfigError, RetryableError, WeightsError, counted
from data.index.export import keep_existing
from data.index.stage import index
from data.stages.stage import RunContext
from flows.cli.inputs import artifact_store, recipe_of
from flows.preflight.disk import check_output
from flows.recipes import Recipe
from flows.terminal import notice_line, plain_console, progress_bar
from flows.worlds import ensure_dataset

_LONGEST: Final = 72  # characters of a caption that is shown


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The corrections of a recipe's template, and the images of its dataset. home: the artifact root."""

    home: Path
    recipe: Recipe
    kept: Corrections
    images: DatasetImages

    def current(self) -> Current:
        """Return the changes in effect of the images of the dataset."""
        return self.kept.current().among([self.images.paths.digests])


def open_scope(name: str, overrides: Sequence[str], home: Path | None) -> Scope:
    """Index the dataset of a recipe, which reads only files that changed, and open its corrections."""
    store, recipe = artifact_store(home), recipe_of(name, overrides)
    with progress_bar("index") as progress:
        images = index(store, config=ensure_dataset(store, recipe), progress=progress).images
    found = DatasetImages(
        paths=images.digests(),
        root=str(images.root),
        captions=_model_captions(RunContext(store=store, indexed=images), recipe),
    )
    kept = Corrections.open(store.root, recipe.caption.template)
    return Scope(home=store.root, recipe=recipe, kept=kept, images=found)


def _model_captions(run: RunContext, recipe: Recipe) -> Mapping[str, ModelCaption]:
    """Return sha256 -> the model's caption, if the caption stage of the recipe has run."""
    try:
        made = CaptionStage(config=recipe.caption).find(run)
    except (ConfigError, WeightsError, RetryableError):  # the captioner is unavailable here
        made = None
    if made is None:
        return {}
    source = ParquetRows(made.folder / CAPTIONS_FILE)
    return ModelCaptions.read(source.batches("image_sha256", "caption", "captioner_fingerprint"))


def import_file(
    file: Path,
    name: str,
    overrides: Sequence[str],
    *,
    home: Path | None,
    author: str | None,
    dry_run: bool,
    force: bool,
    skip_unknown: bool,
) -> None:
    """Import the rows of `file` as corrections, and print what changed; with `dry_run`, what would change."""
    rows = read_rows(file)
    scope = open_scope(name, overrides, home)
    plan = plan_import(
        str(file),
        rows,
        scope.kept,
        scope.images,
        author=author or _user(),
        force=force,
        skip_unknown=skip_unknown,
        folder=scope.home,
    )
    console = plain_console()
    for line in _changes(plan, scope) if dry_run else ():
        console.print(line, soft_wrap=True)
    if not dry_run:
        save_import(plan, scope.kept)
    counts = ", ".join(f"{plan.counts[outcome]:,} {outcome}" for outcome in ("new", "changed", "unchanged"))
    console.print(Text(f"{'dry run' if dry_run else 'imported'}  {counts}; template {scope.kept.template.id}"))
    for notice in _notices(plan, scope):
        plain_console(stderr=True).print(notice_line(notice), soft_wrap=True)


def _user() -> str:
    """Return the name of the user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        raise ConfigError("--author: this user has no name; name the author, such as --author ada") from None


def _changes(plan: ImportPlan, scope: Scope) -> Iterator[Text]:
    """Yield one line per change, the first ones only."""
    changing = [*plan.first["new"], *plan.first["changed"]]
    for planned in changing[:SHOWN]:
        sha256 = planned.after.sha256
        model = scope.images.captions.get(sha256)
        before = planned.before.text if planned.before and planned.before.text else model.text if model else None
        place = planned.row.cell("image_path") or sha256[:12]
        yield Text.assemble(
            (f"row {planned.row.number}  ", "dim"),
            place,
            f"\n  - {cut(before or 'no caption')}\n  + {cut(said(planned.after))}",
        )
    if len(plan.waiting) > SHOWN:
        yield Text(f"and {len(plan.waiting) - SHOWN:,} more")


def said(entry: Correction) -> str:
    """Return what a change says, in one line."""
    return {"wrong": "marked as wrong", "reset": "the model's text"}.get(entry.kind, entry.text or "")


def cut(text: str) -> str:
    """Return the beginning of a caption."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _notices(plan: ImportPlan, scope: Scope) -> Iterator[str]:
    if plan.counts["kept"]:
        yield f"{_rows(plan, 'kept')} not imported: a newer edit by a person exists; --force replaces it"
    if plan.empty:
        yield f"{counted(plan.empty, 'row')} without a caption and attributes left out"
    if plan.unknown:
        yield f"{counted(plan.unknown, 'row')} of images that the dataset does not have left out"
    if plan.unused:
        yield (
            f"the attr_ columns of {counted(plan.unused, 'row')} are not used, because the caption leads; clear"
            " caption to use the attributes"
        )
    if len(plan.waiting) and scope.recipe.caption.corrections == "ignore":
        yield f"{scope.recipe.name} ignores corrections: run it with --set caption.corrections=use"


def _rows(plan: ImportPlan, outcome: Outcome) -> str:
    """Return the numbers of the rows with an outcome, the first ones only."""
    count, numbers = plan.counts[outcome], ", ".join(f"{planned.row.number}" for planned in plan.first[outcome])
    more = f" and {count - SHOWN:,} more" if count > SHOWN else ""
    return f"row{'' if count == 1 else 's'} {numbers}{more}"


def export_file(name: str, overrides: Sequence[str], output: Path, *, home: Path | None, overwrite: bool) -> None:
    """Write the corrections of the images of a recipe to `output`."""
    check_output(output, "--output", suffixes=SUFFIXES)
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: the folder {output.parent} does not exist; create it first")
    keep_existing(output, overwrite=overwrite)
    scope = open_scope(name, overrides, home)
    count = counted(write_rows(output, export_rows(scope.current(), scope.images)), "correction")
    plain_console().print(Text(f"exported  {count}: {output.absolute()}"), soft_wrap=True)
