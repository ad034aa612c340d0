"""Digests of plain values (through canonical JSON), of bytes and of files.

Every cache key of the project is computed here, from plain values only: never from live objects or from anything whose
text differs between machines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of `value`: sorted keys, no spaces, no escaped characters.

    Raises TypeError for anything that is not plain JSON data, including keys that are not text (JSON would write 1 and
    "1" alike), and ValueError for NaN, infinities and text that is not valid Unicode.
    """
    _refuse_other_keys(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_other_keys(value: Any) -> None:
    if isinstance(value, dict):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise TypeError(f"keys of JSON objects must be text, not {odd[0]!r}")
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for item in value:
        _refuse_other_keys(item)


def digest(value: Any) -> str:
    """Return the sha256 (64 hex digits) of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value).encode())


def digest_each(values: Iterable[Any]) -> str:
    """Return `digest` of the list of `values`, of which one exists at a time."""
    hasher, separator = hashlib.sha256(b"["), b""
    for value in values:
        hasher.update(separator + canonical_json(value).encode())
        separator = b","
    hasher.update(b"]")
    return hasher.hexdigest()


def digest_bytes(content: bytes) -> str:
    """Return the sha256 (64 hex digits) of `content`."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: Path) -> str:
    """Return the sha256 (64 hex digits) of the bytes of the file at `path`."""
    hasher = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()
