"""Samples of a shard: members with one key, as the webdataset convention groups them, and their labels."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from data.errors import RejectedRow
from data.readers.base import is_litter
from data.readers.paths import PATH_DETAILS, normal_path, printable
from data.readers.tree import SUFFIXES
from data.sources.tar import Member

IMAGE_ENDINGS: Final = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)
MOST_TEXT: Final = 1 << 20
"""Bytes of a member with labels above which it is not read."""
_JSON: Final = "json"
_MOST_SEEN: Final = 30


class Fields(NamedTuple):
    """Names of the fields with the labels of a sample: keys of its json member, or endings of its other members."""

    pid: str = "pid"
    camid: str = "camid"
    split: str = "split"
    sentences: str = "txt"


class Name(NamedTuple):
    """The name of a member. path: normalized. key: up to the first dot of its last part. ending: after it."""

    path: str
    key: str
    ending: str


def name_of(path: str) -> Name:
    """Return the parts of a normalized name."""
    folder, slash, last = path.rpartition("/")
    stem, _, ending = last.partition(".")
    return Name(path, f"{folder}{slash}{stem}", ending.lower())


class Refused(NamedTuple):
    """A member that is not used. path: its name in the shard."""

    path: str
    reason: str
    detail: str


@dataclass(kw_only=True)
class Labels:
    """The labels of one sample. cells: field -> value as JSON. problem: why they cannot be read, or ""."""

    cells: dict[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(kw_only=True)
class Samples:
    """What one pass over a shard has found besides images.

    unread: ending -> number of members that are not read. keys: of all samples with a member that is not an image.
    seen: some names of fields, for messages.
    """

    fields: Fields
    labels: dict[str, Labels] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    names: Counter[str] = field(default_factory=Counter)

    def admit(self, member: Member) -> Name | None:
        """Return the name of a member of a sample; None, and a refusal where somebody may miss it, for another one."""
        last = member.name.rstrip("/").rpartition("/")[2]
        if member.kind == "folder" or is_litter(last) or (last.startswith("__") and last.endswith("__")):
            return None
        try:
            path = normal_path(member.name)
        except RejectedRow as error:
            self.refused.append(Refused(member.name, error.reason, PATH_DETAILS[error.reason]))
            return None
        if member.kind != "file":
            detail = "a link in the shard; store the file itself" if member.kind == "link" else "not a regular file"
            self.refused.append(Refused(path, "not_a_file", detail))
            return None
        self.names[path] += 1
        return name_of(path)

    def wants(self, name: Name) -> bool:
        """Return True if a member that is not an image has labels; count it otherwise."""
        self.keys.add(name.key)
        self._see(name.ending)
        if name.ending == _JSON or name.ending in self.fields:
            return True
        self.unread[name.ending] += 1
        return False

    def add(self, name: Name, content: bytes | None) -> None:
        """Add the content of a member with labels. content: None if it is too large."""
        labels = self.labels.setdefault(name.key, Labels())
        try:
            if content is None:
                raise ValueError(f"is larger than {MOST_TEXT:,} bytes")
            self._add(labels, name.ending, content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else _reason(error)
            labels.problem = f"its member {name.path} {reason}"

    def _add(self, labels: Labels, ending: str, text: str) -> None:
        if ending != _JSON:
            _set_cell(labels, ending, text)
            return
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError('is not a JSON object such as {"pid": 7, "camid": 1}')
        for name, value in found.items():
            self._see(name)
            if name in self.fields and value is not None:
                if name != self.fields.sentences and isinstance(value, str) and printable(value) != value:
                    raise ValueError(f"has half of a character in {name}")
                _set_cell(labels, name, value)

    def _see(self, name: str) -> None:
        if len(self.seen) < _MOST_SEEN:
            self.seen.add(printable(name))

    def twice(self) -> set[str]:
        """Return the names that more than one member has."""
        return {name for name, count in self.names.items() if count > 1}


def _set_cell(labels: Labels, name: str, value: object) -> None:
    """Store the value of a field; raise ValueError if another member of the sample has a different one."""
    known = labels.cells.setdefault(name, json.dumps(value))
    if str(json.loads(known)).strip() != str(value).strip():
        raise ValueError(f"has a different value of {name} than another member; keep one")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON ({error.msg}, line {error.lineno})"
    return str(error) if str(error).startswith(("is ", "has ")) else "cannot be read as JSON"
