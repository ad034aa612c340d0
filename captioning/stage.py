"""The caption stage: a caption for every image of an index, made only where the store has none yet."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.attributes import parse_caption
from captioning.captioner import Captioner, identify
from captioning.cleaning import CleaningConfig, clean_caption, clear_majorities
from captioning.config import CaptionConfig
from captioning.pattern import PAPER_PATTERN
from captioning.reading import Pending, read_ahead
from captioning.store import CaptionStore
from data.artifacts import ArtifactRef, ArtifactStore, Made
from data.errors import DataError
from data.files import write_table
from data.progress import ProgressFn, silent
from data.schemas import CAPTIONS, SCHEMA_VERSION
from data.slots import SLOTS

log = logging.getLogger(__name__)

STAGE: Final = "caption"
STAGE_VERSION: Final = 1
"""Raised whenever the view changes: its columns here, or what `parse_caption` makes of a text."""
FILE: Final = "captions.parquet"

# What a killed run loses at most: so many captions, or so many seconds of work, whichever is less.
_FLUSH_ROWS: Final = 256
_FLUSH_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class CaptionOutcome:
    """What a run of the stage did, in distinct images.

    generated: captioned now. reused: taken from the store. failed: could not be read, so the next run tries again.
    All are 0 when the artefact itself was found.
    """

    made: Made
    generated: int = 0
    reused: int = 0
    failed: int = 0

    def __str__(self) -> str:
        """Say it in one line."""
        if self.made.cached:
            return "cached"
        plural = "caption" if self.generated == 1 else "captions"
        note = f"{self.generated} {plural} generated, {self.reused} reused"
        return f"{note}, {self.failed} unreadable" if self.failed else note


def caption_ingredients(store: ArtifactStore, *, images: ArtifactRef, config: CaptionConfig) -> dict[str, Any]:
    """Return what the artefact of the stage is made from; reads of a model only what changed since last time."""
    return _ingredients(images, identify(config, store.memo), config)


def _ingredients(images: ArtifactRef, captioner: Captioner, config: CaptionConfig) -> dict[str, Any]:
    return {
        "stage_version": STAGE_VERSION,
        "schema_version": SCHEMA_VERSION,
        "images": images.digests_of("images.parquet"),
        "captioner": captioner.fingerprint,
        "model": [captioner.model_id, captioner.model_revision],
        "template_id": config.prompt_template.id,
        "cleaning": config.cleaning.identity(),
    }


def caption(
    store: ArtifactStore,
    *,
    images: ArtifactRef,
    images_root: Path,
    config: CaptionConfig,
    progress: ProgressFn = silent,
) -> CaptionOutcome:
    """Write captions.parquet (schemas.CAPTIONS) for the index `images`, whose files lie under `images_root`.

    Only images without a caption by this captioner are read, and the model is loaded only if there are any. An image
    that cannot be read has a row with status ``image_error``; the artefact then counts as absent next time, so the
    next run tries again. Raises DataError when no image at all can be read, WeightsError when the model is missing.
    """
    captioner = identify(config, store.memo)
    captions = CaptionStore(store.root, captioner)
    counts: Counter[str] = Counter()

    def produce(folder: Path) -> None:
        index = pq.read_table(images.folder / "images.parquet")
        paths = _paths_by_image(index)
        known = captions.read()
        pending = [Pending(sha256=key, paths=paths[key]) for key in _missing(paths, known)]
        failed = _generate(captions, pending, images_root, config, progress) if pending else {}
        if len(failed) == len(paths):
            _raise_unreadable(failed, images_root)
        counts.update(reused=len(paths) - len(pending), generated=len(pending) - len(failed), failed=len(failed))
        write_table(folder / FILE, _view(index, captions.read(), failed, captioner, config), CAPTIONS)

    made = store.make(STAGE, _ingredients(images, captioner, config), produce, complete=lambda _: not counts["failed"])
    return CaptionOutcome(made=made, **counts)


def _paths_by_image(index: pa.Table) -> dict[str, tuple[str, ...]]:
    """Return image sha256 -> its paths, in the order of the index: equal files are captioned once."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for sha256, path in zip(index["sha256"].to_pylist(), index["path"].to_pylist(), strict=True):
        found[sha256].append(path)
    return {sha256: tuple(paths) for sha256, paths in found.items()}


