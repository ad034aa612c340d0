"""The corrections of one template: an append-only file of JSON lines that any number of processes share.

    corrections/<template id>/history.jsonl    one line per change, oldest first (captioning.corrections.record)
    corrections/<template id>/lock             held while a change is appended

A change is appended under the lock with one write and flushed to the disk before `save` returns. A killed writer leaves
at most a last line without a line break, which readers ignore and the next writer removes. Corrections belong to an
image and a template, not to a captioner: a person's caption stays when the model changes.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Final, Self

from captioning.attributes.parse import parse_caption
from captioning.corrections.edits import Edit, EditError, content_of
from captioning.corrections.record import Correction, ModelCaption, Provenance, from_line, to_line
from captioning.prompts.pattern import Slots
from captioning.prompts.templates import Template, get_template
from data.errors import ClipScgiError, DataError
from data.files import full_disk_explained, sync_folder
from data.process.locks import lock

FILE: Final = "history.jsonl"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LONGEST_AUTHOR: Final = 200


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


class Corrections:
    """The corrections of one template. Safe for concurrent threads and processes; see `open`."""

    def __init__(self, folder: Path, template: Template) -> None:
        self.file = folder / FILE
        self.template = template
        self._lock = Lock()
        self._forget()

    @classmethod
    def open(cls, home: Path, template: str | Path = "scgi") -> Self:
        """Return the corrections in the artifact root `home` for a template: its id, or the path of its TOML file.

        Nothing is written until the first change. Raises ConfigError for an unknown template.
        """
        found = get_template(template)
        return cls(home / "corrections" / found.id, found)

    def current(self, sha256s: Iterable[str] | None = None) -> dict[str, Correction]:
        """Return image sha256 -> its change in effect, for the images that have one; None: of all images.

        An image that was reset has one of the kind ``reset``. Raises DataError if the file is damaged.
        """
        with self._lock:
            self._refresh()
            if sha256s is None:
                return dict(self._current)
            return {sha256: self._current[sha256] for sha256 in sha256s if sha256 in self._current}

    def history(self, sha256: str) -> tuple[Correction, ...]:
        """Return all changes of an image, oldest first, including those that were not applied."""
        with self._lock:
            self._refresh()
            return tuple(self._entries.get(sha256, ()))

    def everything(self) -> tuple[Correction, ...]:
        """Return all changes of all images: the images in the order of their first change, oldest change first."""
        with self._lock:
            self._refresh()
            return tuple(entry for entries in self._entries.values() for entry in entries)

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
        with self._lock, full_disk_explained(self.file.parent, "the correction was not saved"):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with lock(self.file.with_name("lock")):
                self._refresh()
                entries = self._entered(changes)
                self._append(entries)
                self._refresh()
        return entries

    def _entered(self, changes: Sequence[Change]) -> list[Correction]:
        """Return the entries of `changes`, numbered after those that exist and after each other."""
        entries: list[Correction] = []
        own: defaultdict[str, list[Correction]] = defaultdict(list)
        for change in changes:
            known = [*self._entries.get(change.sha256, ()), *own[change.sha256]]
            entries.append(_entry(change, known, self.template))
            own[change.sha256].append(entries[-1])
        return entries

    def _append(self, entries: Sequence[Correction]) -> None:
        """Write the lines of `entries` after the last complete line, and flush them to the disk."""
        is_new = not self.file.exists()
        with self.file.open("ab", buffering=0) as stream:
            stream.truncate(self._offset)  # a line that a killed writer did not finish, and never reported as saved
            try:
                _write(stream.fileno(), b"".join(map(to_line, entries)))
            except BaseException:
                with suppress(OSError):
                    stream.truncate(self._offset)
                raise
        if is_new:
            sync_folder(self.file.parent)
            sync_folder(self.file.parent.parent)

    def _forget(self) -> None:
        self._offset, self._inode, self._lines = 0, -1, 0
        self._entries: dict[str, list[Correction]] = {}
        self._current: dict[str, Correction] = {}

    def _refresh(self) -> None:
        """Read the lines that were appended since the last call; all lines if the file was replaced."""
        try:
            stat = self.file.stat()
        except FileNotFoundError:
            self._forget()
            return
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._forget()
            self._inode = stat.st_ino
        if stat.st_size > self._offset:
            self._read()

    def _read(self) -> None:
        with self.file.open("rb") as stream:
            stream.seek(self._offset)
            found = stream.read()
        complete = found[: found.rfind(b"\n") + 1]
        entries = [self._entry_of(number, line) for number, line in enumerate(complete.splitlines(), self._lines + 1)]
        for entry in entries:
            self._entries.setdefault(entry.sha256, []).append(entry)
            if entry.applied:
                self._current[entry.sha256] = entry
        self._lines += len(entries)
        self._offset += len(complete)

    def _entry_of(self, number: int, line: bytes) -> Correction:
        try:
            return from_line(line)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.file}: line {number} is damaged ({error}); restore the file from a backup, or delete that line"
            ) from error


def _write(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]
    os.fsync(handle)


def _entry(change: Change, known: Sequence[Correction], template: Template) -> Correction:
    """Return the entry of `change` after those that are `known` of its image."""
    _check(change)
    now = next((entry.revision for entry in reversed(known) if entry.applied), 0)
    content = content_of(change.edit, _base(change, known), template.pattern)
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
    if not _SHA256.fullmatch(change.sha256):
        raise EditError(f"{change.sha256!r} is not the sha256 of an image: expected 64 hexadecimal digits")
    author = " ".join(change.author.split())
    if not (author and author.isprintable() and len(author) <= _LONGEST_AUTHOR):
        raise EditError(f"invalid author {author[:40]!r}: expected a name of at most {_LONGEST_AUTHOR} characters")
    if change.edit.kind == "wrong" and change.against is None:
        raise EditError(
            f"image {change.sha256[:12]}: only an existing caption can be marked as wrong; caption the image first, or"
            " write a text"
        )
