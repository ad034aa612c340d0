"""The Parquet schemas that both stages share: explicit and versioned, never inferred from rows.

Users open ``captions.parquet`` in pandas, so it is flat: one row per image, plain column types.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from data.slots import SLOTS

SCHEMA_VERSION: Final = 2
_METADATA: Final = {b"clip_scgi_schema": str(SCHEMA_VERSION).encode()}


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in fields], metadata=_METADATA)


IMAGES: Final = _schema(
    ("path", pa.string()),  # relative to the dataset's root, posix separators
    ("split", pa.string()),  # train, query or gallery
    ("pid", pa.int64()),  # identity; data.people decides which are people
    ("camid", pa.int64()),  # camera, as numbered by the dataset; -1 in every row if unknown (data.people)
    ("sha256", pa.string()),  # of the file's bytes
    ("size", pa.int64()),  # bytes
    ("width", pa.int32()),  # pixels, after EXIF rotation
    ("height", pa.int32()),
)
"""images.parquet: one row per usable image, sorted by (split, path)."""

LABEL: Final = pa.field("label", pa.string())
"""Last column of images.parquet, captions.parquet and identities.parquet if the identities of a dataset are text: the
text that `pid` numbers. Datasets that number their identities themselves do not have it."""

LABELED_IMAGES: Final = IMAGES.append(LABEL)
"""images.parquet of a dataset whose identities are text."""

SENTENCES: Final = _schema(
    ("image_path", pa.string()),
    ("image_sha256", pa.string()),
    ("number", pa.int32()),  # place among the sentences of the image, from 0
    ("sentence", pa.string()),
)
"""sentences.parquet: one row per sentence that comes with the dataset, in the order of images.parquet. Only datasets
with sentences have this file."""

REJECTED: Final = _schema(
    ("path", pa.string()),
    ("reason", pa.string()),  # a code: bad_name, truncated, too_small, ... (data.images.decode, data.index.rules)
    ("detail", pa.string()),  # a sentence for people
)
"""rejected.parquet: one row per file that was found but not used, with the reason."""

SHARD: Final = _schema(
    ("image_sha256", pa.string()),
    ("raw_text", pa.string()),  # the reply as generated
    ("first_text", pa.string()),  # the first reply, if a later one was kept; else null
    ("n_replies", pa.int32()),  # replies generated for this image
    ("status", pa.string()),  # ok, truncated
    ("error", pa.string()),  # null if there was none
    ("n_tokens", pa.int32()),  # generated tokens without the end-of-sequence token (unless a server counts it)
    ("truncated", pa.bool_()),  # no end-of-sequence token within the limit
    ("batch_size", pa.int32()),  # provenance: half-precision text can depend on it; null if a server decides
    *((f"conf_{slot}", pa.float32()) for slot in SLOTS),  # log-probability of the slot value, null in free decoding
)
"""One append-only shard of the caption store, keyed by image_sha256 within one captioner fingerprint."""

WORDLESS: Final = "<no words>"
"""The column caption of an image whose caption has no words, because an empty one is a missing one. Only the control
`empty` of a study writes it. The text tower encodes it as an empty text: start and end token alone."""

CAPTIONS: Final = _schema(
    ("image_path", pa.string()),
    ("image_sha256", pa.string()),
    ("split", pa.string()),
    ("pid", pa.int64()),
    ("camid", pa.int64()),
    ("caption", pa.string()),  # the text for training: raw_text tidied, or cleaned if cleaning is on
    ("raw_text", pa.string()),
    ("first_text", pa.string()),  # the malformed first reply, if the model was re-prompted; else null
    ("n_replies", pa.int32()),
    ("status", pa.string()),  # ok, unparsed, truncated, image_error, server_error, missing; wrong (corrections)
    ("error", pa.string()),
    ("template_id", pa.string()),
    ("model_id", pa.string()),
    ("model_revision", pa.string()),
    ("captioner_fingerprint", pa.string()),
    ("n_tokens", pa.int32()),
    ("truncated", pa.bool_()),
    ("dtype", pa.string()),  # null if a server decides
    ("quantization", pa.string()),
    ("batch_size", pa.int32()),
    *((f"attr_{slot}", pa.string()) for slot in SLOTS),
    *((f"conf_{slot}", pa.float32()) for slot in SLOTS),
)
"""captions.parquet: one row per image of one dataset, in the order of images.parquet."""

CORRECTED: Final = pa.schema(
    [
        *CAPTIONS,
        ("source", pa.string()),  # whose text `caption` is: model (or the dataset's sentence), human or import
        ("model_text", pa.string()),  # the model's caption, corrected or not
        ("corrected_by", pa.string()),  # author of the correction; null without one
        ("corrected_at", pa.string()),  # its time, ISO 8601 in UTC
        ("stale", pa.bool_()),  # it was made against another text than model_text
    ],
    metadata=_METADATA,
)
"""captions.parquet with corrections applied, by the stage ``correct``. In a corrected row, `caption` and `raw_text`
are the author's text; the columns of the model's reply (`conf_<slot>`, `n_tokens`, ...) are null, and `model_id` to
`captioner_fingerprint` name the captioner of `model_text`."""

RANKINGS: Final = _schema(
    ("model", pa.string()),  # untrained or trained
    ("mode", pa.string()),  # image or fused
    ("query_path", pa.string()),
    ("query_pid", pa.int64()),
    ("query_camid", pa.int64()),
    ("ap", pa.float64()),  # average precision, fraction
    ("inp", pa.float64()),  # inverse negative penalty, fraction
    ("first_hit", pa.int64()),  # 1-based rank of the first relevant image
    ("n_relevant", pa.int64()),
    ("top_paths", pa.list_(pa.string())),  # nearest first, junk removed, at most 50
    ("top_pids", pa.list_(pa.int64())),
    ("top_camids", pa.list_(pa.int64())),
    ("top_scores", pa.list_(pa.float32())),  # cosine similarity
)
"""rankings.parquet: one row per valid query, model and inference mode."""

TEXT_RANKINGS: Final = _schema(
    ("model", pa.string()),  # untrained or trained
    ("sentence", pa.string()),
    ("number", pa.int64()),  # place among the sentences of the image, from 0
    ("image_path", pa.string()),  # of the image that the sentence is about
    ("pid", pa.int64()),
    ("ap", pa.float64()),  # average precision, fraction
    ("first_hit", pa.int64()),  # 1-based rank of the first relevant image
    ("n_relevant", pa.int64()),
    ("top_paths", pa.list_(pa.string())),  # nearest first, junk removed, at most 50
    ("top_pids", pa.list_(pa.int64())),
    ("top_scores", pa.list_(pa.float32())),  # cosine similarity
)
"""text_rankings.parquet: one row per sentence with a match and model; only of evaluations with sentences."""
