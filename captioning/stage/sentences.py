"""captions.parquet from the sentences that come with a dataset, without a captioning model."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from captioning.captioner import Captioner
from captioning.config import CaptionConfig
from captioning.stage.view import caption_table, failed_row
from captioning.stage.worker import Failure
from data.artifacts.contents import SENTENCES_FILE
from data.errors import DataError
from data.stages.images import IndexedImages


def sentences_digest(images: IndexedImages) -> str | None:
    """Return the digest of all sentences of a dataset, None if it has none."""
    if not (images.ref.folder / SENTENCES_FILE).exists():
        return None
    return images.ref.digests_of(SENTENCES_FILE)[SENTENCES_FILE]


def captions_of_dataset(images: IndexedImages, number: int) -> dict[str, str]:
    """Return path -> its sentence of that number, without images that have fewer sentences."""
    table = images.sentences()
    if table is None:
        return {}
    rows = zip(*(table[name].to_pylist() for name in ("image_path", "number", "sentence")), strict=True)
    return {path: sentence for path, place, sentence in rows if place == number}


def described(images: IndexedImages, captioner: Captioner, config: CaptionConfig) -> pa.Table:
    """Return captions.parquet with one sentence per image; an image without it has the status ``missing``.

    Raises DataError if no image has it.
    """
    captions = captions_of_dataset(images, config.sentence)
    if not captions:
        raise DataError(
            f"caption.engine=dataset: no image of {images.description.name} has a sentence number {config.sentence}."
            " Use a dataset with sentences and caption.sentence=0, or set caption.engine=transformers"
        )
    index = images.rows()
    missing = failed_row(Failure(status="missing", error=f"the dataset has no sentence number {config.sentence}"))
    replies = [_reply(captions[path]) if path in captions else missing for path in index["path"].to_pylist()]
    return caption_table(index, replies, captioner, config)


def _reply(sentence: str) -> dict[str, Any]:
    return {"raw_text": sentence, "status": "ok", "error": None, "truncated": False}
