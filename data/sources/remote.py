"""Objects in a store that fsspec reads: their listing, their stamps and their bytes.

A listing is made once per scan (`refresh`) and shared by everything that looks at the same root afterwards.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from data.errors import ConfigError, DataError, RejectedRow, RetryableError
from data.sources.address import PACKAGES, is_listed, scheme_of, shown

ATTEMPTS: Final = 4
FIRST_WAIT_S: Final = 0.5
THREADS: Final = 32
"""Objects read at once: a read waits for the network, not for a core."""
_TAGS: Final = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "sha256", "md5")
_TIMES: Final = ("LastModified", "last_modified", "updated", "mtime", "modified", "created", "Last-Modified")
_TAG_BITS: Final = 59
_NO_CREDENTIALS: Final = ("NoCredentialsError", "DefaultCredentialsError", "ClientAuthenticationError")
_NO_ENDPOINT: Final = "Invalid endpoint"
"""Beginning of botocore's message about an endpoint without a scheme."""
_LATER: Final = (408, 429)
"""Answers of a web server that ask to come back."""
_REFUSED: Final = (401, 403)
"""Answers of a web server that refuses to send a file."""
_EXTRA: Final = {"s3fs": "'clip-scgi[remote]'", "aiohttp": "aiohttp"}

T = TypeVar("T")


class Entry(NamedTuple):
    """Size and version of one object: what `data.artifacts.digests.Stamp` is for a file.

    mtime_ns: when it was written, 0 if the store does not tell. tag: number made of its etag, which is below any
    current time in nanoseconds, so that a stamp with it counts as settled; the time of writing if there is no etag.
    """

    size: int
    mtime_ns: int
    tag: int


@dataclass(frozen=True)
class Listing:
    """The objects under one root. entries: path relative to the root -> entry."""

    entries: Mapping[str, Entry]

    @cached_property
    def folders(self) -> frozenset[str]:
        """All folders that the paths name, relative to the root, without the root itself."""
        found: set[str] = set()
        for path in self.entries:
            folder = path.rpartition("/")[0]
            while folder and folder not in found:
                found.add(folder)
                folder = folder.rpartition("/")[0]
        return frozenset(found)


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
            _LISTINGS[str(root)] = _listed(root)
        return _LISTINGS[str(root)]


def unlisted(root: Path) -> DataError:
    """Return the error about the root of a web server and a reader that lists files."""
    return DataError(
        f"{shown(root)} cannot be listed, because web servers do not list their files: set data.reader=manifest and"
        " data.manifest to a table of the images, with paths relative to data.root"
    )


def _listed(root: Path) -> Listing:
    if not is_listed(root):
        raise unlisted(root)
    found = _objects(root)
    entries = dict(sorted((path, _entry(info)) for path, info in found if path and not path.endswith("/")))
    if not entries:
        raise DataError(
            f"{shown(root)} does not exist or is empty; set data.root to the address of the dataset's folder, such as"
            " data.root=s3://bucket/folder"
        )
    return Listing(entries)


