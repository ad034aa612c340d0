"""The settings of a config class by dotted key, for ``--set`` and for messages."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticUndefined

_TEXT: Final = frozenset({str, Path})
_SHOWN: Final = 3
_SIMILAR: Final = 0.88


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting, or a group of settings.

    key: full dotted key. kinds: types of its values, without None. optional: also accepts None. choices: the only
    values it accepts, if limited. default: as plain JSON data; None if it has none. is_group: has settings of its own.
    meaning: what it does, in words; "" where the config class does not say.
    """

    key: str
    kinds: frozenset[type]
    optional: bool
    choices: tuple[Any, ...]
    default: Any
    is_group: bool
    meaning: str = ""

    @property
    def takes_text(self) -> bool:
        """True if every value is text."""
        return self.kinds <= _TEXT

    def example(self, value: Any = None) -> str:
        """Return ``key=value`` as written for ``--set``; value: one that works, None for the default."""
        shown = self.default if value is None else value
        if shown is None and {int, float} & self.kinds:
            shown = 1
        text = shown if isinstance(shown, str) else json.dumps(shown, separators=(",", ":"))
        return f"{self.key}={text}"


def settings_of(cls: Any, prefix: str = "") -> dict[str, Setting]:
    """Return dotted key -> setting or group of a config class or dataclass, groups before their settings.

    prefix: start of every key, such as "train.".
    """
    found: dict[str, Setting] = {}
    for name, annotation, default, meaning in _fields(cls):
        key, members = f"{prefix}{name}", list(_members(annotation))
        group = next((member for member in members if is_group(member)), None)
        choices = tuple(choice for member in members for choice in get_args(member) if get_origin(member) is Literal)
        found[key] = Setting(
            key=key,
            kinds=frozenset(kind for member in members if member is not type(None) for kind in _kinds(member)),
            optional=type(None) in members,
            choices=choices,
            default=default,
            is_group=group is not None,
            meaning=meaning,
        )
        if group is not None:
            found |= settings_of(group, f"{key}.")
    return found


def is_group(annotation: Any) -> bool:
    """Return True if a field of this type is a group of settings."""
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation))


def accepts_bool(annotation: Any) -> bool:
    """Return True if a field of this type accepts True and False, alone or in a list."""
    members = list(_members(annotation))
    inner = [part for member in members if get_origin(member) is not Literal for part in get_args(member)]
    return any(member is bool or member is Any for member in members) or any(accepts_bool(part) for part in inner)


def unknown_key(key: str, settings: Mapping[str, Setting]) -> str:
    """Return the message for a key that does not exist, with similar keys or else all keys of its group."""
    parent = key.rpartition(".")[0]
    while parent and parent not in settings:
        parent = parent.rpartition(".")[0]
    if parent and not settings[parent].is_group:
        return f"{key}: no such setting; {parent} is a single setting"
    start = f"{parent}." if parent else ""
    near = nearest_keys(key, settings, start)
    if near:
        return f"{key}: no such setting; did you mean {' or '.join(near)}?"
    known = sorted(name.removeprefix(start) for name in settings if name.startswith(start))
    return f"{key}: no such setting; known here: {', '.join(name for name in known if '.' not in name)}"


def nearest_keys(key: str, settings: Iterable[str], start: str = "") -> list[str]:
    """Return the existing keys that a mistyped or shortened key may mean, best first.

    start: prefix of the innermost group that exists; last parts are compared within that group only.
    """
    names, low = list(settings), key.lower()
    end = low.rpartition(".")[2]
    whole = [name for name in names if name.endswith(f".{low}")]
    same = [name for name in names if name.startswith(start) and name.endswith(f".{end}")]
    alike = nearest(low, names, _SIMILAR)[:1]
    return (whole or alike or same or _nearest_ends(end, names, start))[:_SHOWN]


def _nearest_ends(end: str, names: Iterable[str], start: str) -> list[str]:
    """Return the keys below `start` whose last part is most similar to `end`."""
    inside = [name for name in names if name.startswith(start)]
    best = nearest(end, {name.rpartition(".")[2] for name in inside})[:1]
    return [name for name in inside if name.rpartition(".")[2] in best]


def nearest(name: str, names: Iterable[str], cutoff: float = 0.75) -> list[str]:
    """Return the `names` spelled similarly to `name`, best first. cutoff: least similarity, 0 to 1."""
    return difflib.get_close_matches(name, sorted(names), n=_SHOWN, cutoff=cutoff)


def _fields(cls: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield name, type, default (plain JSON data; None if there is none) and meaning of each field."""
    if issubclass(cls, BaseModel):
        for name, field in cls.model_fields.items():
            default = field.get_default(call_default_factory=True, validated_data={})
            meaning = " ".join((field.description or "").split())
            yield name, field.annotation, None if default is PydanticUndefined else _plain(default), meaning
        return
    hints = get_type_hints(cls, include_extras=True)
    for part in dataclasses.fields(cls):
        default = None if part.default is dataclasses.MISSING else _plain(part.default)
        yield part.name, hints[part.name], default, _sentences_about(part.name, cls)


def _sentences_about(name: str, cls: type) -> str:
    """Return the sentences of the docstring of a dataclass that name one of its fields, such as ``clothes``."""
    sentences = re.split(r"(?<=[.]) (?=[A-Z`])", " ".join((inspect.getdoc(cls) or "").split()))
    return " ".join(sentence for sentence in sentences if f"``{name}``" in sentence).replace("``", "")


def _plain(value: Any) -> Any:
    return TypeAdapter(Any).dump_python(value, mode="json")


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the member types of a union, or the type itself, without annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _members(part)
    else:
        yield annotation


def _kinds(member: Any) -> Iterator[type]:
    origin = get_origin(member)
    if origin is Literal:
        yield from {type(choice) for choice in get_args(member)}
    elif isinstance(origin or member, type):
        yield origin or member
