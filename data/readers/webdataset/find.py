"""Which files of a dataset are its shards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from data.columns.growing import GrowingTexts
from data.columns.texts import Texts
from data.errors import DataError, RejectedRow
from data.readers.base import existing_folder, is_litter
from data.readers.paths import PATH_DETAILS, PathGate
from data.readers.tree import is_store
from data.sources import remote
from data.sources.address import is_listed, is_remote, shown
from data.sources.shards import SUFFIX

_COMPRESSED: Final = re.compile(r"\.(?:tar\.\w+|t[gbxz]z|tbz2|tzst)\Z", re.IGNORECASE)
_ARCHIVE: Final = re.compile(rf"{re.escape(SUFFIX)}\Z|{_COMPRESSED.pattern}", re.IGNORECASE)
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)\Z")
_MOST: Final = 1_000_000
_AT_ONCE: Final = 1 << 14
DETAILS: Final = PATH_DETAILS | {
    "linked_folder": "a link to a folder, which is not followed; put the folder itself there"
}
"""Reason why a shard or folder is not used -> sentence for people."""
_WILD: Final = frozenset("*?[")


class Shards(NamedTuple):
    """The shards of a dataset. paths: relative to `root`, sorted. others: files that are not read.

    refused: path of a shard or folder that cannot be used -> reason of `DETAILS`.
    """

    root: Path
    paths: list[str]
    others: Texts
    refused: dict[str, str]


def find_shards(root: Path, pattern: str) -> Shards:
    """Return the shards below `root`: all files that end in .tar, or those whose paths match `pattern`.

    pattern: paths relative to `root` with braces and wildcards, such as train-{000000..000099}.tar. Raises DataError if
    no shard is found, if one that the pattern names does not exist, and if one is compressed.
    """
    if not is_remote(root) and root.name.endswith(SUFFIX) and root.is_file():
        raise DataError(f"{root} is a shard, not a folder: set data.root={root.parent} and data.shards={root.name}")
    base = existing_folder(root)
    wanted = list(_expanded(pattern)) if pattern else ["*"]
    refused = dict[str, str]()
    exact, wild = {one for one in wanted if not _WILD & {*one}}, [one for one in wanted if _WILD & {*one}]
    chosen, others, files = list[str](), GrowingTexts(), _files(base, wanted, refused)
    while some := list(islice(files, _AT_ONCE)):  # there may be millions of other files
        fitting = {path for path in some if path in exact or any(_matches(path, one) for one in wild)}
        chosen += [path for path in some if path in fitting and _ARCHIVE.search(path)]
        rest = [path for path in some if path not in fitting or not path.endswith(SUFFIX)]
        others.extend(pa.array(rest, pa.large_string()))
    compressed = sorted(path for path in chosen if _COMPRESSED.search(path))
    if compressed:
        raise compressed_shards(base, compressed)
    paths = sorted(path for path in chosen if path.endswith(SUFFIX))
    lacking = sorted(exact - {*paths})
    if pattern and (lacking or not paths):
        raise DataError(
            f"data.shards={pattern}: {(lacking or wanted)[0]} does not exist in {shown(base)}. Write paths relative to"
            " data.root, such as data.shards=train-{000000..000099}.tar or data.shards=*/*.tar"
        )
    if not paths:
        raise DataError(
            f"{shown(base)} does not contain tar shards: set data.root to the folder with files such as"
            " train-000000.tar, or data.reader to the layout of this folder"
        )
    return Shards(base, paths, Texts(others.build()).sorted_distinct(), refused)


def compressed_shards(root: Path, paths: Sequence[str]) -> DataError:
    """Return the error about shards that are compressed. paths: relative to `root`."""
    return DataError(
        f"{len(paths):,} shard(s) in {shown(root)} are compressed, such as {paths[0]}: single images cannot be read"
        " from them. Decompress them, for example with gunzip or unzstd, so that their names end in .tar"
    )


def _matches(path: str, pattern: str) -> bool:
    return pattern == "*" or (path.count("/") == pattern.count("/") and fnmatchcase(path, pattern))


def _files(base: Path, wanted: Sequence[str], refused: dict[str, str]) -> Iterator[str]:
    """Yield the paths of the files below `base`, relative to it, without litter."""
    gate = PathGate(base)
    if not is_listed(base) and any(_WILD & {*one} for one in wanted):
        raise DataError(
            f"{shown(base)} cannot be listed, because web servers do not list their files: set data.shards to the names"
            " of the shards, such as data.shards=train-{000000..000099}.tar"
        )
    listed = wanted if not is_listed(base) else _objects(base) if is_remote(base) else _local_files(base, refused)
    for path in listed:
        try:
            yield gate.admit(path)
        except RejectedRow as error:
            if is_listed(base) and path.endswith(SUFFIX):
                refused[path] = error.reason


def _objects(base: Path) -> Iterator[str]:
    for path in remote.listing(base).paths:
        if not any(is_litter(name) for name in path.split("/")):
            yield path


def _local_files(base: Path, refused: dict[str, str]) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read ({error.strerror}); check its permissions")

    for folder, folders, names in os.walk(base, onerror=fail):
        here = Path(folder)
        if here != base and is_store(here):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not is_litter(name)]
        for name in folders:
            if (here / name).is_symlink():
                refused[(here / name).relative_to(base).as_posix()] = "linked_folder"
        yield from ((here / name).relative_to(base).as_posix() for name in names if not is_litter(name))


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the patterns that braces stand for, as in a shell: a list of words, or a range of numbers."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for word in _words(match[1]):
        yield from _expanded(f"{pattern[: match.start()]}{word}{pattern[match.end() :]}")


def _words(text: str) -> list[str]:
    found = _RANGE.match(text)
    if found is None:
        return text.split(",")
    first, last, width = int(found[1]), int(found[2]), len(found[1])
    if not first <= last < first + _MOST:
        raise DataError(f"data.shards: the range {{{text}}} is empty or has more than {_MOST:,} numbers")
    return [f"{number:0{width}d}" for number in range(first, last + 1)]
