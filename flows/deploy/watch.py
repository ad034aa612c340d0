"""The Prefect flow ``watch-datasets``: looks at every registered data set and says which of them changed.

Registered is what has a deployment of caption-and-train. A change is announced as the event
``clip-scgi.dataset.changed``, to which that deployment listens. It is announced again at every look until some run has
indexed it, because a run that was busy with the old state has the announced one cancelled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from prefect import flow, get_run_logger
from prefect.events import emit_event

from data.artifacts.store import ArtifactStore, fingerprint_of
from data.datasets import DatasetConfig
from data.errors import ClipScgiError, DataError, RetryableError, raise_problems
from data.index.stage import STAGE, Survey, index_ingredients, survey
from flows.deploy.watch_memory import Memory, compare, from_index, rows_of
from flows.pipeline import FLOW_NAME
from flows.recipes import Recipe
from flows.worlds import world_folder

WATCH_FLOW: Final = "watch-datasets"
CHANGED: Final = "clip-scgi.dataset.changed"
SETTLE_SECONDS: Final = 60.0

Status = Literal["new", "unchanged", "changed", "announced again", "not settled"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at one data set found.

    old, new: dataset hashes. added, removed, changed: images, against the last look that took the set for finished.
    """

    dataset: str
    status: Status
    old: str = ""
    new: str = ""
    added: int = 0
    removed: int = 0
    changed: int = 0

    @property
    def is_news(self) -> bool:
        """Say whether there is something to announce."""
        return self.status in ("changed", "announced again")

    def payload(self) -> dict[str, Any]:
        """Return what the event carries."""
        return asdict(self)


def resource_id(dataset: str) -> str:
    """Return the id under which Prefect knows a data set: what events are about and triggers wait for."""
    return f"clip-scgi.dataset.{dataset}"


def look_at(
    store: ArtifactStore,
    *,
    dataset: str,
    config: DatasetConfig,
    settle_seconds: float = SETTLE_SECONDS,
    now: float | None = None,
) -> Look:
    """Compare a data set with how it was at the last look, and remember how it is now.

    The first look at a set compares with its newest index; a set that no run has seen yet is only remembered. While
    anything in it is younger than `settle_seconds` it is taken for unfinished, and nothing is remembered. Raises
    DataError when there is no such data set any more. now: seconds since 1970, for tests.
    """
    try:
        found = survey(store, config=config)
    except RetryableError:
        return Look(dataset=dataset, status="not settled")
    if _youngest(found) > (time.time() if now is None else now) - settle_seconds:
        return Look(dataset=dataset, status="not settled", new=found.dataset_hash)
    memory = Memory(store, dataset)
    known = memory.read() or from_index(store, config.label)
    rows = rows_of(found)
    if known is None:
        memory.write(found.dataset_hash, rows, announced=False)
        return Look(dataset=dataset, status="new", new=found.dataset_hash)
    if known.dataset_hash != found.dataset_hash:
        counts = compare(known.rows, rows)
        memory.write(found.dataset_hash, rows, announced=True, counts=counts, old=known.dataset_hash)
        return Look(dataset=dataset, status="changed", old=known.dataset_hash, new=found.dataset_hash, **counts)
    if known.announced and not _is_indexed(store, found):
        return Look(dataset=dataset, status="announced again", old=known.old, new=found.dataset_hash, **known.counts)
    if known.announced or not memory.exists():
        memory.write(found.dataset_hash, rows, announced=False)
    return Look(dataset=dataset, status="unchanged", old=found.dataset_hash, new=found.dataset_hash)


def announce(look: Look) -> None:
    """Emit the event that starts the deployment of the data set."""
    resource = {"prefect.resource.id": resource_id(look.dataset), "prefect.resource.name": look.dataset}
    emit_event(event=CHANGED, resource=resource, payload=look.payload())


@flow(name=WATCH_FLOW, flow_run_name=WATCH_FLOW, persist_result=False, retries=0)
def watch_datasets(
    home: str | None = None, settle_seconds: float = SETTLE_SECONDS, only: list[str] | None = None
) -> list[dict[str, Any]]:
    """Look at every data set that has a deployment of caption-and-train, and announce those that changed.

    home: artefact root (default ``CLIP_SCGI_HOME``, else ``./artifacts``). settle_seconds: a set with anything younger
    is looked at next time. only: names of data sets; all by default.
    """
    store = ArtifactStore(Path(home)) if home else ArtifactStore.default()
    log = get_run_logger()
    looks, problems = [], []
    for name, recipe in sorted(_registered().items()):
        if only is not None and name not in only:
            continue
        config = watched_config(store, recipe)
        if config is None:
            log.info("%s: its synthetic images are not drawn yet; its first run does that", name)
            continue
        try:
            look = look_at(store, dataset=name, config=config, settle_seconds=settle_seconds)
        except ClipScgiError as error:
            # The others are looked at all the same; what was made from this one stays.
            problems.append(f"{name}: {error}")
            continue
        log.info("%s: %s (+%d -%d ~%d)", name, look.status, look.added, look.removed, look.changed)
        if look.is_news:
            announce(look)
        looks.append(look.payload())
    raise_problems("data sets that cannot be watched", problems, DataError)
    return looks


def watched_config(store: ArtifactStore, recipe: Recipe) -> DatasetConfig | None:
    """Return what to look at for `recipe`, or None while its synthetic images have not been drawn."""
    if recipe.synthetic is None or recipe.data.root:
        return recipe.data
    folder = world_folder(store, recipe.synthetic)
    return recipe.data.model_copy(update={"root": str(folder)}) if folder.is_dir() else None


def _registered() -> dict[str, Recipe]:
    """Return deployment name -> recipe of every deployment of caption-and-train on the server."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    wanted = FlowFilter(name=FlowFilterName(any_=[FLOW_NAME]))
    with get_client(sync_client=True) as client:
        found = client.read_deployments(flow_filter=wanted)
    return {
        item.name: Recipe.model_validate(item.parameters["recipe"]) for item in found if "recipe" in item.parameters
    }


def _is_indexed(store: ArtifactStore, found: Survey) -> bool:
    return store.find(STAGE, fingerprint_of(STAGE, index_ingredients(found))) is not None


def _youngest(found: Survey) -> float:
    """Return when anything in the data set last changed (seconds since 1970), the folders of its files included.

    A removed file shows only in its folder's time. Times in the future, as after the clock was set back, say nothing
    about a copy in progress and are left out.
    """
    horizon = time.time() + 1
    files = [fact.ctime_ns / 1e9 for fact in found.facts]
    files += list(_changes(found.root / row.path for row in found.rejected))
    folders = {(found.root / record.path).parent for record in found.records} | {found.root}
    return max((moment for moment in [*files, *_changes(folders)] if moment <= horizon), default=0.0)


def _changes(paths: Iterable[Path]) -> Iterable[float]:
    for path in paths:
        try:
            yield os.stat(path).st_ctime  # noqa: PTH116 - a folder or a file, whichever is there
        except OSError:
            continue
