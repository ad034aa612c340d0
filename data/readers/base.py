"""What every reader returns, and how readers list folders and take paths out of list files.

Order never comes from the file system: records are sorted by (split, path) before anybody sees them.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from data.errors import DataError, RejectedRow
from data.files import inside
from data.people import JUNK, is_person
from data.splits import SPLITS

_LARGEST: Final = (1 << 63) - 1  # of a 64-bit integer, as Parquet stores identities and cameras
# What file managers leave behind. Hidden files (".DS_Store", "._0002_c1.jpg") are litter too.
_LITTER: Final = frozenset({"thumbs.db", "desktop.ini", "@eadir", "__macosx"})
# Below this share of the published images a folder is taken for a part of the set, not for a damaged copy of it.
_CLAIMS_TO_BE_WHOLE: Final = 0.5
# Below this one it is somebody's own set in the same layout, and nothing is said.
_CLAIMS_TO_BE_A_PART: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image: `path` relative to the data set's folder (posix), its `split`, identity and camera."""

    path: str
    split: str
    pid: int
    camid: int


class Rejected(NamedTuple):
    """One file or row that is not used. `reason` is a short code, `detail` a sentence for people (may be empty)."""

    path: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a reader found, before any image is opened.

    name: the reader. version: which split or edition, as text. root: absolute folder the paths are relative to.
    records: sorted by (split, path), junk left out. rejected: sorted. n_junk: files with pid -1 that were left out.
    notices: sentences a person should see.
    """

    name: str
    version: str
    root: Path
    records: list[ImageRecord]
    rejected: list[Rejected]
    notices: list[str]
    n_junk: int


class Counts(NamedTuple):
    """Published size of one split."""

    identities: int
    images: int


@dataclass
class Collector:
    """Gathers what one reader finds and closes into a `Scan`."""

    name: str
    root: Path
    version: str
    keep_junk: bool = False
    records: list[ImageRecord] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    n_junk: int = 0

    def add(self, path: str, split: str, pid: int, camid: int) -> None:
        """Keep one image; a junk one is only counted unless junk was asked for."""
        if max(pid, camid) > _LARGEST:
            self.reject(path, "bad_name", f"identity {pid} or camera {camid} is a larger number than can be stored")
        elif pid == JUNK and not self.keep_junk:
            self.n_junk += 1
        else:
            self.records.append(ImageRecord(path=path, split=split, pid=pid, camid=camid))

    def reject(self, path: str, reason: str, detail: str = "") -> None:
        """Record one file or row that is not used."""
        self.rejected.append(Rejected(printable(path), reason, printable(detail)))

    def finish(self, published: Mapping[str, Counts] | None = None) -> Scan:
        """Sort, compare with the `published` counts, and return the scan."""
        if published:
            self.notices += compare_counts(self.name, self.records, published)
        return Scan(
            name=self.name,
            version=self.version,
            root=self.root,
            records=sorted(self.records, key=lambda record: (record.split, record.path)),
            rejected=sorted(self.rejected),
            notices=self.notices,
            n_junk=self.n_junk,
        )


def printable(text: str) -> str:
    """Return `text` with bytes that are no UTF-8 written as escapes, so that it can be stored and shown."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_litter(name: str) -> bool:
    """Say whether `name` is something a file manager left, to be passed over in silence."""
    return name.startswith(".") or name.lower() in _LITTER


