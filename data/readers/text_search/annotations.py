"""Rows of the JSON file of a text-based person search dataset: a list of objects, one per image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from data.errors import DataError
from data.readers.base import Collector, Unusable
from data.readers.paths import PathGate
from data.readers.sentences import sentences_of
from data.sources.places import open_binary

IMAGES: Final = "imgs"
"""Folder of the images, which the paths in the file are relative to."""

_SPLITS: Final = ("train", "val", "test")
_MOST_DIGITS: Final = 18  # any number of so many digits fits 64 bits
_EXAMPLE: Final = '{"split": "train", "id": 1, "%s": "a/0001.jpg", "captions": ["A man in a red coat."]}'

Fields = dict[str, object]


class Annotation(NamedTuple):
    """One usable row. place: where it is, for messages. path: of the image, as in the file; not checked yet.

    split: train, val or test. pid: as in the file. n_empty: sentences that are left out because they are empty.
    """

    place: str
    path: str
    split: str
    pid: int
    sentences: tuple[str, ...]
    n_empty: int


def read_annotations(collector: Collector, file: Path, path_key: str) -> Iterator[Annotation]:
    """Yield the usable rows of a JSON file in its order; `collector` rejects the others.

    path_key: name of the field with the path of the image. Raises DataError if the file as a whole cannot be read.
    """
    for number, row in enumerate(_rows(file, path_key), start=1):
        place = f"{file.name} row {number}"
        path = row.get(path_key) if isinstance(row, dict) else None
        try:
            yield _annotation(row, place, path_key)
        except Unusable as error:
            collector.reject(path if isinstance(path, str) else "", error.reason, f"{place}: {error.detail}")


def _rows(file: Path, path_key: str) -> Sequence[object]:
    """Return the parsed list without the fields that no reader uses, such as the tokens of each sentence."""
    wanted = ("split", "id", "captions", path_key)

    def kept(pairs: list[tuple[str, object]]) -> Fields:
        return {name: value for name, value in pairs if name in wanted}

    text = _text(file)
    copy = "Copy it from the dataset again"
    try:
        rows = json.loads(text, object_pairs_hook=kept)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}. {copy}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of nested lists
        raise DataError(f"{file} cannot be read as JSON: {error}. {copy}") from error
    if not isinstance(rows, list):
        raise DataError(f"{file} must be a list with one object per image, such as [{_EXAMPLE % path_key}]. {copy}")
    return rows


def _text(file: Path) -> str:
    try:
        with open_binary(file) as stream:
            content = stream.read()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); check its permissions") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file} is not UTF-8 text (line {line}). Copy it from the dataset again") from error


def _annotation(row: object, place: str, path_key: str) -> Annotation:
    """Return a row with its fields checked; raise Unusable if it cannot be used."""
    if not isinstance(row, dict):
        raise Unusable("bad_row", f"expected an object such as {_EXAMPLE % path_key}")
    path = row.get(path_key)
    if not isinstance(path, str):
        raise Unusable("bad_path", f"{path_key} is {path!r}, not text")
    sentences = sentences_of(row.get("captions"))
    if not sentences.texts:
        raise Unusable("no_sentences", "captions has no sentence")
    split = row.get("split")
    return Annotation(place, path, _split(split), _pid(row.get("id")), sentences.texts, sentences.n_empty)


def _split(value: object) -> str:
    if isinstance(value, str) and value.strip().lower() in _SPLITS:
        return value.strip().lower()
    raise Unusable("bad_split", f"split {value!r} is not one of {', '.join(_SPLITS)}")


def _pid(value: object) -> int:
    """Return an identity, a number or its digits."""
    digits = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if digits.isascii() and digits.isdecimal() and len(digits) <= _MOST_DIGITS:
        return int(digits)
    raise Unusable("bad_pid", f"id {value!r} is not an integer from 0 up")


def image_path(gate: PathGate, path: str) -> str:
    """Return the path of an image relative to the root; raises RejectedRow unless it is a file inside."""
    return gate.admit(path if path.startswith("/") else f"{IMAGES}/{path}")
