"""The artefact store: results in folders named by what they were made from.

A stage's *fingerprint* is the digest of its ingredients (input contents, config fields that matter, versions). The
artefact is written into a folder beside its final place, listed file by file in ``artifact.json`` (written last),
and renamed. The disk is the truth: an artefact counts only if every listed file is there with the listed digest, so
deleting, truncating or editing one makes exactly its stage run again.

Layout under the root (``CLIP_SCGI_HOME``, default ``./artifacts``)::

    stages/<stage>/<fingerprint>/    finished artefacts
    work/<stage>/<fingerprint>/      what a killed stage leaves for the next try (checkpoints)
    locks/                           one lock file an artefact being made
    captions/<captioner>/            the append-only caption store (captioning.store.store)
    digests.sqlite                   remembered digests of files seen before
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

from data.artifacts.digests import DigestMemo
from data.artifacts.fingerprint import digest, digest_file
from data.errors import ConfigError, DataError
from data.files import full_disk_explained, read_json, sync_file, sync_folder, write_json
from data.process import locks

SIDECAR: Final = "artifact.json"
LABELS: Final = "labels.json"
HOME_VARIABLE: Final = "CLIP_SCGI_HOME"
REREAD_BYTES: Final = 64 << 20
"""Largest file that is always read again; a larger one is recalled by size and times. 64 MiB read in about 50 ms."""


@dataclass(frozen=True, kw_only=True)
class ArtifactRef:
    """A small reference to one finished artefact; this is what stages and tasks exchange.

    stage: name of the stage that made it. fingerprint: digest of its ingredients. content: digest of its files; later
    stages depend on it, or on `digests_of` the files they read. path: absolute folder.
    """

    stage: str
    fingerprint: str
    content: str
    path: str

    @property
    def folder(self) -> Path:
        """The artefact's folder."""
        return Path(self.path)

    def to_json(self) -> dict[str, str]:
        """Return the plain fields; `ArtifactRef(**fields)` is the way back."""
        return asdict(self)

    def digests_of(self, *names: str) -> dict[str, str]:
        """Return name -> sha256 of some files of this artefact: what a stage that reads only these depends on."""
        files = read_json(self.folder / SIDECAR)["files"]
        return {name: files[name]["sha256"] for name in names}

    def contents(self) -> dict[str, str]:
        """Return the content digests that were given to `ArtifactStore.make` (see `contents`); {} if none were."""
        found: dict[str, str] = read_json(self.folder / SIDECAR).get("contents", {})
        return found


