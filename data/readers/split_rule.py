"""The split of a dataset by rule: its identities into training and test, and one query per identity and camera."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress

from data.people import UNKNOWN_CAMERA, is_person
from data.readers.base import ImageRecord, Scan
from data.splits import GALLERY, QUERY, TRAIN


def split_by_identity(scan: Scan, *, seed: int, train_fraction: float) -> Scan:
    """Return `scan` with every image assigned anew to train, query or gallery.

    Identities are ordered by a hash of the seed and their label (or else their number); the first `train_fraction` of
    them train. The split therefore depends neither on the order of files nor on their names, and another identity moves
    at most one of those that were there before. Between 0 and 1, at least one identity is left on either side.

    Of a test identity, one image per camera is a query, the first by a hash of the seed and its path; with unknown
    cameras, one image. At least one image stays in the gallery, and, if it can, one from another camera than any query.
    Distractors and junk stay in the gallery.
    """
    split = [record.split for record in scan.records]
    people = list(compress(scan.records, is_person(split, [record.pid for record in scan.records]).tolist()))
    train = _training_keys({_key(record) for record in people}, seed, train_fraction)
    queries = _queries((record for record in people if _key(record) not in train), seed)
    persons = {record.pid for record in people}
    records = [
        replace(
            record, split=_split_of(record, is_train=record.pid in persons and _key(record) in train, queries=queries)
        )
        for record in scan.records
    ]
    rule = f"by_identity seed={seed} train_fraction={train_fraction:g}"
    return replace(
        scan,
        version=f"{scan.version} {rule}".strip(),
        records=sorted(records, key=lambda record: (record.split, record.path)),
        notices=[*scan.notices, _notice(rule, records)],
        split_by_rule=True,
    )


def _split_of(record: ImageRecord, *, is_train: bool, queries: set[str]) -> str:
    if is_train:
        return TRAIN
    return QUERY if record.path in queries else GALLERY


def _key(record: ImageRecord) -> str:
    return record.label or str(record.pid)


def _draw(seed: int, text: str) -> str:
    """Return a number, as text, that orders `text` at random among others, in the same way on every machine."""
    return hashlib.sha256(f"{seed}\0{unicodedata.normalize('NFC', text)}".encode()).hexdigest()


def _training_keys(keys: set[str], seed: int, fraction: float) -> set[str]:
    drawn = sorted(keys, key=lambda key: _draw(seed, key))
    count = round(fraction * len(drawn))
    if 0 < fraction < 1 and len(drawn) > 1:
        count = min(max(count, 1), len(drawn) - 1)
    return set(drawn[:count])


def _queries(records: Iterable[ImageRecord], seed: int) -> set[str]:
    """Return the paths of the queries among the images of test identities."""
    cells: defaultdict[str, defaultdict[int, list[ImageRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        cells[_key(record)][record.camid].append(record)
    return {path for cameras in cells.values() for path in _queries_of_one(list(cameras.values()), seed)}


def _queries_of_one(cameras: Sequence[Sequence[ImageRecord]], seed: int) -> Iterator[str]:
    """Yield the query of each camera of one identity.

    A camera with one image would leave nothing of itself in the gallery. Unless two cameras have more, one such image
    stays there, so that the other queries have a match.
    """
    drawn = [min(images, key=lambda record: _draw(seed, record.path)) for images in cameras]
    singles = [record for record, images in zip(drawn, cameras, strict=True) if len(images) == 1]
    if singles and len(drawn) - len(singles) < 2:
        left = max(singles, key=lambda record: _draw(seed, record.path))
        drawn.remove(left)
    yield from (record.path for record in drawn)


def _notice(rule: str, records: Sequence[ImageRecord]) -> str:
    """Return a sentence about the split, for the user."""
    of = {split: [record for record in records if record.split == split] for split in (TRAIN, QUERY, GALLERY)}
    train, test = ({record.pid for record in some} for some in (of[TRAIN], of[QUERY] + of[GALLERY]))
    unknown = any(record.camid == UNKNOWN_CAMERA for record in records)
    return (
        f"identities are split by rule ({rule}): {len(train):,} to train ({len(of[TRAIN]):,} images) and {len(test):,}"
        f" to test ({len(of[QUERY]):,} queries, one per identity{'' if unknown else ' and camera'}, and"
        f" {len(of[GALLERY]):,} gallery images). The index writes the list to split.csv"
    )
