"""Rules of the index: which images are rejected, what makes a dataset unusable, and notices about a usable one.

Notices and the details of rejected images are part of the index fingerprint: another wording reruns the index of every
dataset that has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from data.columns.digests import first_equal
from data.columns.records import Ints, Records
from data.columns.rejected import RejectedRows
from data.datasets import DatasetConfig
from data.errors import DataError, counted, raise_problems
from data.images.decode import REASONS
from data.index.facts import Facts, FileFacts
from data.people import DISTRACTOR, UNKNOWN_CAMERA, Mask, is_junk
from data.readers.base import Scan
from data.sources.address import shown
from data.splits import GALLERY, QUERY, SPLITS, TRAIN

_EXAMPLES: Final = 3


class _Pairs(NamedTuple):
    """Rows of identical images, [M] each, ordered by `rows`. firsts: the first row with the bytes of each."""

    firsts: Ints
    rows: Ints


def _unread(scan: Scan) -> list[str]:
    """Return what shards have instead of images."""
    rule = "an image is a member whose name ends in .jpg or the like, all of it after its first dot"
    return [*scan.notices, rule] if scan.name == "webdataset" else []


def identities(records: Records) -> dict[str, set[int]]:
    """Return split -> identities that are people, by the rule of `data.people`."""
    people = records.people()
    return {split: set(np.unique(records.pids[people & records.in_split(split)]).tolist()) for split in SPLITS}


def unusable_rows(config: DatasetConfig, facts: FileFacts) -> Ints:
    """Return the places of the images for which `unusable` returns a reason."""
    width, height = facts.rows["width"], facts.rows["height"]
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    rows: Ints = np.flatnonzero(
        facts.reasons() | (shorter < config.min_side) | (longer > config.max_aspect * shorter.astype(np.float64))
    )
    return rows


def unusable(config: DatasetConfig, fact: Facts) -> tuple[str, str] | None:
    """Return the reason and the detail why an image is rejected, or None if it is usable."""
    if fact.reason:
        return fact.reason, REASONS[fact.reason]
    shape = f"{fact.width} x {fact.height} pixels"
    if min(fact.width, fact.height) < config.min_side:
        return "too_small", f"{shape}; a side is shorter than data.min_side={config.min_side}"
    if max(fact.width, fact.height) > config.max_aspect * min(fact.width, fact.height):
        return "bad_aspect", f"{shape}; the sides differ by more than data.max_aspect={config.max_aspect:g} times"
    return None


def check_index(
    config: DatasetConfig, scan: Scan, records: Records, facts: FileFacts, rejected: RejectedRows
) -> list[str]:
    """Return the notices of an index; raise one DataError with all problems if the dataset is unusable.

    records, facts: the usable images, and one fact per record.
    """
    subject = f"the dataset {config.label} in {shown(scan.root)}"
    if not records:
        found = _tally(rejected) or "; ".join(_unread(scan)) or "no file name matches"
        raise DataError(f"{subject} has no usable images: {found}. Check data.root and data.reader ({scan.name})")
    people = records.people()
    twins = _Twins(facts)
    identical = _identical(records, twins, people)
    problems = [*_empty_splits(config, records, rejected), *_shared_identities(records, people)]
    problems += _mixed_cameras(records)
    notices = [*scan.notices, *_junk(scan), *_rejected(rejected)]
    notices += [*_copies(records, twins, people), *_flat(records, facts)]
    if len(identical.rows) and config.allow_identical:
        notices.append(_show_identical(records, identical))
    elif len(identical.rows):
        problems.append(
            f"{_show_identical(records, identical)}. Correct the labels, or set data.allow_identical=true to only get a"
            " notice"
        )
    raise_problems(subject, problems, DataError)
    return notices


def _tally(rejected: RejectedRows) -> str:
    """Return the number of rejected rows per reason, with an example of each."""
    examples = [(count, rejected.first(reason)) for reason, count in rejected.counts().items()]
    return "; ".join(
        f"{count} {row.reason} (such as {row.path or 'a row without path'}: {row.detail})" for count, row in examples
    )


def _empty_splits(config: DatasetConfig, records: Records, rejected: RejectedRows) -> Iterator[str]:
    found = {split for split in SPLITS if records.in_split(split).any()}
    empty = [split for split in SPLITS if split in config.require_splits and split not in found]
    if not empty:
        return
    unused = f" Rejected: {_tally(rejected)}." if rejected else ""
    remaining = json.dumps([split for split in SPLITS if split in found], separators=(",", ":"))
    yield (
        f"no usable image in {', '.join(empty)}.{unused} Add images there, or, if no stage needs them, set"
        f" data.require_splits={remaining}"
    )


def _shared_identities(records: Records, people: Mask) -> Iterator[str]:
    train = people & records.in_split(TRAIN)
    test = people & ~train
    shared = np.intersect1d(records.pids[train], records.pids[test]).tolist()
    if shared:
        shown = "; ".join(
            f"{pid} ({_first_of(records, train, pid)}, {_first_of(records, test, pid)})" for pid in shared[:_EXAMPLES]
        )
        zero = (
            f". {DISTRACTOR} is a distractor only if it occurs nowhere but in the gallery"
            if DISTRACTOR in shared
            else ""
        )
        yield (
            f"training shares {counted(len(shared), 'identity')} with query or gallery, such as {shown}. Test"
            f" identities must not occur in training: move each to one side, or give different people different"
            f" numbers{zero}"
        )


def _first_of(records: Records, among: Mask, pid: int) -> str:
    """Return split and path of the first image of an identity."""
    record = records[int(np.flatnonzero(among & (records.pids == pid))[0])]
    return f"{record.split}: {record.path}"


def _mixed_cameras(records: Records) -> Iterator[str]:
    unknown = np.flatnonzero(records.camids == UNKNOWN_CAMERA)
    if 0 < len(unknown) < len(records):
        yield (
            f"the camera of {len(unknown):,} of {len(records):,} images is unknown, such as {records.path(unknown[0])}."
            " Give every image a camera, or none"
        )


class _Twins:
    """Images with equal bytes."""

    def __init__(self, facts: FileFacts) -> None:
        self._first = first_equal(facts.digests)

    def pairs(self, among: Mask, of: Mask) -> _Pairs:
        """Return the rows of `of` whose bytes a row of `among` has, each with the first such row."""
        sources, wanted = np.flatnonzero(among)[::-1], np.flatnonzero(of)
        first = np.full(len(self._first), -1)
        first[self._first[sources]] = sources  # of several rows, the one assigned last stays: the first
        found = first[self._first[wanted]]
        same = found >= 0
        return _Pairs(found[same], wanted[same])


def _identical(records: Records, twins: _Twins, people: Mask) -> _Pairs:
    """Return the images of people that are identical to an earlier one of another identity."""
    firsts, rows = twins.pairs(people, people)
    differ = records.pids[firsts] != records.pids[rows]
    return _Pairs(firsts[differ], rows[differ])


def _copies(records: Records, twins: _Twins, people: Mask) -> Iterator[str]:
    """Yield notices about identical files that make the evaluation too easy or wrong without a conflict of labels."""
    queries, gallery = people & records.in_split(QUERY), people & records.in_split(GALLERY)
    in_query = twins.pairs(queries, gallery)
    if len(in_query.rows):
        yield (
            f"{len(in_query.rows):,} gallery image(s) are identical to a query, such as {_show(records, in_query)},"
            " which makes the evaluation too easy. Remove one of each pair"
        )
    of_others = twins.pairs(people, ~people & ~is_junk(records.pids))
    if len(of_others.rows):
        yield (
            f"{len(of_others.rows):,} distractor(s) are identical to an image of a known person, such as"
            f" {_show(records, of_others)}, and would count as errors. Remove them, or correct their pid"
        )


def _show(records: Records, pairs: _Pairs) -> str:
    """Return the first pair: its later image, and the one that was there before."""
    pair = (records[int(pairs.rows[0])], records[int(pairs.firsts[0])])
    return " and ".join(f"{record.path} ({record.split})" for record in pair)


def _show_identical(records: Records, pairs: _Pairs) -> str:
    some = zip(records.take(pairs.firsts[:_EXAMPLES]), records.take(pairs.rows[:_EXAMPLES]), strict=True)
    shown = "; ".join(f"{a.path} (pid {a.pid}) and {b.path} (pid {b.pid})" for a, b in some)
    return f"{len(pairs.rows)} image(s) are identical to an image of another identity, such as {shown}"


def _flat(records: Records, facts: FileFacts) -> Iterator[str]:
    flat = np.flatnonzero(facts.rows["flat"])
    if len(flat):
        yield (
            f"{len(flat):,} image(s) are of one color, such as {records.path(flat[0])}. They are used, but do not show"
            " a person"
        )


def _junk(scan: Scan) -> list[str]:
    return [f"{scan.n_junk:,} junk image(s) (pid -1) left out, because no metric counts them"] if scan.n_junk else []


def _rejected(rejected: RejectedRows) -> list[str]:
    if not rejected:
        return []
    return [f"{len(rejected):,} file(s) or row(s) rejected: {_tally(rejected)}; rejected.parquet lists them all"]