@dataclass(frozen=True, kw_only=True)
class Produced:
    """What a stage tells about the files it has written.

    complete: False for an artifact that is handed on but must count as absent next time. note: what was done, in a few
    words. contents: digests of parts of the files, for stages that depend on these alone (see `contents`).
    """

    complete: bool = True
    note: str = ""
    contents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage returns: the reference, whether it was found instead of made, and what the stage told."""

    ref: ArtifactRef
    cached: bool
    produced: Produced = Produced()


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What is written about an artifact, intact or not.

    fingerprint: None where the artifact is incomplete. files: name -> sha256. contents: see `contents`. uses: what
    used it ({"dataset": ..., "recipe": ...}), the last one at the end; no fingerprint depends on it. used: when it was
    last used, seconds since the epoch.
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
    """Finds, verifies and makes artefacts under one root folder."""

    def __init__(self, root: Path, *, reread_bytes: int = REREAD_BYTES) -> None:
        """Raise ConfigError for a root whose name is not UTF-8: artifacts name their files in JSON."""
        self.root = root.expanduser().resolve()
        self._reread_bytes = reread_bytes
        try:
            str(self.root).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"the artifact root {str(self.root).encode(errors='replace').decode()} has a name that is not UTF-8: "
                f"set --home or {HOME_VARIABLE} to another folder"
            ) from None

    @classmethod
    def default(cls) -> ArtifactStore:
        """Return the store at ``CLIP_SCGI_HOME``, or ``./artifacts``."""
        return cls(Path(os.environ.get(HOME_VARIABLE) or "artifacts"))

    @property
    def memo(self) -> DigestMemo:
        """The remembered digests that live in this store."""
        return DigestMemo(self.root / "digests.sqlite")

    def folder(self, stage: str, fingerprint: str) -> Path:
        """Return where the artefact of `stage` with `fingerprint` lives, present or not."""
        return self.root / "stages" / stage / fingerprint

    def scratch(self, stage: str, fingerprint: str) -> Path:
        """Return the folder in which a stage keeps what its next try can use; removed once it has finished."""
        return self.root / "work" / stage / fingerprint

    def problems(self, stage: str, fingerprint: str) -> list[str]:
        """Say what is wrong with an artefact: an empty list means intact."""
        return self._inspect(stage, fingerprint)[1]

    def find(self, stage: str, fingerprint: str) -> ArtifactRef | None:
        """Return a reference to the artefact if it is there and intact."""
        content, problems = self._inspect(stage, fingerprint)
        if problems:
            return None
        folder = self.folder(stage, fingerprint)
        with suppress(OSError):  # a store on a read-only disk serves as well
            os.utime(folder)  # its age counts from the last use
        return ArtifactRef(stage=stage, fingerprint=fingerprint, content=content, path=str(folder))

    def _inspect(self, stage: str, fingerprint: str) -> tuple[str, list[str]]:
        """Return the content digest and the problems, from one reading of the sidecar: it may be replaced meanwhile."""
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
            return "", [f"{SIDECAR} belongs to another artefact"]
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
        """Yield an empty folder beside the artifact's place, removed at the end unless `publish` has moved it there.

        Call it under `lock`. Raises ClipScgiError when the disk is full.
        """
        parent = self.folder(stage, fingerprint).parent
        parent.mkdir(parents=True, exist_ok=True)
        self._sweep(stage, fingerprint)  # left by a killed process: the lock is ours
        try:
            with full_disk_explained(self.root, f"stage {stage} could not finish"):
                yield Path(tempfile.mkdtemp(prefix=f".{fingerprint}.", dir=parent))
        finally:
            self._sweep(stage, fingerprint)

    def publish(self, draft: Path, stage: str, ingredients: Mapping[str, Any], produced: Produced) -> ArtifactRef:
        """Seal the files in `draft` with artifact.json, move them to their place, and return the reference."""
        fingerprint = fingerprint_of(stage, ingredients)
        content = _seal(draft, stage, ingredients, produced)
        final = self.folder(stage, fingerprint)
        if final.exists():  # damaged, or `find` would have returned it
            final.rename(draft.with_name(f".{fingerprint}.damaged"))
        draft.rename(final)
        sync_folder(final.parent)
        shutil.rmtree(self.scratch(stage, fingerprint), ignore_errors=True)
        return ArtifactRef(stage=stage, fingerprint=fingerprint, content=content, path=str(final))

    def _sweep(self, stage: str, fingerprint: str) -> None:
        for leftover in self.folder(stage, fingerprint).parent.glob(f".{fingerprint}.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def sidecars(self, stage: str) -> list[Sidecar]:
        """Return what is written about the artifacts of `stage`; those whose artifact.json is damaged are left out."""
        folders = sorted(path for path in (self.root / "stages" / stage).glob("[!.]*") if path.is_dir())
        return [found for folder in folders if (found := _read_sidecar(folder)) is not None]

    def known(self, stage: str) -> set[str]:
        """Return the fingerprints of `stage` that were made here, or begun, whether they are still there or not."""
        prefix = f"{stage}-"
        return {path.name.removeprefix(prefix) for path in (self.root / "locks").glob(f"{prefix}*")}

    def record_use(self, ref: ArtifactRef, *, dataset: str, recipe: str) -> None:
        """Write down, beside an artifact, for whom it was used last: a label for people, part of no fingerprint."""
        uses, now = read_uses(ref.folder), {"dataset": dataset, "recipe": recipe}
        if uses[-1:] == [now]:
            return
        with suppress(OSError):  # a store on a read-only disk serves as well
            write_json(ref.folder / LABELS, [*(use for use in uses if use != now), now])

    @contextmanager
    def lock(self, stage: str, fingerprint: str) -> Iterator[None]:
        """Be the only process that makes this; the others wait until the block ends."""
        with locks.lock(self.lock_file(stage, fingerprint)):
            yield

    def lock_file(self, stage: str, fingerprint: str) -> Path:
        """Return the file whose lock the maker of an artifact holds."""
        return self.root / "locks" / f"{stage}-{fingerprint}"


def _seal(folder: Path, stage: str, ingredients: Mapping[str, Any], produced: Produced) -> str:
    """Write artifact.json into `folder`, last of all its files, and return the content digest."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync_file(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"size": path.stat().st_size, "sha256": digest_file(path)}
    if not files:
        raise DataError(f"stage {stage} wrote no file into {folder}")
    contents = dict(produced.contents)
    content = _content(files, contents)
    sidecar = {
        "stage": stage,
        # An incomplete artifact has no fingerprint: it can be read, but never counts as found.
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
    """Return what `record_use` has written; nothing where that is absent or damaged, as it is only a label."""
    try:
        found = read_json(folder / LABELS)
        return [{name: str(use[name]) for name in ("dataset", "recipe")} for use in found]
    except (DataError, OSError, KeyError, TypeError):
        return []


def _content(files: Mapping[str, Mapping[str, Any]], contents: Mapping[str, str]) -> str:
    digests = {name: entry["sha256"] for name, entry in files.items()}
    return digest([digests, dict(contents)] if contents else digests)[:32]
