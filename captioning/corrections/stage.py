"""The ``correct`` stage: captions.parquet with the corrections of its images applied, for audit and training.

The caption stage keeps the model's text. This stage reads its captions.parquet and writes another one, so that both
can be compared, and so that correcting a caption captions nothing again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Final

import pyarrow as pa

from captioning.config import CaptionConfig
from captioning.corrections.current import Current
from captioning.corrections.layer import CorrectedRows, Counts, counts_of
from captioning.corrections.record import Correction
from captioning.corrections.store import Corrections
from captioning.stage.stage import CaptionStage
from data.artifacts.contents import CAPTIONS_FILE, Contents, contents_of_captions
from data.artifacts.fingerprint import digest_each
from data.artifacts.store import ArtifactRef, Produced
from data.columns.digests import digests_of
from data.columns.shuffle import BLOCK_ROWS
from data.columns.source import ParquetRows, in_blocks
from data.errors import DataError, counted
from data.files import write_tables
from data.schemas import SCHEMA_VERSION
from data.stages.stage import Ingredients, RunContext, Stage

STAGE_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class CorrectStage(Stage):
    """Apply the corrections of a template to a caption artifact.

    captions: the caption artifact. config: names the template. pinned: image sha256 -> its correction; None: what the
    store holds when the stage runs. The ingredients contain only corrections of images in `captions`, so correcting
    other images changes nothing. `make` raises DataError if no image is left with a caption.
    """

    name: ClassVar[str] = "correct"
    captions: ArtifactRef
    config: CaptionConfig
    pinned: Current | None = field(default=None, repr=False)

    def settled(self, run: RunContext) -> CorrectStage:
        """Return the stage with the corrections of this moment, so that a later one cannot slip in."""
        return self if self.pinned is not None else replace(self, pinned=self._corrected(run))

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the captions and the corrections of their images."""
        corrected = self._corrected(run)
        counts = self._counts(corrected)
        return {
            "stage_version": STAGE_VERSION,
            "schema_version": SCHEMA_VERSION,
            "captions": self.captions.digests_of(CAPTIONS_FILE),
            "corrections": {**counts._asdict(), "content": digest_each(map(_identity, corrected.entries()))},
        }

    def contents(self, run: RunContext) -> Contents:
        """Return the content digests of the artifact, without making it."""
        return contents_of_captions(CorrectedRows(self._source(), self._corrected(run)))

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write captions.parquet (schemas.CORRECTED)."""
        corrected = self._corrected(run)
        rows, file = CorrectedRows(self._source(), corrected), folder / CAPTIONS_FILE
        captioned = 0

        def count(block: pa.Table) -> pa.Table:
            nonlocal captioned
            captioned += len(block) - block["caption"].null_count
            return block

        write_tables(file, map(count, in_blocks(rows.batches(), BLOCK_ROWS)), rows.schema)
        if not captioned:
            raise DataError(_nothing_left(self.config, rows.n_rows))
        contents = contents_of_captions(ParquetRows(file), scratch=scratch)
        return Produced(note=_note(self._counts(corrected)), contents=contents)

    def _counts(self, corrected: Current) -> Counts:
        captions = self._source().batches("image_sha256", "caption") if corrected else ()
        return counts_of(captions, corrected)

    def _corrected(self, run: RunContext) -> Current:
        """Return the corrections of the images of `captions`, without those that were reset."""
        if self.pinned is not None:
            return self.pinned
        current = Corrections.open(run.store.root, self.config.template).current().without_resets()
        if not current:
            return current
        return current.among(digests_of(rows["image_sha256"]) for rows in self._source().batches("image_sha256"))

    def _source(self) -> ParquetRows:
        file = self.captions.folder / CAPTIONS_FILE
        try:
            return ParquetRows(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{file} cannot be read ({error}); delete its folder and run the caption stage again"
            ) from error


def find_captions(run: RunContext, config: CaptionConfig) -> ArtifactRef | None:
    """Return the captions that later stages read, with corrections if `config` says so; None if they do not exist."""
    captions = CaptionStage(config=config).find(run)
    if captions is None or config.corrections == "ignore":
        return captions
    return CorrectStage(captions=captions, config=config).find(run)


def make_captions(run: RunContext, config: CaptionConfig) -> ArtifactRef:
    """Return the captions that later stages read, with corrections if `config` says so; make them if needed."""
    captions = CaptionStage(config=config).make(run).ref
    if config.corrections == "ignore":
        return captions
    return CorrectStage(captions=captions, config=config).make(run).ref


def _identity(entry: Correction) -> list[object]:
    """Return what the artifact depends on of a correction: all but its revision."""
    against = None if entry.against is None else entry.against.text
    said = [entry.text, None if entry.given is None else dict(entry.given)]
    return [entry.sha256, entry.kind, *said, entry.author, entry.time.isoformat(), entry.provenance, against]


def _note(counts: Counts) -> str:
    """Return the number of corrected captions with its parts, which sum to it, and apart from them the stale ones."""
    kinds = ((counts.text, "text"), (counts.slots, "attributes"), (counts.wrong, "marked as wrong"))
    parts = ", ".join(f"{number:,} {kind}" for number, kind in kinds if number)
    note = counted(counts.text + counts.slots + counts.wrong, "caption") + " corrected"
    note += f": {parts}" if parts else ""
    return note + (f"; {counts.stale:,} made against another text of the model" if counts.stale else "")


def _nothing_left(config: CaptionConfig, images: int) -> str:
    if config.engine == "imported":
        return (
            f"none of the {images:,} images has an imported caption for template {config.prompt_template.id}: import a"
            " table with clip-scgi corrections import FILE --recipe RECIPE, or set caption.engine=transformers"
        )
    return (
        f"all captions of the {images:,} images are missing or marked as wrong: write captions for some of them, or set"
        " caption.corrections=ignore"
    )
