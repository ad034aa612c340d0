"""The artifact root that a command works in."""

from __future__ import annotations

from pathlib import Path

from data.artifacts.store import ArtifactStore


def artifact_store(home: Path | None) -> ArtifactStore:
    """Return the store at `home`; without one, at ``CLIP_SCGI_HOME`` or ``./artifacts``."""
    return ArtifactStore(home) if home else ArtifactStore.default()
