"""Rows of the table: what a check wanted, what it got, and whether that is enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["pass", "fail", "measured", "not run"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table and of the JSON.

    why: reason for a failure, or for not running. figures: the numbers behind `got`.
    """

    part: str
    name: str
    want: str
    status: Status
    got: str = ""
    why: str = ""
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a check found. passed: None if the value is only measured."""

    got: str
    passed: bool | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


class NotRun(Exception):  # noqa: N818 - not an error
    """Raised by a check that cannot run here; the message is the reason."""


def all_of(*given: bool | None) -> bool | None:
    """Return the verdict of several targets: None if none of them is judged."""
    judged = [value for value in given if value is not None]
    return all(judged) if judged else None


def at_least(value: float, bound: float | None) -> bool | None:
    """Return whether `value` reaches `bound`; a NaN does not. None for a bound of None, which judges nothing."""
    return None if bound is None else value >= bound


def at_most(value: float, bound: float | None) -> bool | None:
    """Return whether `value` stays within `bound`; a NaN does not. None for a bound of None, which judges nothing."""
    return None if bound is None else not math.isnan(value) and value <= bound
