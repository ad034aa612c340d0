"""Flags on single captions that are wrong or doubtful. Pure functions of the rows of captions.parquet."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from captioning.attributes.lexicon import DEGRADING, LEXICON
from captioning.config import AuditConfig
from captioning.prompts.replies import is_looping, is_off_template
from data.slots import SLOTS

if TYPE_CHECKING:
    import pandas as pd

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

_WORD: Final = re.compile(r"[a-z0-9'-]+")
_ATTRIBUTES: Final = [f"attr_{slot}" for slot in SLOTS]
_CONFIDENCES: Final = [f"conf_{slot}" for slot in SLOTS]


def flag_table(
    captions: pd.DataFrame, identities: pd.DataFrame, people: pd.Series[bool], config: AuditConfig
) -> pd.DataFrame:
    """Return one row per caption, in order: its keys, one bool column per flag, flags (the names) and dissent_slots.

    captions: all rows of captions.parquet. identities: from `identity_table`. people: mask of the rows of known people.
    """
    import pandas as pd

    text = captions["raw_text"].fillna("")
    written = _mask(text, str.strip)
    templated = pd.Series(list(zip(text, captions["template_id"], strict=True)), index=text.index, dtype=object)
    dissent = dissenting_slots(captions, identities, people, config)
    columns = {
        "failed": ~written & (captions["status"] != "wrong"),  # marked by a person, who needs no flag
        "unparsed": (captions["status"] == "unparsed") | (written & captions[_ATTRIBUTES].isna().all(axis=1)),
        "truncated": captions["truncated"].fillna(value=False).astype(bool) | (captions["status"] == "truncated"),
        "looping": _mask(text, lambda reply: is_looping(reply, config.loop_repeats)),
        "off_template": written & _mask(templated, lambda pair: is_off_template(pair[0], pair[1], config)),
        "degrading": _mask(text, degrading_words),
        "dissent": _mask(dissent, bool),
        "hallucination": suspects(captions, people, config),
        "duplicate": duplicates(captions, people, config),
        "low_confidence": (captions[_CONFIDENCES] < math.log(config.low_confidence)).any(axis=1),
    }
    table = pd.DataFrame({name: columns[name].to_numpy(dtype=bool) for name in FLAGS}, index=captions.index)
    names = [[flag for flag, raised in zip(FLAGS, row, strict=True) if raised] for row in table.to_numpy()]
    keys = captions[["image_path", "image_sha256", "pid", "camid"]]
    return pd.concat([keys, table], axis=1).assign(
        flags=pd.Series(names, index=captions.index, dtype=object), dissent_slots=dissent
    )


@lru_cache(maxsize=65536)
def degrading_words(text: str) -> tuple[str, ...]:
    """Return the demeaning words of a reply, each once, in order."""
    return tuple(dict.fromkeys(word for word in _WORD.findall(text.lower()) if word in DEGRADING))


def _mask(values: pd.Series[Any], test: Callable[[Any], object]) -> pd.Series[bool]:
    """Return where `test` is true. Unlike `map`, the result is boolean even without rows."""
    import pandas as pd

    return pd.Series([bool(test(value)) for value in values], index=values.index, dtype=bool)


def dissenting_slots(
    captions: pd.DataFrame, identities: pd.DataFrame, people: pd.Series[bool], config: AuditConfig
) -> pd.Series[list[str]]:
    """Return for each caption the slots in which it contradicts a clear majority of its identity.

    A majority is clear if at least `min_images` captions answer the slot and at least the share `majority` of them
    agree.
    """
    import pandas as pd

    clear = identities[(identities["n_named"] >= config.min_images) & (identities["agreement"] >= config.majority)]
    found: list[list[str]] = [[] for _ in range(len(captions))]
    for slot in SLOTS:
        majority = clear[clear["slot"] == slot].set_index("pid")["majority"]
        expected = captions["pid"].map(majority)
        value = captions[f"attr_{slot}"]
        against = people & value.notna() & expected.notna() & (value != expected)
        for at in against.to_numpy(dtype=bool).nonzero()[0]:
            found[at].append(slot)
    return pd.Series(found, index=captions.index, dtype=object)


def suspects(captions: pd.DataFrame, people: pd.Series[bool], config: AuditConfig) -> pd.Series[bool]:
    """Mark captions with a carried item that appears in at most `rare_images` of an identity's captions.

    Applies to identities with at least `rare_of` captions that answer the slot. All kinds of bags are one item, because
    the same bag gets many names.
    """
    import pandas as pd

    said = captions.loc[people, ["pid", "attr_carrying"]].dropna()
    things = said.assign(thing=said["attr_carrying"].map(_things)).explode("thing")
    enough = things["pid"].map(said.groupby("pid").size()) >= config.rare_of
    shared = things.groupby(["pid", "thing"])["thing"].transform("size")
    rare = things[enough & things["thing"].notna() & (shared <= config.rare_images)]
    return pd.Series(captions.index.isin(rare.index), index=captions.index)


@lru_cache(maxsize=4096)
def _things(carrying: str) -> tuple[str, ...]:
    names = (thing for thing in carrying.split(", ") if thing != "none")
    return tuple(sorted({_family(thing) for thing in names}))


def _family(thing: str) -> str:
    entry = LEXICON.get(thing)
    if thing.endswith("bottle"):
        return "bottle"
    return "bag" if entry is not None and entry.kind == "bag" and thing != "cell phone" else thing


def duplicates(captions: pd.DataFrame, people: pd.Series[bool], config: AuditConfig) -> pd.Series[bool]:
    """Mark the captions whose text is used for at least `duplicate_identities` known people."""
    return people & (shared_by(captions, people) >= config.duplicate_identities)


def shared_by(captions: pd.DataFrame, people: pd.Series[bool]) -> pd.Series[int]:
    """Return for each caption the number of known people that its text is used for; 0 without text."""
    import pandas as pd

    text = captions["raw_text"].fillna("")
    said = people & _mask(text, str.strip)
    normalized = pd.Series([" ".join(reply.lower().split()) for reply in text], index=text.index, dtype=object)
    identities = captions["pid"][said].groupby(normalized[said]).nunique()
    return normalized.map(identities.to_dict()).where(said).fillna(0).astype(int)