def list_files(collector: Collector, folder: str) -> Iterator[str]:
    """Yield the names of the files in `folder` (relative to the root), sorted; anything else there is rejected.

    An absent folder is a notice: whether its split is needed is decided later, where all splits are known. Links pass
    the same gate as the paths of a manifest, since later stages follow none that leads out of the root.
    """
    where, gate = collector.root / folder, PathGate(collector.root)
    try:
        with os.scandir(where) as entries:
            listed = [(entry.name, entry.is_file(follow_symlinks=False)) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        collector.notices.append(f"there is no folder {folder} in {collector.name}")
        return
    except OSError as error:
        raise DataError(f"the folder {where} may not be read ({error.strerror}); check its permissions") from error
    is_inside = not gate.refusal(folder)
    for name, is_plain in sorted(entry for entry in listed if not is_litter(entry[0])):
        try:
            if not (is_plain and is_inside):
                gate.admit(join(folder, name))
        except RejectedRow as error:
            collector.reject(join(folder, name), *_listed_but_refused(error.reason))
        else:
            yield name


def _listed_but_refused(reason: str) -> tuple[str, str]:
    if reason in ("missing", "not_a_file"):
        return "not_a_file", "a folder, a broken link or a device"
    return reason, PATH_DETAILS[reason]


def join(folder: str, name: str) -> str:
    """Join two relative posix paths; `folder` may be "" or "."."""
    return f"{folder}/{name}" if folder not in ("", ".") else name


def locate(root: Path, markers: Iterable[str], layout: str) -> Path:
    """Return the data set's folder: `root` itself, or the one folder in it that holds one of the `markers`.

    layout: sentence that says what is expected, for the error when there is none, or more than one.
    """
    base = existing_folder(root)
    wanted = tuple(markers)
    if any((base / marker).exists() for marker in wanted):
        return base
    children = sorted(child for child in base.iterdir() if child.is_dir() and not is_litter(child.name))
    found = [child for child in children if any((child / marker).exists() for marker in wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(child.name for child in found)
        raise DataError(f"{base} holds more than one data set ({names}); give the folder of one of them as data.root")
    raise DataError(f"{base} is not such a data set: {layout}. Give the folder that holds these as data.root")


def existing_folder(root: Path) -> Path:
    """Return `root` as an absolute folder, or say what is wrong with it."""
    base = root.expanduser().absolute()
    if not base.exists():
        raise DataError(f"the folder {base} does not exist; set data.root to the folder of the data set")
    if not base.is_dir():
        raise DataError(f"{base} is a file, not a folder; set data.root to the folder of the data set")
    if not os.access(base, os.R_OK | os.X_OK):
        raise DataError(f"the folder {base} may not be read; check its permissions")
    # Resolved, so that the same folder reached through a link is remembered once.
    return base.resolve()


class PathGate:
    """Lets only paths through that stay inside `root`, as text for text: `data.files.inside` for many paths.

    Folders are resolved once and remembered, so that 200,000 rows cost 200,000 `lstat` calls and not a million.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._refused: dict[str, str] = {}  # folder -> why its files are refused, "" if they are not

    def admit(self, relative: str) -> str:
        """Return `relative` normalised, if it names a regular file inside the root.

        Raises RejectedRow with one of the reasons in `PATH_DETAILS`.
        """
        path = _normal(relative)
        refused = self.refusal(path.rpartition("/")[0])
        if refused:
            raise RejectedRow(refused)
        try:
            mode = os.lstat(f"{self.root}/{path}").st_mode
            if stat.S_ISLNK(mode):
                mode = inside(self.root, path).stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RejectedRow("missing") from error
        except OSError as error:
            raise RejectedRow("unreadable") from error
        if not stat.S_ISREG(mode):
            raise RejectedRow("not_a_file")
        return path

    def refusal(self, folder: str) -> str:
        """Return why the files in `folder`, relative to the root, are refused; "" if they are not."""
        if folder not in self._refused:
            try:
                inside(self.root, folder)
                self._refused[folder] = ""
            except RejectedRow as error:
                self._refused[folder] = error.reason
        return self._refused[folder]


def _normal(relative: str) -> str:
    if "\0" in relative or printable(relative) != relative:  # bytes that are not UTF-8 cannot be stored
        raise RejectedRow("bad_path")
    if relative.startswith("/") or ".." in relative.split("/"):
        raise RejectedRow("outside_root")
    if "\\" in relative:
        raise RejectedRow("bad_path")
    path = str(PurePosixPath(relative))
    if path == ".":
        raise RejectedRow("bad_path")
    return path


PATH_DETAILS: Final[dict[str, str]] = {
    "bad_path": "empty, or with characters no path should have; folders are separated by /",
    "outside_root": "leaves the data set's folder (absolute, .. or a link that leads outside)",
    "missing": "there is no such file",
    "not_a_file": "a folder or a device",
    "unreadable": "may not be read",
}
"""What to tell people about the reasons of `PathGate.admit`."""


def compare_counts(name: str, records: Sequence[ImageRecord], published: Mapping[str, Counts]) -> list[str]:
    """Return notices where the counts of `records` differ from the published ones.

    A folder with less than half of the published images is a part of the set: one mild notice. One with less than
    a tenth is another set in the same layout: none.
    """
    images: Counter[str] = Counter()
    identities: dict[str, set[int]] = {split: set() for split in SPLITS}
    found_people = is_person([record.split for record in records], [record.pid for record in records])
    for record, person in zip(records, found_people.tolist(), strict=True):
        images[record.split] += 1
        if person:
            identities[record.split].add(record.pid)
    total = sum(counts.images for counts in published.values())
    found = sum(images[split] for split in published)
    if found < _CLAIMS_TO_BE_A_PART * total:
        return []
    if found < _CLAIMS_TO_BE_WHOLE * total:
        return [f"{found:,} of the {total:,} images published as {name}: results do not compare with published ones"]
    return [
        f"{name} {split}: {images[split]:,} images of {len(identities[split]):,} identities; published are"
        f" {counts.images:,} of {counts.identities:,}. Results do not compare with published ones"
        for split, counts in published.items()
        if (len(identities[split]), images[split]) != counts
    ]
