"""Objects in a store that fsspec reads: their listing, their stamps and their bytes.

A listing is made once per scan (`refresh`) and shared by everything that looks at the same root afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from data.errors import DataError, RejectedRow
from data.sources.address import is_listed, scheme_of, shown
from data.sources.client import filesystem, is_answer, repeated
from data.sources.listing import Entry, Listing, list_objects

THREADS: Final = 32
"""Objects read at once: a read waits for the network, not for a core."""

_LISTINGS: dict[str, Listing] = {}
_LOCK: Final = threading.RLock()


def refresh(root: Path) -> Listing:
    """Return the current listing of `root`, which must be a store that can list; raises DataError if it is empty."""
    with _LOCK:
        for known in [known for known in _LISTINGS if known == str(root) or known.startswith(f"{root}/")]:
            del _LISTINGS[known]
        return listing(root)


def listing(root: Path) -> Listing:
    """Return the listing of `root`, from memory if this process has made it; `refresh` makes a new one."""
    with _LOCK:
        if str(root) not in _LISTINGS:
            if not is_listed(root):
                raise unlisted(root)
            _LISTINGS[str(root)] = list_objects(root)
        return _LISTINGS[str(root)]


def unlisted(root: Path) -> DataError:
    """Return the error about the root of a web server and a reader that lists files."""
    return DataError(
        f"{shown(root)} cannot be listed, because web servers do not list their files: set data.reader=manifest and"
        " data.manifest to a table of the images, with paths relative to data.root"
    )


def entry_of(place: Path | str) -> Entry | None:
    """Return the entry of one object, from a listing in memory or from the store; None if it does not exist.

    Raises DataError if the store does not tell its size.
    """
    text = str(place)
    known = _known(text)
    if known is not None:
        return known[0].entry(known[1])
    files = filesystem(scheme_of(text))
    try:
        info = repeated(text, lambda: files.info(_url(text)))
    except (FileNotFoundError, PermissionError):
        return None
    if info.get("type") == "directory":
        return None
    if info.get("size") is None:
        raise DataError(
            f"{shown(place)} cannot be read, because its server does not tell the size of a file (Content-Length)."
            " Serve the folder as plain files without compression, such as by nginx, or copy it to a local folder"
        )
    return Entry.of(info)


def is_gone(place: Path | str) -> bool:
    """Return True if the store says that an object does not exist; False too if it does not answer."""
    text = str(place)
    try:
        filesystem(scheme_of(text)).info(_url(text))
    except FileNotFoundError as error:
        return is_answer(text, error)
    except Exception:  # each provider has its own types
        return False
    return False


def is_known(place: Path | str) -> bool:
    """Return True if a listing in memory covers `place`, so that `entry_of` does not ask the store."""
    return _known(str(place)) is not None


def is_folder(place: Path) -> bool:
    """Return True if there are objects below `place`."""
    known = _known(str(place))
    if known is not None:
        return not known[1] or known[0].has_folder(known[1])
    if not is_listed(place):
        return False
    files = filesystem(scheme_of(place))
    return bool(repeated(place, lambda: files.isdir(_url(str(place)))))


def children(place: Path) -> Iterator[str]:
    """Yield the names of the objects and folders in a folder of a store, from a listing in memory if one covers it."""
    known = _known(str(place))
    found, folder = (listing(place), "") if known is None else known
    yield from found.children(folder)


def _known(text: str) -> tuple[Listing, str] | None:
    """Return the listing in memory that covers an object or folder, and its path in it."""
    with _LOCK:
        for root, found in reversed(_LISTINGS.items()):  # the newest first: one of a folder above may be older
            if text == root or text.startswith(f"{root}/"):
                return found, text[len(root) + 1 :]
    return None


def read(place: Path | str) -> bytes:
    """Return the bytes of one object.

    Raises RejectedRow (``missing``, ``unreadable``: access denied), and RetryableError if the store does not answer.
    """
    size = _listed_size(place)
    # With a range, s3fs does not ask for the size first. One byte more than was listed shows that the object has grown.
    return _content(place, start=0, end=size + 1) if size else _content(place)


def read_range(place: Path | str, start: int, size: int) -> bytes:
    """Return `size` bytes of one object from `start` on, fewer if it ends before. Raises the errors of `read`.

    Raises DataError if the store sends the whole object instead.
    """
    content = _content(place, start=start, end=start + size) if size else b""
    if len(content) > size:
        raise DataError(
            f"{shown(place)} cannot be read in parts, because its server ignores the range of a request. Serve the"
            " folder with a server that supports ranges, such as nginx, or copy it to a local folder"
        )
    return content


def _content(place: Path | str, **span: int) -> bytes:
    files, url = filesystem(scheme_of(place)), _url(str(place))
    try:
        content: bytes = repeated(place, lambda: files.cat_file(url, **span))
    except FileNotFoundError as error:
        raise RejectedRow("missing") from error
    except (PermissionError, IsADirectoryError) as error:
        raise RejectedRow("unreadable") from error
    return content


def _listed_size(place: Path | str) -> int | None:
    """Return the size of an object in a listing in memory, None if it is not there."""
    known = _known(str(place))
    listed = None if known is None else known[0].entry(known[1])
    return None if listed is None else listed.size


def read_capped(place: Path | str, most: int) -> bytes:
    """Return the bytes of one object as `read` does; RejectedRow ``too_large`` if it has more than `most`."""
    if (_listed_size(place) or 0) > most:
        raise RejectedRow("too_large")
    try:
        return read(place)
    except MemoryError as error:
        raise RejectedRow("out_of_memory") from error


def _url(text: str) -> str:
    """Return the address of an object for fsspec; a web server gets the name percent-encoded."""
    if is_listed(text):
        return shown(text)
    scheme, _, rest = shown(text).partition("://")
    return f"{scheme}://{quote(rest, safe='/:@')}"
