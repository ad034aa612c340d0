"""Checks of model files without a framework: file type, stored tensors, and non-finite values.

captioning and reid run them before they build a model. The files belong to the user, so no remedy deletes one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from data.errors import WeightsError, counted

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_HEAD_BYTES: Final = 512
_BLOCK_BYTES: Final = 1 << 24
_NAMED: Final = 3
_LENGTH: Final = struct.Struct("<Q")  # a safetensors file starts with the length of its header

_LFS: Final = (
    "is a git-LFS pointer, not the file itself: run `git lfs pull` in its repository, or download the file again"
)
_HTML: Final = "is an HTML page instead of the file: download the file itself (log in first if the page asks for it)"
_SIGNATURES: Final = (
    (b"version https://git-lfs", _LFS),
    (b"/annex/objects/", "is a git-annex pointer, not the file itself: run `git annex get` in its repository"),
    (b"<!doctype html", _HTML),
    (b"<html", _HTML),
    (b"<?xml", "is an XML page, probably the error message of a server: download the file again"),
    (b"entry not found", "is the error message `Entry not found` of a server: download the file again"),
    (b"\x1f\x8b", "is a gzip archive: unpack it first"),
    (b"gguf", "is a GGUF file, which is not supported: use the model's safetensors files"),
)
_PICKLE: Final = (
    "is a PyTorch pickle (.pt, .pth, .bin), which can run code and is never loaded: convert it to safetensors"
)

# Safetensors dtype -> integer type for viewing its bytes, and the mask of the exponent bits. All bits of the mask set
# means NaN or infinity (F8_E4M3 has only NaN, with every bit but the sign set). Other dtypes store integers.
_EXPONENTS: Final = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "C64": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file.

    dtype: its name in safetensors (F32, BF16, ...). begin, end: byte offsets in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def is_float(self) -> bool:
        """True if its values are real floating-point numbers."""
        return self.dtype in _EXPONENTS and self.dtype != "C64"


def file_problem(path: Path) -> str | None:
    """Return what is wrong with the file at `path` by its first bytes, with the remedy, or None if nothing is.

    Recognizes the usual results of failed downloads and copies: pointers of git-LFS and git-annex, web pages, empty
    files, files of zeros, dead links.
    """
    if not path.is_file():
        return _absence(path)
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        return "is empty: download or copy it again"
    if not head.strip(b"\0"):
        return "starts with nothing but zero bytes, as after an interrupted download: download it again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((meaning for mark, meaning in _SIGNATURES if text.startswith(mark)), None)


def _absence(path: Path) -> str:
    if path.is_symlink():
        return f"is a link to {path.readlink()}, which does not exist: copy the file itself (`cp -L`)"
    return "is a folder, not a file" if path.is_dir() else "does not exist"


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return tensor name -> StoredTensor for the safetensors file at `path`; reads only the header.

    Raises WeightsError if the file is missing, is of another type, or does not end where its header says.
    """
    problem = _weights_problem(path)
    if problem is not None:
        raise WeightsError(f"{path} {problem}")
    try:
        with safe_open(path, framework="numpy"):  # validates the header and the length of the file
            pass
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} {_damage(path, error)}") from error
    return dict(_entries(path))


def _weights_problem(path: Path) -> str | None:
    return file_problem(path) or (_PICKLE if is_pickle(path) else None)


def is_pickle(path: Path) -> bool:
    """Return True if the file at `path` starts like a pickle or like the zip archive that PyTorch wraps one in."""
    with path.open("rb") as stream:
        head = stream.read(2)
    return head == b"PK" or (head[:1] == b"\x80" and head[1:] in (b"\2", b"\3", b"\4", b"\5"))


