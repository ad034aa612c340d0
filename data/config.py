"""The base of every config: frozen, keyword-only, validated once, all problems reported together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import ConfigError, raise_problems


@dataclass(frozen=True)
class _Runtime:
    """Marks a field that changes how a stage runs but never what it produces."""


RUNTIME = _Runtime()
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
        fields = type(self).model_fields
        values: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json").items():
            if RUNTIME in fields[name].metadata:
                continue
            nested = getattr(self, name)
            values[name] = nested.identity() if isinstance(nested, Config) else value
        return values


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
    given = f" (given: {item['input']!r})" if item["type"] != "missing" and item["loc"] else ""
    return f"{key}: {item['msg'].removeprefix('Value error, ')}{given}"


def _fields_at(cls: type[Config], path: tuple[int | str, ...]) -> list[str]:
    current: Any = cls
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = field.annotation
    return list(getattr(current, "model_fields", {}))