def _objects(root: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    files = _filesystem(scheme_of(root))
    base = str(files._strip_protocol(shown(root))).rstrip("/")
    try:
        found = _repeated(root, lambda: files.find(base, detail=True))
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise DataError(f"{shown(root)} cannot be read: access denied. {_credentials(root)}") from error
    for name, info in found.items():
        if info.get("type") != "directory" and name.startswith(f"{base}/"):
            yield name[len(base) + 1 :], info


def entry_of(place: Path | str) -> Entry | None:
    """Return the entry of one object, from a listing in memory or from the store; None if it does not exist.

    Raises DataError if the store does not tell its size.
    """
    text = str(place)
    known = _known(text)
    if known is not None:
        return known[0].entries.get(known[1])
    files = _filesystem(scheme_of(text))
    try:
        info = _repeated(text, lambda: files.info(_url(text)))
    except (FileNotFoundError, PermissionError):
        return None
    if info.get("type") == "directory":
        return None
    if info.get("size") is None:
        raise DataError(
            f"{shown(place)} cannot be read, because its server does not tell the size of a file (Content-Length)."
            " Serve the folder as plain files without compression, such as by nginx, or copy it to a local folder"
        )
    return _entry(info)


def is_gone(place: Path | str) -> bool:
    """Return True if the store says that an object does not exist; False too if it does not answer."""
    text = str(place)
    try:
        _filesystem(scheme_of(text)).info(_url(text))
    except FileNotFoundError as error:
        return _is_answer(text, error)
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
        return not known[1] or known[1] in known[0].folders
    if not is_listed(place):
        return False
    files = _filesystem(scheme_of(place))
    return bool(_repeated(place, lambda: files.isdir(_url(str(place)))))


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
    files, url = _filesystem(scheme_of(place)), _url(str(place))
    try:
        content: bytes = _repeated(place, lambda: files.cat_file(url, **span))
    except FileNotFoundError as error:
        raise RejectedRow("missing") from error
    except (PermissionError, IsADirectoryError) as error:
        raise RejectedRow("unreadable") from error
    return content


def _listed_size(place: Path | str) -> int | None:
    """Return the size of an object in a listing in memory, None if it is not there."""
    known = _known(str(place))
    listed = None if known is None else known[0].entries.get(known[1])
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


def _entry(info: Mapping[str, Any]) -> Entry:
    moment = next((info[name] for name in _TIMES if info.get(name)), None)
    if isinstance(moment, str):  # of a web server, in whole seconds: a later change may have the same one
        with suppress(ValueError):
            moment = parsedate_to_datetime(moment)
    if isinstance(moment, datetime):
        moment = moment.timestamp()
    written = int(moment * 1_000_000) * 1000 if isinstance(moment, int | float) else 0
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), "")
    if not tag and not isinstance(moment, int | float):
        tag = str(moment or "")
    number = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8]) >> (64 - _TAG_BITS) if tag else written
    return Entry(int(info.get("size") or 0), written, number)


def _repeated(place: Path | str, call: Callable[[], T]) -> T:
    """Return what `call` returns; repeat it after errors that may be gone soon.

    Raises FileNotFoundError, PermissionError, IsADirectoryError and MemoryError at once.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except (PermissionError, IsADirectoryError, MemoryError):
            raise
        except Exception as error:  # each provider has its own types
            if isinstance(error, FileNotFoundError) and _is_answer(place, error):
                raise
            if getattr(error, "status", 0) in _REFUSED:  # of a web server, whose errors are those of HTTP
                raise PermissionError(str(error)) from error
            if type(error).__name__ in _NO_CREDENTIALS:
                raise ConfigError(f"{shown(place)} needs credentials. {_credentials(place)}") from error
            if str(error).startswith(_NO_ENDPOINT):
                raise ConfigError(
                    f"{shown(place)} cannot be read: the endpoint is not a URL; set AWS_ENDPOINT_URL to one such as"
                    " http://127.0.0.1:9000"
                ) from error
            if attempt == ATTEMPTS - 1:
                reason = error.__cause__ if isinstance(error, FileNotFoundError) else error
                raise RetryableError(
                    f"{shown(place)} cannot be reached ({type(reason).__name__}) after {ATTEMPTS} attempts. Check the"
                    f" network, the address and the provider's endpoint, then run again. {_credentials(place)}"
                ) from error
        time.sleep(FIRST_WAIT_S * 2**attempt)
    raise AssertionError("the loop returns or raises")


def _is_answer(place: Path | str, error: FileNotFoundError) -> bool:
    """Return True if the store has said that an object does not exist.

    For web servers, fsspec also raises FileNotFoundError if they do not answer, or answer that they cannot now.
    """
    if is_listed(place) or error.__cause__ is None:
        return True
    status = getattr(error.__cause__, "status", 0)
    return 400 <= status < 500 and status not in _LATER


def _credentials(place: Path | str) -> str:
    hints = {
        "s3": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for another server"
        " than Amazon's; FSSPEC_S3_ANON=true for a public bucket",
        "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or log in with gcloud",
        "az": "Set AZURE_STORAGE_ACCOUNT_NAME and its credentials",
        "hf": "Set HF_TOKEN",
    }
    names = {"gcs": "gs", "abfs": "az"}
    scheme = scheme_of(place)
    return hints.get(names.get(scheme, scheme), "Credentials come from the environment, not from settings")


@cache
def _filesystem(scheme: str) -> Any:
    package = PACKAGES[scheme]
    try:
        import fsspec

        # Its own cache of listings would hide changes.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        wanted = _EXTRA.get(package, package)
        raise ConfigError(
            f"addresses with {scheme}:// need the package {package}, which is not installed: pip install {wanted}"
        ) from error
