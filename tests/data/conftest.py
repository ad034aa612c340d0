"""Fixtures of several files: an artifact store, and a small dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data.artifacts.store import ArtifactStore
from data.sources import remote
from tests.helpers.data_trees import market, settle


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    """Return an empty artifact store."""
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def root(tmp_path) -> Path:
    """Write a small Market-1501, old enough for the digests of its files to be kept."""
    folder = market(tmp_path / "set")
    settle()
    return folder


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """Return the memory file system, emptied, without what earlier tests listed."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()
    remote._LISTINGS.clear()
