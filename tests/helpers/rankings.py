"""Features and labels for tests of ranking."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class RankingWorld(NamedTuple):
    """Arguments of `evaluate_ranking`, in its order."""

    query_features: NDArray[np.float32]
    gallery_features: NDArray[np.float32]
    query_pids: NDArray[np.int64]
    gallery_pids: NDArray[np.int64]
    query_camids: NDArray[np.int64]
    gallery_camids: NDArray[np.int64]


def gaussian_world(seed: int = 0, q: int = 150, g: int = 900, dim: int = 64, people: int = 30) -> RankingWorld:
    """Return `q` queries and `g` gallery images, scattered around one center per person, junk among them."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((people + 1, dim))
    q_pids, g_pids = rng.integers(1, people + 1, q), rng.integers(-1, people + 1, g)
    query = (centers[q_pids] + 2 * rng.standard_normal((q, dim))).astype(np.float32) * 3
    gallery = (centers[g_pids] + 2 * rng.standard_normal((g, dim))).astype(np.float32)
    return RankingWorld(query, gallery, q_pids, g_pids, rng.integers(1, 5, q), rng.integers(1, 5, g))
