"""Types that readers return, and shared code for listing folders.

Records are sorted by (split, path), so that their order never depends on the file system.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from data.columns.records import Records, RecordsBuilder
from data.columns.rejected import RejectedBuilder, RejectedRows
from data.errors import DataError, RejectedRow
from data.people import JUNK
from data.readers.paths import PATH_DETAILS, PathGate, printable
from data.sources import remote
from data.sources.address import is_listed, is_remote, shown
from data.sources.places import children, exists, is_dir

MAX_INT64: Final = (1 << 63) - 1
"""Largest identity or camera that Parquet can store."""

# Left behind by file managers, as are hidden files (".DS_Store", "._0002_c1.jpg").
_LITTER: Final = frozenset({"thumbs.db", "desktop.ini", "@eadir", "__macosx"})
# With a smaller share of the published images, a folder counts as a part of the dataset, not as a damaged copy.
_LEAST_COPY: Final = 0.5
# With a smaller share than this, it counts as another dataset in the same layout, and gets no notice.
_LEAST_PART: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Result of a reader; no image has been opened.

    name: the reader. version: split or edition, as text. root: absolute folder that the paths are relative to. records:
    sorted by (split, path), without junk. rejected: sorted. n_junk: files with pid -1 that were left out. notices:
    sentences for the user; part of the index fingerprint, like the details of `Rejected`. split_by_rule: True if
    `data.readers.split_rule` assigned the splits.
    """

    name: str
    version: str
    root: Path
    records: Records
    rejected: RejectedRows
    notices: list[str]
    n_junk: int
    split_by_rule: bool = False


class Counts(NamedTuple):
    """Size of one split."""

    identities: int
    images: int


class Unusable(RejectedRow):
    """A row of a table that is not used. detail: a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.detail = detail


@dataclass
class Collector:
    """Collects the findings of one reader for its `Scan`."""

    name: str
    root: Path
    version: str
    keep_junk: bool = False
    records: RecordsBuilder = field(default_factory=RecordsBuilder)
    rejected: RejectedBuilder = field(default_factory=RejectedBuilder)
    notices: list[str] = field(default_factory=list)
    n_junk: int = 0

    def add(
        self, path: str, split: str, pid: int, camid: int, label: str = "", *, sentences: tuple[str, ...] = ()
    ) -> None:
        """Add one image; junk is only counted, unless `keep_junk` is set."""
        if max(pid, camid) > MAX_INT64:
            self.reject(path, "bad_name", f"identity {pid} or camera {camid} does not fit into 64 bits")
        elif pid == JUNK and not self.keep_junk:
            self.n_junk += 1
        else:
            self.records.append(path, split, pid, camid, label=label, sentences=sentences)

    def reject(self, path: str, reason: str, detail: str = "") -> None:
        """Add one file or row that is not used."""
        self.rejected.append(printable(path), reason, printable(detail))

    def finish(self, published: Mapping[str, Counts] | None = None) -> Scan:
        """Return the scan: sorted, with notices on counts that differ from the `published` ones."""
        records = self.records.build().in_order()
        notices = compare_counts(self.name, records, published) if published else []
        return self.scan(records, notices)

    def scan(self, records: Records, notices: Sequence[str] = ()) -> Scan:
        """Return the scan of sorted `records`, with more `notices`."""
        return Scan(
            name=self.name,
            version=self.version,
            root=self.root,
            records=records,
            rejected=self.rejected.build_in_order(),
            notices=[*self.notices, *notices],
            n_junk=self.n_junk,
        )


def number_labels(labels: Iterable[str]) -> dict[str, int]:
    """Return label -> identity: the distinct labels in sorted order, from 1 (0 is a distractor)."""
    return {label: number for number, label in enumerate(sorted(set(labels)), start=1)}


def number_cameras(names: Iterable[str]) -> dict[str, int]:
    """Return name -> camera: the number that the name is, if every name is one, else the sorted names from 1."""
    distinct = set(names)
    if all(name.isascii() and name.isdecimal() and int(name) <= MAX_INT64 for name in distinct):
        return {name: int(name) for name in distinct}
    return number_labels(distinct)


def is_litter(name: str) -> bool:
    """Return True if `name` is a file that file managers leave behind; such files are ignored without a notice."""
    return name.startswith(".") or name.lower() in _LITTER


def accepted_files(collector: Collector, folder: str) -> Iterator[str]:
    """Yield the names of the files in `folder` of the root, in any order; `collector` rejects anything else there.

    A missing folder is only a notice, because the index decides later whether its split is required. Links get the same
    check as the paths of a manifest, because later stages do not follow links that leave the root.
    """
    where, gate = collector.root / folder, PathGate(collector.root)
    if is_remote(where):
        yield from _accepted_objects(collector, folder, gate)
        return
    try:
        entries = os.scandir(where)
    except (FileNotFoundError, NotADirectoryError):
        collector.notices.append(f"the folder {folder} of {collector.name} does not exist")
        return
    except OSError as error:
        raise _unreadable(where, error) from error
    is_inside = not gate.refusal(folder)
    with entries:
        for entry in _listed(where, entries):
            try:
                if not (is_inside and entry.is_file(follow_symlinks=False)):
                    gate.admit(join(folder, entry.name))
            except RejectedRow as error:
                collector.reject(join(folder, entry.name), *_refused_entry(error.reason))
            else:
                yield entry.name


def _listed(where: Path, entries: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder without litter, in the order of the disk."""
    try:
        yield from (entry for entry in entries if not is_litter(entry.name))
    except OSError as error:
        raise _unreadable(where, error) from error


