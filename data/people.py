"""The rules for the labels of images, shared by index, captioning, training, evaluation and report.

Identity -1 is junk: a detection without a person. Identity 0 is a person if any training or query image has it, because
the dataset then numbers its people from 0; if only gallery images have it, it stands for all distractors, as in
Market-1501. Every other identity is a person.

Camera -1 is unknown. The cameras of a dataset are either all known or all unknown; the index refuses a mixture. Without
cameras, images are not excluded by camera in any ranking, and camera embeddings (SIE) cannot be trained.

`IdentityName` is how every page, picture and table writes an identity.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.splits import GALLERY

JUNK: Final = -1
"""The identity of images that no metric counts."""
DISTRACTOR: Final = 0
"""The identity of gallery images of people without a query, unless it is a person (see the module docstring)."""
UNKNOWN_CAMERA: Final = -1
"""The camera of every image of a dataset without cameras (see the module docstring)."""

Labels = Sequence[Any] | NDArray[Any]
Mask = NDArray[np.bool_]

_LONGEST: Final = 24  # characters of a label on a page
_JOINS: Final = "\u200d\ufe0e\ufe0f"  # zero-width joiner and variation selectors: parts of one emoji
_UNSEEN: Final = ("Cc", "Cs", "Zl", "Zp")  # categories of control characters, lone surrogates, separators of lines
_BIDI: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class IdentityName:
    """An identity as pages and tables write it: ``anna (pid 3)``, or ``3`` if the dataset has no text labels.

    label: any text, empty if there is none. As a string, a long label ends in an ellipsis. A template renders the
    object as HTML, in which the label is escaped, isolated from the direction of the text around it, and, if it is cut,
    has its whole text in the attribute title.
    """

    pid: int
    label: str = ""

    @property
    def full(self) -> str:
        """The label on one line, without the characters that change the direction of the text around it."""
        visible = _BIDI.sub("", self.label)
        spaced = "".join(" " if unicodedata.category(char) in _UNSEEN else char for char in visible)
        return " ".join(spaced.split())

    @property
    def short(self) -> str:
        """The label, cut to `_LONGEST` characters."""
        full = self.full
        return full if len(full) <= _LONGEST else f"{full[: _cut(full, _LONGEST - 1)].rstrip()}…"

    def __str__(self) -> str:
        """Return the name as plain text."""
        return f"{self.short} (pid {self.pid})" if self.full else str(self.pid)

    def __html__(self) -> str:
        """Return the name as HTML; Jinja calls this instead of escaping the text."""
        if not self.full:
            return str(self.pid)
        title = f' title="{html.escape(self.full)}"' if self.short != self.full else ""
        return f"<bdi{title}>{html.escape(self.short)}</bdi> (pid&nbsp;{self.pid})"


Names = Callable[[int], IdentityName]
"""pid -> its name."""


def identity_names(pids: Iterable[int], labels: Iterable[str]) -> Names:
    """Return the names of the identities of a dataset. pids, labels: of every image, [N].

    An identity whose images have different labels, as distractors can, is named by its number.
    """
    found: dict[int, set[str]] = {}
    for pid, label in zip(pids, labels, strict=True):
        found.setdefault(pid, set()).add(label)
    known = {pid: IdentityName(pid, *texts) for pid, texts in found.items() if len(texts) == 1}
    return lambda pid: known.get(pid) or IdentityName(pid)


def _cut(text: str, end: int) -> int:
    """Return the last place at or before `end` that does not separate a character from its accents or joined parts."""
    while end > 1 and (unicodedata.combining(text[end]) or text[end] in _JOINS or text[end - 1] == _JOINS[0]):
        end -= 1
    return end


def is_junk(pids: Labels) -> Mask:
    """Return the mask [N] of junk among the identities `pids`, [N]."""
    mask: Mask = np.asarray(pids, dtype=np.int64) == JUNK
    return mask


def is_person(splits: Labels, pids: Labels) -> Mask:
    """Return the mask [N] of images that show a known person, neither junk nor a distractor.

    splits, pids: split and identity of every image of the whole dataset, [N]; a part does not decide what 0 means.
    """
    split, pid = np.asarray(splits, dtype=object), np.asarray(pids, dtype=np.int64)
    zero_is_a_person = bool(((pid == DISTRACTOR) & (split != GALLERY)).any())
    mask: Mask = (pid != JUNK) & ((pid != DISTRACTOR) | zero_is_a_person)
    return mask


def cameras_known(camids: Labels) -> bool:
    """Return True unless one of the cameras `camids` is unknown, and hence those of the whole dataset."""
    return not bool((np.asarray(camids, dtype=np.int64) == UNKNOWN_CAMERA).any())
