"""The base of every config: frozen, keyword-only, validated once, all problems reported together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from data.errors import ConfigError, raise_problems


@dataclass(frozen=True)
class _Runtime:
    """Marks a field that changes how a stage runs but never what it produces."""


RUNTIME = _Runtime()
SECRET: Final = "secret"
"""In the context of a PydanticCustomError: what was given may be a secret, so the message must not repeat it."""
RuntimeInt = Annotated[int, RUNTIME]
RuntimeBool = Annotated[bool, RUNTIME]
RuntimeStr = Annotated[str, RUNTIME]


class Config(BaseModel):
    """A frozen config. The docstring under each field is its description, in Prefect's form too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def identity(self) -> dict[str, Any]:
        """Return the JSON-able fields that can change a result: everything not marked `RUNTIME`."""
        plain = self.model_dump(mode="json")
        return {
            name: _identity(getattr(self, name), plain[name])
            for name, field in type(self).model_fields.items()
            if not _is_runtime(field)
        }


def _is_runtime(field: FieldInfo) -> bool:
    # In `RuntimeInt | None` pydantic leaves the mark on the member of the union.
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
        return sorted(plain)  # the order of a set of texts differs from process to process
    return plain


C = TypeVar("C", bound=Config)


def build_config(cls: type[C], values: Mapping[str, Any], subject: str) -> C:
    """Build a config from plain values, or raise one `ConfigError` that lists every problem by its dotted key."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        problems = [_explain(cls, item) for item in error.errors()]
        raise_problems(subject, problems, ConfigError)
        raise  # pragma: no cover - a ValidationError always holds at least one problem


def _explain(cls: type[Config], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "(whole)"
    if item["type"] == "extra_forbidden":
        known = ", ".join(sorted(_fields_at(cls, item["loc"][:-1])))
        return f"{key}: no such setting; known here: {known}"
    shown = item["loc"] and item["type"] != "missing" and not item.get("ctx", {}).get(SECRET)
    given = f" (given: {item['input']!r})" if shown else ""
    return f"{key}: {item['msg'].removeprefix('Value error, ')}{given}"


def _fields_at(cls: type[Config], path: tuple[int | str, ...]) -> list[str]:
    current: Any = cls
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = field.annotation
    return list(getattr(current, "model_fields", {}))
