"""Overrides: ``key=value`` texts, as ``--set`` takes them, that change settings of a config.

A renamed setting keeps its old key for one release; using it gives a notice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from data.settings import Setting, settings_of, unknown_key

NOT_RENAMED: Final[Mapping[str, str]] = MappingProxyType({})


class Change(NamedTuple):
    """A setting and its new value. key: dotted key. value: plain JSON data. text_key: the key in the override."""

    key: str
    value: Any
    text_key: str


class Applied(NamedTuple):
    """The outcome of `apply_overrides`. problems: one per override that cannot work. notices: one per renamed key."""

    problems: list[str]
    notices: list[str]


class _TwiceError(ValueError):
    """A JSON object names a key twice."""


def apply_overrides(
    cls: type, values: dict[str, Any], overrides: Sequence[str], renamed: Mapping[str, str] = NOT_RENAMED
) -> Applied:
    """Set the keys that `overrides` name in nested plain `values`, and return the problems of the others.

    Args:
        cls: the config class of the values.
        values: nested like the config; changed in place.
        overrides: ``key=value`` texts. value: JSON, or plain text if the setting takes text or the value is not JSON. A
            whole group takes a JSON object; settings that the object does not name are kept.
        renamed: new key by old key, both dotted.
    """
    settings = _Settings(settings_of(cls), renamed)
    problems: list[str] = []
    notices: list[str] = []
    taken: set[str] = set()
    for text in overrides:
        for found in _read(text, settings):
            if isinstance(found, str):
                problems.append(found)
                continue
            if found.text_key != found.key:
                notices.append(f"setting {found.text_key!r} is now {found.key!r}")
            if any(_overlap(found.key, other) for other in taken):
                problems.append(f"{found.key}: set twice; give it once")
                continue
            taken.add(found.key)
            set_key(values, found.key, found.value)
    return Applied(list(dict.fromkeys(problems)), list(dict.fromkeys(notices)))


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested plain `values`; groups above it that are absent or None are created."""
    *path, last = key.split(".")
    here = values
    for part in path:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
    if value == {} and isinstance(here.get(last), dict):
        return  # a group that exists keeps its settings
    here[last] = value


class _Settings(NamedTuple):
    """The settings of a config by their keys. renamed: new key by old key."""

    known: Mapping[str, Setting]
    renamed: Mapping[str, str]

    def find(self, key: str) -> Setting | None:
        """Return the setting with this key or former key, or None."""
        return self.known.get(self.renamed.get(key, key))


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _read(text: str, settings: _Settings) -> Iterator[Change | str]:
    """Yield the changes that one override makes, and its problems."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        yield f"invalid override {text!r}: expected key=value, such as train.schedule.epochs=20"
        return
    setting = settings.find(key)
    if setting is None:
        yield unknown_key(key, settings.known)
        return
    try:
        yield from _changes(key, setting, _parse(value, setting), settings)
    except _TwiceError as error:
        yield f"{key}: the JSON object names {error} twice; give it once"


def _changes(key: str, setting: Setting, value: Any, settings: _Settings) -> Iterator[Change | str]:
    """Yield the changes of one setting or group. key: as it is written in the override."""
    if value is None and setting.optional:
        yield Change(setting.key, None, key)
    elif not setting.is_group:
        yield from _leaf(key, setting, value)
    elif not isinstance(value, dict):
        yield _group_form(setting, settings.known)
    elif not value:
        yield Change(setting.key, {}, key)
    else:
        for name, item in value.items():
            inner_key = f"{setting.key}.{name}"
            inner = settings.find(inner_key)
            if inner is None:
                yield unknown_key(inner_key, settings.known)
            else:
                yield from _changes(inner_key, inner, item, settings)


def _group_form(group: Setting, settings: Mapping[str, Setting]) -> str:
    """Return the problem of a group whose value is not a JSON object."""
    start = f"{group.key}."
    first = next(one for name, one in settings.items() if name.startswith(start) and not one.is_group)
    given = json.dumps({first.key.removeprefix(start): first.default})
    null = f", or {group.key}=null" if group.optional else ""
    return (
        f"{group.key}: a group of settings; set one, such as {first.example()}, or several as a JSON object, such as "
        f"{group.key}={given}{null}"
    )


def _leaf(key: str, setting: Setting, value: Any) -> Iterator[Change | str]:
    if isinstance(value, bool) and bool not in setting.kinds:
        yield f"{setting.key}: must be a number or text, not true or false; for example {setting.example()}"
    elif value == "None" and setting.optional:
        yield f"{setting.key}: None is written null: {setting.key}=null"
    else:
        yield Change(setting.key, value, key)


def _parse(value: str, setting: Setting) -> Any:
    """Return a text as plain JSON data; for a setting that takes text it stays text, even if it is valid JSON."""
    try:
        read = json.loads(value, object_pairs_hook=_once)
    except _TwiceError:
        raise
    except (ValueError, RecursionError):  # not JSON, or too long an integer or too deep a nesting for Python
        return value
    if setting.takes_text and not isinstance(read, str) and not (read is None and setting.optional):
        return value
    return read


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise _TwiceError(name)
        seen[name] = value
    return seen
