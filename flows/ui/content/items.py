"""One image of a table with its caption as it is shown, and which images a page asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from captioning.audit.flags import FLAGS
from captioning.corrections import Correction
from data.people import UNKNOWN_CAMERA
from data.schemas import LABEL
from data.slots import SLOTS

UNSAID: Final = "(not said)"
"""Value of a filter that selects the captions that do not answer a slot."""

STATES: Final = {"corrected": "corrected", "wrong": "marked as wrong", "model": "not corrected"}
"""State of a filter -> its name for people."""


class Attribute(NamedTuple):
    """What a caption says in one slot. value: None if it does not. confidence: probability, None in free decoding."""

    slot: str
    value: str | None
    confidence: float | None

    @property
    def title(self) -> str:
        """The slot in words."""
        return self.slot.replace("_", " ")


@dataclass(frozen=True, kw_only=True)
class ImageItem:
    """One image. row: its place in images.parquet. camera: None if unknown. caption: None without one."""

    row: int
    path: str
    sha256: str
    split: str
    pid: int
    label: str | None
    camera: int | None
    width: int
    height: int
    caption: str | None
    status: str | None
    error: str | None
    model_id: str | None
    captioner: str | None
    attributes: tuple[Attribute, ...]
    flags: tuple[str, ...]
    correction: Correction | None

    @property
    def in_effect(self) -> Correction | None:
        """The correction, if it replaces the model's caption or marks it as wrong."""
        found = self.correction
        return found if found is not None and found.corrects(self.caption) else None

    @property
    def text(self) -> str | None:
        """The caption as corrected; the model's if it was not, or if it was marked as wrong."""
        found = self.in_effect
        return found.text if found is not None and found.text is not None else self.caption

    @property
    def state(self) -> str:
        """What a person said about the caption: "", "corrected" or "wrong"."""
        found = self.in_effect
        return "" if found is None else "wrong" if found.kind == "wrong" else "corrected"

    @property
    def person(self) -> str:
        """The identity as the dataset names it."""
        return self.label or str(self.pid)


@dataclass(frozen=True, kw_only=True)
class ImageFilter:
    """Which images to list; an empty value selects all. state: of `STATES`. attributes: slot -> value or `UNSAID`."""

    text: str = ""
    split: str = ""
    camera: int | None = None
    person: str = ""
    flag: str = ""
    state: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


def says(item: ImageItem, wanted: ImageFilter) -> bool:
    """Return True if the caption of an image, as corrected, has the text and attributes that are wanted."""
    texts = [item.path, item.text or ""]
    slots = {attribute.slot: attribute.value or UNSAID for attribute in item.attributes}
    has_text = any(wanted.text.lower() in text.lower() for text in texts)
    return has_text and all(slots.get(slot) == value for slot, value in wanted.attributes.items())


def item_of(row: int, values: Mapping[str, Any], correction: Correction | None) -> ImageItem:
    """Return one image. values: of its row in the table. correction: of its caption, None without one."""
    place: dict[str, Any] = {name: values[name] for name in ("path", "split", "pid", "width", "height")}
    said: dict[str, Any] = {name: values.get(name) for name in ("caption", "status", "error", "model_id")}
    return ImageItem(
        row=row,
        sha256=values["sha256"].hex(),
        label=values.get(LABEL.name),
        camera=None if values["camid"] == UNKNOWN_CAMERA else values["camid"],
        captioner=values.get("captioner_fingerprint"),
        attributes=_attributes(values, correction),
        correction=correction,
        flags=tuple(flag for flag in FLAGS if values.get(flag)),
        **place,
        **said,
    )


def _attributes(values: Mapping[str, Any], correction: Correction | None) -> tuple[Attribute, ...]:
    if "caption" not in values:
        return ()
    if correction is not None and correction.text is not None:
        slots = correction.slots
        return tuple(Attribute(slot, slots.get(slot), None) for slot in SLOTS)
    return tuple(_attribute(slot, values) for slot in SLOTS)


def _attribute(slot: str, values: Mapping[str, Any]) -> Attribute:
    log = values[f"conf_{slot}"]
    return Attribute(slot, values[f"attr_{slot}"], None if log is None else math.exp(min(log, 0.0)))
