"""Agreement of the captions of one identity, slot by slot. Pure functions of the rows of captions.parquet."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypedDict

from data.artifacts.fingerprint import canonical_json
from data.people import is_person
from data.slots import SLOTS

if TYPE_CHECKING:
    import pandas as pd


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


def identity_table(captions: pd.DataFrame) -> pd.DataFrame:
    """Return one row per identity and slot, sorted by identity and slot order.

    captions: rows of known people. Columns: pid, slot, n_images, n_named (images whose caption answers the slot),
    majority (the most frequent value; for ties the first in alphabetical order), agreement (its share of n_named; null
    if n_named is 0), entropy (bits), values (JSON object value -> images).
    """
    import pandas as pd

    images = captions.groupby("pid", sort=True).size()
    tables = [_slot_table(captions, slot, images) for slot in SLOTS]
    table = pd.concat(tables, ignore_index=True)
    order = table["slot"].map({slot: i for i, slot in enumerate(SLOTS)})
    return table.assign(_order=order).sort_values(["pid", "_order"], ignore_index=True).drop(columns="_order")


def _slot_table(captions: pd.DataFrame, slot: str, images: pd.Series[int]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    counts = value_counts(captions, slot)
    by_pid = counts.groupby("pid", sort=False)["n"]
    named = by_pid.sum().reindex(images.index, fill_value=0)
    share = counts["n"] / by_pid.transform("sum")
    # Sorted by descending count, then value, the first row of an identity is its majority.
    first = counts.sort_values(["pid", "n", "value"], ascending=[True, False, True]).groupby("pid", sort=False).first()
    tallies: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for pid, value, n in zip(counts["pid"], counts["value"], counts["n"].tolist(), strict=True):
        tallies[pid][value] = n
    return pd.DataFrame(
        {
            "pid": images.index,
            "slot": slot,
            "n_images": images.to_numpy(),
            "n_named": named.to_numpy(),
            "majority": first["value"].reindex(images.index).to_numpy(),
            "agreement": (first["n"].reindex(images.index) / named).to_numpy(),
            "entropy": (-share * np.log2(share)).groupby(counts["pid"]).sum().reindex(images.index, fill_value=0.0),
            "values": [canonical_json(tallies[pid]) for pid in images.index],
        }
    )


def value_counts(captions: pd.DataFrame, slot: str) -> pd.DataFrame:
    """Return pid, value, n: the number of images of each identity with each value of a slot."""
    named = captions[["pid", f"attr_{slot}"]].dropna().rename(columns={f"attr_{slot}": "value"})
    return named.groupby(["pid", "value"], sort=True).size().rename("n").reset_index()


def slot_summary(captions: pd.DataFrame, identities: pd.DataFrame) -> dict[str, SlotSummary]:
    """Return slot -> its figures."""
    summary: dict[str, SlotSummary] = {}
    for slot in SLOTS:
        values = captions[f"attr_{slot}"].dropna().value_counts()
        several = identities[(identities["slot"] == slot) & (identities["n_named"] >= 2)]
        weight = several["n_named"]
        total = int(weight.sum())
        summary[slot] = {
            "coverage": float(values.sum()) / max(len(captions), 1),
            "agreement": float((several["agreement"] * weight).sum()) / total if total else 1.0,
            "entropy": abs(float((several["entropy"] * weight).sum())) / total if total else 0.0,
            "values": {str(value): int(n) for value, n in sorted(values.items())},
        }
    return summary


def mixed_gender_identities(identities: pd.DataFrame) -> int:
    """Count the identities whose captions name more than one gender."""
    return int(((identities["slot"] == "gender") & (identities["agreement"] < 1)).sum())
