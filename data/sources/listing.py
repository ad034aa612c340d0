"""Listings of object stores as columns: about 70 bytes per object for a path of 40, instead of Python objects.

S3 is listed page by page; other stores by `find` of fsspec, whose result is moved to columns at once.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns.growing import GrowingTexts
from data.columns.texts import Texts
from data.errors import DataError
from data.sources.address import scheme_of, shown
from data.sources.client import credentials, filesystem, repeated

_TAGS: Final = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "sha256", "md5")
_TIMES: Final = ("LastModified", "last_modified", "updated", "mtime", "modified", "created", "Last-Modified")
_TAG_BITS: Final = 59
_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z", re.ASCII)
_MOST: Final = (1 << 63) - 1
_AT_ONCE: Final = 1 << 12
_STEP: Final = 64
"""Paths of which a search knows the first one as an object."""

_Object = tuple[str, Mapping[str, Any]]
"""Path relative to the root, and what the store tells about the object."""


class Entry(NamedTuple):
    """Size and version of one object: what `data.artifacts.digests.Stamp` is for a file.

    mtime_ns: when it was written, 0 if the store does not tell. tag: number made of its etag, which is below any
    current time in nanoseconds, so that a stamp with it counts as settled; the time of writing if there is no etag.
    """

    size: int
    mtime_ns: int
    tag: int

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Entry:
        """Return the entry of an object from what its store tells."""
        moment = next((info[name] for name in _TIMES if info.get(name)), None)
        if isinstance(moment, str):  # of a web server, in whole seconds: a later change may have the same one
            with suppress(ValueError):
                moment = parsedate_to_datetime(moment)
        if isinstance(moment, datetime):
            moment = moment.timestamp()
        written = int(moment * 1_000_000) * 1000 if isinstance(moment, int | float) else 0
        written = max(-_MOST, min(written, _MOST))
        tag = next((str(info[name]) for name in _TAGS if info.get(name)), "")
        if not tag and not isinstance(moment, int | float):
            tag = str(moment or "")
        number = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8]) >> (64 - _TAG_BITS) if tag else written
        return cls(int(info.get("size") or info.get("Size") or 0), written, number)


@dataclass(frozen=True, eq=False)
class Listing:
    """The objects under one root, [N], sorted by path as `sorted` sorts texts, each path once.

    paths: relative to the root. numbers: int64 [N, 3], the fields of `Entry`.
    """

    paths: Texts
    numbers: NDArray[np.int64]

    def entry(self, path: str) -> Entry | None:
        """Return the entry of an object, None if it does not exist."""
        place = self._find(_key(path))
        return None if place is None else Entry(*self.numbers[place].tolist())

    def has_folder(self, folder: str) -> bool:
        """Return True if objects lie below `folder`, relative to the root."""
        start, end = self._below(_key(f"{folder}/"))
        return start < end

    def children(self, folder: str = "") -> Iterator[str]:
        """Yield the distinct names of the objects and folders in `folder`, "" for the root, in the order of paths."""
        prefix = _key(f"{folder}/") if folder else b""
        at, end = self._below(prefix)
        while at < end:
            name, slash, _ = self._path(at)[len(prefix) :].partition(b"/")
            if not slash:
                yield name.decode()
                at += 1
                continue
            if self._find(prefix + name) is None:  # else it was an object of the same name
                yield name.decode()
            _, at = self._below(prefix + name + slash)

    def named(self, name: str) -> list[str]:
        """Return the paths of the objects with a name, in any folder."""
        column = self.paths.array
        found: list[str] = column.filter(pc.or_(pc.equal(column, name), pc.ends_with(column, f"/{name}"))).to_pylist()
        return found

    def _find(self, key: bytes) -> int | None:
        at = self._first_from(key)
        return at if at < len(self.paths) and self._path(at) == key else None

    def _below(self, prefix: bytes) -> tuple[int, int]:
        """Return the bounds of the paths that begin with `prefix`, which is empty or ends with a slash."""
        if not prefix:
            return 0, len(self.paths)
        return self._first_from(prefix), self._first_from(prefix[:-1] + b"0")  # "0" follows "/"

    def _first_from(self, key: bytes) -> int:
        """Return the place of the first path that is not less than `key`."""
        step = bisect_left(self._firsts, key)
        low, high = max(0, (step - 1) * _STEP), min(step * _STEP, len(self.paths))
        return bisect_left(range(len(self.paths)), key, low, high, key=self._path)

    def _path(self, place: int) -> bytes:
        ends, content = self._buffers
        return bytes(content[ends[place] : ends[place + 1]])

    @cached_property
    def _buffers(self) -> tuple[memoryview, memoryview]:
        """Where the paths end, from 0 on, and their bytes: one path is read without an object of Arrow."""
        column = self.paths.array
        _, ends, content = column.buffers()
        return memoryview(ends).cast("q")[column.offset :], memoryview(content or b"")

    @cached_property
    def _firsts(self) -> list[bytes]:
        return [self._path(place) for place in range(0, len(self.paths), _STEP)]


def list_objects(root: Path) -> Listing:
    """Ask a store for the objects under `root`; raises DataError if there are none, or if it denies access."""
    files = filesystem(scheme_of(root))
    base = str(files._strip_protocol(shown(root))).rstrip("/")
    is_paged = scheme_of(root) == "s3" and not files.version_aware
    paths, numbers = GrowingTexts(), array("q")
    try:
        for some in _pages(root, files, base) if is_paged else _found(root, files, base):
            objects = [(path, info) for path, info in some if path and not path.endswith("/")]
            paths.extend(pa.array([_storable(path) for path, _ in objects], pa.large_string()))
            for _, info in objects:
                numbers.extend(Entry.of(info))
    except FileNotFoundError:
        paths = GrowingTexts()
    except PermissionError as error:
        raise DataError(f"{shown(root)} cannot be read: access denied. {credentials(root)}") from error
    if not len(paths):
        raise DataError(
            f"{shown(root)} does not exist or is empty; set data.root to the address of the dataset's folder, such as"
            " data.root=s3://bucket/folder"
        )
    return _in_order(Texts(paths.build()), np.frombuffer(numbers, dtype=np.int64).reshape(-1, len(Entry._fields)))


def _pages(root: Path, files: Any, base: str) -> Iterator[Iterable[_Object]]:
    """Yield the pages of a listing of S3. After a fault, a page is asked for again, and not those before it."""
    repeated(root, files.connect)
    # It reads one time per object, and dateutil takes most of the processor time of a listing.
    files.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    bucket, key, _ = files.split_path(base)
    prefix = f"{key}/" if key else ""
    request = {"Bucket": bucket, "Prefix": prefix, **files.req_kw}
    while True:
        page = repeated(root, partial(files.call_s3, "list_objects_v2", **request))
        contents = page.get("Contents") or ()
        yield ((one["Key"][len(prefix) :], one) for one in contents if one["Key"].startswith(prefix))
        if not page.get("IsTruncated"):
            return
        token = page.get("NextContinuationToken")
        if not token or token == request.get("ContinuationToken"):
            raise DataError(
                f"{shown(root)} cannot be listed, because its server does not continue a list after"
                f" {len(contents):,} objects (NextContinuationToken). Use a server with ListObjectsV2 of S3"
            )
        request["ContinuationToken"] = token


def _time(text: Any) -> datetime:
    """Return what botocore makes of a time; those of a listing, such as 2026-01-02T03:04:05.000Z, without dateutil."""
    if isinstance(text, str) and _ISO.fullmatch(text):
        with suppress(ValueError):
            return datetime.fromisoformat(text)
    from botocore.utils import parse_timestamp

    moment: datetime = parse_timestamp(text)
    return moment


def _found(root: Path, files: Any, base: str) -> Iterator[Iterable[_Object]]:
    """Yield the objects of any store, some at a time."""
    found = iter(repeated(root, lambda: files.find(base, detail=True)).items())
    while some := list(islice(found, _AT_ONCE)):
        yield (
            (name[len(base) + 1 :], info)
            for name, info in some
            if info.get("type") != "directory" and name.startswith(f"{base}/")
        )


def _in_order(paths: Texts, numbers: NDArray[np.int64]) -> Listing:
    """Return the listing of paths in any order. Of equal paths, the last one is kept."""
    if _ascends(paths.array):
        return Listing(paths, numbers)
    order = pc.sort_indices(paths.array).to_numpy()
    column = paths.array.take(pa.array(order))
    differs = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy(zero_copy_only=False)
    is_last = np.append(differs, True)
    return Listing(Texts(column.filter(pa.array(is_last))), numbers[order[is_last]])


def _ascends(column: pa.LargeStringArray) -> bool:
    """Return True if each text is greater than the one before it."""
    return bool(pc.all(pc.less(column.slice(0, len(column) - 1), column.slice(1)), min_count=0).as_py())


def _key(path: str) -> bytes:
    return path.encode("utf-8", "surrogatepass")


def _storable(path: str) -> str:
    """Return a path with halves of characters, which JSON can contain, as escapes: readers refuse their backslashes."""
    return path.encode("utf-8", "backslashreplace").decode()
