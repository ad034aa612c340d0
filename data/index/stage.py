"""The index stage: hash and decode every image once, name every unusable file, and digest the dataset.

The index is a snapshot: if any file was read, the folder is compared with its earlier digest, or else listed again, and
the survey is repeated once if it has changed. In an unchanged folder no file is read, and each costs one `stat` call:
`data.index.unchanged` recognizes the folder, and if it cannot, the survey recalls the facts of each file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts.contents import IMAGES_FILE, SENTENCES_FILE, contents_of_images
from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactStore, Made, Produced
from data.columns.digests import texts_of
from data.columns.records import Records, order_of
from data.columns.rejected import Rejected, RejectedRows
from data.columns.source import BATCH_ROWS, ParquetRows, in_blocks
from data.datasets import DatasetConfig, assign_splits, read_dataset
from data.errors import ConfigError, RetryableError, counted
from data.files import write_json, write_tables
from data.index.examine import ChangedError, Examination, Reading, examine, stamps_of
from data.index.facts import FileFacts
from data.index.rules import check_index, identities, unusable, unusable_rows
from data.index.split_file import SPLIT_FILE, write_split
from data.index.unchanged import Recognized, Watched
from data.people import UNKNOWN_CAMERA
from data.process.memory import release_unused
from data.progress import ProgressFn, silent
from data.readers.base import Scan
from data.readers.webdataset.tables import ShardReading
from data.schemas import IMAGES, LABELED_IMAGES, REJECTED, SCHEMA_VERSION, SENTENCES
from data.splits import SPLITS
from data.stages.images import DESCRIPTION_FILE, IndexedImages
from data.stages.stage import Ingredients, RunContext, Stage

STAGE_VERSION: Final = 2
_SETTLE_SECONDS: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The current state of a dataset on disk, which the index stage writes.

    root: absolute folder that the paths are relative to. records, facts: the usable images, in parallel columns sorted
    by (split, path). rejected: sorted. split_by_rule: True if the splits are not the reader's own. description: content
    of dataset.json. n_read, n_decoded: files read and decoded this time; 0 if nothing changed.
    """

    root: Path
    records: Records
    facts: FileFacts
    rejected: RejectedRows
    split_by_rule: bool
    description: dict[str, Any]
    n_read: int
    n_decoded: int
    n_unsettled: int

    @property
    def dataset_hash(self) -> str:
        """Digest (32 hex digits) of reader, version, and each image's split, path, labels, bytes and sentences."""
        return str(self.description["dataset_hash"])

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences for the user, including one about rejected files."""
        return tuple(self.description["notices"])

    @property
    def note(self) -> str:
        """The numbers of images, rejected files and files read."""
        return _note(len(self.records), len(self.rejected), self.n_read)


def _note(images: int, rejected: int, read: int) -> str:
    return f"{counted(images, 'image')}, {rejected} rejected, {read} read"


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
        _write(folder, self.found)
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
        note=_note(sum(counts["images"] for counts in about.counts.values()), about.rejected, 0),
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
        description=_describe(config, scan=scan, records=records, facts=facts, rejected=rejected, notices=notices),
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


def _describe(
    config: DatasetConfig,
    *,
    scan: Scan,
    records: Records,
    facts: FileFacts,
    rejected: RejectedRows,
    notices: list[str],
) -> dict[str, Any]:
    people = identities(records)
    counts = {}
    for split in SPLITS:
        here = records.in_split(split)
        cameras = set(np.unique(records.camids[here]).tolist()) - {UNKNOWN_CAMERA}
        counts[split] = {"images": int(here.sum()), "identities": len(people[split]), "cameras": len(cameras)}
    return {
        "name": config.label,
        "reader": scan.name,
        "version": scan.version,
        "dataset_hash": _dataset_hash(scan, records, facts),
        "counts": counts,
        "junk_left_out": scan.n_junk,
        "rejected": len(rejected),
        "rejected_by_reason": rejected.counts(),
        "notices": notices,
    }


def _dataset_hash(scan: Scan, records: Records, facts: FileFacts) -> str:
    """Digest the sorted rows. Paths do not contain NUL, and labels and sentences are escaped: different rows give
    different text.
    """
    hasher = hashlib.sha256(digest({"reader": scan.name, "version": scan.version}).encode())
    for some, known in zip(records.batches(), facts.batches(), strict=True):
        rows = []
        for record, sha256 in zip(some, known.texts(), strict=True):
            label = f"\0{json.dumps(record.label)}" if record.label else ""
            sentences = f"\0\0{json.dumps(record.sentences)}" if record.sentences else ""
            rows.append(f"\n{record.split}\0{record.path}\0{record.pid}\0{record.camid}\0{sha256}{label}{sentences}")
        hasher.update("".join(rows).encode())
    return hasher.hexdigest()[:32]


def _write(folder: Path, found: Survey) -> None:
    """Write the files of the artifact."""
    schema = LABELED_IMAGES if found.records.has_labels() else IMAGES
    write_tables(folder / IMAGES_FILE, in_blocks(_image_rows(found, schema), BATCH_ROWS), schema)
    blocks = in_blocks(found.rejected.batches(), BATCH_ROWS) if len(found.rejected) else found.rejected.batches()
    write_tables(folder / "rejected.parquet", blocks, REJECTED)
    if found.records.has_sentences():
        write_tables(folder / SENTENCES_FILE, in_blocks(_sentence_rows(found), BATCH_ROWS), SENTENCES)
    if found.split_by_rule:
        write_split(folder / SPLIT_FILE, found.records)
    write_json(folder / DESCRIPTION_FILE, found.description)


def _image_rows(found: Survey, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of images.parquet."""
    for some, known in zip(found.records.batches(), found.facts.batches(), strict=True):
        table = some.table().append_column("sha256", texts_of(np.ascontiguousarray(known.digests)))
        for name in ("size", "width", "height"):
            table = table.append_column(name, pa.array(np.ascontiguousarray(known.rows[name])))
        yield table.select(schema.names).cast(schema)


def _sentence_rows(found: Survey) -> Iterator[pa.Table]:
    """Yield the rows of sentences.parquet."""
    for some, known in zip(found.records.batches(), found.facts.batches(), strict=True):
        rows = [
            (record.path, sha256, number, sentence)
            for record, sha256 in zip(some, known.texts(), strict=True)
            for number, sentence in enumerate(record.sentences)
        ]
        columns = zip(*rows, strict=True) if rows else ([] for _ in SENTENCES)
        yield pa.table([list(column) for column in columns], schema=SENTENCES)