def _damage(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that safetensors refused, with the remedy."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        first = stream.read(_LENGTH.size)
        brace = stream.read(1)
    if len(first) < _LENGTH.size or brace != b"{":
        return f"is not a safetensors file ({error}): use the model's .safetensors file, or convert this file"
    header = _LENGTH.size + _LENGTH.unpack(first)[0]
    if header > size:
        return f"is cut off ({size} bytes; its header alone has {header}): download or copy it again"
    try:
        wanted = max((stored.end for _, stored in _entries(path)), default=header)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"has a damaged header ({error}): download or copy it again"
    if wanted > size:
        return f"is cut off ({size} of {wanted} bytes): download or copy it again"
    return f"is damaged ({error}; {size} bytes, {wanted} expected): download or copy it again"


def _entries(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    with path.open("rb") as stream:
        length = _LENGTH.unpack(stream.read(_LENGTH.size))[0]
        header = json.loads(stream.read(length))
    start = _LENGTH.size + length
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        yield name, StoredTensor(path, entry["dtype"], tuple(entry["shape"]), start + begin, start + end)


def model_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return tensor name -> StoredTensor for the weights of a model folder, in one file or in shards.

    Raises WeightsError if a file is missing or damaged, if one file and shards exist side by side, if the index names a
    tensor that its shard does not store, or if two shards store the same tensor.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if not index.exists():
        return read_tensors(single)
    listed = shard_names(index)
    if single.exists() or single.is_symlink():
        _refuse_two_sets(single, index, set(listed.values()))
        return read_tensors(single)
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(listed.values())):
        stored = read_tensors(folder / shard)
        twice = found.keys() & stored.keys()
        if twice:
            raise WeightsError(f"two shards of {index} store the same tensors: {few(twice)}")
        found |= stored
    misplaced = [name for name, shard in listed.items() if name not in found or found[name].file.name != shard]
    if misplaced:
        raise WeightsError(
            f"{index} lists tensors that are not in the shard it names: {few(misplaced)}. The index belongs to other "
            "shards: download or copy the folder again"
        )
    return found


def _refuse_two_sets(single: Path, index: Path, shards: set[str]) -> None:
    """Raise WeightsError if shards exist beside a single file: nothing says which one is the model's weights."""
    beside = [shard for shard in shards if shard != single.name and (index.parent / shard).exists()]
    if beside:
        raise WeightsError(
            f"{single} and the shards of {index} ({few(beside)}) are two sets of weights: keep the intended set here, "
            "and move the other one to a folder of its own"
        )


def shard_names(index: Path) -> dict[str, str]:
    """Return tensor name -> file name from an index of shards; raises WeightsError if it is not an index.

    The file names must be plain, so that an index cannot refer to files outside its folder.
    """
    listed = read_model_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(shard, str) for shard in listed.values()):
        raise WeightsError(f'{index} is not an index of shards: "weight_map" must map tensor names to file names')
    outside = sorted({shard for shard in listed.values() if Path(shard).name != shard or not shard})
    if outside:
        raise WeightsError(
            f"{index} names shards outside its folder ({few(outside)}): put them beside it, and list their plain names"
        )
    return listed


def read_model_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model folder; raises WeightsError that says what is wrong with the file."""
    problem = file_problem(path)
    if problem is not None:
        raise WeightsError(f"{path} {problem}")
    content = path.read_bytes()
    try:
        value = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise WeightsError(f"{path} {_json_damage(content, error)}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a JSON {type(value).__name__}; expected an object: download or copy it again")
    return value


def _json_damage(content: bytes, error: Exception) -> str:
    closed = content.rstrip().endswith((b"}", b"]"))
    if not closed and content.lstrip().startswith((b"{", b"[")):
        return f"is cut off after {len(content)} bytes ({error}): download or copy it again"
    return f"is not valid JSON ({error}): download or copy it again, or correct it"


def nonfinite(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Return the names of the tensors that contain NaN or infinity; reads every byte once."""
    return [name for name, stored in tensors.items() if _is_nonfinite(stored)]


def _is_nonfinite(stored: StoredTensor) -> bool:
    if stored.dtype not in _EXPONENTS:
        return False
    kind, mask = _EXPONENTS[stored.dtype]
    step = np.dtype(kind).itemsize
    with stored.file.open("rb") as stream:
        stream.seek(stored.begin)
        left = stored.end - stored.begin
        while left:
            block = stream.read(min(left, _BLOCK_BYTES))
            if len(block) < min(left, step):
                raise WeightsError(f"{stored.file} was cut off while it was being read: download or copy it again")
            exponents = np.frombuffer(block, kind) & kind(mask)
            if (exponents == kind(mask)).any():
                return True
            left -= len(block)
    return False


def differences(
    missing: Collection[str],
    unexpected: Collection[str],
    shapes: Mapping[str, tuple[Sequence[int], Sequence[int]]],
) -> list[str]:
    """Return one line per kind of difference between a model and its weights, with a few names each.

    shapes: tensor name -> (shape in the file, shape in the model).
    """
    lines = []
    if missing:
        lines.append(f"missing {_tensors(missing)}: {few(missing)}")
    if unexpected:
        lines.append(f"unexpected {_tensors(unexpected)}: {few(unexpected)}")
    if shapes:
        told = [f"{name} is {list(have)} and should be {list(want)}" for name, (have, want) in sorted(shapes.items())]
        lines.append(f"wrong shape of {_tensors(shapes)}: {few(told)}")
    return lines


def _tensors(names: Collection[str]) -> str:
    return counted(len(names), "tensor")


def few(names: Collection[str], most: int = _NAMED) -> str:
    """Return the first names in sorted order, and the number of further ones."""
    first = sorted(names)[:most]
    rest = len(names) - len(first)
    return ", ".join(first) + (f" and {rest} more" if rest else "")
