"""The artifact store: result folders, each named by the fingerprint of its ingredients.

A stage's *fingerprint* is the digest of its ingredients (input contents, config fields that can change the result,
versions). An artifact is written into a folder next to its final path, its files are listed in ``artifact.json``
(written last), and the folder is renamed. The files on disk decide: an artifact is valid only if every listed file
exists with the listed digest. Deleting, truncating or editing a file makes exactly its stage run again.

Layout under the root (``CLIP_SCGI_HOME``, default ``./artifacts``)::

    stages/<stage>/<fingerprint>/    finished artifacts
    work/<stage>/<fingerprint>/      checkpoints that a killed stage leaves for its next run
    locks/                           one lock file per artifact, held while it is made
    captions/<captioner>/            the caption store (captioning.store.store)
    digests.sqlite                   remembered digests of files
    shards/                          offsets and digests of the images in tar shards (data.sources.shards)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from data.artifacts.digests import MEMO_FILE, DigestMemo
from data.artifacts.fingerprint import digest, digest_file
from data.artifacts.root import HOME_VARIABLE, make_root, usable_root
from data.errors import DataError
from data.files import full_disk_explained, read_json, sync_file, sync_folder, write_json
from data.process import locks
from data.sources.shards import look_in

SIDECAR: Final = "artifact.json"
LABELS: Final = "labels.json"
REREAD_BYTES: Final = 64 << 20
"""Files up to this size are always read again (64 MiB take about 50 ms); larger ones only if size or times changed."""


@dataclass(frozen=True, kw_only=True)
class ArtifactRef:
    """A small reference to one finished artifact, which stages and tasks exchange.

    stage: name of the stage that made it. fingerprint: digest of its ingredients. content: digest of its files. Later
    stages depend on `content`, or on `digests_of` the files that they read. path: absolute folder.
    """

    stage: str
    fingerprint: str
    content: str
    path: str

    @property
    def folder(self) -> Path:
        """The artifact's folder."""
        return Path(self.path)

    def to_json(self) -> dict[str, str]:
        """Return plain fields; `ArtifactRef(**fields)` restores the reference."""
        return asdict(self)

    def digests_of(self, *names: str) -> dict[str, str]:
        """Return name -> sha256 of some files of this artifact, for stages that depend on these files only."""
        files = read_json(self.folder / SIDECAR)["files"]
        return {name: files[name]["sha256"] for name in names}

    def contents(self) -> dict[str, str]:
        """Return the content digests in artifact.json (`data.artifacts.contents`), {} if the artifact has none."""
        found: dict[str, str] = read_json(self.folder / SIDECAR).get("contents", {})
        return found


