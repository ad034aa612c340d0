"""Agreement of the captions of one identity, slot by slot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns.codes import Code, Codes, Votes, votes
from data.people import is_person
from data.schemas import SCHEMA_VERSION
from data.slots import SLOTS

if TYPE_CHECKING:
    import pandas as pd

IDENTITIES: Final = pa.schema(
    [
        ("pid", pa.int64()),
        ("slot", pa.string()),
        ("n_images", pa.int64()),
        ("n_named", pa.int64()),  # images whose caption names a value
        ("majority", pa.string()),  # null if no caption does
        ("agreement", pa.float64()),  # share of n_named with the majority value; null if n_named is 0
        ("entropy", pa.float64()),  # bits
        ("values", pa.string()),  # JSON object: value -> images
    ],
    metadata={b"clip_scgi_schema": str(SCHEMA_VERSION).encode()},
)
"""identities.parquet: one row per identity and slot, then schemas.LABEL if the captions have it; junk and distractors
are left out."""


class SlotSummary(TypedDict):
    """The figures of one slot.

    coverage: share of all captions that answer it. agreement: share of the answers that equal the majority of their
    identity; 1 if there are none. entropy: mean bits per identity. values: value -> number of images, in all captions.
    Agreement and entropy cover the identities of known people with at least two answers, weighted by answers.
    """

    coverage: float
    agreement: float
    entropy: float
    values: dict[str, int]


def people(captions: pd.DataFrame) -> pd.Series[bool]:
    """Return a mask of the rows that show a known person, as `data.people` defines it."""
    import pandas as pd

    known = is_person(captions["split"].to_numpy(), captions["pid"].to_numpy())
    return pd.Series(known, index=captions.index, dtype=bool)


class Agreement:
    """The agreement of the identities of known people, [G] sorted, in each slot.

    n_images: captions of each identity, [G]. n_named: those that answer the slot, [G, slots]. majority: the most
    frequent answer, for ties the first in alphabetical order, -1 without answers, [G, slots]. agreement: its share of
    n_named, NaN without answers. entropy: bits.
    """

    def __init__(self, pids: NDArray[np.int64], answers: Code, values: Sequence[Sequence[str]]) -> None:
        """pids, answers: of the captions of known people. values: code -> text of each slot, in the order of texts."""
        self.pids, person = np.unique(pids, return_inverse=True)
        self.n_images = np.bincount(person, minlength=len(self.pids))
        self._values = values
        self._votes = [votes(person, answers[:, slot]) for slot in range(len(SLOTS))]
        shape = (len(self.pids), len(SLOTS))
        self.n_named = np.zeros(shape, dtype=np.int64)
        self.majority = np.full(shape, -1, dtype=np.int32)
        self.agreement = np.full(shape, np.nan)
        self.entropy = np.zeros(shape)
        for slot, given in enumerate(self._votes):
            self._measure(slot, given)

    def _measure(self, slot: int, given: Votes) -> None:
        import pandas as pd

        first = given.leaders(np.arange(len(self._values[slot])))
        group = given.groups[first]
        self.n_named[group, slot] = given.totals[first]
        self.majority[group, slot] = given.codes[first]
        self.agreement[group, slot] = given.counts[first] / given.totals[first]
        share = given.counts / given.totals
        self.entropy[group, slot] = pd.Series(-share * np.log2(share)).groupby(given.groups).sum().to_numpy()

    def of(self, pids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each identity, -1 for one that is not a known person."""
        if not len(self.pids):
            return np.full(len(pids), -1, dtype=np.int64)
        at = np.searchsorted(self.pids, pids).clip(max=len(self.pids) - 1)
        return np.where(self.pids[at] == pids, at, -1)

    def majority_text(self, group: int, slot: int) -> str | None:
        """Return the majority value of an identity in a slot."""
        code = int(self.majority[group, slot])
        return None if code < 0 else self._values[slot][code]

    def table(self, start: int, stop: int) -> pa.Table:
        """Return the rows of `IDENTITIES` of the identities from `start` to `stop`."""
        part, count = slice(start, stop), len(self.pids[start:stop])
        majority = [_texts(self._values[slot], self.majority[part, slot]) for slot in range(len(SLOTS))]
        columns = {
            "pid": np.repeat(self.pids[part], len(SLOTS)),
            "slot": pa.array(SLOTS).take(np.tile(np.arange(len(SLOTS)), count)),
            "n_images": np.repeat(self.n_images[part], len(SLOTS)),
            "n_named": self.n_named[part].reshape(-1),
            "majority": _interleaved(majority),
            "agreement": pa.array(self.agreement[part].reshape(-1), from_pandas=True),
            "entropy": self.entropy[part].reshape(-1),
            "values": _interleaved([self._tallies(slot, start, stop) for slot in range(len(SLOTS))]),
        }
        return pa.table(columns, schema=IDENTITIES)

    def _tallies(self, slot: int, start: int, stop: int) -> pa.Array:
        """Return the JSON object value -> images of each identity."""
        given = self._votes[slot]
        first, last = np.searchsorted(given.groups, (start, stop))
        quoted = [json.dumps(value, ensure_ascii=False) + ":" for value in self._values[slot]]
        counts = pa.array(given.counts[first:last]).cast(pa.string())
        entries = pc.binary_join_element_wise(_texts(quoted, given.codes[first:last]), counts, "")
        stop = min(stop, len(self.pids))
        offsets = np.searchsorted(given.groups[first:last], np.arange(start, stop + 1)).astype(np.int32)
        joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), entries), ",")
        return pc.binary_join_element_wise("{", joined, "}", "")


