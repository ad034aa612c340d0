"""The folder of a dataset's images, which no artifact names: an index lists paths relative to it.

The store remembers the digest of each file that it has indexed by absolute path (`data.artifacts.digests`,
`data.sources.shards`), so a file with the right digest and the right end of its path gives the folder. A folder that
the user names is tried first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.artifacts.store import ArtifactStore
from data.errors import ClipScgiError, RejectedRow
from data.files import inside
from data.sources.places import is_file
from data.sources.shards import roots_of


def find_root(
    store: ArtifactStore, paths: Sequence[str], digests: Sequence[str], folders: Sequence[Path] = ()
) -> Path | None:
    """Return the folder that contains the most of a few images, None if none of them is found.

    paths, digests: some images of the index: relative path and sha256.
    """
    path_of = dict(zip(digests, paths, strict=True))
    known = [_above(place, path_of[sha256]) for place, sha256 in store.memo.files_with(path_of)]
    in_shards = [root for sha256, path in path_of.items() for root in roots_of(store.shards, path, sha256)]
    candidates = [*folders, *(folder for folder in known if folder is not None), *in_shards]
    counted = {folder: sum(_exists(folder, path) for path in paths) for folder in dict.fromkeys(candidates)}
    best = max(counted, key=lambda folder: counted[folder], default=None)
    return best if best is not None and counted[best] else None


def _above(place: Path, path: str) -> Path | None:
    """Return the folder in which `path` is the file `place`, None if `place` ends differently."""
    ending = f"/{path}"
    return Path(str(place).removesuffix(ending)) if str(place).endswith(ending) else None


def _exists(folder: Path, path: str) -> bool:
    try:
        return is_file(inside(folder, path))
    except (OSError, RejectedRow, ClipScgiError):
        return False
