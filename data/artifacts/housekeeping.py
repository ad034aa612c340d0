"""Looking after an artefact root: what lies there, is it intact, and what can go. Disk only, no Prefect.

``gc`` keeps the newest runs of every recipe with everything they were made from, whatever was used lately, everything
while a stage is at work, and all caption shards: captions are the dearest thing here, and they are small.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from data.artifacts.inventory import Entry, Inventory, folder_size, in_progress, take_inventory, try_lock
from data.artifacts.store import ArtifactStore
from data.errors import RetryableError


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """What a killed stage left: its checkpoints for the next try, or a folder that was never finished.

    size: bytes. used: when anything in it was last written.
    """

    stage: str
    fingerprint: str
    folder: Path
    size: int
    used: datetime


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a collection would remove, oldest first, and how many artefacts it keeps."""

    artifacts: list[Entry]
    leftovers: list[Leftover]
    kept: int

    @property
    def items(self) -> list[Entry | Leftover]:
        """All that would be removed."""
        return [*self.artifacts, *self.leftovers]

    @property
    def size(self) -> int:
        """Bytes that would be freed."""
        return sum(item.size for item in self.items)


def verify(inventory: Inventory, entries: list[Entry]) -> dict[str, list[str]]:
    """Return key -> what is wrong, for those of `entries` that are not intact; reads every byte of them."""
    found = {entry.key: inventory.store.problems(entry.stage, entry.fingerprint) for entry in entries}
    # An incomplete artefact is no damage: it says of itself that it has to be made again.
    expected = {entry.key for entry in entries if entry.state == "incomplete"}
    return {key: problems for key, problems in found.items() if problems and key not in expected}


def plan_gc(store: ArtifactStore, *, keep_runs: int, days: float, now: datetime | None = None) -> Plan:
    """Return what nothing needs any more.

    keep_runs: newest reports kept of each recipe, with all they were made from. days: whatever was made or used within
    so many days stays, with all it was made from; checkpoints of killed runs likewise.
    """
    limit = (now or datetime.now(UTC)) - timedelta(days=days)
    inventory = take_inventory(store)
    recent = [entry for entry in inventory.entries if entry.used >= limit]
    needed = inventory.reachable([*_newest_runs(inventory, keep_runs), *recent])
    removable = [entry for entry in inventory.entries if entry.key not in needed]
    leftovers = [item for item in find_leftovers(store) if item.used < limit]
    return Plan(artifacts=removable, leftovers=leftovers, kept=len(inventory.entries) - len(removable))


def collect(store: ArtifactStore, plan: Plan) -> list[Path]:
    """Remove what `plan` lists and return the folders removed; what is being made meanwhile stays.

    Raises RetryableError, having removed nothing, while any stage is at work under this root: what that run has read
    so far is written down nowhere before it ends.
    """
    working = in_progress(store)
    if working:
        raise RetryableError(f"{working[0]} is being made in {store.root}; collect again when that run has ended")
    removed = []
    for item in plan.items:
        with try_lock(store, item.stage, item.fingerprint) as free:
            if free and item.folder.is_dir():
                _remove(item.folder)
                removed.append(item.folder)
    return removed


def find_leftovers(store: ArtifactStore) -> list[Leftover]:
    """Return the checkpoints and unfinished folders of stages that nobody is making now, oldest first."""
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
    """Return the `keep` newest reports of each recipe: the busy one must not push out another's only run."""
    reports: dict[str, list[Entry]] = defaultdict(list)
    for entry in inventory.entries:
        if entry.stage == "report":
            reports[entry.label].append(entry)
    newest = (sorted(group, key=lambda entry: entry.used)[-keep:] if keep else [] for group in reports.values())
    return [entry for group in newest for entry in group]


def _remove(folder: Path) -> None:
    # Renamed first, so that a kill leaves an unfinished folder and never an artefact with a file missing.
    doomed = folder if folder.name.startswith(".") else folder.with_name(f".{folder.name}.removed")
    if doomed != folder:
        folder.rename(doomed)
    shutil.rmtree(doomed)
