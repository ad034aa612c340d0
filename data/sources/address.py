"""Addresses of object stores, such as s3://bucket/folder, and the path objects that stand for them.

Every module passes the root of a dataset as a `Path`. For an address it is the path of the same text, in which pathlib
writes // as one slash (s3:/bucket/folder); a local root is always absolute, so the two cannot be confused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

PACKAGES: Final = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "memory": "fsspec",
}
"""Scheme of an address -> the package that reads it."""
_NOT_LISTED: Final = ("http", "https")


def scheme_of(place: Path | str) -> str:
    """Return the scheme of an address or of the path that stands for one, "" for a local path."""
    scheme, colon, rest = str(place).partition(":")
    return scheme if colon and rest.startswith("/") and scheme in PACKAGES else ""


def is_remote(place: Path | str) -> bool:
    """Return True if `place` is an address, or the path that stands for one."""
    return bool(scheme_of(place))


def is_listed(place: Path | str) -> bool:
    """Return True unless `place` is an address of a web server, which cannot list its files."""
    return scheme_of(place) not in _NOT_LISTED


def shown(place: Path | str) -> str:
    """Return `place` as a user writes it: an address with both slashes, or the local path."""
    scheme = scheme_of(place)
    return f"{scheme}://{str(place).partition(':')[2].lstrip('/')}" if scheme else str(place)


def address_problem(text: str) -> str:
    """Return why `text` cannot be an address of images, or "". The message never repeats a part of `text`."""
    scheme, separator, rest = text.partition("://")
    if not separator or "/" in scheme:
        single = scheme_of(text)
        return f"has one slash after {single}:; write two, such as {single}://bucket/folder" if single else ""
    if scheme == "file":
        return "is a local folder: remove file://, such as /data/images"
    if scheme not in PACKAGES:
        return f"has an unknown scheme; known are {', '.join(PACKAGES)}, such as s3://bucket/folder"
    return _secret(rest) or _place_problem(scheme, rest)


def _secret(rest: str) -> str:
    if ":" in rest.split("/", 1)[0].rpartition("@")[0] or "?" in rest:
        return (
            "contains credentials, which settings and logs would repeat; remove them, and give them to the provider's"
            " own configuration, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    return ""


def _place_problem(scheme: str, rest: str) -> str:
    if "::" in rest or (rest.startswith("/") and scheme != "memory") or not rest.strip("/"):
        return "is not the address of one folder; write scheme://bucket/folder, such as s3://bucket/folder"
    if any(part in ("", ".", "..") for part in rest.strip("/").split("/")):
        return "has an empty name, . or .. between its slashes; write it without them, such as s3://bucket/folder"
    return ""
