"""A correction as it is kept, and the line of JSON that keeps it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, get_args

from captioning.attributes.parse import parse_caption
from captioning.corrections.edits import Kind

Provenance = Literal["human", "import"]

_KINDS: Final = get_args(Kind)
_PROVENANCES: Final = get_args(Provenance)
_IMAGE: Final = slice(len('{"image":"'), len('{"image":"') + 64)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class ModelCaption(NamedTuple):
    """The model's caption that an edit was made against. text: column caption of captions.parquet."""

    text: str
    captioner: str
    """Fingerprint of the captioner that wrote it."""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """One change of the caption of one image, with its author. Nothing in it changes after it was saved.

    sha256: of the bytes of the image. revision: 1, 2, ... per image. kind: see `captioning.corrections.edits.Edit`.
    text: the whole caption, None for the kinds wrong and reset. given: all slots if these lead, else None. time: UTC.
    against: the model's caption at that time, None if unknown. seen: the revision that the author had seen, 0 for none.
    applied: False if another edit came first: it is kept, and has no effect.
    """

    sha256: str
    revision: int
    kind: Kind
    text: str | None
    given: Mapping[str, str | None] | None
    author: str
    time: datetime
    provenance: Provenance
    against: ModelCaption | None
    seen: int
    applied: bool = True

    @property
    def slots(self) -> dict[str, str | None]:
        """The slots: as given, or read from the text; empty for the kinds wrong and reset."""
        if self.given is not None:
            return dict(self.given)
        return {} if self.text is None else parse_caption(self.text)

    def is_stale(self, model_text: str | None) -> bool:
        """Return True if it was made against another text than the model's caption `model_text` of today."""
        return self.against is not None and self.against.text != (model_text or "").strip()

    def corrects(self, model_text: str | None) -> bool:
        """Return True if it replaces the model's caption `model_text`.

        A text or slots describe the image, whatever a model says. "Wrong" is about one text: another text is not wrong.
        """
        return self.kind in ("text", "slots") or (self.kind == "wrong" and not self.is_stale(model_text))


def is_sha256(text: str) -> bool:
    """Return True for 64 lower-case hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def to_line(entry: Correction) -> bytes:
    """Return the line of JSON that keeps `entry`, with its line break."""
    fields = {
        "image": entry.sha256,
        "revision": entry.revision,
        "kind": entry.kind,
        "text": entry.text,
        "slots": None if entry.given is None else dict(entry.given),
        "author": entry.author,
        "time": entry.time.isoformat(),
        "provenance": entry.provenance,
        "against": None if entry.against is None else list(entry.against),
        "seen": entry.seen,
        "applied": entry.applied,
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def image_of(line: bytes) -> str:
    """Return the digest of the image in a line of `to_line`, without reading the rest."""
    return line[_IMAGE].decode()


def from_line(line: bytes) -> Correction:
    """Return the correction that `to_line` wrote. Raises ValueError or KeyError for anything else."""
    fields: dict[str, Any] = json.loads(line)
    if fields["kind"] not in _KINDS or fields["provenance"] not in _PROVENANCES:
        raise ValueError(f"unknown kind {fields['kind']!r} or provenance {fields['provenance']!r}")
    if not is_sha256(str(fields["image"])):
        raise ValueError(f"image {fields['image']!r} is not a sha256")
    return Correction(
        sha256=str(fields["image"]),
        revision=int(fields["revision"]),
        kind=fields["kind"],
        text=fields["text"],
        given=fields["slots"],
        author=str(fields["author"]),
        time=datetime.fromisoformat(fields["time"]),
        provenance=fields["provenance"],
        against=None if fields["against"] is None else ModelCaption(*fields["against"]),
        seen=int(fields["seen"]),
        applied=bool(fields["applied"]),
    )
