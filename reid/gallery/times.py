"""Times of images: read from the cells of a table, or from paths by a pattern. All are UTC without a time zone."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time
from typing import Any, Final

from data.errors import ConfigError, DataError

EXAMPLE: Final = "2026-01-31, 2026-01-31T14:05:00 or 2026-01-31T14:05:00+02:00"
_MISSING: Final = frozenset({"", "nan", "nat", "none", "null", "na", "n/a"})
_DIRECTIVES: Final = {
    **{"Y": r"\d{4}", "m": r"\d{2}", "d": r"\d{2}", "H": r"\d{2}", "M": r"\d{2}", "S": r"\d{2}"},
    **{"y": r"\d{2}", "j": r"\d{3}", "f": r"\d{1,6}"},
}
"""Directives of `datetime.strptime` that a pattern may contain, and what they match."""
_DIRECTIVE: Final = re.compile(r"%(.?)", re.DOTALL)


def parse_time(text: str) -> datetime | None:
    """Return an ISO 8601 date or time in UTC, without a time zone; None if `text` is neither.

    A time without an offset is taken as UTC; a date is its midnight.
    """
    try:
        return utc(datetime.fromisoformat(text.strip()))
    except ValueError:
        return None


def utc(moment: datetime) -> datetime:
    """Return `moment` in UTC, without a time zone; without one it is taken as UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def read_time(cell: Any, place: str) -> datetime | None:
    """Return the time in one cell of a table, None if it is empty.

    place: of the cell, for the message. Raises DataError for anything but a date, a time or its ISO 8601 text.
    """
    if isinstance(cell, datetime):
        return utc(cell) if cell == cell else None  # noqa: PLR0124 - pandas.NaT differs from itself
    if isinstance(cell, date):
        return datetime.combine(cell, time())
    if cell is None or (isinstance(cell, float) and cell != cell):  # noqa: PLR0124
        return None
    if isinstance(cell, str):
        if cell.strip().lower() in _MISSING:
            return None
        if (found := parse_time(cell)) is not None:
            return found
    raise DataError(f"{place}: {cell!r} is not a time; write {EXAMPLE}, or leave it empty if it is unknown")


class PathTimes:
    """Finds the time in a path by a pattern of `datetime.strptime`, such as %Y-%m-%d_%H%M%S for 2026-01-31_140500.jpg.

    Raises ConfigError if the pattern does not contain a year, a month and a day, or has another directive than
    %Y %y %m %d %j %H %M %S %f.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        parts: list[str] = []
        names: list[str] = []
        end = 0
        for found in _DIRECTIVE.finditer(pattern):
            name = found[1]
            if name not in _DIRECTIVES or name in names:
                raise ConfigError(
                    f"time pattern {pattern!r}: {found[0]} at position {found.start() + 1} is "
                    f"{'repeated' if name in names else 'unknown'}; use each of "
                    f"{' '.join(f'%{known}' for known in _DIRECTIVES)} at most once, such as %Y-%m-%d_%H%M%S"
                )
            names.append(name)
            parts += [re.escape(pattern[end : found.start()]), _DIRECTIVES[name]]
            end = found.end()
        if not {"Y", "y"} & {*names} or not ({"m", "d"} <= {*names} or "j" in names):
            raise ConfigError(f"time pattern {pattern!r} does not contain a date; for example %Y-%m-%d_%H%M%S")
        # No digit before or after: a part of a longer number is not a time.
        self._search = re.compile(r"(?<!\d)" + "".join([*parts, re.escape(pattern[end:])]) + r"(?!\d)").search

    def __call__(self, path: str) -> datetime | None:
        """Return the time in `path`; None if it does not contain any, or one that does not exist."""
        found = self._search(path)
        if found is None:
            return None
        try:
            return datetime.strptime(found[0], self._pattern)
        except ValueError:
            return None
