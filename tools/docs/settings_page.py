"""A hook of mkdocs: docs/api/settings.md gets one table per group of settings, from the configs themselves."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any, Final, get_args, get_type_hints

from data.settings import Setting, is_group, settings_of
from flows.recipes import Recipe

MARKER: Final = "<!-- settings -->"
"""Where the tables go."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the tables in place of `MARKER`."""
    if MARKER not in markdown:
        return markdown
    settings = settings_of(Recipe)
    return markdown.replace(MARKER, "\n\n".join(_section(key, cls, settings) for key, cls in _groups(Recipe)))


def _groups(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yield the dotted key and the class of every group of settings below `cls`, groups before those inside them."""
    for name, annotation in get_type_hints(cls).items():
        for member in filter(is_group, (annotation, *get_args(annotation))):
            yield f"{prefix}{name}", member
            yield from _groups(member, f"{prefix}{name}.")


def _section(group: str, cls: type, settings: dict[str, Setting]) -> str:
    marks, about = "#" * (2 + group.count(".")), inspect.getdoc(cls) or ""
    rows = [
        f"| `{key}` | {_default(setting)} | {_cell(setting.meaning)}{_choices(setting)} |"
        for key, setting in settings.items()
        if key.rpartition(".")[0] == group and not setting.is_group
    ]
    return "\n".join([f"{marks} {group}\n\n{about}\n\n| key | default | meaning |\n|---|---|---|", *rows])


def _default(setting: Setting) -> str:
    value = setting.default
    return f"`{json.dumps(value)}`" if value is not None or setting.optional else "required"


def _choices(setting: Setting) -> str:
    if len(setting.choices) < 2:
        return ""
    return f" One of {', '.join(f'`{choice}`' for choice in setting.choices)}."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
