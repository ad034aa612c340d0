"""Published figures that the tables of ``clip-scgi paper`` show beside their own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

BACKBONE: Final = "vit_b16"
"""Backbone of all published figures here."""
DATASETS: Final[Mapping[str, str]] = MappingProxyType({"market1501": "Market-1501", "msmt17": "MSMT17"})
"""Name of a dataset in recipes -> its name in tables."""


class Published(NamedTuple):
    """mAP and Rank-1 in percent, single query, without re-ranking, at 256 x 128."""

    mean_ap: float
    rank1: float


PUBLISHED: Final[Mapping[str, Mapping[str, Published]]] = MappingProxyType(
    {
        "baseline": {"market1501": Published(86.4, 93.3), "msmt17": Published(66.1, 84.4)},
        "cgi": {"market1501": Published(89.6, 95.5), "msmt17": Published(71.5, 87.6)},
        "cff": {"market1501": Published(93.6, 95.6), "msmt17": Published(85.2, 90.9)},
        "scgi": {"market1501": Published(96.0, 97.6), "msmt17": Published(88.2, 92.9)},
    }
)
"""Variant of the study -> dataset -> figures: baseline as in arXiv:2211.13977, the others as in arXiv:2410.09382."""
