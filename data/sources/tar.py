"""Members of an uncompressed tar file, with the offsets of their content."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Final, Literal, NamedTuple

_BLOCK: Final = tarfile.BLOCKSIZE
_AT_ONCE: Final = 1 << 20
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}

Kind = Literal["file", "folder", "link", "special"]


class Member(NamedTuple):
    """One member. name: as stored. offset, size: of its content, in bytes. kind: special, such as a device."""

    name: str
    kind: Kind
    offset: int
    size: int


class BrokenTarError(Exception):
    """A tar file that cannot be read to its end. The message says where, without the name of the file."""


class CompressedTarError(Exception):
    """A tar file that is compressed; the message names the method."""


def members(stream: IO[bytes]) -> Iterator[Member]:
    """Yield the members of a tar file in order. stream: seekable; its position may be changed between two members.

    Raises BrokenTarError if the file is truncated or damaged, after the members before that, and CompressedTarError.
    """
    _refuse_compressed(stream.read(8))
    stream.seek(0)
    count, end = 0, 0
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (found := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember every member
                if found.size < 0 or archive.offset <= end:
                    raise BrokenTarError(f"it is damaged after {count:,} members")
                count, end = count + 1, archive.offset
                yield Member(found.name, _kind(found), found.offset_data, found.size)
            end = archive.offset
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise BrokenTarError(f"it is truncated or damaged after {count:,} members ({error})") from error
    except RecursionError as error:  # thousands of headers for one member
        raise BrokenTarError(f"it is damaged after {count:,} members: too many headers for one member") from error
    _check_end(stream, end, count)


def _refuse_compressed(head: bytes) -> None:
    for magic, method in _COMPRESSED.items():
        if head.startswith(magic):
            raise CompressedTarError(method)


def _kind(info: tarfile.TarInfo) -> Kind:
    if info.isdir():
        return "folder"
    if info.issym() or info.islnk():
        return "link"
    return "file" if info.isreg() and not info.issparse() else "special"


def _check_end(stream: IO[bytes], end: int, count: int) -> None:
    """Raise BrokenTarError unless zeros follow the members; tarfile takes a damaged header for the end.

    Members after the end, as in files that `cat` has joined, would be lost without a word.
    """
    stream.seek(end)
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise BrokenTarError(f"it is truncated after {count:,} members: the end of the archive is missing")
    if block.strip(b"\0"):
        raise BrokenTarError(f"it is damaged after {count:,} members: the next header is not that of a member")
    while block := stream.read(_AT_ONCE):
        if block.strip(b"\0"):
            raise BrokenTarError(
                f"it has data after the end of its {count:,} members, as if joined by cat instead of tar --concatenate"
            )
