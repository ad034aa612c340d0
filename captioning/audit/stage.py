"""The audit stage: measure how well the captions of each identity agree, and flag captions worth reviewing.

It does not change any caption. It writes audit.json (figures), identities.parquet (one row per identity and slot),
flags.parquet (one row per caption) and captions.audit.html (the captions to review, next to their images).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.audit.agreement import identity_table, mixed_gender_identities, people, slot_summary
from captioning.audit.flags import FLAGS, flag_table, shared_by
from captioning.audit.page import TEMPLATE, audit_page
from captioning.config import AuditConfig
from data.artifacts.contents import CAPTIONS_FILE, audited_columns, caption_contents
from data.artifacts.fingerprint import digest, digest_file
from data.artifacts.store import ArtifactRef, Produced
from data.errors import DataError, counted
from data.files import write_json, write_table, write_text
from data.schemas import LABEL, SCHEMA_VERSION
from data.stages.stage import Ingredients, RunContext, Stage

if TYPE_CHECKING:
    import pandas as pd

    from data.images.thumbnails import Thumbnails

__all__ = ["FLAG_ROWS", "IDENTITIES", "AuditConfig", "AuditStage"]

STAGE_VERSION: Final = 2
_METADATA: Final = {b"clip_scgi_schema": str(SCHEMA_VERSION).encode()}
_STEPS: Final = 4
_THUMBNAIL_HEIGHT: Final = 112  # pixels

IDENTITIES: Final = pa.schema(
    [
        ("pid", pa.int64()),
        ("slot", pa.string()),
        ("n_images", pa.int64()),
        ("n_named", pa.int64()),  # images whose caption names a value
        ("majority", pa.string()),  # null if no caption does
        ("agreement", pa.float64()),  # share of n_named with the majority value; null if n_named is 0
        ("entropy", pa.float64()),  # bits
        ("values", pa.string()),  # JSON object: value -> images
    ],
    metadata=_METADATA,
)
"""identities.parquet: one row per identity and slot, then schemas.LABEL if the captions have it; junk and distractors
are left out."""

FLAG_ROWS: Final = pa.schema(
    [
        ("image_path", pa.string()),
        ("image_sha256", pa.string()),
        ("pid", pa.int64()),
        ("camid", pa.int64()),
        ("flags", pa.list_(pa.string())),  # names of the flags below that are true
        *((flag, pa.bool_()) for flag in FLAGS),
        ("dissent_slots", pa.list_(pa.string())),  # slots whose value differs from the majority of the identity
    ],
    metadata=_METADATA,
)
"""flags.parquet: one row per caption, in the order of captions.parquet."""


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

        rows = _read(self.captions.folder / CAPTIONS_FILE)
        digests = dict(zip(rows["image_path"], rows["image_sha256"], strict=True))
        thumbnails = Thumbnails(run.images.root, digests, _THUMBNAIL_HEIGHT)
        _write(folder, rows, self.config, run, thumbnails)
        return Produced(complete=not thumbnails.problems)


def _write(folder: Path, rows: pd.DataFrame, config: AuditConfig, run: RunContext, thumbnails: Thumbnails) -> None:
    known = people(rows)
    run.progress(1, _STEPS, "agreement")
    identities = _with_labels(identity_table(rows[known]), rows)
    run.progress(2, _STEPS, "flags")
    flags = flag_table(rows, identities, known, config)
    summary = _summary(rows, identities, flags, known)
    run.progress(3, _STEPS, "writing")
    write_json(folder / "audit.json", summary)
    schema = IDENTITIES.append(LABEL) if LABEL.name in identities else IDENTITIES
    write_table(folder / "identities.parquet", _table(identities, schema), schema)
    write_table(folder / "flags.parquet", _table(flags, FLAG_ROWS), FLAG_ROWS)
    dataset = run.images.description.name
    page = audit_page(rows, identities, flags, summary, config, dataset=dataset, picture=thumbnails)
    write_text(folder / "captions.audit.html", page)
    run.progress(_STEPS, _STEPS, counted(summary["identities"], "identity"))


def _with_labels(identities: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return `identities` with the label of each, if the captions `rows` have labels."""
    if LABEL.name not in rows:
        return identities
    labels = dict(zip(rows["pid"], rows[LABEL.name], strict=True))
    return identities.assign(**{LABEL.name: [labels[pid] for pid in identities["pid"]]})


def _read(path: Path) -> pd.DataFrame:
    try:
        return pq.read_table(path, columns=audited_columns(pq.read_schema(path).names)).to_pandas()
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path} cannot be audited ({error}); delete its folder and run the caption stage again"
        ) from error


def _table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)


def _summary(
    rows: pd.DataFrame, identities: pd.DataFrame, flags: pd.DataFrame, known: pd.Series[bool]
) -> dict[str, Any]:
    several = rows["raw_text"][shared_by(rows, known) > 1].map(lambda text: " ".join(text.lower().split()))
    return {
        "images": len(rows),
        "by_status": {str(status): int(n) for status, n in sorted(rows["status"].value_counts().items())},
        "slots": slot_summary(rows, identities),
        "identities": int(identities["pid"].nunique()),
        "mixed_gender_identities": mixed_gender_identities(identities),
        "duplicates_across_identities": int(several.nunique()),  # distinct texts
        "flags": {flag: int(flags[flag].sum()) for flag in FLAGS},
    }
