"""Datasets and runs of an artifact store, found from the sidecars of finished artifacts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, TypeVar

from data.artifacts.inventory import Entry, Inventory, take_inventory
from data.artifacts.store import ArtifactStore
from data.errors import ClipScgiError, DataError
from data.files import read_json
from data.splits import SPLITS
from data.stages.images import DESCRIPTION_FILE, DatasetDescription
from flows.report.scores import Score, scores
from flows.report.sentences import TextScores, text_scores

_FRESH_SECONDS: Final = 2.0

T = TypeVar("T")


class MissingError(ClipScgiError):
    """An address that names something that does not exist."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One index artifact. captions: its caption artifacts, newest first."""

    entry: Entry
    description: DatasetDescription
    captions: tuple[Entry, ...]

    @property
    def key(self) -> str:
        """Fingerprint of the index artifact."""
        return self.entry.fingerprint

    @property
    def name(self) -> str:
        """Name for people; the fingerprint tells apart datasets of one name."""
        return self.description.name or self.entry.dataset or self.description.reader

    @property
    def splits(self) -> dict[str, dict[str, int]]:
        """Split -> numbers of images, identities and cameras, of the splits that have images."""
        counts = self.description.counts
        return {split: counts[split] for split in SPLITS if counts.get(split, {}).get("images")}

    @property
    def n_images(self) -> int:
        """Number of indexed images."""
        return sum(counts.get("images", 0) for counts in self.description.counts.values())


@dataclass(frozen=True, kw_only=True)
class Run:
    """One evaluation. dataset, model: None if their artifacts were removed. text: None if it was not measured."""

    entry: Entry
    dataset: Dataset | None
    model: Entry | None
    protocol: dict[str, Any]
    scores: Sequence[Score]
    text: TextScores | None

    @property
    def key(self) -> str:
        """Fingerprint of the evaluation."""
        return self.entry.fingerprint

    @property
    def name(self) -> str:
        """Name for people: recipe and dataset."""
        dataset = str(self.protocol.get("dataset") or self.entry.dataset)
        recipe = self.entry.recipe or ""
        if recipe.endswith(f"-> {dataset}"):  # an evaluation of a model that was trained elsewhere names its dataset
            return recipe
        return " on ".join(dict.fromkeys(name for name in (recipe, dataset) if name)) or self.entry.fingerprint[:8]


