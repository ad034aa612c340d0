"""Flags on single captions that are wrong or doubtful."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from captioning.audit.agreement import Agreement
from captioning.audit.columns import Captions, Int64s, Mask
from captioning.audit.words import carried_things
from captioning.config import AuditConfig
from data.schemas import SCHEMA_VERSION
from data.slots import SLOTS

FLAGS: Final = {
    "failed": "no text: the image could not be captioned",
    "unparsed": "no attribute could be parsed from the text",
    "truncated": "the reply reached the token limit",
    "looping": "the reply repeats a clause",
    "off_template": "the reply does not follow its template, or is too short or too long",
    "degrading": "a demeaning word; it never becomes an attribute",
    "dissent": "an attribute contradicts the clear majority of the identity's captions",
    "hallucination": "a carried object that hardly any other image of the identity shows",
    "duplicate": "the same text describes other identities, so it does not distinguish them",
    "low_confidence": "the model was unsure of a slot",
}
"""Flag -> its meaning. Each flag is a bool column of flags.parquet."""


FLAG_ROWS: Final = pa.schema(
    [
        ("image_path", pa.string()),
        ("image_sha256", pa.string()),
        ("pid", pa.int64()),
        ("camid", pa.int64()),
        ("flags", pa.list_(pa.string())),  # names of the flags below that are true
        *((flag, pa.bool_()) for flag in FLAGS),
        ("dissent_slots", pa.list_(pa.string())),  # slots whose value differs from the majority of the identity
    ],
    metadata={b"clip_scgi_schema": str(SCHEMA_VERSION).encode()},
)
"""flags.parquet: one row per caption, in the order of captions.parquet."""

_CARRYING: Final = SLOTS.index("carrying")


class Flags(NamedTuple):
    """The flags of all captions. raised: flag -> its mask, [N]. dissents: slots against the majority, [N, slots].

    shared_texts: number of distinct texts that are used for more than one known person.
    """

    raised: dict[str, Mask]
    dissents: Mask
    shared_texts: int

    def rows(self, keys: pa.Table, start: int) -> pa.Table:
        """Return rows of `FLAG_ROWS`. keys: some rows of captions.parquet, which begin at row `start`."""
        part = slice(start, start + keys.num_rows)
        masks = {flag: self.raised[flag][part] for flag in FLAGS}
        columns = {name: keys[name] for name in ("image_path", "image_sha256", "pid", "camid")}
        columns |= {flag: pa.array(mask) for flag, mask in masks.items()}
        columns["flags"] = _names_of([*FLAGS], np.stack([*masks.values()], axis=1))
        columns["dissent_slots"] = _names_of([*SLOTS], self.dissents[part])
        return pa.table(columns).select(FLAG_ROWS.names).cast(FLAG_ROWS)


def _names_of(names: list[str], marked: Mask) -> pa.Array:
    """Return the names of the marked columns of each row."""
    offsets = np.append(0, np.cumsum(marked.sum(axis=1))).astype(np.int32)
    values = pa.array(names).take(pa.array(np.nonzero(marked)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def flags_of(captions: Captions, identities: Agreement, config: AuditConfig) -> Flags:
    """Return the flags of all captions."""
    groups = identities.of(captions.pids)
    dissents = dissenting(captions, identities, groups, config)
    shared, several = sharing(captions, groups)
    against: Mask = np.asarray(dissents.any(axis=1))
    again: Mask = shared >= config.duplicate_identities
    compared = {"dissent": against, "hallucination": suspects(captions, groups, config), "duplicate": again}
    raised = captions.flags | compared
    return Flags({flag: raised[flag] for flag in FLAGS}, dissents, several)


def dissenting(captions: Captions, identities: Agreement, groups: Int64s, config: AuditConfig) -> Mask:
    """Mark the slots, [N, slots], in which a caption contradicts a clear majority of its identity.

    A majority is clear if at least `min_images` captions answer the slot and at least the share `majority` of them
    agree.
    """
    clear = (identities.n_named >= config.min_images) & (identities.agreement >= config.majority)
    expected = np.where(clear, identities.majority, np.int32(-1))
    found = np.zeros(captions.answers.shape, dtype=np.bool_)
    people = np.flatnonzero(captions.is_person)
    of_identity, said = expected[groups[people]], captions.answers[people]
    found[people] = (said >= 0) & (of_identity >= 0) & (said != of_identity)
    return found


def suspects(captions: Captions, groups: Int64s, config: AuditConfig) -> Mask:
    """Mark captions with a carried item that appears in at most `rare_images` of an identity's captions.

    Applies to identities with at least `rare_of` captions that answer the slot.
    """
    said = np.flatnonzero(captions.is_person & (captions.answers[:, _CARRYING] >= 0))
    answered = np.bincount(groups[said], minlength=1)
    at, things = _things(captions, said)
    _, which, shared = np.unique(
        groups[at] * (things.max(initial=0) + 1) + things, return_inverse=True, return_counts=True
    )
    rare = (answered[groups[at]] >= config.rare_of) & (shared[which] <= config.rare_images)
    found = np.zeros(len(captions.pids), dtype=np.bool_)
    found[at[rare]] = True
    return found


def _things(captions: Captions, said: Int64s) -> tuple[Int64s, Int64s]:
    """Return one entry per caption of `said` and carried item: the row of the caption, and the number of the item."""
    named = [carried_things(value) for value in captions.values[_CARRYING]]
    number = {thing: at for at, thing in enumerate(dict.fromkeys(thing for things in named for thing in things))}
    flat = np.array([number[thing] for things in named for thing in things], dtype=np.int64)
    sizes = np.array([len(things) for things in named], dtype=np.int64)
    codes = captions.answers[said, _CARRYING]
    counts = sizes[codes] if len(codes) else np.empty(0, dtype=np.int64)
    first = np.append(0, np.cumsum(sizes))[codes]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(said, counts), flat[np.repeat(first, counts) + within]


def sharing(captions: Captions, groups: Int64s) -> tuple[Int64s, int]:
    """Return for each caption the number of known people that its text is used for, 0 without text, and how many texts
    are used for more than one.
    """
    said = np.flatnonzero(captions.is_person & (captions.texts >= 0))
    texts = captions.texts[said]
    pairs = np.unique(texts * (groups.max(initial=0) + 1) + groups[said])
    people = np.bincount(pairs // (groups.max(initial=0) + 1), minlength=1)
    found = np.zeros(len(captions.pids), dtype=np.int64)
    found[said] = people[texts]
    return found, int((people > 1).sum())
