"""The caption stage: one caption per indexed image, generated only if the caption store does not hold it yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from captioning.captioner import Captioner, identify
from captioning.config import CaptionConfig
from captioning.hub import known_form, pin_offline, pin_or_fetch
from captioning.stage.sentences import DatasetSentences, sentences_digest
from captioning.stage.view import Failures, View
from captioning.stage.worker import Failure, Worker
from captioning.stage.worklist import WorkList
from captioning.store.claims import buckets_of_part
from captioning.store.compaction import compact
from captioning.store.snapshot import Snapshot
from captioning.store.store import CaptionStore
from data.artifacts.contents import CAPTIONS_FILE, IMAGES_FILE, Contents, contents_of_captions
from data.artifacts.store import Produced
from data.columns.source import ParquetRows
from data.errors import ClipScgiError, DataError, RetryableError, WeightsError, counted
from data.schemas import SCHEMA_VERSION
from data.stages.stage import Ingredients, Producer, RunContext, Stage

STAGE_VERSION: Final = 3
"""Increased when captions.parquet changes: its columns (`captioning.stage.view`) or the result of `parse_caption`."""


@dataclass(frozen=True, kw_only=True)
class Captioned(Produced):
    """The outcome of the stage, counted in distinct images.

    generated: captioned now by this process. reused: taken from the store. failed: unreadable, or not answered by the
    server; the next run tries these again.
    """

    generated: int = 0
    reused: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class PartOutcome:
    """The outcome of one of several workers, counted in distinct images of its part.

    generated: captioned now. failed: unreadable, or not answered by the server.
    """

    generated: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class CaptionStage(Stage):
    """Write captions.parquet (schemas.CAPTIONS and, if the index has it, schemas.LABEL), one row per indexed image.

    Only images without a caption by this captioner are read, and the model is loaded only if there are any. Processes
    that caption the same images, here or in `caption_part`, share the work. An image that cannot be read gets status
    ``image_error``; one that the server did not answer gets ``server_error``. With either, the artifact is incomplete,
    so that the next run tries again.

    `make` raises DataError when none of the images can be read, RetryableError when the server answers for none of
    them, WeightsError when the model is missing, and ClipScgiError when the disk is full.
    """

    name: ClassVar[str] = "caption"
    config: CaptionConfig

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the images, the captioner, its template and the cleaning. Reads only changed model files."""
        captioner = _captioner(run, pin_offline(self.config, run.store.root))
        return {
            "stage_version": STAGE_VERSION,
            "schema_version": SCHEMA_VERSION,
            "images": run.images.ref.digests_of(IMAGES_FILE),
            "captioner": captioner.ingredients,
            "model": [captioner.model_id, captioner.model_revision],
            "template_id": self.config.prompt_template.id,
            "cleaning": self.config.cleaning.identity(),
            **self._sentences(run),
        }

    def _sentences(self, run: RunContext) -> dict[str, str]:
        """Return the ingredient of captions that are the dataset's own."""
        if self.config.engine != "dataset":
            return {}
        return {"dataset sentences": sentences_digest(run.images, self.config.sentence)}

    def settled(self, run: RunContext) -> CaptionStage:
        """Return the stage with a branch on the hub pinned to its commit; fetch a model of unknown commit or prompt."""
        config = pin_or_fetch(self.config, run.store.root)
        return self if config is self.config else replace(self, config=config)

    def begin(self, run: RunContext, ingredients: Ingredients) -> Producer:
        """Caption all images without a caption, together with other processes; return the writer of the table."""
        captioner = _captioner(run, self.config)
        if self.config.engine == "imported":
            return partial(_write_missing, run, captioner, self.config)
        if self.config.engine == "dataset":
            return partial(_write_sentences, run, captioner, self.config)
        if captioner.ingredients != ingredients["captioner"]:
            raise _model_changed(self.config)
        worker = _worker(run, captioner, self.config)
        worker.work(patient=True)
        while not worker.snapshot.check_packs():
            worker.work(patient=True)
        if len(worker.done.failed) == worker.distinct:
            raise _nothing_captioned(worker.done.failed, run.images.root)
        compact(worker.captions)

        snapshot, done, distinct = worker.snapshot, worker.done, worker.distinct
        del worker  # with the paths of all images

        def produce(folder: Path, scratch: Path) -> Captioned:
            snapshot.refresh()
            failures = Failures(done.failed)
            view = View(run.images, snapshot, failures, captioner, self.config)
            contents = _written(view, folder, scratch)
            generated, failed = done.generated, len(done.failed)
            reused = distinct - generated - failed
            return Captioned(
                complete=not failed,
                note=_note(generated, reused, failed),
                contents=contents,
                generated=generated,
                reused=reused,
                failed=failed,
            )

        return produce

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Caption the images and write captions.parquet."""
        return self.begin(run, self.ingredients(run))(folder, scratch)


def _write_missing(
    run: RunContext, captioner: Captioner, config: CaptionConfig, folder: Path, scratch: Path
) -> Captioned:
    """Write captions.parquet without a text: `captioning.corrections` adds the imported ones."""
    missing = Failures({}, otherwise=Failure(status="missing", error="no caption was imported"))
    view = View(run.images, Snapshot(CaptionStore(run.store.root, captioner)), missing, captioner, config)
    return Captioned(note="no captioning model", contents=_written(view, folder, scratch))


def _write_sentences(
    run: RunContext, captioner: Captioner, config: CaptionConfig, folder: Path, scratch: Path
) -> Captioned:
    """Write captions.parquet with the sentences of the dataset; an image without one has the status ``missing``."""
    sentences = DatasetSentences(run.images, config.sentence)
    error = f"the image does not have a sentence number {config.sentence}"
    missing = Failures({}, otherwise=Failure(status="missing", error=error))
    contents = _written(View(run.images, sentences, missing, captioner, config), folder, scratch)
    return Captioned(note=f"{counted(len(sentences), 'sentence')} of the dataset", contents=contents)


def _written(view: View, folder: Path, scratch: Path) -> Contents:
    """Write captions.parquet and return its content digests."""
    file = folder / CAPTIONS_FILE
    view.write(file, scratch)
    return contents_of_captions(ParquetRows(file), scratch=scratch)


def _note(generated: int, reused: int, failed: int) -> str:
    note = f"{counted(generated, 'caption')} generated, {reused} reused"
    return f"{note}, {failed} failed" if failed else note


def caption_part(
    run: RunContext, config: CaptionConfig, *, part: int = 0, of: int = 1, patient: bool = False
) -> PartOutcome:
    """Caption, as one of several workers, the images that no other process has captioned or is captioning.

    The caption stage then collects all captions. Any number of processes, on one machine or on several that share the
    artifact root, may run at the same time: they claim buckets of images, so no image is captioned twice, and a worker
    that dies loses only captions that it has not written yet. part, of: caption only one of `of` fixed parts (a stable
    hash of the image decides), for machines that do not see each other's file locks; with (0, 1), workers take any free
    bucket. patient: return only when every image of the part has a caption or failed here; captions what workers that
    died had claimed. Raises the errors of `CaptionStage.make`, and ConfigError if `part` does not exist.
    """
    buckets = buckets_of_part(part, of)
    if not config.uses_model:
        return PartOutcome(generated=0, failed=0)
    config = pin_or_fetch(config, run.store.root)
    worker = _worker(run, _captioner(run, config), config)
    worker.work(buckets, patient=patient)
    compact(worker.captions)
    return PartOutcome(generated=worker.done.generated, failed=len(worker.done.failed))


def _captioner(run: RunContext, config: CaptionConfig) -> Captioner:
    return identify(config, run.store.memo, known_form(config, run.store.root))


def _worker(run: RunContext, captioner: Captioner, config: CaptionConfig) -> Worker:
    def check_model() -> None:
        if _captioner(run, config) != captioner:
            raise _model_changed(config)

    return Worker(
        CaptionStore(run.store.root, captioner),
        images=WorkList.of(run.images),
        root=run.images.root,
        config=config,
        progress=run.progress,
        check_model=check_model,
    )


def _model_changed(config: CaptionConfig) -> WeightsError:
    return WeightsError(
        f"the model files of caption.model={config.model} changed while they were loaded, so nothing "
        "was captioned with them: run again when all files are complete"
    )


def _nothing_captioned(failed: Mapping[str, Failure], root: Path) -> ClipScgiError:
    reasons = Counter(failure.error for failure in failed.values())
    told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    if any(failure.status == "server_error" for failure in failed.values()):
        return RetryableError(f"none of the {len(failed)} images got a caption from the server: {told}")
    return DataError(
        f"none of the {len(failed)} images can be read under {root}: {told}. "
        "Set data.root to the folder that was indexed, or run the index stage again"
    )