@dataclass(frozen=True, kw_only=True)
class Produced:
    """The outcome of `Stage.produce`, beside the files that it has written.

    complete: False for an artifact that later stages may use now, but that has to be made again in the next run. note:
    what was done, in a few words. contents: content digests (`data.artifacts.contents`).
    """

    complete: bool = True
    note: str = ""
    contents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Made:
    """The result of `Stage.make`. cached: the artifact was found, not made. produced: the default if it was found."""

    ref: ArtifactRef
    cached: bool
    produced: Produced = Produced()


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The record of an artifact, intact or not: its artifact.json and labels.json.

    fingerprint: None if the artifact is incomplete. files: name -> sha256. contents: see `data.artifacts.contents`.
    uses: the runs that used it ({"dataset": ..., "recipe": ...}), the latest last; no fingerprint depends on them.
    used: when it was last used, seconds since the epoch.
    """

    folder: Path
    fingerprint: str | None
    ingredients: dict[str, Any]
    files: dict[str, str]
    contents: dict[str, str]
    uses: list[dict[str, str]]
    used: float


def fingerprint_of(stage: str, ingredients: Mapping[str, Any]) -> str:
    """Return the fingerprint (32 hex digits) of a stage run on `ingredients` (plain JSON data)."""
    return digest({"stage": stage, "ingredients": dict(ingredients)})[:32]


class ArtifactStore:
    """The artifacts under one root folder: find, verify, draft and publish them."""

    def __init__(self, root: Path, *, reread_bytes: int = REREAD_BYTES) -> None:
        """Raise ConfigError for a path that cannot be a root (`data.artifacts.root.usable_root`)."""
        self.root = usable_root(root)
        self._reread_bytes = reread_bytes
        look_in(self.shards)

    @property
    def shards(self) -> Path:
        """Folder of the tables of tar shards."""
        return self.root / "shards"

    @classmethod
    def default(cls) -> ArtifactStore:
        """Return the store at ``CLIP_SCGI_HOME``, or ``./artifacts``."""
        return cls(Path(os.environ.get(HOME_VARIABLE) or "artifacts"))

    @property
    def memo(self) -> DigestMemo:
        """The digests remembered in this store."""
        return DigestMemo(self.root / MEMO_FILE)

    def folder(self, stage: str, fingerprint: str) -> Path:
        """Return the folder of the artifact of `stage` with `fingerprint`, whether it exists or not."""
        return self.root / "stages" / stage / fingerprint

    def scratch(self, stage: str, fingerprint: str) -> Path:
        """Return the folder for data that a killed stage needs when it runs again; removed when it has finished."""
        return self.root / "work" / stage / fingerprint

    def problems(self, stage: str, fingerprint: str) -> list[str]:
        """Return what is wrong with an artifact; an empty list if it is intact."""
        return self._inspect(stage, fingerprint)[1]

    def find(self, stage: str, fingerprint: str) -> ArtifactRef | None:
        """Return a reference to the artifact if it exists and is intact."""
        content, problems = self._inspect(stage, fingerprint)
        if problems:
            return None
        return ArtifactRef(
            stage=stage, fingerprint=fingerprint, content=content, path=str(self.folder(stage, fingerprint))
        )

    def touch(self, ref: ArtifactRef) -> None:
        """Mark an artifact as used now; `gc` counts its age from then."""
        with suppress(OSError):  # the store may be on a read-only disk
            os.utime(ref.folder)

    def _inspect(self, stage: str, fingerprint: str) -> tuple[str, list[str]]:
        """Return the content digest and the problems, from one read of the sidecar: another process may replace it."""
        folder = self.folder(stage, fingerprint)
        try:
            sidecar = read_json(folder / SIDECAR)
            files = {name: (entry["size"], entry["sha256"]) for name, entry in sidecar["files"].items()}
            owner, content = (sidecar["stage"], sidecar["fingerprint"]), sidecar["content"]
            listed = _content(sidecar["files"], sidecar.get("contents", {}))
        except FileNotFoundError:
            return "", ["absent"]
        except (DataError, OSError, AttributeError, KeyError, TypeError, ValueError):
            return "", [f"{SIDECAR} is damaged"]
        if owner != (stage, fingerprint):
            return "", [f"{SIDECAR} belongs to another artifact"]
        if content != listed:
            return "", [f"{SIDECAR} was changed"]
        found = (self._file_problem(folder, name, *expected) for name, expected in files.items())
        return content, [problem for problem in found if problem]

    def _file_problem(self, folder: Path, name: str, size: int, sha256: str) -> str | None:
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if size > self._reread_bytes:
                actual = self.memo.digest_folder(path.parent, [path.name])[path.name]
            else:
                actual = digest_file(path)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None if actual == sha256 else f"{name} was changed"

    @contextmanager
    def draft(self, stage: str, fingerprint: str) -> Iterator[Path]:
        """Yield an empty folder next to the artifact's path; remove it at the end unless `publish` has moved it there.

        Call it under `lock`. Raises ClipScgiError when the disk is full.
        """
        parent = self.folder(stage, fingerprint).parent
        parent.mkdir(parents=True, exist_ok=True)
        self._sweep(stage, fingerprint)  # drafts of killed processes: this process holds the lock
        try:
            with full_disk_explained(self.root, f"stage {stage} could not finish"):
                yield Path(tempfile.mkdtemp(prefix=f".{fingerprint}.", dir=parent))
        finally:
            self._sweep(stage, fingerprint)

    def publish(self, draft: Path, stage: str, ingredients: Mapping[str, Any], produced: Produced) -> ArtifactRef:
        """Write artifact.json into `draft`, move the folder to the artifact's path, and return the reference."""
        fingerprint = fingerprint_of(stage, ingredients)
        content = _seal(draft, stage, ingredients, produced)
        final = self.folder(stage, fingerprint)
        if final.exists():  # damaged: `find` returns intact artifacts
            final.rename(draft.with_name(f".{fingerprint}.damaged"))
        draft.rename(final)
        sync_folder(final.parent)
        shutil.rmtree(self.scratch(stage, fingerprint), ignore_errors=True)
        return ArtifactRef(stage=stage, fingerprint=fingerprint, content=content, path=str(final))

    def _sweep(self, stage: str, fingerprint: str) -> None:
        for leftover in self.folder(stage, fingerprint).parent.glob(f".{fingerprint}.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def sidecars(self, stage: str) -> list[Sidecar]:
        """Return the records of the artifacts of `stage`, except for those with a damaged artifact.json."""
        folders = sorted(path for path in (self.root / "stages" / stage).glob("[!.]*") if path.is_dir())
        return [found for folder in folders if (found := _read_sidecar(folder)) is not None]

    def known(self, stage: str) -> set[str]:
        """Return the fingerprints of `stage` that were ever made or begun in this store, even if deleted since."""
        prefix = f"{stage}-"
        return {path.name.removeprefix(prefix) for path in (self.root / "locks").glob(f"{prefix}*")}

    def record_use(self, ref: ArtifactRef, *, dataset: str, recipe: str) -> None:
        """Mark an artifact as used now, and record for which dataset and recipe; no fingerprint depends on it."""
        self.touch(ref)
        uses, now = read_uses(ref.folder), {"dataset": dataset, "recipe": recipe}
        if uses[-1:] == [now]:
            return
        with suppress(OSError):  # the store may be on a read-only disk
            write_json(ref.folder / LABELS, [*(use for use in uses if use != now), now])

    @contextmanager
    def lock(self, stage: str, fingerprint: str) -> Iterator[None]:
        """Hold the lock of an artifact while making it; other processes wait until the block ends."""
        make_root(self.root)
        with locks.lock(self.lock_file(stage, fingerprint)):
            yield

    def lock_file(self, stage: str, fingerprint: str) -> Path:
        """Return the lock file of an artifact."""
        return self.root / "locks" / f"{stage}-{fingerprint}"


def _seal(folder: Path, stage: str, ingredients: Mapping[str, Any], produced: Produced) -> str:
    """Write artifact.json into `folder` after all other files, and return the content digest."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync_file(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"size": path.stat().st_size, "sha256": digest_file(path)}
    if not files:
        raise DataError(f"stage {stage} did not write any file into {folder}")
    contents = dict(produced.contents)
    content = _content(files, contents)
    sidecar = {
        "stage": stage,
        # None if incomplete: the artifact can be read, but `find` does not return it.
        "fingerprint": fingerprint_of(stage, ingredients) if produced.complete else None,
        "ingredients": dict(ingredients),
        "content": content,
        "files": files,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / SIDECAR, sidecar | ({"contents": contents} if contents else {}))
    folder.chmod(0o755)
    return content


def _read_sidecar(folder: Path) -> Sidecar | None:
    try:
        found = read_json(folder / SIDECAR)
        return Sidecar(
            folder=folder,
            fingerprint=found["fingerprint"],
            ingredients=dict(found["ingredients"]),
            files={name: entry["sha256"] for name, entry in found["files"].items()},
            contents=dict(found.get("contents", {})),
            uses=read_uses(folder),
            used=folder.stat().st_mtime,
        )
    except (DataError, OSError, AttributeError, KeyError, TypeError, ValueError):
        return None


def read_uses(folder: Path) -> list[dict[str, str]]:
    """Return what `record_use` has written; an empty list if the file is missing or damaged."""
    try:
        found = read_json(folder / LABELS)
        return [{name: str(use[name]) for name in ("dataset", "recipe")} for use in found]
    except (DataError, OSError, KeyError, TypeError):
        return []


def _content(files: Mapping[str, Mapping[str, Any]], contents: Mapping[str, str]) -> str:
    digests = {name: entry["sha256"] for name, entry in files.items()}
    return digest([digests, dict(contents)] if contents else digests)[:32]
