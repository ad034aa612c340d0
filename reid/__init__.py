"""Stage 2: train a model on images and captions, evaluate it, embed images and sentences, and search with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid.embedding.embedder import Embedder

__all__ = ["Embedder"]


def __getattr__(name: str) -> Any:
    """Return `Embedder`, imported when it is first used, because it loads torch."""
    if name == "Embedder":
        from reid.embedding.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
