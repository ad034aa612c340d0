"""A hook of mkdocs: docs/api/settings.md gets a section per group of settings, with the class that describes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, get_args, get_type_hints

MARKER: Final = "<!-- settings -->"
"""Where the sections go."""
_OPTIONS: Final = "    options:\n      show_root_heading: false\n      show_root_toc_entry: false"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the sections in place of `MARKER`."""
    if MARKER not in markdown:
        return markdown
    from flows.recipes import Recipe

    return markdown.replace(MARKER, "\n\n".join(_section(key, cls) for key, cls in groups(Recipe)))


def groups(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yield the dotted key and the class of every group of settings below `cls`, groups before those inside them."""
    from data.settings import is_group

    for name, annotation in get_type_hints(cls).items():
        for member in filter(is_group, (annotation, *get_args(annotation))):
            yield f"{prefix}{name}", member
            yield from groups(member, f"{prefix}{name}.")


def _section(key: str, cls: type) -> str:
    marks = "#" * (2 + key.count("."))
    return f"{marks} {key}\n\n::: {cls.__module__}.{cls.__qualname__}\n{_OPTIONS}"
