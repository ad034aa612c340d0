"""Findings of the checks: a problem or a notice, and the area that it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, get_args

Area = Literal["settings", "data", "sampler", "weights", "server", "device", "disk"]
AREAS: Final[tuple[Area, ...]] = get_args(Area)
"""The areas in the order in which their findings are shown."""


class Finding(NamedTuple):
    """A problem or a notice. text: what is wrong, where, and what to do."""

    area: Area
    text: str


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings by area, each once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: AREAS.index(finding.area))


def texts_of(findings: Iterable[Finding]) -> list[str]:
    """Return the texts of the findings, by area."""
    return [finding.text for finding in in_order(findings)]