def _missing(wanted: Iterable[str], known: pa.Table) -> list[str]:
    have = set(known["image_sha256"].to_pylist())
    return [key for key in wanted if key not in have]


def _generate(
    captions: CaptionStore, pending: list[Pending], root: Path, config: CaptionConfig, progress: ProgressFn
) -> dict[str, str]:
    """Caption `pending` into the store and return image sha256 -> reason for those that could not be read."""
    from captioning.llava import Engine

    progress(0, len(pending), "loading the model")
    engine = Engine.load(config)
    loaded = read_ahead(pending, root, engine.prepare, workers=config.workers, ahead=2 * config.batch_size)
    failed: dict[str, str] = {}
    unsaved: list[dict[str, Any]] = []
    saved = time.monotonic()
    done = 0
    for rows in engine.rows(loaded):
        failed |= {row["image_sha256"]: row["error"] for row in rows if row["status"] == "image_error"}
        unsaved += [row for row in rows if row["status"] != "image_error"]
        done += len(rows)
        progress(done, len(pending), "")
        if len(unsaved) >= _FLUSH_ROWS or time.monotonic() - saved > _FLUSH_SECONDS:
            captions.append(unsaved)
            unsaved, saved = [], time.monotonic()
    captions.append(unsaved)
    for sha256, reason in failed.items():
        log.warning("image %s (%s...) has no caption: %s", _path_of(pending, sha256), sha256[:12], reason)
    return failed


def _path_of(pending: list[Pending], sha256: str) -> str:
    return next(item.paths[0] for item in pending if item.sha256 == sha256)


def _raise_unreadable(failed: Mapping[str, str], root: Path) -> None:
    reasons = ", ".join(f"{reason} ({count})" for reason, count in Counter(failed.values()).most_common())
    raise DataError(
        f"none of the {len(failed)} images can be read under {root}: {reasons}. "
        "Is it the folder that was indexed? Index it again, or give the right one"
    )


def _view(
    index: pa.Table, known: pa.Table, failed: Mapping[str, str], captioner: Captioner, config: CaptionConfig
) -> pa.Table:
    """Return one row an image of `index`, in its order."""
    by_image = {row["image_sha256"]: row for row in known.to_pylist()}
    constant = {
        "template_id": config.prompt_template.id,
        "model_id": captioner.model_id,
        "model_revision": captioner.model_revision,
        "captioner_fingerprint": captioner.fingerprint,
        "dtype": config.number_format,
        "quantization": config.quantization,
    }
    rows = []
    for image in index.select(["path", "sha256", "split", "pid", "camid"]).to_pylist():
        row = by_image.get(image["sha256"]) or {"status": "image_error", "error": failed[image["sha256"]]}
        rows.append(constant | _reading(row) | _place(image))
    _clean(rows, config)
    return pa.Table.from_pylist(rows, schema=CAPTIONS)


def _clean(rows: list[dict[str, Any]], config: CaptionConfig) -> None:
    """Replace the column caption by its cleaned text, where cleaning is on and there is one."""
    if config.cleaning == CleaningConfig():
        return
    training = [row for row in rows if row["split"] == "train" and row.get("caption") is not None]
    majorities = clear_majorities(((row["pid"], _slots(row)) for row in training), config.cleaning)
    for row in rows:
        if row.get("caption") is None:
            continue
        row["caption"] = clean_caption(
            row["caption"],
            _slots(row),
            confidence={slot: row[f"conf_{slot}"] for slot in SLOTS},
            majority=majorities.get(row["pid"], {}) if row["split"] == "train" else {},
            config=config.cleaning,
            pattern=config.prompt_template.pattern or PAPER_PATTERN,
        ).text


def _slots(row: Mapping[str, Any]) -> dict[str, str | None]:
    return {slot: row[f"attr_{slot}"] for slot in SLOTS}


def _place(image: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: image[name] for name in ("split", "pid", "camid")}
    return {"image_path": image["path"], "image_sha256": image["sha256"], **kept}


def _reading(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a store row with the tidied caption, its attributes, and a status that knows whether it was understood."""
    raw = row.get("raw_text")
    if raw is None:
        return dict(row)
    text = " ".join(raw.split())
    slots = parse_caption(text)
    status = row["status"]
    if status == "ok" and not any(slots.values()):
        status = "unparsed"
    return {**row, "caption": text, "status": status, **{f"attr_{slot}": slots[slot] for slot in SLOTS}}
