"""An inventory of an artifact root: its artifacts and their dependencies, read from the sidecars only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from data.artifacts.stages import STAGES
from data.artifacts.store import SIDECAR, ArtifactStore, read_uses
from data.errors import ClipScgiError, DataError
from data.files import read_json
from data.process import locks

State = Literal["finished", "incomplete", "damaged"]
_DIGEST: Final = re.compile(r"^[0-9a-f]{32,64}$")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One artifact on disk.

    content: digest of its files, "" if the sidecar is damaged. size: bytes. created: when it was finished. used: when
    its folder was last touched, not before `created`. files: `content`, the digest of each file, and its content
    digests (see `contents`). digests: every digest in its ingredients. label: the recipe or dataset that its
    ingredients name, or "". dataset, recipe: of the run that used it last, or "". state: incomplete if some input could
    not be read while it was made.
    """

    stage: str
    fingerprint: str
    folder: Path
    content: str
    size: int
    created: datetime
    used: datetime
    files: frozenset[str]
    digests: frozenset[str]
    label: str
    dataset: str
    recipe: str
    state: State

    @property
    def key(self) -> str:
        """Name of the artifact on the command line: stage/fingerprint."""
        return f"{self.stage}/{self.fingerprint}"

    @property
    def is_helper(self) -> bool:
        """True for a by-product (decoded pixels, text features), False for the artifact of a stage of the DAG."""
        return self.stage not in STAGES


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All artifacts of a root, oldest first."""

    store: ArtifactStore
    entries: tuple[Entry, ...]

    def uses(self, entry: Entry) -> list[Entry]:
        """Return the artifacts that `entry` was made from, by content or fingerprint."""
        return [other for other in self.entries if other is not entry and _names(entry, other)]

    def used_by(self, entry: Entry) -> list[Entry]:
        """Return the artifacts that were made from `entry`."""
        return [other for other in self.entries if other is not entry and _names(other, entry)]

    def reachable(self, roots: Iterable[Entry]) -> set[str]:
        """Return the keys of `roots`, of all their inputs, and of the by-products that belong to any of these."""
        todo, found = list(roots), {}
        while todo:
            entry = todo.pop()
            if entry.key not in found:
                found[entry.key] = entry
                todo += self.uses(entry)
        kept = list(found.values())
        named = frozenset[str]().union(*(entry.digests | entry.files | {entry.fingerprint} for entry in kept))
        named |= {order for entry in kept if (order := _image_order(entry))}
        # No ingredients name a by-product: it belongs to a run if both name the same weights, images or captions.
        helpers = {entry.key for entry in self.entries if entry.is_helper and entry.digests & named}
        return {*found, *helpers}

    def find(self, text: str) -> Entry:
        """Return the only artifact whose fingerprint or key (stage/fingerprint) starts with `text`."""
        found = [entry for entry in self.entries if entry.key.startswith(text) or entry.fingerprint.startswith(text)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ClipScgiError(
                f"artifact {text!r} does not exist in {self.store.root}; `clip-scgi artifacts ls` lists all of them"
            )
        shown = ", ".join(entry.key for entry in found[:5])
        raise ClipScgiError(f"{text!r} matches {len(found)} artifacts ({shown}); give more digits of the fingerprint")


def take_inventory(store: ArtifactStore, stage: str = "*") -> Inventory:
    """Read every sidecar under the root, or of one stage; open no other file of an artifact."""
    folders = [path for path in sorted((store.root / "stages").glob(f"{stage}/*")) if _is_artifact(path)]
    entries = [entry for folder in folders if (entry := _read(folder)) is not None]
    return Inventory(store=store, entries=tuple(sorted(entries, key=lambda entry: (entry.created, entry.key))))


def folder_size(folder: Path) -> int:
    """Return the size in bytes of all files under `folder`; files that vanish meanwhile are ignored."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


@contextmanager
def try_lock(store: ArtifactStore, stage: str, fingerprint: str) -> Iterator[bool]:
    """Yield True if no process is making the artifact, and keep others from starting until the block ends."""
    held = locks.try_lock(store.lock_file(stage, fingerprint))
    with held or nullcontext():
        yield held is not None


def in_progress(store: ArtifactStore) -> list[str]:
    """Return the artifacts (``stage-fingerprint``) that some process is making now."""
    return [path.name for path in sorted((store.root / "locks").glob("*-*")) if locks.is_locked(path)]


def _is_artifact(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _names(entry: Entry, other: Entry) -> bool:
    return other.fingerprint in entry.digests or not other.files.isdisjoint(entry.digests)


def _read(folder: Path) -> Entry | None:
    """Return the entry of `folder`, or None if it vanished meanwhile."""
    try:
        touched = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
    try:
        sidecar = read_json(folder / SIDECAR)
        content, ingredients = str(sidecar["content"]), dict(sidecar["ingredients"])
        parts = {*sidecar.get("contents", {}).values()}
        files = frozenset({content} | parts | {entry["sha256"] for entry in sidecar["files"].values()})
        created = datetime.fromisoformat(sidecar["created"])
        state: State = "finished" if sidecar["fingerprint"] == folder.name else "incomplete"
    except (DataError, OSError, KeyError, TypeError, ValueError):
        content, files, ingredients, created, state = "", frozenset(), {}, touched, "damaged"
    last = next(reversed(read_uses(folder)), {})
    return Entry(
        stage=folder.parent.name,
        fingerprint=folder.name,
        folder=folder,
        content=content,
        size=folder_size(folder),
        created=created,
        files=files,
        used=max(created, touched),
        digests=frozenset(_digests(ingredients)),
        label=_label(ingredients),
        dataset=last.get("dataset", ""),
        recipe=last.get("recipe", ""),
        state=state,
    )


def _digests(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _digests(item)
    elif isinstance(value, list):
        for item in value:
            yield from _digests(item)
    elif isinstance(value, str) and _DIGEST.match(value):
        yield value


def _label(ingredients: Mapping[str, Any]) -> str:
    for key in ("recipe", "description"):
        part = ingredients.get(key)
        if isinstance(part, Mapping) and isinstance(part.get("name"), str):
            return part["name"]
    return ""


def _image_order(entry: Entry) -> str | None:
    """Return the digest that keys the decoded pixels of an index artifact (`reid.inputs.pixel_cache`)."""
    if entry.stage != "index" or entry.state == "damaged":
        return None
    from data.columns.json_rows import list_digest
    from data.columns.source import ParquetRows

    try:
        return list_digest(rows["sha256"] for rows in ParquetRows(entry.folder / "images.parquet").batches("sha256"))
    except (OSError, ValueError, KeyError):
        # The file is damaged although the sidecar is not: no by-product belongs to it.
        return None
