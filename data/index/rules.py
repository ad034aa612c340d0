"""Rules of the index: which images are rejected, what makes a dataset unusable, and notices about a usable one.

Notices and the details of rejected images are part of the index fingerprint: another wording reruns the index of every
dataset that has them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Final

from data.datasets import DatasetConfig
from data.errors import DataError, counted, raise_problems
from data.images.decode import REASONS
from data.index.examine import Facts
from data.people import DISTRACTOR, UNKNOWN_CAMERA, is_junk, is_person
from data.readers.base import ImageRecord, Rejected, Scan
from data.splits import GALLERY, QUERY, SPLITS, TRAIN

_EXAMPLES: Final = 3


def identities(records: Sequence[ImageRecord]) -> dict[str, set[int]]:
    """Return split -> identities that are people, by the rule of `data.people`."""
    found: dict[str, set[int]] = {split: set() for split in SPLITS}
    for record in compress(records, _people(records)):
        found[record.split].add(record.pid)
    return found


def _people(records: Sequence[ImageRecord]) -> list[bool]:
    people: list[bool] = is_person([record.split for record in records], [record.pid for record in records]).tolist()
    return people


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
    config: DatasetConfig,
    scan: Scan,
    records: Sequence[ImageRecord],
    facts: Sequence[Facts],
    rejected: Sequence[Rejected],
) -> list[str]:
    """Return the notices of an index; raise one DataError with all problems if the dataset is unusable.

    records, facts: the usable images, and one fact per record.
    """
    sha256s = [fact.sha256 for fact in facts]
    subject = f"the dataset {config.label} in {scan.root}"
    if not records:
        found = _tally(rejected) or "no file name matches"
        raise DataError(f"{subject} has no usable images: {found}. Check data.root and data.reader ({scan.name})")
    identical = list(_identical(records, sha256s))
    problems = [*_empty_splits(config, records, rejected), *_shared_identities(records), *_mixed_cameras(records)]
    notices = [*scan.notices, *_junk(scan), *_rejected(rejected), *_copies(records, sha256s), *_flat(records, facts)]
    if identical and config.allow_identical:
        notices.append(_show_identical(identical))
    elif identical:
        problems.append(
            f"{_show_identical(identical)}. Correct the labels, or set data.allow_identical=true to only get a notice"
        )
    raise_problems(subject, problems, DataError)
    return notices


def _tally(rejected: Sequence[Rejected]) -> str:
    """Return the number of rejected rows per reason, with an example of each."""
    counts = Counter(row.reason for row in rejected)
    example = {row.reason: row for row in reversed(rejected)}
    return "; ".join(
        f"{count} {reason} (such as {example[reason].path or 'a row without path'}: {example[reason].detail})"
        for reason, count in sorted(counts.items())
    )


def _empty_splits(config: DatasetConfig, records: Sequence[ImageRecord], rejected: Sequence[Rejected]) -> Iterator[str]:
    found = {record.split for record in records}
    empty = [split for split in SPLITS if split in config.require_splits and split not in found]
    if not empty:
        return
    unused = f" Rejected: {_tally(rejected)}." if rejected else ""
    remaining = json.dumps([split for split in SPLITS if split in found], separators=(",", ":"))
    yield (
        f"no usable image in {', '.join(empty)}.{unused} Add images there, or, if no stage needs them, set"
        f" data.require_splits={remaining}"
    )


def _shared_identities(records: Sequence[ImageRecord]) -> Iterator[str]:
    example: dict[str, dict[int, str]] = {"train": {}, "test": {}}
    for record in compress(records, _people(records)):
        side = "train" if record.split == TRAIN else "test"
        example[side].setdefault(record.pid, f"{record.split}: {record.path}")
    shared = sorted(example["train"].keys() & example["test"].keys())
    if shared:
        shown = "; ".join(f"{pid} ({example['train'][pid]}, {example['test'][pid]})" for pid in shared[:_EXAMPLES])
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


def _mixed_cameras(records: Sequence[ImageRecord]) -> Iterator[str]:
    unknown = [record for record in records if record.camid == UNKNOWN_CAMERA]
    if unknown and len(unknown) < len(records):
        yield (
            f"the camera of {len(unknown):,} of {len(records):,} images is unknown, such as {unknown[0].path}. Give"
            " every image a camera, or none"
        )


def _identical(records: Sequence[ImageRecord], sha256s: Sequence[str]) -> Iterator[tuple[ImageRecord, ImageRecord]]:
    first: dict[str, ImageRecord] = {}
    people = _people(records)
    for record, sha256 in compress(zip(records, sha256s, strict=True), people):
        other = first.setdefault(sha256, record)
        if other.pid != record.pid:
            yield other, record


def _copies(records: Sequence[ImageRecord], sha256s: Sequence[str]) -> Iterator[str]:
    """Yield notices about identical files that make the evaluation too easy or wrong without a conflict of labels."""
    people, junk = _people(records), is_junk([record.pid for record in records]).tolist()
    first: dict[str, dict[str, ImageRecord]] = {"query": {}, "person": {}}
    for record, sha256 in compress(zip(records, sha256s, strict=True), people):
        first["person"].setdefault(sha256, record)
        if record.split == QUERY:
            first["query"].setdefault(sha256, record)
    in_query, of_others = [], []
    for record, sha256, person, ignored in zip(records, sha256s, people, junk, strict=True):
        if person and record.split == GALLERY and sha256 in first["query"]:
            in_query.append((record, first["query"][sha256]))
        elif not person and not ignored and sha256 in first["person"]:
            of_others.append((record, first["person"][sha256]))
    if in_query:
        yield (
            f"{len(in_query):,} gallery image(s) are identical to a query, such as {_show(in_query[0])}, which makes"
            " the evaluation too easy. Remove one of each pair"
        )
    if of_others:
        yield (
            f"{len(of_others):,} distractor(s) are identical to an image of a known person, such as"
            f" {_show(of_others[0])}, and would count as errors. Remove them, or correct their pid"
        )


def _show(pair: tuple[ImageRecord, ImageRecord]) -> str:
    return " and ".join(f"{record.path} ({record.split})" for record in pair)


def _show_identical(pairs: Sequence[tuple[ImageRecord, ImageRecord]]) -> str:
    shown = "; ".join(f"{a.path} (pid {a.pid}) and {b.path} (pid {b.pid})" for a, b in pairs[:_EXAMPLES])
    return f"{len(pairs)} image(s) are identical to an image of another identity, such as {shown}"


def _flat(records: Sequence[ImageRecord], facts: Sequence[Facts]) -> Iterator[str]:
    flat = [record.path for record, fact in zip(records, facts, strict=True) if fact.flat]
    if flat:
        yield f"{len(flat):,} image(s) are of one color, such as {flat[0]}. They are used, but do not show a person"


def _junk(scan: Scan) -> list[str]:
    return [f"{scan.n_junk:,} junk image(s) (pid -1) left out, because no metric counts them"] if scan.n_junk else []


def _rejected(rejected: Sequence[Rejected]) -> list[str]:
    if not rejected:
        return []
    return [f"{len(rejected):,} file(s) or row(s) rejected: {_tally(rejected)}; rejected.parquet lists them all"]
