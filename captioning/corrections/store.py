"""The corrections of one template: an append-only file of JSON lines that any number of processes share.

    corrections/<template id>/history.jsonl    one line per change, oldest first (captioning.corrections.record)
    corrections/<template id>/lock             held while a change is appended

A change is appended under the lock with one write and flushed to the disk before `save` returns. A killed writer leaves
at most a last line without a line break, which readers ignore and the next writer removes. Corrections belong to an
image and a template, not to a captioner: a person's caption stays when the model changes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Final, Self, overload

import numpy as np

from captioning.attributes.parse import parse_caption
from captioning.corrections.current import Current
from captioning.corrections.edits import Edit, EditError, content_of
from captioning.corrections.lines import HistoryFile, Lines
from captioning.corrections.record import Correction, ModelCaption, Provenance, from_line, image_of, is_sha256, to_line
from captioning.corrections.waiting import Moment, Waiting
from captioning.prompts.pattern import Slots
from captioning.prompts.templates import Template, get_template
from data.columns.digests import Digests, first_equal, in_groups, one_digest, positions
from data.errors import ClipScgiError
from data.files import full_disk_explained, sync_folder
from data.process.locks import lock

FILE: Final = "history.jsonl"
_LONGEST_AUTHOR: Final = 200
_SHOWN: Final = 5


class ConflictError(ClipScgiError):
    """Another edit of the same caption came first. Both are in the history; `theirs` is in effect.

    mine: the refused edit, as it is kept. theirs: the current one. To apply `mine`, save it again with
    ``expected_revision=theirs.revision``.
    """

    def __init__(self, mine: Correction, theirs: Correction | None) -> None:
        self.mine, self.theirs = mine, theirs
        who = "" if theirs is None else f" by {theirs.author} at {theirs.time:%Y-%m-%d %H:%M:%S} UTC ({theirs.kind})"
        now = 0 if theirs is None else theirs.revision
        super().__init__(
            f"the caption of image {mine.sha256[:12]} was changed meanwhile{who}: revision {now} is current, and the"
            f" edit was made on revision {mine.seen}. The edit is kept in the history as revision {mine.revision}; to"
            f" apply it, look at the current caption and save again on revision {now}"
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """An edit to save. expected_revision: the revision that the author has seen, 0 for none.

    against: the model's caption, if there is one; required for the kind wrong. time: of the edit, now if None.
    """

    sha256: str
    edit: Edit
    author: str
    expected_revision: int
    against: ModelCaption | None = None
    provenance: Provenance = "human"
    time: datetime | None = None


@dataclass(kw_only=True)
class Saved:
    """Lines that were saved. lost: those without effect, as another edit came first. first_lost: images of a few."""

    count: int
    lost: int = 0
    first_lost: list[str] = field(default_factory=list)

    def note_lost(self, sha256: str) -> None:
        """Count a line without effect."""
        self.lost += 1
        if len(self.first_lost) < _SHOWN:
            self.first_lost.append(sha256)


class Corrections:
    """The corrections of one template. Safe for concurrent threads and processes; see `open`."""

    def __init__(self, folder: Path, template: Template) -> None:
        self.file = folder / FILE
        self.template = template
        self._lock = Lock()
        self._lines: Lines | None = None
        self._current, self._applied = Current.nothing(), 0

    @classmethod
    def open(cls, home: Path, template: str | Path = "scgi") -> Self:
        """Return the corrections in the artifact root `home` for a template: its id, or the path of its TOML file.

        Nothing is written until the first change. Raises ConfigError for an unknown template.
        """
        found = get_template(template)
        return cls(home / "corrections" / found.id, found)

    @overload
    def current(self, sha256s: None = None) -> Current: ...
    @overload
    def current(self, sha256s: Iterable[str]) -> dict[str, Correction]: ...
    def current(self, sha256s: Iterable[str] | None = None) -> Current | dict[str, Correction]:
        """Return image sha256 -> its change in effect, for the images that have one; None: of all images.

        An image that was reset has one of the kind ``reset``. Raises DataError if the file is damaged.
        """
        with self._lock:
            lines = self._refresh()
            if sha256s is not None:
                found = {sha256: self._in_effect(sha256) for sha256 in sha256s}
                return {sha256: entry for sha256, entry in found.items() if entry is not None}
            if lines is not None and len(lines) > self._applied:
                self._current, self._applied = self._current.after(lines, self._applied), len(lines)
            return self._current

    def history(self, sha256: str) -> tuple[Correction, ...]:
        """Return all changes of an image, oldest first, including those that were not applied."""
        with self._lock:
            self._refresh()
            return tuple(self._entries(sha256))

    def everything(self, images: Digests | None = None) -> Iterator[Correction]:
        """Yield all changes: the images in the order of their first change, the oldest change of each first.

        images: only changes of these images, None for all.
        """
        with self._lock:
            lines = self._refresh()
        if lines is None:
            return
        order = np.argsort(first_equal(lines.images), kind="stable")
        if images is not None:
            order = order[positions(images[in_groups(images)[0]], lines.images[order]) >= 0]
        yield from lines.entries(order)

    def preview(self, change: Change) -> Correction:
        """Return the entry that `save_all` would append for `change`, without saving it. Raises EditError."""
        return _entry(change, self.history(change.sha256), self.template)

    def save(
        self,
        sha256: str,
        edit: Edit,
        *,
        author: str,
        expected_revision: int,
        against: ModelCaption | None = None,
        provenance: Provenance = "human",
        time: datetime | None = None,
    ) -> Correction:
        """Append one change and return it, once it is on the disk. Arguments: see `Change`.

        Raises:
            ConflictError: the current revision is not `expected_revision`. The edit is kept in the history.
            EditError: the edit cannot be kept: an empty text, a slot that does not exist, wrong without a caption.
            ClipScgiError: the disk is full.
        """
        change = Change(
            sha256=sha256,
            edit=edit,
            author=author,
            expected_revision=expected_revision,
            against=against,
            provenance=provenance,
            time=time,
        )
        (entry,) = self.save_all([change])
        if not entry.applied:
            raise ConflictError(entry, self.current([sha256]).get(sha256))
        return entry

    def save_all(self, changes: Sequence[Change]) -> list[Correction]:
        """Append changes at once and return them; one whose revision is not current has ``applied=False``.

        Raises EditError if any of them cannot be kept, and then keeps none.
        """
        if not changes:
            return []
        with self._writing():
            entries = self._entered(changes)
            self._append([b"".join(map(to_line, entries))])
            self._refresh()
        return entries

    def moment(self) -> Moment:
        """Return the state of the history, for `Waiting`."""
        with self._lock:
            lines = self._refresh()
            return Moment(0, 0) if lines is None else Moment(lines.file.inode, len(lines))

    def save_waiting(self, waiting: Waiting) -> Saved:
        """Append lines that were prepared from changes, at once; see `save_all`.

        Lines of images that were changed since `waiting.made_at` get a new revision, and no effect if theirs is not
        current any more. A killed process leaves the first of the lines.
        """
        saved = Saved(count=len(waiting))
        if saved.count:
            with self._writing():
                changed = self._changed_since(waiting.made_at)
                self._append(waiting.blocks() if changed is None else self._renumbered(waiting, changed, saved))
        return saved

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the locks of a writer, with all lines known."""
        with self._lock, full_disk_explained(self.file.parent, "the correction was not saved"):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with lock(self.file.with_name("lock")):
                self._refresh()
                yield

    def _changed_since(self, moment: Moment) -> Digests | None:
        """Return the images of lines that were added since `moment`, sorted; None if there are none."""
        if self._lines is None:
            return None
        is_same = self._lines.file.inode == moment.inode
        added = self._lines.images[moment.lines if is_same else 0 :]
        return np.unique(added) if len(added) else None

    def _renumbered(self, waiting: Waiting, changed: Digests, saved: Saved) -> Iterator[bytes]:
        """Yield the lines of `waiting`, with new revisions for `changed` images, and count the lost ones."""
        for line in waiting.lines():
            image = image_of(line)
            if positions(changed, one_digest(image))[0] < 0:
                yield line
                continue
            entry, now = from_line(line), self._in_effect(image)
            is_current = entry.seen == (0 if now is None else now.revision)
            if not is_current:
                saved.note_lost(image)
            known = 0 if self._lines is None else len(self._lines.of(image))
            yield to_line(replace(entry, revision=known + 1, applied=is_current))

    def _entered(self, changes: Sequence[Change]) -> list[Correction]:
        """Return the entries of `changes`, numbered after those that exist and after each other."""
        entries: list[Correction] = []
        own: defaultdict[str, list[Correction]] = defaultdict(list)
        for change in changes:
            known = [*self._entries(change.sha256), *own[change.sha256]]
            entries.append(_entry(change, known, self.template))
            own[change.sha256].append(entries[-1])
        return entries

    def _append(self, content: Iterable[bytes]) -> None:
        """Write lines after the last complete line, and flush them to the disk."""
        is_new, end = not self.file.exists(), 0 if self._lines is None else self._lines.end
        with self.file.open("ab", buffering=0) as stream:
            stream.truncate(end)  # a line that a killed writer did not finish, and never reported as saved
            try:
                _write(stream.fileno(), content)
            except BaseException:
                with suppress(OSError):
                    stream.truncate(end)
                raise
        if is_new:
            sync_folder(self.file.parent)
            sync_folder(self.file.parent.parent)

    def _forget(self) -> None:
        self._lines = None
        self._current, self._applied = Current.nothing(), 0

    def _refresh(self) -> Lines | None:
        """Read the lines that were appended since the last call; all lines if the file was replaced. None: no file."""
        try:
            stat = self.file.stat()
            if self._lines is None or stat.st_ino != self._lines.file.inode or stat.st_size < self._lines.end:
                self._forget()
                self._lines = Lines(HistoryFile(self.file))
        except FileNotFoundError:
            self._forget()
            return None
        if stat.st_size > self._lines.end:
            self._lines.read_on()
        return self._lines

    def _entries(self, sha256: str) -> Iterator[Correction]:
        """Yield the known changes of an image, oldest first."""
        if self._lines is not None:
            yield from self._lines.entries(self._lines.of(sha256))

    def _in_effect(self, sha256: str) -> Correction | None:
        if self._lines is None:
            return None
        lines = self._lines.of(sha256)
        applied = lines[self._lines.applied[lines]]
        return self._lines.entry(int(applied[-1])) if len(applied) else None


