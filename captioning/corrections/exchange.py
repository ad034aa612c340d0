"""Import and export of corrections as tables; captions that were made elsewhere come in by the same door."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

import numpy as np

from captioning.corrections.current import Current
from captioning.corrections.edits import Edit, EditError
from captioning.corrections.images import DatasetImages
from captioning.corrections.record import Correction, ModelCaption, Provenance
from captioning.corrections.store import Change, Corrections
from captioning.corrections.table import ATTRIBUTES, FileRow
from captioning.corrections.waiting import Waiting
from captioning.prompts.pattern import Slots
from data.artifacts.fingerprint import canonical_json
from data.errors import ClipScgiError, DataError, messages_of, raise_problems

Outcome = Literal["new", "changed", "unchanged", "kept"]

SHOWN: Final = 20
"""Rows that a plan keeps of each outcome, to show them."""
_OWN_KIND: Final = ("text", "slots", "wrong")
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCKS: Final = timedelta(days=1)
"""How far the clock of another machine, or a time without its zone, may be ahead."""
_MOST_PROBLEMS: Final = 100


class Planned(NamedTuple):
    """What an import does with one row. before: the current change of the image. kept: a newer human edit stays."""

    row: FileRow
    after: Correction
    before: Correction | None
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """What an import does. counts: outcome -> number of rows. first: outcome -> the first rows of it, at most `SHOWN`.

    empty: number of rows without a caption and attributes. unknown: of rows of other images. unused: of rows whose
    attr_ columns are not used, because their caption leads. waiting: the changes to save.
    """

    counts: Mapping[Outcome, int]
    first: Mapping[Outcome, Sequence[Planned]]
    empty: int
    unknown: int
    unused: int
    waiting: Waiting


class _SkippedError(Exception):
    """A row that is left out. reason: a field of `ImportPlan`."""

    def __init__(self, reason: Literal["empty", "unknown"]) -> None:
        super().__init__(reason)
        self.reason = reason


def plan_import(
    file: str,
    rows: Iterable[FileRow],
    kept: Corrections,
    images: DatasetImages,
    *,
    author: str,
    force: bool = False,
    skip_unknown: bool = False,
    folder: Path | None = None,
) -> ImportPlan:
    """Return what an import of `rows` changes. Raises DataError that lists every row that cannot be imported.

    The rows are read once, and none is kept. file: for messages. author: of rows that do not name one. force: replace
    human edits that are newer than a row. skip_unknown: leave out rows of images that the dataset does not have.
    folder: of the temporary file of the changes; None for that of the system.
    """
    found = _Reading(kept, images, author=author, force=force, folder=folder)
    count, problems = 0, list[str]()
    for problem in found.problems(rows, skip_unknown=skip_unknown):
        count += 1
        if count <= _MOST_PROBLEMS:
            problems.append(problem)
    raise_problems(f"{file}, of which nothing was imported", problems, DataError, more=max(0, count - _MOST_PROBLEMS))
    return ImportPlan(
        counts=found.counts,
        first=found.first,
        empty=found.skipped["empty"],
        unknown=found.skipped["unknown"],
        unused=found.unused,
        waiting=found.waiting,
    )


def save_import(plan: ImportPlan, kept: Corrections) -> int:
    """Save the changes of `plan` and return their number.

    Raises ClipScgiError if captions were edited since the plan was made: their rows are in the history, without effect.
    """
    saved = kept.save_waiting(plan.waiting)
    if saved.lost:
        shown = ", ".join(sha256[:12] for sha256 in saved.first_lost)
        raise ClipScgiError(
            f"{saved.lost:,} of {saved.count:,} captions were edited by others meanwhile ({shown}): their edits stay in"
            " effect, and the imported rows are kept in the history. Import again to see the differences"
        )
    return saved.count


def export_rows(current: Current, images: DatasetImages) -> Iterator[dict[str, str | None]]:
    """Yield one row (table.COLUMNS) per corrected image of the dataset, in the order of its images.

    attr_ columns are only filled where slots lead. Importing the rows again changes nothing.
    """
    for path, entry in images.with_entry(current.without_resets()):
        yield {
            "image_path": path,
            "image_sha256": entry.sha256,
            "kind": entry.kind,
            "caption": entry.text,
            **({f"attr_{slot}": value for slot, value in entry.given.items()} if entry.given is not None else {}),
            "author": entry.author,
            "time": entry.time.isoformat(),
            "provenance": entry.provenance,
            "model_caption": None if entry.against is None else entry.against.text,
            "model_captioner": None if entry.against is None else entry.against.captioner,
        }


class _Firsts:
    """The first row of each image and what it says, in 16 bytes per image of the dataset."""

    def __init__(self, images: int) -> None:
        self._rows = np.zeros(images, dtype=np.int64)
        self._said = np.zeros(images, dtype=np.uint64)

    def repeats(self, image: int, row: FileRow, after: Correction) -> bool:
        """Return True if an earlier row says the same of an image. Raises ValueError if one says something else."""
        said = _said(after)
        if not self._rows[image]:
            self._rows[image], self._said[image] = row.number, said
            return False
        if self._said[image] != said:
            first = self._rows[image]
            raise ValueError(f"another caption of the image of row {first}: leave one of the two rows out")
        return True


class _Reading:
    """Reads rows one by one, against the corrections that exist, and keeps the lines to save in a file."""

    def __init__(
        self, kept: Corrections, images: DatasetImages, *, author: str, force: bool, folder: Path | None
    ) -> None:
        self._kept, self._images, self._author, self._force = kept, images, author, force
        self.waiting = Waiting(kept.moment(), folder)
        self._current = kept.current().among([images.paths.digests])
        self._firsts = _Firsts(len(images.paths))
        self.counts: Counter[Outcome] = Counter()
        self.first: defaultdict[Outcome, list[Planned]] = defaultdict(list)
        self.skipped = {"empty": 0, "unknown": 0}
        self.unused = 0

    def problems(self, rows: Iterable[FileRow], *, skip_unknown: bool) -> Iterator[str]:
        """Read all rows and yield the problems, with row numbers."""
        for row in rows:
            try:
                self._take(row)
            except _SkippedError as skipped:
                if skipped.reason == "unknown" and not skip_unknown:
                    yield f"row {row.number}: {self._unknown(row)}"
                else:
                    self.skipped[skipped.reason] += 1
            except (EditError, ValueError) as error:
                told = messages_of(error) if isinstance(error, EditError) else (str(error),)
                yield from (f"row {row.number}: {problem}" for problem in told)

    def _take(self, row: FileRow) -> None:
        image, sha256 = self._image(row)
        edit = edit_of(row)
        self.unused += edit.kind == "text" and not row.cell("kind") and any(map(row.cell, ATTRIBUTES))
        before = self._current.get(sha256)
        after = self._kept.preview(self._change(row, sha256, edit, before))
        _check_composed(row, after)
        outcome = self._outcome(after, before, _time(row))
        if not self._firsts.repeats(image, row, after):
            self._plan(Planned(row, after, before, outcome))

    def _plan(self, planned: Planned) -> None:
        self.counts[planned.outcome] += 1
        if len(self.first[planned.outcome]) < SHOWN:
            self.first[planned.outcome].append(planned)
        if planned.outcome in ("new", "changed"):
            self.waiting.add(planned.after)

    def _image(self, row: FileRow) -> tuple[int, str]:
        """Return the number of the image of a row among the sorted digests, and its digest."""
        sha256, path = row.cell("image_sha256").lower(), self._relative(row.cell("image_path"))
        if not sha256 and not path:
            raise ValueError("image_path and image_sha256 are both empty: name the image")
        by_path = self._images.paths.get(path)
        if sha256 and by_path and by_path != sha256:
            raise ValueError(
                f"{path} has another image_sha256 in this dataset ({by_path[:12]}...): the image was replaced, or the"
                " row belongs to another dataset; leave image_sha256 empty to go by the path"
            )
        found = sha256 or by_path
        number = None if found is None else self._images.number_of(found)
        if found is None or number is None:
            raise _SkippedError("unknown")
        return number, found

    def _relative(self, path: str) -> str:
        plain = path.replace("\\", "/").removeprefix("./")
        return plain.removeprefix(f"{self._images.root.rstrip('/')}/")

    def _unknown(self, row: FileRow) -> str:
        name = row.cell("image_path") or row.cell("image_sha256")
        return f"the dataset has no usable image {name}: remove the row, or add --skip-unknown"

    def _change(self, row: FileRow, sha256: str, edit: Edit, before: Correction | None) -> Change:
        against = self._images.captions.get(sha256)
        if row.cell("model_caption"):
            against = ModelCaption(row.cell("model_caption"), row.cell("model_captioner"))
        return Change(
            sha256=sha256,
            edit=edit,
            author=row.cell("author") or self._author,
            expected_revision=before.revision if before else 0,
            against=against,
            provenance=_provenance(row),
            time=_time(row),
        )

    def _outcome(self, after: Correction, before: Correction | None, time: datetime | None) -> Outcome:
        if before is None:
            return "new"
        if _same(before, after):
            return "unchanged"
        is_newer = time is not None and time > before.time
        if before.provenance == "human" and not is_newer and not self._force:
            return "kept"
        return "new" if before.kind == "reset" else "changed"


def edit_of(row: FileRow) -> Edit:
    """Return the edit that a row asks for. Raises ValueError, or `_SkippedError` for a row that asks for nothing.

    Without a kind, the caption leads if there is one, and otherwise the attributes that are not empty.
    """
    kind, caption = row.cell("kind").lower(), row.cell("caption")
    answers = {name.removeprefix("attr_"): row.cell(name) or None for name in ATTRIBUTES if name in row.cells}
    given = {slot: value for slot, value in answers.items() if value}
    if not kind:
        if not caption and not given:
            raise _SkippedError("empty")
        return Edit.of_text(caption) if caption else Edit.of_slots(given)
    if kind not in _OWN_KIND:
        raise ValueError(f"invalid kind {kind!r}: expected {', '.join(_OWN_KIND)}, or nothing")
    return _of_kind(kind, caption, answers)


def _of_kind(kind: str, caption: str, answers: Slots) -> Edit:
    given = sorted(slot for slot, value in answers.items() if value)
    if kind == "text" and given:
        raise ValueError(
            f"kind=text, but attr_{given[0]} is filled in: clear the attr_ columns, or set kind=slots and clear caption"
        )
    if kind == "wrong":
        if caption or given:
            raise ValueError("kind=wrong, but there is a caption: set kind=text to use it, or clear it")
        return Edit.wrong()
    return Edit.of_text(caption) if kind == "text" else Edit.of_slots(answers)


def _check_composed(row: FileRow, after: Correction) -> None:
    """Raise ValueError if a row whose slots lead has another caption than they give."""
    caption = " ".join(row.cell("caption").split())
    if after.kind == "slots" and caption and caption != after.text:
        raise ValueError(
            f"kind=slots, but the caption is not that of the attributes, {after.text!r}: clear caption to use the"
            " attributes, or set kind=text and clear the attr_ columns to use the caption"
        )


def _same(one: Correction, other: Correction) -> bool:
    """Return True if two corrections say the same."""
    return _content(one) == _content(other)


def _content(entry: Correction) -> list[object]:
    """Return what a correction says, as plain values; the slots of a text follow from it."""
    if entry.kind == "wrong":
        return [entry.kind, entry.against and entry.against.text]
    return [entry.kind, entry.text, entry.given and dict(entry.given)]


def _said(entry: Correction) -> int:
    """Return a number of 64 bits that stands for what a correction says."""
    return int.from_bytes(blake2b(canonical_json(_content(entry)).encode(), digest_size=8).digest())


def _provenance(row: FileRow) -> Provenance:
    found = row.cell("provenance").lower() or "import"
    for known in get_args(Provenance):
        if found == known:
            return known
    raise ValueError(f"invalid provenance {found!r}: expected human or import, or nothing")


def _time(row: FileRow) -> datetime | None:
    text = row.cell("time")
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        found = (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # overflow: a year before 1 or after 9999 in UTC
        raise ValueError(f"invalid time {text!r}: expected ISO 8601, such as 2026-01-31T12:00:00+00:00") from None
    if found < _EARLIEST:
        raise ValueError(f"invalid time {text!r}: before 1970; give the time of the edit, or nothing")
    if found > datetime.now(UTC) + _CLOCKS:
        # A later import would never be newer.
        raise ValueError(f"invalid time {text!r}: in the future; give the time of the edit, or nothing")
    return found
