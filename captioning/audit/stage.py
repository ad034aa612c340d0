"""The audit stage: are the captions of one person the same story, and which captions should a person look at?

It changes no caption. It writes audit.json (figures), identities.parquet (one row per identity and slot),
flags.parquet (one row per caption) and captions.audit.html (where to look, with the images beside the captions).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.audit.agreement import identity_table, mixed_gender_identities, people, slot_summary
from captioning.audit.flags import FLAGS, flag_table, shared_by
from captioning.audit.page import TEMPLATE, audit_page
from captioning.config import AuditConfig
from data.artifacts.contents import AUDITED, CAPTIONS_FILE, caption_contents
from data.artifacts.fingerprint import digest_file
from data.artifacts.store import ArtifactRef, ArtifactStore, Made
from data.errors import DataError
from data.files import read_json, write_json, write_table, write_text
from data.progress import ProgressFn, silent
from data.schemas import SCHEMA_VERSION

if TYPE_CHECKING:
    import pandas as pd

    from data.images.thumbnails import Thumbnails

__all__ = ["FLAG_ROWS", "IDENTITIES", "AuditConfig", "audit", "audit_ingredients"]

STAGE: Final = "audit"
STAGE_VERSION: Final = 2
_METADATA: Final = {b"clip_scgi_schema": str(SCHEMA_VERSION).encode()}
_STEPS: Final = 4
_THUMBNAIL_HEIGHT: Final = 112  # pixels

IDENTITIES: Final = pa.schema(
    [
        ("pid", pa.int64()),
        ("slot", pa.string()),
        ("n_images", pa.int64()),
        ("n_named", pa.int64()),  # images whose caption answers the slot
        ("majority", pa.string()),  # null where none does
        ("agreement", pa.float64()),  # share of the named with the majority's value; null where none is named
        ("entropy", pa.float64()),  # bits
        ("values", pa.string()),  # JSON object: value -> images
    ],
    metadata=_METADATA,
)
"""identities.parquet: one row per identity and slot; junk and distractors are left out."""

FLAG_ROWS: Final = pa.schema(
    [
        ("image_path", pa.string()),
        ("image_sha256", pa.string()),
        ("pid", pa.int64()),
        ("camid", pa.int64()),
        ("flags", pa.list_(pa.string())),  # the names of the true columns below
        *((flag, pa.bool_()) for flag in FLAGS),
        ("dissent_slots", pa.list_(pa.string())),  # slots that contradict the identity's majority
    ],
    metadata=_METADATA,
)
"""flags.parquet: one row per caption, in the order of captions.parquet."""


def audit_ingredients(
    *, captions: ArtifactRef, config: AuditConfig, images: ArtifactRef | None = None
) -> dict[str, Any]:
    """Return what the fingerprint of the audit artifact is made from.

    The captions name the digest of each image, so the pictures on the page follow from them.
    """
    return {
        "stage_version": STAGE_VERSION,
        "captions": caption_contents(captions)["audit"],
        "config": config.identity(),
        "dataset": None if images is None else _name(images),
        "page": digest_file(TEMPLATE),
    }


def audit(
    store: ArtifactStore,
    *,
    captions: ArtifactRef,
    config: AuditConfig,
    images: ArtifactRef | None = None,
    images_root: Path | None = None,
    progress: ProgressFn = silent,
) -> Made:
    """Audit the captions of one dataset; return the artifact. Raises DataError if captions.parquet is unusable.

    images, images_root: the index artifact and the folder of the images, for the name and the pictures on the page;
    without them it shows text only. A page on which a picture is missing is made again next time.
    """
    ingredients = audit_ingredients(captions=captions, config=config, images=images)
    problems: dict[str, str] = {}

    def produce(folder: Path) -> None:
        rows = _read(captions.folder / CAPTIONS_FILE)
        thumbnail = None
        if images is not None and images_root is not None:
            from data.images.thumbnails import Thumbnails  # a cached audit needs no Pillow

            digests = dict(zip(rows["image_path"], rows["image_sha256"], strict=True))
            thumbnail = Thumbnails(images_root, digests, _THUMBNAIL_HEIGHT)
        _produce(folder, rows, config, progress, dataset=ingredients["dataset"], picture=thumbnail)
        problems.update(thumbnail.problems if thumbnail else {})

    return store.make(STAGE, ingredients, produce, complete=lambda _: not problems)


def _name(images: ArtifactRef) -> str:
    return str(read_json(images.folder / "dataset.json")["name"])


def _produce(
    folder: Path,
    rows: pd.DataFrame,
    config: AuditConfig,
    progress: ProgressFn,
    *,
    dataset: str | None,
    picture: Thumbnails | None,
) -> None:
    known = people(rows)
    progress(1, _STEPS, "agreement")
    identities = identity_table(rows[known])
    progress(2, _STEPS, "flags")
    flags = flag_table(rows, identities, known, config)
    summary = _summary(rows, identities, flags, known)
    progress(3, _STEPS, "writing")
    write_json(folder / "audit.json", summary)
    write_table(folder / "identities.parquet", _table(identities, IDENTITIES), IDENTITIES)
    write_table(folder / "flags.parquet", _table(flags, FLAG_ROWS), FLAG_ROWS)
    page = audit_page(rows, identities, flags, summary, config, dataset=dataset, picture=picture)
    write_text(folder / "captions.audit.html", page)
    progress(_STEPS, _STEPS, f"{summary['identities']} identities")


def _read(path: Path) -> pd.DataFrame:
    try:
        return pq.read_table(path, columns=list(AUDITED)).to_pandas()
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
