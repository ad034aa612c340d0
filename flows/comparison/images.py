"""The test images of an evaluation, from the index artifact of its dataset, and the folder that contains them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from data.artifacts.contents import image_contents
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import DataError
from data.people import JUNK, Names
from data.splits import GALLERY
from data.stages.images import IndexedImages
from flows.comparison.runs import Run

_SAMPLE: Final = 200
"""Files that are looked up among the remembered ones: not all of them are there, and some may have been moved."""


@dataclass(frozen=True, kw_only=True)
class TestImages:
    """Queries and gallery of an evaluation.

    digests: path -> sha256. names: of the identities. gallery: sha256 -> number of gallery images, without junk.
    """

    digests: Mapping[str, str]
    names: Names
    gallery: Counter[str]


def find_test_images(run: Run, store: ArtifactStore) -> TestImages | None:
    """Return the test images of `run` from an index artifact of `store`, or None if it has none with these images."""
    for ref in _index_artifacts(store):
        with suppress(DataError):  # a damaged index is as good as none
            if run.test_images and image_contents(ref)["ranked"] == run.test_images:
                return _read(IndexedImages(ref=ref, root=Path()))
    return None


def _index_artifacts(store: ArtifactStore) -> Iterator[ArtifactRef]:
    for sidecar in reversed(store.sidecars("index")):
        if sidecar.fingerprint:
            yield ArtifactRef(
                stage="index", fingerprint=sidecar.fingerprint, content="", path=str(sidecar.folder.absolute())
            )


def _read(images: IndexedImages) -> TestImages:
    table = images.rows("split", "pid", "sha256")
    rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    counted = (sha256 for split, pid, sha256 in rows if split == GALLERY and pid != JUNK)
    return TestImages(digests=images.digests(), names=images.names(), gallery=Counter(counted))


def find_root(images: TestImages, store: ArtifactStore) -> Path | None:
    """Return the folder that the paths of `images` are relative to, or None if no such folder is known or exists.

    No artifact records the folder, but the store remembers the digests of indexed files by their absolute paths.
    """
    step = max(1, len(images.digests) // _SAMPLE)
    path_of = {sha256: path for path, sha256 in [*images.digests.items()][::step]}
    for file, sha256 in store.memo.files_with(path_of):
        depth = len(PurePosixPath(path_of[sha256]).parts)
        root = file.parents[min(depth, len(file.parents)) - 1]
        if root / path_of[sha256] == file and root.is_dir():
            return root
    return None
