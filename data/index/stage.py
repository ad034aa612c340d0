"""The index stage: hash and decode every image once, name every unusable file, and digest the dataset.

The index is a snapshot: if any file was read, the folder is listed again afterwards, and the survey is repeated once if
the folder has changed. In an unchanged folder no file is read, and each costs one `stat` call: `data.index.unchanged`
recognizes the folder, and if it cannot, the survey recalls the facts of each file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import pyarrow as pa

from data.artifacts.contents import IMAGES_FILE, SENTENCES_FILE, contents_of_images
from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactStore, Made, Produced
from data.datasets import DatasetConfig, assign_splits, read_dataset
from data.errors import ConfigError, RetryableError, counted
from data.files import write_json, write_table
from data.index.examine import ChangedError, Examination, Facts, examine, stamps_of
from data.index.rules import check_index, identities, unusable
from data.index.split_file import SPLIT_FILE, write_split
from data.index.unchanged import Recognized, Watched
from data.people import UNKNOWN_CAMERA
from data.progress import ProgressFn, silent
from data.readers.base import ImageRecord, Rejected, Scan
from data.schemas import IMAGES, LABELED_IMAGES, REJECTED, SCHEMA_VERSION, SENTENCES
from data.splits import SPLITS
from data.stages.images import DESCRIPTION_FILE, IndexedImages
from data.stages.stage import Ingredients, RunContext, Stage

STAGE_VERSION: Final = 2
_SETTLE_SECONDS: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The current state of a dataset on disk, which the index stage writes.

    root: absolute folder that the paths are relative to. records, facts: the usable images, in parallel lists sorted by
    (split, path). rejected: sorted. split_by_rule: True if the splits are not the reader's own. description: content of
    dataset.json. n_read, n_decoded: files read and decoded this time; 0 if nothing changed.
    """

    root: Path
    records: list[ImageRecord]
    facts: list[Facts]
    rejected: list[Rejected]
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
            "rejected": digest([list(row) for row in self.found.rejected]),
            "description": self.found.description,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write the files."""
        images = _write(folder, self.found)
        return Produced(note=self.found.note, contents=contents_of_images(images))


def index(
    store: ArtifactStore, *, config: DatasetConfig, progress: ProgressFn = silent, reread: bool = False
) -> IndexOutcome:
    """Index the dataset of `config`: write the files of `IndexStage`.

    reread: read every file again, even if its size and times are unchanged. Raises DataError when the dataset as a
    whole is unusable, and RetryableError when its folder keeps changing.
    """
    watched = Watched.of(store, config)
    known = None if watched is None or reread else watched.find()
    if known is not None:
        return _recognized(store, config, known, progress)
    found = survey(store, config=config, progress=progress, reread=reread)
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
    facts: list[Facts]
    n_read: int
    n_decoded: int
    n_unsettled: int


def _settled(store: ArtifactStore, config: DatasetConfig, progress: ProgressFn, reread: bool) -> _Found:
    """Look at the dataset, and once more if it changes meanwhile."""
    try:
        return _look(store, config, progress, reread)
    except ChangedError:
        time.sleep(_SETTLE_SECONDS)
    try:
        return _look(store, config, progress, reread)
    except ChangedError as error:
        raise RetryableError(
            f"the dataset {config.label} in {config.root} is changing while it is being read: {error}."
            " Wait until whatever writes there has finished, then run again"
        ) from error


def _look(store: ArtifactStore, config: DatasetConfig, progress: ProgressFn, reread: bool) -> _Found:
    scan = read_dataset(config)
    _check_place(store, config, scan.root)
    examined = examine(
        scan.root,
        [record.path for record in scan.records],
        memo=store.memo,
        max_pixels=config.max_pixels,
        workers=config.workers,
        reread=reread,
        progress=progress,
    )
    if examined.n_read:
        _compare(scan, examined, read_dataset(config))
    known = dict(zip((record.path for record in scan.records), examined.facts, strict=True))
    fates = {path: unusable(config, fact) for path, fact in known.items()}
    bad = [Rejected(path, *fate) for path, fate in fates.items() if fate]
    scan = assign_splits(config, replace(scan, records=[one for one in scan.records if not fates[one.path]]))
    scan = replace(scan, rejected=sorted(scan.rejected + bad))
    facts = [known[record.path] for record in scan.records]
    return _Found(scan, facts, examined.n_read, examined.n_decoded, examined.n_unsettled)


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
        odd = sorted({row.path for row in {*before.records} ^ {*after.records}})
        odd += sorted({row.path for row in {*before.rejected} ^ {*after.rejected}})
        raise ChangedError(f"{counted(len(odd), 'file')} added, removed or relabeled, such as {odd[0]}")
    stamps = stamps_of(after.root, (record.path for record in after.records))
    for record, fact, stamp in zip(before.records, examined.facts, stamps, strict=True):
        if fact.stamp != stamp:
            raise ChangedError(f"{record.path} changed")


def _describe(
    config: DatasetConfig,
    *,
    scan: Scan,
    records: list[ImageRecord],
    facts: list[Facts],
    rejected: list[Rejected],
    notices: list[str],
) -> dict[str, Any]:
    people = identities(records)
    counts = {
        split: {
            "images": sum(record.split == split for record in records),
            "identities": len(people[split]),
            "cameras": len({record.camid for record in records if record.split == split} - {UNKNOWN_CAMERA}),
        }
        for split in SPLITS
    }
    return {
        "name": config.label,
        "reader": scan.name,
        "version": scan.version,
        "dataset_hash": _dataset_hash(scan, records, facts),
        "counts": counts,
        "junk_left_out": scan.n_junk,
        "rejected": len(rejected),
        "rejected_by_reason": dict(sorted(Counter(row.reason for row in rejected).items())),
        "notices": notices,
    }


def _dataset_hash(scan: Scan, records: list[ImageRecord], facts: list[Facts]) -> str:
    """Digest the sorted rows. Paths do not contain NUL, and labels and sentences are escaped: different rows give
    different text.
    """
    hasher = hashlib.sha256(digest({"reader": scan.name, "version": scan.version}).encode())
    for record, fact in zip(records, facts, strict=True):
        label = f"\0{json.dumps(record.label)}" if record.label else ""
        sentences = f"\0\0{json.dumps(record.sentences)}" if record.sentences else ""
        row = f"\n{record.split}\0{record.path}\0{record.pid}\0{record.camid}\0{fact.sha256}{label}{sentences}"
        hasher.update(row.encode())
    return hasher.hexdigest()[:32]


def _write(folder: Path, found: Survey) -> pa.Table:
    """Write the files of the artifact; return the table of images.parquet."""
    columns: dict[str, list[Any]] = {
        "path": [record.path for record in found.records],
        "split": [record.split for record in found.records],
        "pid": [record.pid for record in found.records],
        "camid": [record.camid for record in found.records],
        "sha256": [fact.sha256 for fact in found.facts],
        "size": [fact.size for fact in found.facts],
        "width": [fact.width for fact in found.facts],
        "height": [fact.height for fact in found.facts],
    }
    schema = IMAGES
    if any(record.label for record in found.records):
        schema, columns["label"] = LABELED_IMAGES, [record.label for record in found.records]
    images = pa.table(columns, schema=schema)
    write_table(folder / IMAGES_FILE, images, schema)
    rejected = {name: [getattr(row, name) for row in found.rejected] for name in REJECTED.names}
    write_table(folder / "rejected.parquet", pa.table(rejected, schema=REJECTED), REJECTED)
    sentences = _sentences(found)
    if sentences.num_rows:
        write_table(folder / SENTENCES_FILE, sentences, SENTENCES)
    if found.split_by_rule:
        write_split(folder / SPLIT_FILE, found.records)
    write_json(folder / DESCRIPTION_FILE, found.description)
    return images


def _sentences(found: Survey) -> pa.Table:
    """Return the table of sentences.parquet, without rows if the dataset has no sentences."""
    rows = [
        (record.path, fact.sha256, number, sentence)
        for record, fact in zip(found.records, found.facts, strict=True)
        for number, sentence in enumerate(record.sentences)
    ]
    columns = zip(*rows, strict=True) if rows else ([] for _ in SENTENCES)
    return pa.table([list(column) for column in columns], schema=SENTENCES)
