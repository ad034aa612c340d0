"""Rows of the caption store, one per image: what an engine returns and `CaptionStore` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from captioning.prompts.replies import Reply

Status = Literal["ok", "truncated", "image_error", "server_error"]


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """The result for one image: a reply, or the error because of which it has none.

    Only rows with a reply are written to the store.
    """

    image_sha256: str
    status: Status
    reply: Reply | None = None
    error: str | None = None

    @classmethod
    def of(cls, image_sha256: str, reply: Reply) -> Self:
        """Return the row of an image with a reply."""
        return cls(image_sha256=image_sha256, status="truncated" if reply.truncated else "ok", reply=reply)

    def columns(self) -> dict[str, object]:
        """Return the columns of schemas.SHARD that have a value."""
        row: dict[str, object] = {"image_sha256": self.image_sha256, "status": self.status, "error": self.error}
        if self.reply is None:
            return row
        return row | {
            "raw_text": self.reply.text,
            "first_text": self.reply.first_text,
            "n_replies": self.reply.n_replies,
            "n_tokens": self.reply.n_tokens,
            "truncated": self.reply.truncated,
            "batch_size": self.reply.batch_size,
            **{f"conf_{slot}": value for slot, value in self.reply.confidence.items()},
        }
