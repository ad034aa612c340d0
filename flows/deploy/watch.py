"""The Prefect flow ``watch-datasets``: announce the datasets whose images changed.

It watches every dataset that has a deployment of caption-and-train. A change is announced as the event
``clip-scgi.dataset.changed``, which starts that deployment. The event is repeated on every look until a run has indexed
the change, because the run that an event starts is cancelled while another run of that dataset is busy.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypedDict

from prefect import flow, get_run_logger
from prefect.events import emit_event

from data.artifacts.contents import IMAGES_FILE
from data.artifacts.fingerprint import digest
from data.artifacts.inventory import take_inventory
from data.artifacts.store import ArtifactStore
from data.columns.source import ParquetRows
from data.datasets import DatasetConfig
from data.errors import ClipScgiError, DataError, RetryableError, raise_problems
from data.files import read_json, write_json
from data.index.stage import IndexStage, survey
from data.index.survey import Survey
from data.sources.address import is_remote
from data.stages.stage import RunContext
from flows.deploy.watched_images import NO_CHANGES, Counts, WatchedImages
from flows.pipeline import FLOW_NAME
from flows.recipes import Recipe
from flows.worlds import world_folder

WATCH_FLOW: Final = "watch-datasets"
CHANGED: Final = "clip-scgi.dataset.changed"
SETTLE_SECONDS: Final = 60.0

Status = Literal["new", "unchanged", "changed", "announced again", "not settled"]

_LOG = logging.getLogger(__name__)


class LookPayload(TypedDict):
    """The content of an event: the fields of a `Look`."""

    dataset: str
    status: Status
    old: str
    new: str
    added: int
    removed: int
    changed: int


@dataclass(frozen=True, kw_only=True)
class Look:
    """The result of one look at one dataset.

    old, new: dataset hashes. counts: changes since the last look that found the dataset settled.
    """

    dataset: str
    status: Status
    old: str = ""
    new: str = ""
    counts: Counts = NO_CHANGES

    @property
    def is_news(self) -> bool:
        """Return True if there is something to announce."""
        return self.status in ("changed", "announced again")

    def payload(self) -> LookPayload:
        """Return the content of the event."""
        added, removed, changed = self.counts
        return {
            "dataset": self.dataset,
            "status": self.status,
            "old": self.old,
            "new": self.new,
            "added": added,
            "removed": removed,
            "changed": changed,
        }


def resource_id(dataset: str) -> str:
    """Return the id of a dataset in Prefect, which its events and triggers share."""
    return f"clip-scgi.dataset.{dataset}"


@flow(name=WATCH_FLOW, flow_run_name=WATCH_FLOW, persist_result=False, retries=0)
def watch_datasets(
    home: str | None = None, settle_seconds: float = SETTLE_SECONDS, only: list[str] | None = None
) -> list[LookPayload]:
    """Look at every dataset that has a deployment of caption-and-train, and announce those that changed.

    home: artifact root (default ``CLIP_SCGI_HOME``, else ``./artifacts``). settle_seconds: a dataset with a younger
    change is left for the next look. only: names of datasets; all by default.
    """
    store = ArtifactStore(Path(home)) if home else ArtifactStore.default()
    log = get_run_logger()
    looks, problems = [], []
    for name, recipe in sorted(_registered().items()):
        if only is not None and name not in only:
            continue
        config = watched_config(store, recipe)
        if config is None:
            log.info("%s: its synthetic images do not exist yet; its first run draws them", name)
            continue
        try:
            look = look_at(store, dataset=name, config=config, settle_seconds=settle_seconds)
        except ClipScgiError as error:
            problems.append(f"{name}: {error}")  # and go on with the other datasets
            continue
        log.info("%s: %s (+%d -%d ~%d)", name, look.status, *look.counts)
        if look.is_news:
            announce(look)
        looks.append(look.payload())
    raise_problems("datasets that cannot be watched", problems, DataError)
    return looks


def _registered() -> dict[str, Recipe]:
    """Return the recipe of every deployment of caption-and-train on the server, by deployment name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    wanted = FlowFilter(name=FlowFilterName(any_=[FLOW_NAME]))
    with get_client(sync_client=True) as client:
        found = client.read_deployments(flow_filter=wanted)
    return {
        item.name: Recipe.model_validate(item.parameters["recipe"]) for item in found if "recipe" in item.parameters
    }


def watched_config(store: ArtifactStore, recipe: Recipe) -> DatasetConfig | None:
    """Return the dataset to look at for `recipe`, or None while its synthetic images do not exist."""
    if recipe.synthetic is None or recipe.data.root:
        return recipe.data
    folder = world_folder(store, recipe.synthetic)
    return recipe.data.model_copy(update={"root": str(folder)}) if folder.is_dir() else None


def announce(look: Look) -> None:
    """Emit the event that starts the deployment of the dataset."""
    resource = {"prefect.resource.id": resource_id(look.dataset), "prefect.resource.name": look.dataset}
    emit_event(event=CHANGED, resource=resource, payload=dict(look.payload()))


