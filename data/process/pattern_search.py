"""A user's regular expression, searched in many texts. Some expressions backtrack for years on one text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from data.process.bounded import bounded, serve


def first_groups(pattern: str, texts: Sequence[str], *, seconds: int) -> list[str | None]:
    """Return what the first group of `pattern` matches in each text, None where it matches nothing.

    Raises TimeLimitError if that takes more than `seconds` of processor time.
    """
    found: list[str | None] = bounded(__name__, {"pattern": pattern, "texts": [*texts]}, seconds=seconds)
    return found


def _search(request: dict[str, Any]) -> list[str | None]:
    search = re.compile(request["pattern"]).search
    return [match[1] if (match := search(text)) else None for text in request["texts"]]


if __name__ == "__main__":
    serve(_search)
