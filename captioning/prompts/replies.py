"""What a captioning model answers, and the row of the caption store it becomes. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from captioning.reading import Loaded


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model wrote about one image.

    text: untouched. n_tokens: generated tokens without the end token, None where it is not known. truncated: no end
    token within the limit. confidence: slot -> log-probability, where the decoding knows it. batch_size: images that
    were captioned together with it.
    """

    text: str
    n_tokens: int | None
    truncated: bool
    confidence: dict[str, float] = field(default_factory=dict)
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The reply that is kept. first_text: the first reply, where it was another one. n_replies: how many there were."""

    reply: Reply
    first_text: str | None = None
    n_replies: int = 1


def answer_row(image_sha256: str, answer: Answer) -> dict[str, Any]:
    """Return the row (schemas.SHARD) of an image with an answer."""
    reply = answer.reply
    return {
        "image_sha256": image_sha256,
        "raw_text": reply.text,
        "first_text": answer.first_text,
        "n_replies": answer.n_replies,
        "status": "truncated" if reply.truncated else "ok",
        "error": None,
        "n_tokens": reply.n_tokens,
        "truncated": reply.truncated,
        "batch_size": reply.batch_size,
        **{f"conf_{slot}": value for slot, value in reply.confidence.items()},
    }


def failed_row(image_sha256: str, status: str, error: str | None) -> dict[str, Any]:
    """Return the row of an image without an answer; it goes into the view and never into the store."""
    return {"image_sha256": image_sha256, "raw_text": None, "status": status, "error": error}


def unreadable_row(item: Loaded) -> dict[str, Any]:
    """Return the row of an image that could not be read."""
    return failed_row(item.sha256, "image_error", item.reason)
