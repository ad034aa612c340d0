"""Changes to a recipe by ``key=value`` texts, as ``--set`` takes them: every problem of every text, none silently."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.settings import Setting, settings_of, unknown_key

Change = tuple[str, Any]
"""A dotted key and the plain JSON value that it is to have."""


class _TwiceError(ValueError):
    """A JSON object names a key twice."""


def apply_overrides(cls: type, values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set the keys that `overrides` name in nested plain `values`, and return what is wrong with the others.

    Args:
        cls: the config class that the values are of.
        values: nested as the config; changed in place.
        overrides: ``key=value`` texts. value: JSON, or plain text where the setting takes text or it is not JSON. A
            whole group takes a JSON object; what it does not name stays as it is.
    """
    settings = settings_of(cls)
    problems: list[str] = []
    taken: set[str] = set()
    for text in overrides:
        for found in _read(text, settings):
            if isinstance(found, str):
                problems.append(found)
                continue
            key, value = found
            if any(_overlap(key, other) for other in taken):
                problems.append(f"{key}: set twice; give it once")
                continue
            taken.add(key)
            _put(values, key, value)
    return list(dict.fromkeys(problems))


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _read(text: str, settings: Mapping[str, Setting]) -> Iterator[Change | str]:
    """Yield the changes that one text asks for, and what is wrong with it."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        yield f"invalid override {text!r}: expected key=value, such as train.schedule.epochs=20"
    elif key not in settings:
        yield unknown_key(key, settings)
    else:
        try:
            yield from _changes(settings[key], _parse(value, settings[key]), settings)
        except _TwiceError as error:
            yield f"{key}: the JSON object names {error} twice; give it once"


def _changes(setting: Setting, value: Any, settings: Mapping[str, Setting]) -> Iterator[Change | str]:
    if value is None and setting.optional:
        yield setting.key, None
    elif not setting.is_group:
        yield from _leaf(setting, value)
    elif not isinstance(value, dict):
        yield _group_form(setting, settings)
    elif not value:
        yield setting.key, {}
    else:
        for name, item in value.items():
            inner_key = f"{setting.key}.{name}"
            if inner_key in settings:
                yield from _changes(settings[inner_key], item, settings)
            else:
                yield unknown_key(inner_key, settings)


def _group_form(group: Setting, settings: Mapping[str, Setting]) -> str:
    """Return what to say where a group is given something else than an object."""
    start = f"{group.key}."
    first = next(one for name, one in settings.items() if name.startswith(start) and not one.is_group)
    given = json.dumps({first.key.removeprefix(start): first.default})
    null = f", or {group.key}=null" if group.optional else ""
    return (
        f"{group.key}: a group of settings; set one, such as {first.example()}, or several as a JSON object, such as "
        f"{group.key}={given}{null}"
    )


def _leaf(setting: Setting, value: Any) -> Iterator[Change | str]:
    if isinstance(value, bool) and bool not in setting.kinds:
        yield f"{setting.key}: must be a number or text, not true or false; for example {setting.example()}"
    elif value == "None" and setting.optional:
        yield f"{setting.key}: None is written null: {setting.key}=null"
    else:
        yield setting.key, value


def _parse(value: str, setting: Setting) -> Any:
    """Return the plain JSON value of a text; text stays text where the setting takes text, even where it is JSON."""
    try:
        read = json.loads(value, object_pairs_hook=_once)
    except _TwiceError:
        raise
    except (ValueError, RecursionError):  # not JSON, or an integer or a nesting beyond what Python reads
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


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the groups above it that are None."""
    *path, last = key.split(".")
    here = values
    for part in path:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
    if value == {} and isinstance(here.get(last), dict):
        return  # a group that is there keeps its settings
    here[last] = value
