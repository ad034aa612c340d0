"""Housekeeping of an artifact root: verify artifacts and remove those that are no longer needed. Does not use Prefect.

``gc`` keeps the newest runs of every recipe with all their inputs, everything used recently, and all caption shards
(captions are small and cost the most to make). It removes the tables of tar shards that are gone. It removes nothing
while a stage is running.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from data.artifacts.inventory import Entry, Inventory, folder_size, in_progress, take_inventory, try_lock
from data.artifacts.store import ArtifactStore
from data.errors import RetryableError
from data.sources.shards import is_gone, tables_in


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Remains of a killed stage: checkpoints for its next run, or an unfinished folder.

    size: bytes. used: the time of the last write to anything in it.
    """

    stage: str
    fingerprint: str
    folder: Path
    size: int
    used: datetime


class StaleTable(NamedTuple):
    """The table of a tar shard that does not exist any more. size: bytes. used: the time of its last write."""

    folder: Path
    size: int
    used: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `collect` removes, oldest first, and how many artifacts it keeps. tables: of shards that are gone."""

    artifacts: list[Entry]
    leftovers: list[Leftover]
    tables: list[StaleTable]
    kept: int

    @property
    def items(self) -> list[Entry | Leftover | StaleTable]:
        """Everything to be removed."""
        return [*self.artifacts, *self.leftovers, *self.tables]

    @property
    def size(self) -> int:
        """Bytes to be freed."""
        return sum(item.size for item in self.items)


def verify(inventory: Inventory, entries: list[Entry]) -> dict[str, list[str]]:
    """Return key -> problems for those of `entries` that are not intact. Reads every file in full."""
    found = {entry.key: inventory.store.problems(entry.stage, entry.fingerprint) for entry in entries}
    # An incomplete artifact is not damaged: it is marked to be made again.
    expected = {entry.key for entry in entries if entry.state == "incomplete"}
    return {key: problems for key, problems in found.items() if problems and key not in expected}


def plan_gc(store: ArtifactStore, *, keep_runs: int, days: float, now: datetime | None = None) -> Plan:
    """Plan the removal of everything that is no longer needed.

    keep_runs: number of newest reports kept per recipe, with all their inputs. days: artifacts made or used within this
    many days are kept, with all their inputs; so are the checkpoints of killed runs, and tables of shards. Stores are
    asked for the shards of older tables.
    """
    limit = (now or datetime.now(UTC)) - timedelta(days=days)
    inventory = take_inventory(store)
    recent = [entry for entry in inventory.entries if entry.used >= limit]
    needed = inventory.reachable([*_newest_runs(inventory, keep_runs), *recent])
    removable = [entry for entry in inventory.entries if entry.key not in needed]
    leftovers = [item for item in find_leftovers(store) if item.used < limit]
    tables = find_stale_tables(store, limit)
    return Plan(artifacts=removable, leftovers=leftovers, tables=tables, kept=len(inventory.entries) - len(removable))


def collect(store: ArtifactStore, plan: Plan) -> list[Path]:
    """Remove the items of `plan` and return the removed folders; keep any that a process has begun to make.

    Raises RetryableError, and removes nothing, while any stage is running under this root: the artifacts that a stage
    reads are recorded only when it ends.
    """
    working = in_progress(store)
    if working:
        raise RetryableError(f"{working[0]} is being made in {store.root}; run gc again when that run has ended")
    removed = []
    folders: list[Entry | Leftover] = [*plan.artifacts, *plan.leftovers]
    for item in folders:
        with try_lock(store, item.stage, item.fingerprint) as free:
            if free and item.folder.is_dir():
                _remove(item.folder)
                removed.append(item.folder)
    return removed + [table.folder for table in plan.tables if _forgotten(table)]


def find_stale_tables(store: ArtifactStore, limit: datetime) -> list[StaleTable]:
    """Return the tables written before `limit` whose shards are gone, or that are damaged."""
    found = []
    for file, shard in tables_in(store.shards):
        with suppress(FileNotFoundError):
            status = file.stat()
            if status.st_mtime < limit.timestamp() and (shard is None or is_gone(shard)):
                found.append(StaleTable(file, status.st_size, status.st_mtime))
    return sorted(found, key=lambda table: (table.used, table.folder))


def _forgotten(table: StaleTable) -> bool:
    """Remove a table unless it was written again. Processes that have it open go on reading it."""
    try:
        if table.folder.stat().st_mtime != table.used:
            return False
        table.folder.unlink()
    except FileNotFoundError:
        return False
    return True


def find_leftovers(store: ArtifactStore) -> list[Leftover]:
    """Return the checkpoints and unfinished folders of stages that are not running, oldest first."""
    folders = [*(store.root / "work").glob("*/*"), *(store.root / "stages").glob("*/.*")]
    found = [_leftover(folder) for folder in sorted(folders) if folder.is_dir()]
    working = set(in_progress(store))
    idle = [item for item in found if f"{item.stage}-{item.fingerprint}" not in working]
    return sorted(idle, key=lambda item: (item.used, item.folder))


def _leftover(folder: Path) -> Leftover:
    times = [path.stat().st_mtime for path in [folder, *folder.rglob("*")] if path.exists()]
    return Leftover(
        stage=folder.parent.name,
        # work/train/<fingerprint>.rank1 and stages/train/.<fingerprint>.abc both belong to <fingerprint>.
        fingerprint=folder.name.lstrip(".").split(".")[0],
        folder=folder,
        size=folder_size(folder),
        used=datetime.fromtimestamp(max(times, default=0), UTC),
    )


def _newest_runs(inventory: Inventory, keep: int) -> list[Entry]:
    """Return the `keep` newest reports per recipe, so that a busy recipe does not displace the only run of another."""
    reports: dict[str, list[Entry]] = defaultdict(list)
    for entry in inventory.entries:
        if entry.stage == "report":
            reports[entry.label].append(entry)
    newest = (sorted(group, key=lambda entry: entry.used)[-keep:] if keep else [] for group in reports.values())
    return [entry for group in newest for entry in group]


def _remove(folder: Path) -> None:
    # Renamed first: if killed, this leaves an unfinished folder, never an artifact that lacks files.
    doomed = folder if folder.name.startswith(".") else folder.with_name(f".{folder.name}.removed")
    if doomed != folder:
        folder.rename(doomed)
    shutil.rmtree(doomed)
