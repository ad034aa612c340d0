"""The index stage: hash and decode every image once, name every unusable file, and digest the dataset.

The index is a snapshot: if any file was read, the folder is compared with its earlier digest, or else listed again, and
the survey is repeated once if it has changed. In an unchanged folder no file is read, and each costs one `stat` call:
`data.index.unchanged` recognizes the folder, and if it cannot, the survey recalls the facts of each file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts.contents import IMAGES_FILE, contents_of_images
from data.artifacts.store import ArtifactStore, Made, Produced
from data.columns.records import Records, order_of
from data.columns.rejected import Rejected, RejectedRows
from data.columns.source import ParquetRows
from data.datasets import DatasetConfig, assign_splits, read_dataset
from data.errors import ConfigError, RetryableError, counted
from data.index.examine import ChangedError, Examination, Reading, examine, stamps_of
from data.index.facts import FileFacts
from data.index.rules import check_index, unusable, unusable_rows
from data.index.survey import Survey, describe, note_of, write_survey
from data.index.unchanged import Recognized, Watched
from data.process.memory import release_unused
from data.progress import ProgressFn, silent
from data.readers.base import Scan
from data.readers.webdataset.tables import ShardReading
from data.schemas import SCHEMA_VERSION
from data.stages.images import IndexedImages
from data.stages.stage import Ingredients, RunContext, Stage

STAGE_VERSION: Final = 2
_SETTLE_SECONDS: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class IndexOutcome:
    """The indexed images. note: the numbers of images, rejected files and files read. survey: returns `found`."""

    made: Made
    images: IndexedImages
    note: str
    survey: Callable[[], Survey] = field(repr=False)

    @cached_property
    def found(self) -> Survey:
        """The survey that the images come from; if the folder was recognized, one of the folder as it is now."""
        return self.survey()


@dataclass(frozen=True, kw_only=True)
class IndexStage(Stage):
    """Write a survey to images.parquet, rejected.parquet and dataset.json.

    Also to sentences.parquet, if the dataset has sentences, and to split.csv, if the splits are by rule.
    """

    name: ClassVar[str] = "index"
    found: Survey

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the description of the dataset, including its hash, and the digest of the rejected files."""
        return {
            "stage_version": STAGE_VERSION,
            "schema_version": SCHEMA_VERSION,
            "rejected": self.found.rejected.digest(),
            "description": self.found.description,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write the files."""
        write_survey(folder, self.found)
        return Produced(note=self.found.note, contents=contents_of_images(ParquetRows(folder / IMAGES_FILE)))


def index(
    store: ArtifactStore, *, config: DatasetConfig, progress: ProgressFn = silent, reread: bool = False
) -> IndexOutcome:
    """Index the dataset of `config`: write the files of `IndexStage`.

    reread: read every file again, even if its size and times are unchanged. Raises DataError when the dataset as a
    whole is unusable, and RetryableError when its folder keeps changing.
    """
    watched = Watched.of(store, config)
    seen, is_unchanged = None if watched is None else watched.look(), _unknown
    if watched is not None and seen is not None:
        known = None if reread else watched.find(seen)
        if known is not None:
            return _recognized(store, config, known, progress)
        is_unchanged = partial(watched.is_still, seen)
    found = _survey(config, _settled(store, config, progress, reread, is_unchanged))
    made = IndexStage(found=found).make(RunContext(store=store, progress=progress))
    if watched is not None and not found.n_unsettled:
        files = len(found.records) + len(found.rejected) + found.description["junk_left_out"]
        watched.remember(Recognized(made.ref, found.root), files)
    images = IndexedImages(ref=made.ref, root=found.root)
    return IndexOutcome(made=made, images=images, note=found.note, survey=lambda: found)


def _recognized(store: ArtifactStore, config: DatasetConfig, known: Recognized, progress: ProgressFn) -> IndexOutcome:
    """Return the artifact of a folder that has not changed."""
    store.touch(known.ref)
    images = IndexedImages(ref=known.ref, root=known.root)
    about = images.description
    return IndexOutcome(
        made=Made(ref=known.ref, cached=True),
        images=images,
        note=note_of(sum(counts["images"] for counts in about.counts.values()), about.rejected, 0),
        survey=partial(survey, store, config=config, progress=progress),
    )


def survey(
    store: ArtifactStore, *, config: DatasetConfig, progress: ProgressFn = silent, reread: bool = False
) -> Survey:
    """Return the current state of the dataset of `config`; write nothing except remembered digests.

    Cheap for an unchanged folder, so it can be called often to watch one. Raises the same errors as `index`.
    """
    return _survey(config, _settled(store, config, progress, reread))


def usable_images(store: ArtifactStore, *, config: DatasetConfig, progress: ProgressFn = silent) -> Scan:
    """Return the usable images of the dataset of `config` with their splits, and the rejected files.

    Unlike `survey`, accepts a dataset whose labels contradict each other. Raises RetryableError like `index`.
    """
    return _settled(store, config, progress, reread=False).scan


class _Found(NamedTuple):
    """The usable images with their splits and facts, and how many files were read and decoded this time."""

    scan: Scan
    facts: FileFacts
    n_read: int
    n_decoded: int
    n_unsettled: int


def _unknown() -> bool:
    """Return False: whether the folder has changed is known only after it was listed again."""
    return False


def _settled(
    store: ArtifactStore,
    config: DatasetConfig,
    progress: ProgressFn,
    reread: bool,
    is_unchanged: Callable[[], bool] = _unknown,
) -> _Found:
    """Look at the dataset, and once more if it changes meanwhile.

    is_unchanged: returns True if nothing in the dataset's folder has changed since this function was called.
    """
    try:
        return _look(store, config, progress, reread, is_unchanged)
    except ChangedError:
        time.sleep(_SETTLE_SECONDS)
    try:
        return _look(store, config, progress, reread, _unknown)
    except ChangedError as error:
        raise RetryableError(
            f"the dataset {config.label} in {config.root} is changing while it is being read: {error}."
            " Wait until whatever writes there has finished, then run again"
        ) from error


def _look(
    store: ArtifactStore, config: DatasetConfig, progress: ProgressFn, reread: bool, is_unchanged: Callable[[], bool]
) -> _Found:
    shards = ShardReading(
        folder=store.shards, max_pixels=config.max_pixels, threads=config.workers, reread=reread, progress=progress
    )
    scan = _listed(config, shards)
    _check_place(store, config, scan.root)
    how = Reading(max_pixels=config.max_pixels, workers=config.workers, reread=reread, progress=progress, shards=shards)
    examined = examine(scan.root, scan.records.paths, store.memo, how)
    release_unused()
    if examined.n_read and not is_unchanged():
        _compare(scan, examined, _listed(config, shards))
    rows = unusable_rows(config, examined.facts)
    bad = RejectedRows.of(_rejections(config, scan.records.take(rows), examined.facts.take(rows))).in_order()
    listed, facts = scan.records, examined.facts
    if len(rows):
        used = np.full(len(listed), True)
        used[rows] = False
        listed, facts = listed.take(used), facts.take(used)
    scan = assign_splits(config, replace(scan, records=listed, rejected=scan.rejected.joined_in_order(bad.distinct())))
    if scan.split_by_rule:  # in another order
        rows = np.empty(len(listed), dtype=np.int64)
        rows[scan.records.by_path()] = listed.by_path()
        facts = facts.take(rows)
    return _Found(scan, facts, examined.n_read, examined.n_decoded, examined.n_unsettled)


def _rejections(config: DatasetConfig, records: Records, facts: FileFacts) -> Iterator[Rejected]:
    for record, fact in zip(records, facts, strict=True):
        fate = unusable(config, fact)
        if fate:
            yield Rejected(record.path, *fate)


def _listed(config: DatasetConfig, shards: ShardReading) -> Scan:
    """Return what the reader finds. Memory that only the reader needed goes back to the system."""
    scan = read_dataset(config, shards)
    release_unused()
    return scan


def _check_place(store: ArtifactStore, config: DatasetConfig, root: Path) -> None:
    """Raise ConfigError if a reader of all images under `root` would read pictures of artifacts too."""
    if config.reader in ("folders", "images") and root == store.root:
        raise ConfigError(
            f"data.root={root} is the folder of the artifacts too: set --home to another folder, such as --home"
            f" {root / 'artifacts'}"
        )


def _survey(config: DatasetConfig, found: _Found) -> Survey:
    scan, facts = found.scan, found.facts
    records, rejected = scan.records, scan.rejected
    notices = check_index(config, scan, records, facts, rejected)
    return Survey(
        root=scan.root,
        records=records,
        facts=facts,
        rejected=rejected,
        split_by_rule=scan.split_by_rule,
        description=describe(config, scan=scan, records=records, facts=facts, rejected=rejected, notices=notices),
        n_read=found.n_read,
        n_decoded=found.n_decoded,
        n_unsettled=found.n_unsettled,
    )


def _compare(before: Scan, examined: Examination, after: Scan) -> None:
    """Raise ChangedError if the folder differs between the scans `before` and `after` it was examined."""
    if before.records != after.records or before.rejected != after.rejected:
        odd = _odd_paths(before.records, after.records)
        unused = before.rejected.odd_paths(after.rejected)
        first = odd[order_of(odd)[0]].as_py() if len(odd) else unused[0] if unused else "a repeated path"
        raise ChangedError(f"{counted(len(odd) + len(unused), 'file')} added, removed or relabeled, such as {first}")
    for row, stamp in enumerate(stamps_of(after.root, after.records.paths)):
        if examined.facts.stamp(row) != stamp:
            raise ChangedError(f"{before.records.path(row)} changed")


def _odd_paths(before: Records, after: Records) -> pa.Array:
    """Return the distinct paths of the records that only one side has."""
    odd = []
    for one, other in ((before, after), (after, before)):
        at = pc.index_in(one.paths, value_set=other.paths).fill_null(-1).to_numpy()
        is_odd, known = at < 0, np.flatnonzero(at >= 0)
        is_odd[known] = one.take(known).differs(other.take(at[known]))
        odd.append(one.paths.filter(pa.array(is_odd)))
    return pc.unique(pa.concat_arrays(odd))
