"""Cleaning leaves out doubtful answers, never adds others, and keeps the raw text if nothing is doubtful."""

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.attributes.parse import parse_caption
from captioning.prompts.cleaning import Cleaner, CleaningConfig
from captioning.prompts.pattern import PAPER_PATTERN, PORT_PATTERN
from captioning.prompts.templates import compose
from data.slots import NONE, SLOTS, VOCABULARY

RAW = "A fat young man is wearing a red shirt and blue jeans. He is carrying a bag and is not wearing glasses."
DISSENT = CleaningConfig(drop_dissent=True)


class Cleaned(NamedTuple):
    text: str
    dropped: tuple[str, ...]


def answers_of(cleaner, *rows):
    columns = {f"attr_{slot}": pa.array([row.get(slot) for row in rows], pa.string()) for slot in SLOTS}
    return cleaner.answers(pa.table(columns))


def cleaned(config, *, raw=RAW, slots=None, confidence=None, majority=None, pattern=PAPER_PATTERN):
    """Clean one caption beside another one that has no answers."""
    cleaner = Cleaner(config, pattern)
    answers = answers_of(cleaner, slots or parse_caption(raw), {})
    known = [[(confidence or {}).get(slot) for slot in SLOTS], [-99.0] * len(SLOTS)]
    doubtful = cleaner.doubtful(
        answers, np.array(known, dtype=np.float64), answers_of(cleaner, majority or {}, majority or {})
    )
    text, other = cleaner.cleaned(pa.array([raw, None]), answers, doubtful).to_pylist()
    assert other is None
    assert not doubtful[1].any()
    return Cleaned(text, tuple(slot for slot, drop in zip(SLOTS, doubtful[0], strict=True) if drop))


def clear_majorities(rows, config):
    """Return identity -> slot -> value of the clear majorities of (identity, slots)."""
    cleaner = Cleaner(config, PAPER_PATTERN)
    found = cleaner.clear_majorities(
        np.array([pid for pid, _ in rows], dtype=np.int64), answers_of(cleaner, *(slots for _, slots in rows))
    )
    columns = [codes.decode(found[:, at]).to_pylist() for at, codes in enumerate(cleaner._codes)]
    rows = [dict(zip(SLOTS, values, strict=True)) for values in zip(*columns, strict=True)]
    named = {pid: {slot: value for slot, value in row.items() if value} for pid, row in enumerate(rows)}
    return {pid: slots for pid, slots in named.items() if slots}


def test_by_default_nothing_changes():
    found = cleaned(CleaningConfig(), confidence=dict.fromkeys(SLOTS, -50.0), majority={"gender": "female"})
    assert found == (RAW, ())


def test_an_unsure_answer_is_left_out():
    found = cleaned(
        CleaningConfig(drop_below=0.5),
        confidence={"upper_color": math.log(0.49), "lower_color": math.log(0.51), "carrying": None},
    )
    assert found.dropped == ("upper_color",)
    assert found.text == "A young man is wearing a shirt and blue jeans. The man is carrying a bag."


def test_a_dissenting_answer_is_left_out_and_not_replaced():
    found = cleaned(DISSENT, majority={"gender": "female", "lower_type": "jeans", "carrying": NONE, "hair": "long"})
    assert found.dropped == ("gender", "carrying")
    assert found.text == "A young person is wearing a red shirt and blue jeans."


def test_recompose_also_rewrites_captions_without_doubtful_answers():
    found = cleaned(CleaningConfig(recompose=True))
    assert found.dropped == ()
    assert found.text == "A young man is wearing a red shirt and blue jeans. The man is carrying a bag."


def test_clear_majorities_by_hand():
    rows = [(1, {"upper_color": color}) for color in ("red", "red", "blue", None)]
    rows += [(2, {"upper_color": "red"})] * 2
    rows += [(3, {"hair": hair}) for hair in ("long", "long", "short", "short")]
    assert clear_majorities(rows, DISSENT) == {1: {"upper_color": "red"}}
    assert clear_majorities(rows, CleaningConfig(drop_dissent=True, majority=0.7)) == {}
    assert clear_majorities(rows, CleaningConfig(drop_dissent=True, min_images=2))[2] == {"upper_color": "red"}
    assert clear_majorities([], DISSENT) == {}


@pytest.mark.parametrize("bad", [{"drop_below": 1}, {"majority": 0.5}, {"min_images": 1}, {"drop": 1}])
def test_bad_thresholds_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CleaningConfig(**bad)


def test_the_limits_are_inclusive_on_the_right_side():
    # A share or probability equal to the limit passes.
    rows = [(1, {"hair": hair}) for hair in ("long", "long", "long", "short")]
    assert clear_majorities(rows, CleaningConfig(drop_dissent=True, majority=0.75)) == {1: {"hair": "long"}}
    assert clear_majorities(rows, CleaningConfig(drop_dissent=True, min_images=4)) == {1: {"hair": "long"}}
    assert clear_majorities(rows, CleaningConfig(drop_dissent=True, min_images=5)) == {}
    half = CleaningConfig(drop_below=0.5)
    assert cleaned(half, confidence={"upper_color": math.log(0.5)}).dropped == ()
    assert cleaned(half, confidence={"upper_color": math.nextafter(math.log(0.5), -1)}).dropped == ("upper_color",)


def test_cleaned_captions_follow_the_given_pattern():
    found = cleaned(CleaningConfig(drop_below=0.5), confidence={"carrying": -9.0}, pattern=PORT_PATTERN)
    assert found.text == "A young man is wearing a red shirt. The man is wearing blue jeans."
    assert found.dropped == ("carrying",)


SOME_SLOTS = st.fixed_dictionaries({slot: st.sampled_from([*VOCABULARY[slot], None]) for slot in SLOTS})


@given(SOME_SLOTS, SOME_SLOTS, st.fixed_dictionaries({slot: st.floats(-3, 0) for slot in SLOTS}))
def test_a_cleaned_caption_adds_nothing(slots, majority, confidence):
    config = CleaningConfig(drop_below=0.5, drop_dissent=True)
    known = {slot: value for slot, value in majority.items() if value}
    found = cleaned(config, raw=compose(slots), slots=slots, confidence=confidence, majority=known)
    said = parse_caption(found.text)
    for slot in SLOTS:
        assert said[slot] in (None, slots[slot])
        if slot in found.dropped:
            assert said[slot] is None
            assert confidence[slot] < math.log(0.5) or slots[slot] != known[slot]