def _texts(values: Sequence[str], codes: Code) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(codes, mask=codes < 0))


def _interleaved(columns: Sequence[pa.Array]) -> pa.Array:
    """Return the first value of each column, then the second of each, and so on."""
    order = np.arange(sum(map(len, columns))).reshape(len(columns), -1).T.reshape(-1)
    return pa.concat_arrays(columns).take(pa.array(order))


def identity_table(captions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `IDENTITIES` of captions of known people, given as rows of captions.parquet."""
    codes = [Codes() for _ in SLOTS]
    columns = [pa.array(captions[f"attr_{slot}"], pa.string(), from_pandas=True) for slot in SLOTS]
    answers = [code.encode(column) for code, column in zip(codes, columns, strict=True)]
    ranked = [np.append(code.ranks(), -1).astype(np.int32)[given] for code, given in zip(codes, answers, strict=True)]
    values = [sorted(code.values) for code in codes]
    found = Agreement(captions["pid"].to_numpy(dtype=np.int64), np.stack(ranked, axis=1), values)
    return found.table(0, len(found.pids)).to_pandas()


def slot_summary(answers: Code, values: Sequence[Sequence[str]], identities: Agreement) -> dict[str, SlotSummary]:
    """Return slot -> its figures. answers, values: of all captions, as `Agreement` takes those of known people."""
    summary: dict[str, SlotSummary] = {}
    for at, slot in enumerate(SLOTS):
        codes = answers[:, at]
        counts = np.bincount(codes[codes >= 0], minlength=len(values[at]))
        several = identities.n_named[:, at] >= 2
        weight = identities.n_named[several, at]
        total = int(weight.sum())
        summary[slot] = {
            "coverage": float(counts.sum()) / max(len(codes), 1),
            "agreement": float((identities.agreement[several, at] * weight).sum()) / total if total else 1.0,
            "entropy": abs(float((identities.entropy[several, at] * weight).sum())) / total if total else 0.0,
            "values": {value: n for value, n in zip(values[at], counts.tolist(), strict=True) if n},
        }
    return summary


def mixed_gender_identities(identities: Agreement) -> int:
    """Count the identities whose captions name more than one gender."""
    return int((identities.agreement[:, SLOTS.index("gender")] < 1).sum())
