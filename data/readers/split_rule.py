"""The split of a dataset by rule: its identities into training and test, and one query per identity and camera."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns.records import Ints, Records, code_of_split
from data.people import UNKNOWN_CAMERA, Mask
from data.readers.base import Scan
from data.splits import GALLERY, QUERY, TRAIN


class _Keys(NamedTuple):
    """What is drawn: an identity by its label, or else by its number. of: place in `texts` of each image, [N]."""

    of: Ints
    texts: Sequence[str]

    @classmethod
    def in_records(cls, records: Records) -> _Keys:
        """Return the keys of `records`."""
        pids, numbers = np.unique(records.pids, return_inverse=True)
        pairs = records.labels * np.int64(len(pids)) + numbers
        found, of = np.unique(pairs, return_inverse=True)
        named = [records.texts[pair // len(pids)] or str(pids[pair % len(pids)]) for pair in found.tolist()]
        places = {text: place for place, text in enumerate(dict.fromkeys(named))}
        return cls(np.array([places[text] for text in named], dtype=np.int64)[of], list(places))


class _Cell(NamedTuple):
    """The images of one identity and camera: their number, the drawn one, and its draw."""

    size: int
    row: int
    draw: bytes


def split_by_identity(scan: Scan, *, seed: int, train_fraction: float) -> Scan:
    """Return `scan` with every image assigned anew to train, query or gallery.

    Identities are ordered by a hash of the seed and their label (or else their number); the first `train_fraction` of
    them train. The split therefore depends neither on the order of files nor on their names, and another identity moves
    at most one of those that were there before. Between 0 and 1, at least one identity is left on either side.

    Of a test identity, one image per camera is a query, the first by a hash of the seed and its path; with unknown
    cameras, one image. At least one image stays in the gallery, and, if it can, one from another camera than any query.
    Distractors and junk stay in the gallery.
    """
    records = scan.records
    people, keys = records.people(), _Keys.in_records(records)
    train = _training_keys({keys.texts[key] for key in np.unique(keys.of[people]).tolist()}, seed, train_fraction)
    of_train = np.array([text in train for text in keys.texts], dtype=np.bool_)[keys.of]
    splits = np.full(len(records), code_of_split(GALLERY), dtype=np.int8)
    queries = records.paths.take(pa.array(_queries(records, keys.of, people & ~of_train, seed), pa.int64()))
    splits[pc.is_in(records.paths, value_set=queries).to_numpy(zero_copy_only=False)] = code_of_split(QUERY)
    splits[of_train & np.isin(records.pids, np.unique(records.pids[people]))] = code_of_split(TRAIN)
    records = replace(records, splits=splits)
    rule = f"by_identity seed={seed} train_fraction={train_fraction:g}"
    return replace(
        scan,
        version=f"{scan.version} {rule}".strip(),
        records=records.in_order(),
        notices=[*scan.notices, _notice(rule, records)],
        split_by_rule=True,
    )


def _draw(seed: int, text: str) -> bytes:
    """Return bytes that order `text` at random among others, in the same way on every machine."""
    return hashlib.sha256(f"{seed}\0{unicodedata.normalize('NFC', text)}".encode()).digest()


def _training_keys(keys: set[str], seed: int, fraction: float) -> set[str]:
    drawn = sorted(keys, key=lambda key: _draw(seed, key))
    count = round(fraction * len(drawn))
    if 0 < fraction < 1 and len(drawn) > 1:
        count = min(max(count, 1), len(drawn) - 1)
    return set(drawn[:count])


def _queries(records: Records, keys: Ints, tested: Mask, seed: int) -> Iterator[int]:
    """Yield the rows of the queries among the images of test identities. keys: identity of each image, [N]."""
    rows = np.flatnonzero(tested)
    draws = _draws(records, rows, seed)
    # Sorted by identity, camera and draw: the first row of a cell is the drawn one.
    order = np.lexsort((*draws.T[::-1], records.camids[rows], keys[rows]))
    rows, draws = rows[order], draws[order]
    key, camid = keys[rows], records.camids[rows]
    is_first = np.append(True, (np.diff(key) != 0) | (np.diff(camid) != 0))[: len(rows)]
    starts = np.flatnonzero(is_first)
    counts = np.diff(np.append(starts, len(rows)))
    ends = np.flatnonzero(np.append(np.diff(key[starts]) != 0, True)[: len(starts)]) + 1
    begin = 0
    for end in ends.tolist():
        some = slice(begin, end)
        cells = zip(counts[some].tolist(), rows[starts[some]].tolist(), draws[starts[some]], strict=True)
        yield from _queries_of_one([_Cell(size, row, draw.tobytes()) for size, row, draw in cells])
        begin = end


def _draws(records: Records, rows: Ints, seed: int) -> NDArray[np.uint64]:
    """Return the draw of the path of each row as four words, [N, 4]."""
    parts = records.take(rows).batches()
    drawn = b"".join(b"".join(_draw(seed, path) for path in part.paths.to_pylist()) for part in parts)
    return np.frombuffer(drawn, dtype=">u8").reshape(-1, 4)


def _queries_of_one(cells: Sequence[_Cell]) -> Iterator[int]:
    """Yield the row of the query of each camera of one identity.

    A camera with one image would leave nothing of itself in the gallery. Unless two cameras have more, one such image
    stays there, so that the other queries have a match.
    """
    singles = [cell for cell in cells if cell.size == 1]
    left = max(singles, key=lambda cell: cell.draw) if singles and len(cells) - len(singles) < 2 else None
    yield from (cell.row for cell in cells if cell is not left)


def _notice(rule: str, records: Records) -> str:
    """Return a sentence about the split, for the user."""
    of = {split: records.in_split(split) for split in (TRAIN, QUERY, GALLERY)}
    images = {split: int(rows.sum()) for split, rows in of.items()}
    train, test = (len(np.unique(records.pids[rows])) for rows in (of[TRAIN], of[QUERY] | of[GALLERY]))
    unknown = bool((records.camids == UNKNOWN_CAMERA).any())
    return (
        f"identities are split by rule ({rule}): {train:,} to train ({images[TRAIN]:,} images) and {test:,}"
        f" to test ({images[QUERY]:,} queries, one per identity{'' if unknown else ' and camera'}, and"
        f" {images[GALLERY]:,} gallery images). The index writes the list to split.csv"
    )
