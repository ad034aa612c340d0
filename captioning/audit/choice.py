"""The captions and identities that the audit page shows, chosen by numbers, and their rows of captions.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.audit.agreement import Agreement
from captioning.audit.columns import Captions
from captioning.audit.flags import FLAGS, Flags
from captioning.config import AuditConfig
from data.columns.source import ParquetRows
from data.people import Names, identity_names
from data.schemas import LABEL
from data.slots import SLOTS
from data.splits import SPLITS

_IMAGES: Final = 8  # of one identity
_COLUMNS: Final = (
    *("image_path", "image_sha256", "pid", "camid", "split", "raw_text", "error"),
    *(f"attr_{slot}" for slot in SLOTS),
)

Row = Mapping[str, Any]
"""A row of captions.parquet, an empty text for every null."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The rows of the chosen captions. rows: by their number in captions.parquet. names: of their identities."""

    rows: Mapping[int, Row]
    names: Names

    def digests(self) -> dict[str, str]:
        """Return path -> sha256 of the images."""
        return {row["image_path"]: row["image_sha256"] for row in self.rows.values()}


@dataclass(frozen=True, kw_only=True)
class Worst:
    """An identity whose captions differ. group: its row in `Agreement`. captions: numbers of those shown."""

    group: int
    agreement: float
    splits: Sequence[str]
    captions: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the page shows. worst: identities. flagged: flag -> numbers of the captions shown. counts: flag -> split ->
    captions that have it. splits: split -> captions.
    """

    identities: Agreement
    dissents: NDArray[np.bool_]
    worst: Sequence[Worst]
    flagged: Mapping[str, Sequence[int]]
    counts: Mapping[str, Mapping[str, int]]
    splits: Mapping[str, int]

    @classmethod
    def of(cls, captions: Captions, identities: Agreement, flags: Flags, config: AuditConfig) -> Choice:
        """Choose up to `config.shown` identities, and captions per flag."""
        everywhere = _per_split(captions.splits)
        return cls(
            identities=identities,
            dissents=flags.dissents,
            worst=[_worst(captions, identities, *found) for found in _least_agreement(identities, config.shown)],
            flagged={flag: in_turn(captions, np.flatnonzero(flags.raised[flag]), config.shown) for flag in FLAGS},
            counts={flag: _per_split(captions.splits[flags.raised[flag]]) for flag in FLAGS},
            splits={split: n for split, n in everywhere.items() if n},
        )

    def read(self, source: ParquetRows) -> Shown:
        """Read the rows of the chosen captions, and the labels of their identities."""
        wanted = np.unique([*chain(*self.flagged.values(), *(worst.captions for worst in self.worst))]).astype(np.int64)
        found: list[pa.Table] = []
        start = 0
        for rows in source.batches(*_COLUMNS):
            first, last = np.searchsorted(wanted, (start, start + rows.num_rows))
            found.append(rows.take(pa.array(wanted[first:last] - start)))
            start += rows.num_rows
        table = pa.concat_tables(found) if found else pa.table({name: [] for name in _COLUMNS})
        records = [{name: "" if value is None else value for name, value in row.items()} for row in table.to_pylist()]
        return Shown(rows=dict(zip(wanted.tolist(), records, strict=True)), names=_names(source, table["pid"]))


def _names(source: ParquetRows, pids: pa.ChunkedArray) -> Names:
    """Return the names of some identities."""
    if LABEL.name not in source.names:
        return identity_names([], [])
    known: set[tuple[int, str]] = set()
    for rows in source.batches("pid", LABEL.name):
        of_shown = rows.filter(pc.is_in(rows["pid"], value_set=pc.unique(pids).cast(pa.int64())))
        pairs = of_shown.group_by(["pid", LABEL.name]).aggregate([])
        known.update(zip(pairs["pid"].to_pylist(), pairs[LABEL.name].to_pylist(), strict=True))
    return identity_names(*zip(*sorted(known), strict=True)) if known else identity_names([], [])


def _per_split(splits: NDArray[np.int8]) -> dict[str, int]:
    return dict(zip(SPLITS, np.bincount(splits, minlength=len(SPLITS)).tolist(), strict=True))


def _least_agreement(identities: Agreement, count: int) -> list[tuple[int, float]]:
    """Return the identities with the least mean agreement over the slots that at least two captions answer."""
    import pandas as pd  # a cached audit does not load it

    answered = np.where(identities.n_named >= 2, identities.agreement, np.nan)
    groups, slots = np.nonzero(~np.isnan(answered))
    mean = pd.Series(answered[groups, slots]).groupby(groups).mean()
    # Stable, and groupby sorts by identity: equals stay in the order of their numbers.
    worst = mean[mean < 1].sort_values(kind="stable")[:count]
    return list(zip(worst.index.tolist(), worst.tolist(), strict=True))


def _worst(captions: Captions, identities: Agreement, group: int, agreement: float) -> Worst:
    own = np.flatnonzero(captions.pids == identities.pids[group])
    splits = [split for at, split in enumerate(SPLITS) if (captions.splits[own] == at).any()]
    return Worst(group=group, agreement=agreement, splits=splits, captions=in_turn(captions, own, _IMAGES))


def in_turn(captions: Captions, numbers: NDArray[np.int64], count: int) -> list[int]:
    """Return up to `count` of some captions: splits take turns, and each shows every identity before any twice."""
    import pandas as pd

    turn = pd.Series(captions.pids[numbers]).groupby(captions.pids[numbers]).cumcount().to_numpy()
    ordered = numbers[np.argsort(turn, kind="stable")]
    groups = [ordered[captions.splits[ordered] == split][:count].tolist() for split in range(len(SPLITS))]
    turns = chain.from_iterable(zip_longest(*groups))
    return [at for at in turns if at is not None][:count]
