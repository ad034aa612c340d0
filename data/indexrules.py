"""What makes an index unusable as a whole, and what a person should be told about a usable one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from data.datasets import DatasetConfig
from data.errors import DataError, raise_problems
from data.readers.base import GALLERY, JUNK_PID, QUERY, SPLITS, TRAIN, ImageRecord, Rejected, Scan

_EXAMPLES: Final = 3


def identities(records: Iterable[ImageRecord]) -> dict[str, set[int]]:
    """Return split -> identities that count as people: not junk, and not the distractors 0 of a gallery.

    Identity 0 is a person where data sets of one's own count from 0: then it is in training or query too.
    """
    found: dict[str, set[int]] = {split: set() for split in SPLITS}
    for record in records:
        if record.pid != JUNK_PID:
            found[record.split].add(record.pid)
    if 0 not in found[TRAIN] | found[QUERY]:
        found[GALLERY].discard(0)
    return found


def check_index(
    config: DatasetConfig,
    scan: Scan,
    records: Sequence[ImageRecord],
    sha256s: Sequence[str],
    rejected: Sequence[Rejected],
) -> list[str]:
    """Return the notices of an index; raise one DataError with all problems if it is unusable.

    records, sha256s: usable images and their digests, side by side.
    """
    subject = f"the data set {config.label} in {scan.root}"
    if not records:
        found = _tally(rejected) or "no file with a fitting name"
        raise DataError(f"{subject} has no usable image: {found}. Check data.root and data.reader ({scan.name})")
    identical = list(_identical(records, sha256s))
    problems = [*_empty_splits(config, records, rejected), *_shared_identities(records)]
    notices = [*scan.notices, *_junk(scan), *_rejected(rejected)]
    if identical and config.allow_identical:
        notices.append(_show_identical(identical))
    elif identical:
        problems.append(
            f"{_show_identical(identical)}. Correct the labels, or set data.allow_identical=true to be warned only"
        )
    problems += _unmatched(config, records, notices)
    raise_problems(subject, problems, DataError)
    return notices


def _tally(rejected: Sequence[Rejected]) -> str:
    """Say how many rows were rejected for what, with an example of each reason."""
    counts = Counter(row.reason for row in rejected)
    example = {row.reason: row for row in reversed(rejected)}
    return "; ".join(
        f"{count} {reason} (such as {example[reason].path or 'a row without path'}: {example[reason].detail})"
        for reason, count in sorted(counts.items())
    )


def _empty_splits(config: DatasetConfig, records: Sequence[ImageRecord], rejected: Sequence[Rejected]) -> Iterator[str]:
    there = {record.split for record in records}
    empty = [split for split in SPLITS if split in config.require_splits and split not in there]
    if not empty:
        return
    lost = f" Not used were: {_tally(rejected)}." if rejected else ""
    yield (
        f"no image in {', '.join(empty)}.{lost} Add images there, or, to caption only, set data.require_splits to the"
        " splits there are"
    )


def _shared_identities(records: Sequence[ImageRecord]) -> Iterator[str]:
    example: dict[str, dict[int, str]] = {"train": {}, "test": {}}
    for record in records:
        if record.pid > 0:
            example["train" if record.split == TRAIN else "test"].setdefault(
                record.pid, f"{record.split}: {record.path}"
            )
    shared = sorted(example["train"].keys() & example["test"].keys())
    if shared:
        shown = "; ".join(f"{pid} ({example['train'][pid]}, {example['test'][pid]})" for pid in shared[:_EXAMPLES])
        yield (
            f"{len(shared)} identities are both in training and in query or gallery, such as {shown}. Test people must"
            " be unseen: move each identity to one side, or number two different people differently"
        )


def _identical(records: Sequence[ImageRecord], sha256s: Sequence[str]) -> Iterator[tuple[ImageRecord, ImageRecord]]:
    first: dict[str, ImageRecord] = {}
    for record, sha256 in zip(records, sha256s, strict=True):
        if record.pid > 0:
            other = first.setdefault(sha256, record)
            if other.pid != record.pid:
                yield other, record


def _show_identical(pairs: Sequence[tuple[ImageRecord, ImageRecord]]) -> str:
    shown = "; ".join(f"{a.path} (pid {a.pid}) and {b.path} (pid {b.pid})" for a, b in pairs[:_EXAMPLES])
    return f"{len(pairs)} image(s) are, byte for byte, another identity's, such as {shown}"


def _unmatched(config: DatasetConfig, records: Sequence[ImageRecord], notices: list[str]) -> list[str]:
    """Notice queries without a match from another camera; that every query is one is a problem."""
    queries = [record for record in records if record.split == QUERY and record.pid != JUNK_PID]
    if not queries or GALLERY not in {record.split for record in records}:
        return []
    cameras: dict[int, set[int]] = defaultdict(set)
    for record in records:
        if record.split == GALLERY:
            cameras[record.pid].add(record.camid)
    alone = [record for record in queries if not cameras[record.pid] - {record.camid}]
    if len(alone) == len(queries) and QUERY in config.require_splits:
        return [
            "no query has a gallery image of the same identity from another camera, and same-camera matches do not"
            " count, so nothing could be evaluated. Check pid and camid"
        ]
    if alone:
        notices.append(
            f"{len(alone):,} of {len(queries):,} queries have no gallery image of their identity from another camera,"
            f" such as {alone[0].path}: evaluation skips them"
        )
    return []


def _junk(scan: Scan) -> list[str]:
    return [f"{scan.n_junk:,} junk image(s) (pid -1) left out: no measure counts them"] if scan.n_junk else []


def _rejected(rejected: Sequence[Rejected]) -> list[str]:
    if not rejected:
        return []
    return [f"{len(rejected):,} file(s) or rows not used: {_tally(rejected)}; all of them are in rejected.parquet"]
