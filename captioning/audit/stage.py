"""The audit stage: measure how well the captions of each identity agree, and flag captions worth reviewing.

It does not change any caption. It writes audit.json (figures), identities.parquet (one row per identity and slot),
flags.parquet (one row per caption) and captions.audit.html (the captions to review, next to their images).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from captioning.audit.agreement import IDENTITIES, Agreement, mixed_gender_identities, slot_summary
from captioning.audit.choice import Choice
from captioning.audit.columns import Captions, read_captions
from captioning.audit.flags import FLAG_ROWS, FLAGS, Flags, flags_of
from captioning.audit.page import TEMPLATE, audit_page
from captioning.config import AuditConfig
from data.artifacts.contents import CAPTIONS_FILE, caption_contents
from data.artifacts.fingerprint import digest, digest_file
from data.artifacts.store import ArtifactRef, Produced
from data.columns.shuffle import BLOCK_ROWS
from data.columns.source import ParquetRows, in_blocks
from data.errors import DataError, counted
from data.files import write_json, write_tables, write_text
from data.schemas import LABEL
from data.slots import SLOTS
from data.stages.stage import Ingredients, RunContext, Stage

__all__ = ["FLAG_ROWS", "IDENTITIES", "AuditConfig", "AuditStage"]

STAGE_VERSION: Final = 2
_STEPS: Final = 4
_IDENTITIES: Final = 1 << 16  # identities per row group of identities.parquet
_THUMBNAIL_HEIGHT: Final = 112  # pixels


@dataclass(frozen=True, kw_only=True)
class AuditStage(Stage):
    """Audit the captions of one dataset.

    captions: the caption artifact. If an image on the page cannot be read, the artifact is incomplete. `make` raises
    DataError if captions.parquet is unusable.
    """

    name: ClassVar[str] = "audit"
    captions: ArtifactRef
    config: AuditConfig

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the audited columns, the config and the template of the page.

        The columns include the digest of each image, so they determine the pictures on the page.
        """
        return {
            "stage_version": STAGE_VERSION,
            "captions": caption_contents(self.captions)["audit"],
            "config": self.config.identity(),
            "dataset": run.images.description.name,
            "page": digest_file(TEMPLATE),
            "flags": digest(dict(FLAGS)),
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write the tables and the page."""
        from data.images.thumbnails import Thumbnails  # a cached audit does not load Pillow

        source = _source(self.captions.folder / CAPTIONS_FILE)
        run.progress(1, _STEPS, "captions")
        captions = read_captions(source, self.config)
        known = captions.is_person
        identities = Agreement(captions.pids[known], captions.answers[known], captions.values)
        run.progress(2, _STEPS, "flags")
        flags = flags_of(captions, identities, self.config)
        summary = _summary(captions, identities, flags)
        run.progress(3, _STEPS, "writing")
        write_json(folder / "audit.json", summary)
        _write_identities(folder / "identities.parquet", captions, identities)
        write_tables(folder / "flags.parquet", _flag_rows(source, flags), FLAG_ROWS)
        chosen = Choice.of(captions, identities, flags, self.config)
        shown = chosen.read(source)
        thumbnails = Thumbnails(run.images.root, shown.digests(), _THUMBNAIL_HEIGHT)
        page = audit_page(chosen, shown, summary, self.config, dataset=run.images.description.name, picture=thumbnails)
        write_text(folder / "captions.audit.html", page)
        run.progress(_STEPS, _STEPS, counted(summary["identities"], "identity"))
        return Produced(complete=not thumbnails.problems)


def _source(path: Path) -> ParquetRows:
    try:
        return ParquetRows(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path} cannot be audited ({error}); delete its folder and run the caption stage again"
        ) from error


def _flag_rows(source: ParquetRows, flags: Flags) -> Iterator[pa.Table]:
    """Yield flags.parquet in blocks; at least one, which may be empty."""
    start = 0
    for keys in in_blocks(source.batches("image_path", "image_sha256", "pid", "camid"), BLOCK_ROWS):
        yield flags.rows(keys, start)
        start += keys.num_rows
    if not start:
        yield FLAG_ROWS.empty_table()


def _write_identities(file: Path, captions: Captions, identities: Agreement) -> None:
    """Write identities.parquet, with the label of each identity if the captions have labels."""
    schema = IDENTITIES
    labels = None
    if captions.labels is not None:
        codes, texts = captions.labels
        schema = IDENTITIES.append(LABEL)
        last = np.zeros(len(identities.pids), dtype=np.int32)
        of_people = captions.is_person
        last[identities.of(captions.pids[of_people])] = codes[of_people]
        labels = pa.array(texts, pa.string()).take(pa.array(last))

    def blocks() -> Iterator[pa.Table]:
        for start in range(0, max(len(identities.pids), 1), _IDENTITIES):
            table = identities.table(start, start + _IDENTITIES)
            if labels is not None:
                groups = np.repeat(np.arange(start, start + table.num_rows // len(SLOTS)), len(SLOTS))
                table = table.append_column(LABEL, labels.take(pa.array(groups)))
            yield table

    write_tables(file, blocks(), schema)


def _summary(captions: Captions, identities: Agreement, flags: Flags) -> dict[str, Any]:
    return {
        "images": len(captions.pids),
        "by_status": captions.statuses,
        "slots": slot_summary(captions.answers, captions.values, identities),
        "identities": len(identities.pids),
        "mixed_gender_identities": mixed_gender_identities(identities),
        "duplicates_across_identities": flags.shared_texts,  # distinct texts
        "flags": {flag: int(mask.sum()) for flag, mask in flags.raised.items()},
    }