def _write(handle: int, content: Iterable[bytes]) -> None:
    """Write `content` and flush it to the disk."""
    for block in content:
        rest = block
        while rest:
            rest = rest[os.write(handle, rest) :]
    os.fsync(handle)


def _entry(change: Change, known: Sequence[Correction], template: Template) -> Correction:
    """Return the entry of `change` after those that are `known` of its image."""
    _check(change)
    now = next((entry.revision for entry in reversed(known) if entry.applied), 0)
    base = _base(change, known) if change.edit.kind == "slots" else {}
    content = content_of(change.edit, base, template.pattern)
    return Correction(
        sha256=change.sha256,
        revision=len(known) + 1,
        kind=change.edit.kind,
        text=content.text,
        given=content.slots,
        author=" ".join(change.author.split()),
        time=(change.time or datetime.now(UTC)).astimezone(UTC),
        provenance=change.provenance,
        against=change.against and change.against._replace(text=change.against.text.strip()),
        seen=change.expected_revision,
        applied=now == change.expected_revision,
    )


def _base(change: Change, known: Sequence[Correction]) -> Slots:
    """Return the slots of the caption that the author has seen: a correction's, else the model's."""
    seen = next((entry for entry in known if entry.revision == change.expected_revision), None)
    if seen is not None and seen.text is not None:
        return seen.slots
    return parse_caption(change.against.text) if change.against else {}


def _check(change: Change) -> None:
    if not is_sha256(change.sha256):
        raise EditError(f"{change.sha256!r} is not the sha256 of an image: expected 64 hexadecimal digits")
    author = " ".join(change.author.split())
    if not (author and author.isprintable() and len(author) <= _LONGEST_AUTHOR):
        raise EditError(f"invalid author {author[:40]!r}: expected a name of at most {_LONGEST_AUTHOR} characters")
    if change.edit.kind == "wrong" and change.against is None:
        raise EditError(
            f"image {change.sha256[:12]}: only an existing caption can be marked as wrong; caption the image first, or"
            " write a text"
        )