def _unreadable(where: Path, error: OSError) -> DataError:
    return DataError(f"the folder {where} cannot be read ({error.strerror}); check its permissions")


def _accepted_objects(collector: Collector, folder: str, gate: PathGate) -> Iterator[str]:
    """Yield what `accepted_files` yields, for a root in an object store."""
    where = collector.root / folder
    if not is_dir(where):
        collector.notices.append(f"the folder {folder} of {collector.name} does not exist")
        return
    for name in (entry.name for entry in children(where)):
        if is_litter(name):
            continue
        try:
            gate.admit(join(folder, name))
        except RejectedRow as error:
            collector.reject(join(folder, name), *_refused_entry(error.reason))
        else:
            yield name


def _refused_entry(reason: str) -> tuple[str, str]:
    if reason in ("missing", "not_a_file"):
        return "not_a_file", "a folder, a broken link or a device"
    return reason, PATH_DETAILS[reason]


def join(folder: str, name: str) -> str:
    """Return the relative posix path of `name` in `folder`, which may be "" or "."."""
    return f"{folder}/{name}" if folder not in ("", ".") else name


def locate(root: Path, markers: Iterable[str], layout: str) -> Path:
    """Return the dataset's folder: `root` itself, or the only folder in it that contains one of the `markers`.

    layout: sentence on the expected layout, for the error if there is no such folder.
    """
    base = existing_folder(root)
    wanted = tuple(markers)
    if any(exists(base / marker) for marker in wanted):
        return base
    folders = sorted(child for child in children(base) if is_dir(child) and not is_litter(child.name))
    found = [child for child in folders if any(exists(child / marker) for marker in wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(child.name for child in found)
        raise DataError(
            f"{shown(base)} contains more than one dataset ({names}); set data.root to one of them, such as"
            f" {shown(found[0])}"
        )
    raise DataError(
        f"{shown(base)} does not have the layout of this dataset: {layout}. Set data.root to the folder that contains"
        " these"
    )


def existing_folder(root: Path) -> Path:
    """Return `root` as an absolute path; raises DataError unless it is a readable folder.

    The objects of a store are listed anew. A web server cannot list its files and is not asked.
    """
    if is_remote(root):
        if is_listed(root):
            remote.refresh(root)
        return root
    base = root.expanduser().absolute()
    if not base.exists():
        raise DataError(f"the folder {base} does not exist; set data.root to the folder of the dataset")
    if not base.is_dir():
        raise DataError(f"{base} is a file, not a folder; set data.root to the folder of the dataset")
    if not os.access(base, os.R_OK | os.X_OK):
        raise DataError(f"the folder {base} cannot be read; check its permissions")
    # Resolved, so that digests of the same folder reached through a link are remembered once.
    return base.resolve()


def compare_counts(name: str, records: Records, published: Mapping[str, Counts]) -> list[str]:
    """Return notices where the counts of `records` differ from the published ones; see `compare_sizes`."""
    people, found = records.people(), dict[str, Counts]()
    for split in published:
        here = records.in_split(split)
        found[split] = Counts(len(np.unique(records.pids[here & people])), int(here.sum()))
    return compare_sizes(name, found, published)


def compare_sizes(name: str, found: Mapping[str, Counts], published: Mapping[str, Counts]) -> list[str]:
    """Return notices where the `found` sizes of splits differ from the `published` ones.

    A folder with less than half of the published images is a part of the dataset and gets one notice. With less than a
    tenth it is another dataset in the same layout and gets none.
    """
    total = sum(counts.images for counts in published.values())
    images = sum(found[split].images for split in published)
    if images < _LEAST_PART * total:
        return []
    if images < _LEAST_COPY * total:
        return [
            f"{images:,} of the {total:,} published images of {name}: results are not comparable with published ones"
        ]
    return [
        f"{name} {split}: {found[split].images:,} images of {found[split].identities:,} identities; published:"
        f" {counts.images:,} of {counts.identities:,}. Results are not comparable with published ones"
        for split, counts in published.items()
        if found[split] != counts
    ]