def look_at(
    store: ArtifactStore,
    *,
    dataset: str,
    config: DatasetConfig,
    settle_seconds: float = SETTLE_SECONDS,
    now: float | None = None,
) -> Look:
    """Compare a dataset with its state at the last look, and remember its state now.

    The first look compares with the newest index; a dataset that no run has indexed is only remembered. While its last
    change is younger than `settle_seconds`, a dataset counts as incomplete and is not remembered. now: seconds since
    1970, for tests.

    Raises:
        DataError: the dataset does not exist any more.
    """
    try:
        there = _look(store, config)
    except RetryableError:
        return Look(dataset=dataset, status="not settled")
    new, images = there.dataset_hash, there.images
    if there.last_change > (time.time() if now is None else now) - settle_seconds:
        return Look(dataset=dataset, status="not settled", new=new)
    memory = Memory(store, dataset)
    known = memory.read() or _newest_index(store, config.label)
    if known is None:
        memory.write(State(new, images))
        return Look(dataset=dataset, status="new", new=new)
    if known.dataset_hash != new:
        counts = known.images.changes_to(images)
        memory.write(State(new, images, announced=True, old=known.dataset_hash, counts=counts))
        return Look(dataset=dataset, status="changed", old=known.dataset_hash, new=new, counts=counts)
    if known.announced and not there.is_indexed:
        return Look(dataset=dataset, status="announced again", old=known.old, new=new, counts=known.counts)
    if known.announced or not memory.exists():
        memory.write(State(new, images))
    return Look(dataset=dataset, status="unchanged", old=new, new=new)


class _Found(NamedTuple):
    """A dataset as it is now. last_change: in seconds since 1970. is_indexed: in this state."""

    dataset_hash: str
    last_change: float
    is_indexed: bool
    images: WatchedImages


def _look(store: ArtifactStore, config: DatasetConfig) -> _Found:
    """Survey a dataset. Only its images stay in memory, because they are compared with those of an earlier state."""
    found = survey(store, config=config)
    indexed = IndexStage(found=found).find(RunContext(store=store)) is not None
    return _Found(found.dataset_hash, _last_change(found), indexed, WatchedImages.of_survey(found))


def _last_change(found: Survey) -> float:
    """Return when a file of the dataset or a folder of its files last changed, in seconds since 1970.

    Only the folder's time shows that a file was removed. Times in the future, as after the clock was set back, do not
    tell whether a copy is in progress and are left out.
    """
    horizon = time.time() + 1
    if is_remote(found.root):  # a store knows when an object was written, and does not have folders
        return float(found.facts.rows["mtime_ns"].max(initial=0) / 1e9)
    files = found.facts.rows["ctime_ns"] / 1e9
    latest = float(files[files <= horizon].max(initial=0))
    others = (found.root / row.path for row in found.rejected)
    moments = (moment for moment in _change_times(chain(others, _folders(found))) if moment <= horizon)
    return max(chain([latest], moments))


def _folders(found: Survey) -> set[Path]:
    """Return the root and the folders of the images."""
    names = set[str]()
    for some in found.records.batches():
        names.update(path.rpartition("/")[0] for path in some.paths.to_pylist())
    return {found.root / name for name in names} | {found.root}


def _change_times(paths: Iterable[Path]) -> Iterator[float]:
    for path in paths:
        try:
            yield os.stat(path).st_ctime  # noqa: PTH116 - a file or a folder
        except OSError:
            continue


class State(NamedTuple):
    """A dataset at the last look that found it settled. old, counts: the change that was announced."""

    dataset_hash: str
    images: WatchedImages
    announced: bool = False
    old: str = ""
    counts: Counts = NO_CHANGES


class Memory:
    """The remembered state of one dataset: watch/NAME.json, and its images in watch/NAME.HASH.parquet."""

    def __init__(self, store: ArtifactStore, dataset: str) -> None:
        # Names are free text; a short digest keeps them apart on every file system.
        plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in dataset)
        self.state = store.root / "watch" / f"{plain}-{digest(dataset)[:8]}.json"
        self.dataset = dataset

    def exists(self) -> bool:
        """Return True if a state is remembered."""
        return self.state.exists()

    def read(self) -> State | None:
        """Return the remembered state, or None if it does not exist or cannot be used."""
        try:
            stored = read_json(self.state)
            return State(
                dataset_hash=stored["dataset_hash"],
                images=WatchedImages.read(self.state.with_name(stored["rows"]), dataset_hash=stored["dataset_hash"]),
                announced=bool(stored["announced"]),
                old=stored["old"],
                counts=Counts(**{name: int(stored["counts"][name]) for name in Counts._fields}),
            )
        except FileNotFoundError:
            return None
        except (DataError, OSError, KeyError, TypeError, ValueError) as error:
            _LOG.warning("%s cannot be used (%s) and is replaced", self.state, error)
            return None

    def write(self, state: State) -> None:
        """Remember `state`. The small file is written last, so that a kill leaves the older state intact."""
        stem = self.state.stem
        target = self.state.with_name(f"{stem}.{state.dataset_hash[:12]}.parquet")
        state.images.write(target, dataset_hash=state.dataset_hash)
        write_json(
            self.state,
            {
                "dataset": self.dataset,
                "dataset_hash": state.dataset_hash,
                "rows": target.name,
                "announced": state.announced,
                "old": state.old,
                "counts": state.counts._asdict(),
            },
        )
        for stale in self.state.parent.glob(f"{stem}.*.parquet"):
            if stale != target:
                stale.unlink(missing_ok=True)


def _newest_index(store: ArtifactStore, label: str) -> State | None:
    """Return the dataset as its newest intact index has it, or None if no run has indexed it."""
    entries = [entry for entry in take_inventory(store, IndexStage.name).entries if entry.label == label]
    for entry in reversed(entries):
        if store.problems(IndexStage.name, entry.fingerprint):
            continue
        images = WatchedImages.of(ParquetRows(entry.folder / IMAGES_FILE).batches())
        return State(read_json(entry.folder / "dataset.json")["dataset_hash"], images)
    return None
