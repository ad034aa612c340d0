"""The caption stage: a caption for every image of an index, made only where the store has none yet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from captioning.captioner import Captioner, identify
from captioning.config import CaptionConfig
from captioning.hub import pin_offline, pin_or_fetch
from captioning.stage.view import view
from captioning.stage.worker import Failure, Paths, Worker
from captioning.store.claims import buckets_of_part
from captioning.store.store import CaptionStore
from data.artifacts.contents import CAPTIONS_FILE, IMAGES_FILE, contents_of_captions
from data.artifacts.store import ArtifactRef, ArtifactStore, Made, fingerprint_of
from data.errors import ClipScgiError, DataError, RetryableError, WeightsError
from data.files import write_table
from data.progress import ProgressFn, silent
from data.schemas import CAPTIONS, SCHEMA_VERSION

STAGE: Final = "caption"
STAGE_VERSION: Final = 3
"""Raised whenever captions.parquet changes: its columns (stage_view), or what `parse_caption` makes of a text."""
FILE: Final = CAPTIONS_FILE

_INDEX: Final = IMAGES_FILE


@dataclass(frozen=True, kw_only=True)
class CaptionOutcome:
    """What a run of the stage did, in distinct images.

    generated: captioned now, by this process. reused: taken from the store. failed: could not be read, or had no answer
    from a server, so the next run tries again. All are 0 when the artefact itself was found.
    """

    made: Made
    generated: int = 0
    reused: int = 0
    failed: int = 0

    def __str__(self) -> str:
        """Say it in one line."""
        if self == CaptionOutcome(made=self.made):
            return "cached"
        plural = "caption" if self.generated == 1 else "captions"
        note = f"{self.generated} {plural} generated, {self.reused} reused"
        return f"{note}, {self.failed} failed" if self.failed else note


@dataclass(frozen=True, kw_only=True)
class PartOutcome:
    """What one of several workers did, in distinct images of its part.

    generated: captioned now. failed: could not be read, or had no answer from a server.
    """

    generated: int
    failed: int


def caption_ingredients(store: ArtifactStore, *, images: ArtifactRef, config: CaptionConfig) -> dict[str, Any]:
    """Return what the artefact of the stage is made from; reads of a model only what changed since last time."""
    return _ingredients(images, identify(pin_offline(config, store.root), store.memo), config)


def _ingredients(images: ArtifactRef, captioner: Captioner, config: CaptionConfig) -> dict[str, Any]:
    return {
        "stage_version": STAGE_VERSION,
        "schema_version": SCHEMA_VERSION,
        "images": images.digests_of(_INDEX),
        "captioner": captioner.ingredients,
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

    Only images without a caption by this captioner are read, and the model is loaded only if there are any. Processes
    that caption the same images, here or in `caption_part`, share the work. An image that cannot be read has a row with
    status ``image_error``, one that a server did not answer ``server_error``; the artefact then counts as absent next
    time, so the next run tries again. Raises DataError when no image at all can be read, RetryableError when a server
    answers none, WeightsError when the model is missing, ClipScgiError when the disk is full.
    """
    config = pin_or_fetch(config, store.root)
    captioner = identify(config, store.memo)
    ingredients = _ingredients(images, captioner, config)
    found = store.find(STAGE, fingerprint_of(STAGE, ingredients))
    if found is not None:
        return CaptionOutcome(made=Made(ref=found, cached=True))
    paths = _paths_by_image(images)
    worker = _worker(store, captioner, config, paths=paths, root=images_root, progress=progress)
    worker.work(patient=True)
    failed, generated = worker.done.failed, worker.done.generated
    if len(failed) == len(paths):
        raise _nothing_captioned(failed, images_root)

    def produce(folder: Path) -> None:
        index = pq.read_table(images.folder / _INDEX)
        write_table(folder / FILE, view(index, worker.snapshot.table(), failed, captioner, config), CAPTIONS)

    made = store.make(
        STAGE,
        ingredients,
        produce,
        complete=lambda _: not failed,
        contents=lambda folder: contents_of_captions(pq.read_table(folder / FILE)),
    )
    reused = len(paths) - generated - len(failed)
    return CaptionOutcome(made=made, generated=generated, reused=reused, failed=len(failed))


def caption_part(
    store: ArtifactStore,
    *,
    images: ArtifactRef,
    images_root: Path,
    config: CaptionConfig,
    part: int = 0,
    of: int = 1,
    progress: ProgressFn = silent,
) -> PartOutcome:
    """Caption, as one of several workers, what nobody else has captioned or is captioning; `caption` collects it all.

    Any number of processes, on one machine or on several that share the artefact root, may do this at once: they claim
    buckets of images, so that nothing is captioned twice, and a worker that dies loses only what it had not written.
    part, of: work on one of `of` fixed parts only (a stable hash of the image decides), for machines whose file locks
    do not reach each other; with (0, 1) workers take whatever is free. Raises what `caption` raises, and ConfigError
    when there is no such part.
    """
    buckets = buckets_of_part(part, of)
    config = pin_or_fetch(config, store.root)
    captioner = identify(config, store.memo)
    worker = _worker(store, captioner, config, paths=_paths_by_image(images), root=images_root, progress=progress)
    worker.work(buckets, patient=False)
    return PartOutcome(generated=worker.done.generated, failed=len(worker.done.failed))


def _worker(store: ArtifactStore, captioner: Captioner, config: CaptionConfig, **work: Any) -> Worker:
    """Return the worker of `captioner`; work: its paths, root and progress."""

    def check_model() -> None:
        if identify(config, store.memo) != captioner:
            raise WeightsError(
                f"the model files of caption.model={config.model} changed while they were loaded; nothing was "
                "captioned with them: run again when they are complete"
            )

    captions = CaptionStore(store.root, captioner)
    return Worker(captions, config=config, check_model=check_model, **work)


def _paths_by_image(images: ArtifactRef) -> Paths:
    """Return image sha256 -> its paths, in the order of the index: equal files are captioned once."""
    index = pq.read_table(images.folder / _INDEX, columns=["sha256", "path"])
    found: defaultdict[str, list[str]] = defaultdict(list)
    for sha256, path in zip(index["sha256"].to_pylist(), index["path"].to_pylist(), strict=True):
        found[sha256].append(path)
    return {sha256: tuple(paths) for sha256, paths in found.items()}


def _nothing_captioned(failed: Mapping[str, Failure], root: Path) -> ClipScgiError:
    reasons = Counter(failure.error for failure in failed.values())
    told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    if any(failure.status == "server_error" for failure in failed.values()):
        return RetryableError(f"none of the {len(failed)} images got a caption from the server: {told}")
    return DataError(
        f"none of the {len(failed)} images can be read under {root}: {told}. "
        "Is it the folder that was indexed? Index it again, or give the right one"
    )
