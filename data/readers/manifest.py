"""Any dataset with a manifest: a table with the columns path, split, pid (or label) and, optionally, others.

The others are camid, label and sentences.

A row becomes a record or is rejected with its row number; only a problem of the whole file is an error.
`data.readers.table` reads the file and numbers identities and cameras.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.columns.growing import GrowingTexts
from data.columns.records import SENTENCES_TYPE, Ints
from data.errors import DataError, RejectedRow, counted
from data.people import UNKNOWN_CAMERA, Mask
from data.readers.base import Collector, Scan, Unusable, existing_folder
from data.readers.paths import PATH_DETAILS, PathGate
from data.readers.sentences import Sentences, sentences_in
from data.readers.table.coded import Cell, CodedRows, NamedCell, PathCells
from data.readers.table.columns import REQUIRED
from data.readers.table.file import manifest_batches, manifest_column
from data.readers.table.rows import Listed, RowLabels, read_labels, records_of
from data.sources.address import is_listed, is_remote, shown
from data.sources.places import children, exists, is_file
from data.splits import GALLERY, SPLITS

NAMES: Final = ("manifest.parquet", "manifest.csv", "manifest.tsv")
"""Manifests that are found in the root by their names."""
_TABLES: Final = (".csv", ".tsv", ".txt", ".parquet", ".pq")
_SPLITS: Final[dict[str, str]] = {split: split for split in SPLITS}
_DRIVE: Final = re.compile(r"[A-Za-z]:/")
_SHOWN: Final = 5
_DETAILS: Final = PATH_DETAILS | {
    "outside_root": f"{PATH_DETAILS['outside_root']}; write paths relative to data.root, or set data.root to a folder"
    " that contains all images"
}


class _Labels(NamedTuple):
    split: str
    pid: int
    camid: int
    label: str

    def __str__(self) -> str:
        camera = "" if self.camid == UNKNOWN_CAMERA else f" camid {self.camid}"
        return f"{self.split} pid {self.pid}{camera}{f' label {self.label!r}' if self.label else ''}"


def manifest(root: Path, *, manifest: str, keep_junk: bool, by_rule: bool = False) -> Scan:
    """Read a manifest with paths relative to `root`, or absolute paths below it.

    manifest: the file, or a folder of Parquet files; a relative name is searched under `root` first, then in the
    working directory. If it is empty, `root` is either a folder with a manifest.parquet, manifest.csv or manifest.tsv,
    or the file itself, with paths relative to its folder. by_rule: splits are assigned by rule later, so that rows
    without one are in the gallery for now.

    Rejected rows: ``outside_root`` (not below the root, .. or a link that leads outside), ``bad_path``, ``missing``,
    ``bad_split``, ``bad_pid``, ``bad_camid``, ``bad_sentences``, ``duplicate_row``. Raises DataError for one path with
    two different labels and for labels that `data.readers.table.labels` refuses.
    """
    file, base = _find(root, manifest)
    collector = Collector(name="manifest", root=base, version="", keep_junk=keep_junk, notices=_ignored(file, base))
    table = CodedRows.of(manifest_batches(file, needs_split=not by_rule))
    labels = read_labels(file, table, partial(split_of, by_rule=by_rule))
    collector.notices += labels.notices
    admitted = _admit(collector, table, labels, _Paths(base, root))
    admitted.sort()
    is_twin = admitted.twins()
    _check_twins(file, collector, table=table, labels=labels, admitted=admitted, is_twin=is_twin)
    n_empty = 0 if admitted.n_empty is None else int(admitted.n_empty[~is_twin].sum())
    if n_empty:
        collector.notices.append(f"{counted(n_empty, 'empty sentence')} left out")
    return collector.scan(records_of(collector, labels, admitted, ~is_twin))


@dataclass
class _Admitted(Listed):
    """The rows whose labels and path can be used.

    n_empty: how many empty sentences each has; None if there are no sentences. originals: number of a batch -> its
    cells, if these differ from the paths.
    """

    n_empty: Ints | None
    originals: Mapping[int, PathCells]

    def sort(self) -> Ints:
        """Sort the rows as `Listed` does."""
        order = super().sort()
        if self.n_empty is not None:
            self.n_empty = self.n_empty[order]
        return order

    def twins(self) -> Mask:
        """Return the mask of the sorted rows whose path an earlier row has."""
        same = pc.equal(self.paths[1:], self.paths[:-1]).to_numpy(zero_copy_only=False)
        mask: Mask = np.append(False, same)[: len(self.rows)]
        return mask

    def said(self, at: int) -> Sentences:
        """Return the sentences of a row, given its place."""
        if self.sentences is None or self.n_empty is None:
            return Sentences((), 0)
        return Sentences(tuple(self.sentences[at].as_py()), int(self.n_empty[at]))


@dataclass
class _Usable:
    """The rows of one batch whose labels and path can be used. is_plain: their paths are their cells."""

    rows: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    sentences: list[Sentences] = field(default_factory=list)
    is_plain: bool = True

    def add(self, row: int, path: str, sentences: Sentences) -> None:
        """Add one row."""
        self.rows.append(row)
        self.paths.append(path)
        self.sentences.append(sentences)


def _admit(collector: Collector, table: CodedRows, labels: RowLabels, paths: _Paths) -> _Admitted:
    """Return the rows that can be used; `collector` rejects the others."""
    is_described = any(cells.sentences is not None for cells in table.batches)
    rows, paths_of_rows = array("q"), GrowingTexts()
    sentences, n_empty = [pa.array([], SENTENCES_TYPE)], array("q")
    originals: dict[int, PathCells] = {}
    for number, cells in enumerate(table.parts()):
        found = _usable(collector, table, labels, cells, paths)
        rows.extend(found.rows)
        paths_of_rows.extend(pa.array(found.paths, pa.large_string()))
        if is_described:
            n_empty.extend(said.n_empty for said in found.sentences)
            sentences.append(pa.array([said.texts for said in found.sentences], SENTENCES_TYPE))
        if not found.is_plain:
            originals[number] = cells
    return _Admitted(
        rows=np.frombuffer(rows, dtype=np.int64),
        paths=paths_of_rows.build(),
        sentences=pa.concat_arrays(sentences) if is_described else None,
        n_empty=np.frombuffer(n_empty, dtype=np.int64) if is_described else None,
        originals=originals,
    )


def _usable(collector: Collector, table: CodedRows, labels: RowLabels, cells: PathCells, paths: _Paths) -> _Usable:
    """Return the rows of a batch that can be used; `collector` rejects the others."""
    found = _Usable()
    spoken = [None] * len(cells.paths) if cells.sentences is None else cells.sentences.to_pylist()
    refused = labels.refused[cells.start : cells.start + len(cells.paths)].tolist()
    for row, (cell, said, problem) in enumerate(
        zip(cells.paths.to_pylist(), spoken, refused, strict=True), cells.start
    ):
        error = labels.problems[problem]
        if error is None:
            try:
                sentences, path = sentences_in(said), paths.admit(cell)
                found.add(row, path, sentences)
                found.is_plain &= path == cell
                continue
            except Unusable as refusal:
                error = refusal
        _reject(collector, cell, error, table.place(row))
    return found


def _reject(collector: Collector, cell: Cell, error: Unusable, place: str) -> None:
    collector.reject(cell if isinstance(cell, str) else "", error.reason, f"{place}: {error.detail}")


def _check_twins(
    file: Path, collector: Collector, *, table: CodedRows, labels: RowLabels, admitted: _Admitted, is_twin: Mask
) -> None:
    """Reject the rows whose path and labels an earlier row has; raise DataError if their labels differ."""
    twins = np.flatnonzero(is_twin)
    if not len(twins):
        return
    firsts = np.maximum.accumulate(np.where(is_twin, 0, np.arange(len(is_twin))))[twins]
    here, there = admitted.rows[twins], admitted.rows[firsts]
    columns = zip(labels.of(here), labels.of(there), strict=True)
    clashes = np.flatnonzero(np.any([column != other for column, other in columns], axis=0))
    if len(clashes):
        shown = "\n".join(
            f"  - {table.place(here[at])}: {admitted.paths[twins[at]]} is {_labels(labels, here[at])},"
            f" but {_labels(labels, there[at])} in an earlier row"
            for at in clashes[np.argsort(here[clashes])[:_SHOWN]].tolist()
        )
        raise DataError(
            f"{file} has more than one label for {counted(len(clashes), 'path')}; keep one row per path:\n{shown}"
        )
    for twin, first, row in zip(twins.tolist(), firsts.tolist(), here.tolist(), strict=True):
        error = Unusable("duplicate_row", _repetition(admitted.said(twin), admitted.said(first)))
        _reject(collector, _original(table, admitted, twin), error, table.place(row))


def _labels(labels: RowLabels, row: int) -> _Labels:
    """Return the labels of one row, for messages."""
    split, pid, camid, label = (column[0] for column in labels.of(np.array([row])))
    pid = labels.huge.get(int(labels.identities[row]), int(pid))
    return _Labels(SPLITS[split], pid, int(camid), labels.texts[label])


def _original(table: CodedRows, admitted: _Admitted, at: int) -> str:
    """Return the path of a row as it is in the manifest, given its place among the sorted rows."""
    row = int(admitted.rows[at])
    cells = admitted.originals.get(table.batch_of(row))
    return str(admitted.paths[at] if cells is None else cells.paths[row - cells.start])


def column_of(root: Path, *, manifest: str, name: str) -> Mapping[str, NamedCell] | None:
    """Return the cells of the column `name`, by path relative to the folder that the manifest's paths are relative to.

    root, manifest: as for `manifest`, which has read the file. None if the column does not exist. Rows whose path is
    not a file are left out; of two rows with one path, the first counts.
    """
    file, base = _find(root, manifest)
    names, cells = manifest_column(file, name)
    if name.strip().casefold() not in {column.strip().casefold() for column in names}:
        return None
    paths, found = _Paths(base, root), dict[str, NamedCell]()
    for cell in cells:
        with suppress(Unusable):
            found.setdefault(paths.admit(cell.path), cell)
    return found


def _find(root: Path, manifest: str) -> tuple[Path, Path]:
    if is_remote(root):
        return _find_object(root, manifest)
    if not manifest and root.expanduser().is_file():
        file = root.expanduser().absolute()
        return file, file.parent.resolve()
    base = existing_folder(root)
    wanted = [manifest] if manifest else list(NAMES)
    candidates = [base / Path(name).expanduser() for name in wanted]
    if manifest:
        candidates.append(Path(manifest).expanduser().absolute())
    for candidate in candidates:
        if candidate.is_file() or (candidate.is_dir() and (manifest or candidate.suffix == ".parquet")):
            return candidate, base
    raise _not_found(base, wanted)


def _find_object(root: Path, manifest: str) -> tuple[Path, Path]:
    """Return what `_find` returns, for a root in an object store; the manifest may be there or on this machine."""
    if not manifest and root.suffix.lower() in _TABLES and is_file(root):
        return root, existing_folder(root.parent)
    base = existing_folder(root)
    wanted = [manifest] if manifest else list(NAMES)
    candidates = [Path(name) if is_remote(name) else base / name for name in wanted if not name.startswith(("/", "~"))]
    found = next((candidate for candidate in candidates if is_file(candidate)), None)
    if found is not None:
        return found, base
    local = Path(manifest).expanduser().absolute()
    if manifest and local.exists():
        return local, base
    raise _not_found(base, wanted)


def _not_found(base: Path, wanted: Sequence[str]) -> DataError:
    listed = children(base) if is_listed(base) else []
    near = sorted(path.name for path in listed if path.suffix.lower() in _TABLES)
    found = f" Found there: {', '.join(near[:_SHOWN])}; did you mean data.manifest={near[0]}?" if near else ""
    return DataError(
        f"no manifest found: {' or '.join(wanted)} does not exist in {shown(base)}; set data.manifest to a Parquet or"
        f" CSV file with the columns {', '.join(REQUIRED)} and, if the cameras are known, camid.{found} `clip-scgi"
        " manifest` writes a manifest from any other reader"
    )


def _ignored(file: Path, base: Path) -> list[str]:
    """Return a notice if another file with the name of a manifest is not read."""
    others = [name for name in NAMES if exists(base / name) and base / name != file]
    if file.parent != base or file.name not in NAMES or not others:
        return []
    return [f"{', '.join(others)} is not read, because {file.name} exists; delete one of them, or set data.manifest"]


def split_of(cell: Cell, *, by_rule: bool) -> str:
    """Return the split in a cell; the gallery for an empty one if splits are assigned by rule later."""
    if by_rule and (cell is None or cell == ""):
        return GALLERY
    split = _SPLITS.get(cell) if isinstance(cell, str) else None
    if split is None and isinstance(cell, str):
        split = _SPLITS.get(cell.strip().casefold())
    if split is None:
        raise Unusable("bad_split", f"split {cell!r} is not one of {', '.join(SPLITS)}")
    return split


def _repetition(sentences: Sentences, earlier: Sentences) -> str:
    """Return what is wrong with a row whose path and labels an earlier row has."""
    if sentences == earlier:
        return "an earlier row is identical"
    return "an earlier row has other sentences; write all sentences of an image into one row, as a list"


class _Paths:
    """Paths of a manifest, relative to the folder `base`, which the user called `root`."""

    def __init__(self, base: Path, root: Path) -> None:
        self._base, self._gate = base, PathGate(base)
        self._roots = tuple(dict.fromkeys(f"{folder}/" for folder in (base, root.expanduser().absolute())))
        self._resolved: dict[str, str | None] = {}  # absolute folder -> the same, relative to the base; None outside

    def admit(self, cell: Cell) -> str:
        """Return the path of a row, relative to the base and normalized; raise Unusable unless it is a file inside."""
        if not isinstance(cell, str):
            raise Unusable("bad_path", f"path {cell!r} is not text")
        try:
            return self._first_file(dict.fromkeys([cell, cell.strip()]))
        except RejectedRow as error:
            raise Unusable(error.reason, _DETAILS[error.reason]) from error

    def _first_file(self, texts: Iterable[str]) -> str:
        """Return the first of the `texts` that is a file; raise the RejectedRow of the last one."""
        refused = RejectedRow("bad_path")
        for text in texts:
            try:
                return self._gate.admit(self._relative(text.replace("\\", "/")))
            except RejectedRow as error:
                refused = error
        raise refused

    def _relative(self, path: str) -> str:
        """Return an absolute path below the base as a relative one; others are unchanged."""
        if _DRIVE.match(path):
            raise RejectedRow("outside_root")
        if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
            return path
        for root in self._roots:
            if path.startswith(root):
                return path.removeprefix(root).lstrip("/")
        folder, _, name = path.rpartition("/")
        if folder not in self._resolved:
            self._resolved[folder] = self._below(folder)
        below = self._resolved[folder]
        return path if below is None else f"{below}/{name}"

    def _below(self, folder: str) -> str | None:
        try:
            return Path(folder).resolve().relative_to(self._base).as_posix()
        except (ValueError, OSError, RuntimeError):
            return None