class Snapshot:
    """The store at one moment. Everything is read on first use and then kept."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def entries(self, stage: str) -> list[Entry]:
        """Return the readable artifacts of a stage, newest first."""
        found = [entry for entry in self._inventory.entries if entry.stage == stage and entry.state != "damaged"]
        return found[::-1]

    @cached_property
    def damaged(self) -> tuple[str, ...]:
        """Keys of the artifacts whose artifact.json cannot be read, and of unreadable datasets and runs with why."""
        sidecars = tuple(entry.key for entry in self._inventory.entries if entry.state == "damaged")
        unread = {**self._datasets[1], **self._runs[1]}
        return (*sidecars, *(f"{key} ({why})" for key, why in unread.items()))

    @cached_property
    def datasets(self) -> tuple[Dataset, ...]:
        """All datasets, newest first."""
        return self._datasets[0]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """All evaluations, newest first."""
        return self._runs[0]

    @cached_property
    def _datasets(self) -> tuple[tuple[Dataset, ...], dict[str, str]]:
        return _readable(self.entries("index"), self._dataset)

    @cached_property
    def _runs(self) -> tuple[tuple[Run, ...], dict[str, str]]:
        return _readable(self.entries("evaluate"), self._run)

    def check(self, key: str) -> None:
        """Raise DataError with the reason if the dataset or run `key` (stage/fingerprint) cannot be read."""
        why = {**self._datasets[1], **self._runs[1]}.get(key)
        if why is not None:
            raise DataError(f"{key} is damaged: {why}; delete its folder and run its stage again")

    def trained_on(self, model: Entry | None) -> str:
        """Return the key of the dataset that a model was trained on; else of the newest, "" without datasets."""
        used = set() if model is None else self._inventory.reachable([model])
        own = [dataset.key for dataset in self.datasets if dataset.entry.key in used]
        return next(iter([*own, *(dataset.key for dataset in self.datasets)]), "")

    def audit_of(self, captions: Entry) -> Entry | None:
        """Return the newest audit of a caption artifact, or else of its captions with corrections."""
        made = self._inventory.used_by(captions)[::-1]
        corrected = [entry for entry in made if entry.stage == "correct"]
        made += [entry for other in corrected for entry in self._inventory.used_by(other)[::-1]]
        return next((entry for entry in made if entry.stage == "audit" and entry.state != "damaged"), None)

    def _dataset(self, entry: Entry) -> Dataset:
        description = DatasetDescription.model_validate(read_json(entry.folder / DESCRIPTION_FILE))
        named = [other for other in self._inventory.used_by(entry) if other.stage == "caption"]
        captions = tuple(other for other in named[::-1] if other.state != "damaged")
        return Dataset(entry=entry, description=description, captions=captions)

    def _run(self, entry: Entry) -> Run:
        metrics = read_json(entry.folder / "metrics.json")
        _ = metrics["protocol"]["n_query"], metrics["protocol"]["n_gallery"]  # the first page shows them
        used = self._inventory.uses(entry)[::-1]
        indexes = {other.fingerprint for other in used if other.stage == "index"}
        return Run(
            entry=entry,
            dataset=next((dataset for dataset in self.datasets if dataset.key in indexes), None),
            model=next((other for other in used if other.stage == "train"), None),
            protocol=metrics["protocol"],
            scores=scores(metrics),
            text=text_scores(metrics),
        )


class Library:
    """The store as it is now: read again when artifacts were added or removed, and otherwise every two seconds."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._read = 0.0
        self._stamp: tuple[tuple[str, int], ...] | None = None
        self._snapshot: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """Return the present artifacts."""
        with self._lock:
            stamp, now = self._stages(), time.monotonic()
            if self._snapshot is None or stamp != self._stamp or now - self._read > _FRESH_SECONDS:
                self._snapshot, self._stamp, self._read = Snapshot(take_inventory(self.store)), stamp, now
            return self._snapshot

    def dataset(self, key: str) -> Dataset:
        """Return the dataset whose index has the fingerprint `key`. Raises MissingError if it does not exist."""
        snapshot = self.snapshot()
        snapshot.check(f"index/{key}")
        return _named(snapshot.datasets, key, "dataset")

    def run(self, key: str) -> Run:
        """Return the run whose evaluation has the fingerprint `key`. Raises MissingError if it does not exist."""
        snapshot = self.snapshot()
        snapshot.check(f"evaluate/{key}")
        return _named(snapshot.runs, key, "run")

    def _stages(self) -> tuple[tuple[str, int], ...]:
        """Return the times of the folders of all stages; adding or removing an artifact changes one."""
        folders = sorted((self.store.root / "stages").glob("*"))
        return tuple((folder.name, folder.stat().st_mtime_ns) for folder in folders)


class _Named(Protocol):
    @property
    def key(self) -> str: ...


N = TypeVar("N", bound=_Named)


def _named(found: Sequence[N], key: str, what: str) -> N:
    named = next((one for one in found if one.key == key), None)
    if named is None:
        raise MissingError(f"{what} {key[:40]!r} does not exist in this artifact store; it may have been removed")
    return named


def _readable(entries: Sequence[Entry], read: Callable[[Entry], T]) -> tuple[tuple[T, ...], dict[str, str]]:
    """Return what `read` makes of each entry, and why others are damaged; those removed meanwhile are left out."""
    found, damaged = [], {}
    for entry in entries:
        try:
            found.append(read(entry))
        except (DataError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            if entry.folder.is_dir():
                damaged[entry.key] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return tuple(found), damaged
