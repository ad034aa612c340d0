"""The base of every config: frozen, keyword-only, validated once, all problems reported together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from data.errors import ConfigError, SettingProblems, raise_problems
from data.settings import Setting, accepts_bool, nearest, settings_of, unknown_key


@dataclass(frozen=True)
class _Runtime:
    """Mark of a field that changes how a stage runs, but never what it produces."""


_MAX_SHOWN: Final = 100  # characters of a rejected value that a message repeats
RUNTIME = _Runtime()
SECRET: Final = "secret"
"""Key in the context of a PydanticCustomError: the input may be a secret, so the message must not repeat it."""
RuntimeInt = Annotated[int, RUNTIME]
RuntimeStr = Annotated[str, RUNTIME]


class Config(BaseModel):
    """A frozen config. The docstring under each field is its description, also in Prefect's forms."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse True and False for numbers; pydantic would read them as 1 and 0."""
        given = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in given):
            field = cls.model_fields[info.field_name or ""]
            if not accepts_bool(field.annotation):
                raise ValueError("must be a number or text, not true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_lone_surrogates(cls, value: Any) -> Any:
        """Refuse text with a lone surrogate, which neither JSON nor a message can encode."""
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, str) and not _is_unicode(one):
                raise ValueError("is not valid UTF-8 text; use a path or name that is, such as a symbolic link to it")
        return value

    def identity(self) -> dict[str, Any]:
        """Return the JSON-able fields that can change a result: everything not marked `RUNTIME`."""
        plain = self.model_dump(mode="json")
        return {
            name: _identity(getattr(self, name), plain[name])
            for name, field in type(self).model_fields.items()
            if not is_runtime(field)
        }


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_runtime(field: FieldInfo) -> bool:
    """Return True if `field` is marked `RUNTIME`."""
    # In `RuntimeInt | None`, pydantic leaves the mark on the member of the union.
    members = (getattr(member, "__metadata__", ()) for member in get_args(field.annotation))
    return RUNTIME in field.metadata or any(RUNTIME in marks for marks in members)


def _identity(value: Any, plain: Any) -> Any:
    """Return `plain`, the JSON form of `value`, with the configs in it reduced to their identities."""
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, Mapping):
        return {key: _identity(item, other) for item, (key, other) in zip(value.values(), plain.items(), strict=True)}
    if isinstance(value, list | tuple):
        return [_identity(item, other) for item, other in zip(value, plain, strict=True)]
    if isinstance(value, set | frozenset):
        return sorted(plain)  # the order of a set of strings differs between processes
    return plain


C = TypeVar("C", bound=Config)
Place = tuple[int | str, ...]


def build_config(
    cls: type[C],
    values: Mapping[str, Any],
    subject: str,
    *,
    base: Mapping[str, Any] | None = None,
    problems: Sequence[str] = (),
) -> C:
    """Build a config from plain values, or raise one `ConfigError` that lists every problem by its dotted key.

    base: valid values, nested like `values`; see `examine_config`. problems: problems found earlier; listed first.
    """
    examined = examine_config(cls, values, base=base)
    raise_problems(subject, dict.fromkeys([*problems, *examined.problems]), ConfigError)
    assert examined.config is not None
    return examined.config


class Examined(NamedTuple, Generic[C]):
    """A config and the problems of the values that it was built from.

    config: with every invalid value replaced by its base value; None if that did not make it valid.
    """

    config: C | None
    problems: list[str]


def examine_config(cls: type[C], values: Mapping[str, Any], *, base: Mapping[str, Any] | None = None) -> Examined[C]:
    """Return the config of plain values and every problem of them, by its dotted key.

    base: valid values, nested like `values`. An invalid value is replaced by its base value for another round of
    validation, so that the problems it hides are listed too.
    """
    found: dict[str, None] = {}
    settings = settings_of(cls)
    tried = copy.deepcopy(dict(values))
    while True:
        try:
            return Examined(cls.model_validate(tried), list(found))
        except ValidationError as error:
            items = [one for item in error.errors() for one in _explain(item, settings, base)]
        found |= dict.fromkeys(text for _, text in items)
        places = [path for path, _ in items]
        if base is None or not (_reset_all(tried, base, places) or _reset_all(tried, base, _groups(places))):
            return Examined(None, list(found))


def _groups(places: Iterable[Place]) -> list[Place]:
    return [place[:-1] for place in places if len(place) > 1]


def _reset_all(values: dict[str, Any], base: Mapping[str, Any], places: Iterable[Place]) -> bool:
    return any([_reset(values, base, place) for place in places])  # noqa: C419 - no short circuit: every place is reset


def _reset(values: dict[str, Any], base: Mapping[str, Any], path: Place) -> bool:
    """Reset the setting at `path` to its value in `base`, or remove it if it has none; return True if it changed."""
    here: Any = values
    there: Any = base
    for depth, part in enumerate(path):
        last = depth == len(path) - 1 or not isinstance(here.get(part), dict)
        known = isinstance(there, Mapping) and part in there
        if not last:
            here, there = here[part], there[part] if known else {}
            continue
        if part not in here or (known and here[part] == there[part]):
            return False
        if known:
            here[part] = copy.deepcopy(there[part])
        else:
            del here[part]
        return True
    return False


def _explain(
    item: ErrorDetails, settings: Mapping[str, Setting], base: Mapping[str, Any] | None
) -> Iterator[tuple[Place, str]]:
    """Yield the place and the message of each problem in one error of pydantic."""
    path: Place = item["loc"]
    key = ".".join(str(part) for part in path)
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, SettingProblems):
        at = f"{key}." if key else ""
        for inner, problem in cause.problems:
            yield (*path, *inner.split(".")), f"{at}{inner}: {problem.replace('{at}', at)}"
    elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        yield path, unknown_key(key, settings)
    else:
        shown = item["loc"] and not item["type"].startswith("missing") and not item.get("ctx", {}).get(SECRET)
        given = f" (given: {_short(item['input'])})" if shown else ""
        message = item["msg"].removeprefix("Value error, ")
        yield path, f"{key or '(whole)'}: {message}{given}{_remedy(item, settings, base)}"


def _short(value: Any) -> str:
    """Return the repr of a value, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _remedy(item: ErrorDetails, settings: Mapping[str, Setting], base: Mapping[str, Any] | None) -> str:
    """Return a hint with a value that works, as written for ``--set``; "" if none is known."""
    names = [part for part in item["loc"] if isinstance(part, str)]
    setting = settings.get(".".join(names))
    if setting is None or item["type"] == "value_error" or item.get("ctx", {}).get(SECRET):
        return ""
    if setting.choices:
        near = nearest(str(item["input"]).lower(), map(str, setting.choices))
        return f"; did you mean {setting.example(near[0])}?" if near else ""
    value: Any = base
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    if setting.is_group or (setting.default is None and value is None and not setting.optional):
        return ""
    example = setting.example(value)
    return f"; for example {example}" + (" (or null)" if setting.optional and not example.endswith("=null") else "")
