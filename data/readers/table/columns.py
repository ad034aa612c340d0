"""Names of the columns of a manifest, as they are written in a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from data.errors import DataError
from data.readers.table.coded import CODED
from data.settings import nearest

REQUIRED: Final = ("path", "split", "pid")
COLUMNS: Final = (*REQUIRED, "camid", "label", "sentences")
ALWAYS: Final = ("path", *CODED)
"""The columns of every `data.readers.table.coded.RowBatch`."""
_SIMILAR: Final = 0.6  # least similarity of a column name to be suggested
# Other names of the columns, for suggestions.
_ALIASES: Final = {
    "path": ("image", "file", "filename", "img", "image_path", "file_name", "name"),
    "split": ("set", "subset", "partition", "fold", "part"),
    "pid": ("person", "person_id", "id", "identity", "name", "subject", "personid"),
}


def folded(name: str) -> str:
    """Return the name of a column without its case and outer blanks."""
    return name.strip().casefold()


def positions(file: Path, names: Sequence[str], required: Sequence[str]) -> dict[str, int]:
    """Return the position of each known column among `names`; raise DataError if they do not make a manifest."""
    known = [folded(name) for name in names]
    twice = [column for column in COLUMNS if known.count(column) > 1]
    if twice:
        shown = "; ".join(f"{column} ({_shown(n for n in names if folded(n) == column)})" for column in twice)
        raise DataError(f"{file} has more than one column {shown}; rename or remove all but one")
    needed = [column for column in required if column != "pid" or "label" not in known]
    absent = [column for column in needed if column not in known]
    if absent:
        raise DataError(
            f"{file} lacks the column(s) {', '.join(absent)}{_suggestions(absent, names)}. A manifest needs"
            f" {', '.join(required)} and may have camid, label and sentences (others are ignored). Found:"
            f" {_shown(names)}. Put the names in the first line, separated by commas, semicolons or tabs"
        )
    return {column: known.index(column) for column in COLUMNS if column in known}


def _shown(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _suggestions(absent: Sequence[str], names: Sequence[str]) -> str:
    """Return which existing columns may be meant, such as "; rename 'person_id' to pid"."""
    free = {folded(name): name for name in names if folded(name) not in COLUMNS}
    near = {
        column: [*nearest(column, free, _SIMILAR), *(n for n in _ALIASES[column] if n in free)] for column in absent
    }
    hints = [f"{free[found[0]]!r} to {column}" for column, found in near.items() if found]
    return f"; rename {', '.join(hints)}" if hints else ""
