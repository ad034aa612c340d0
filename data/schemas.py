"""The Parquet schemas both stages share. Explicit and versioned: nothing is ever inferred from the rows.

``captions.parquet`` is what users open in pandas, so it is flat: one row an image, plain column types.
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
    ("path", pa.string()),  # relative to the data set's root, posix separators
    ("split", pa.string()),  # train, query or gallery
    ("pid", pa.int64()),  # identity; who is a person: data.people
    ("camid", pa.int64()),  # camera, as the data set numbers it
    ("sha256", pa.string()),  # of the file's bytes
    ("size", pa.int64()),  # bytes
    ("width", pa.int32()),  # pixels, after EXIF rotation
    ("height", pa.int32()),
)
"""images.parquet: one row a usable image, sorted by (split, path)."""

REJECTED: Final = _schema(
    ("path", pa.string()),
    (
        "reason",
        pa.string(),
    ),  # a short code: bad_name, truncated, too_small, ... (data.images.decode.REASONS, data.index.rules)
    ("detail", pa.string()),
)
"""rejected.parquet: one row a file that was found and not used, with the reason."""

SHARD: Final = _schema(
    ("image_sha256", pa.string()),
    ("raw_text", pa.string()),  # what the model wrote, untouched
    ("first_text", pa.string()),  # its first reply, where a later one was kept; else null
    ("n_replies", pa.int32()),  # how often it was asked
    ("status", pa.string()),  # ok, truncated
    ("error", pa.string()),  # null when there is none
    ("n_tokens", pa.int32()),  # generated tokens, the end-of-sequence token not counted (unless a server counts it)
    ("truncated", pa.bool_()),  # no end of sequence within the limit
    ("batch_size", pa.int32()),  # provenance: half-precision text can depend on it; null where a server decides
    *((f"conf_{slot}", pa.float32()) for slot in SLOTS),  # log-probability of the slot, null in free decoding
)
"""One append-only shard of the caption store, keyed by image_sha256 within one captioner fingerprint."""

CAPTIONS: Final = _schema(
    ("image_path", pa.string()),
    ("image_sha256", pa.string()),
    ("split", pa.string()),
    ("pid", pa.int64()),
    ("camid", pa.int64()),
    ("caption", pa.string()),  # what training reads: raw_text tidied, or cleaned if cleaning is on
    ("raw_text", pa.string()),
    ("first_text", pa.string()),  # the malformed first reply, where the model was asked again; else null
    ("n_replies", pa.int32()),
    ("status", pa.string()),  # ok, unparsed, truncated, image_error, server_error
    ("error", pa.string()),
    ("template_id", pa.string()),
    ("model_id", pa.string()),
    ("model_revision", pa.string()),
    ("captioner_fingerprint", pa.string()),
    ("n_tokens", pa.int32()),
    ("truncated", pa.bool_()),
    ("dtype", pa.string()),  # null where a server decides
    ("quantization", pa.string()),
    ("batch_size", pa.int32()),
    *((f"attr_{slot}", pa.string()) for slot in SLOTS),
    *((f"conf_{slot}", pa.float32()) for slot in SLOTS),
)
"""captions.parquet: one row an image of one data set, in the order of images.parquet."""

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
"""rankings.parquet: one row a valid query, model and inference mode."""
