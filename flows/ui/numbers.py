"""Numbers in addresses and headers, which may be any text."""

from __future__ import annotations

from typing import Final

_DIGITS: Final = 18


def whole_number(text: str) -> int | None:
    """Return the number that `text` writes in ASCII digits; None if it is anything else or has over 18 digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else None
