"""Cleaning leaves out doubtful answers, never adds others, and keeps the raw text if nothing is doubtful."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.attributes.parse import parse_caption
from captioning.prompts.cleaning import CleaningConfig, clean_caption, clear_majorities
from captioning.prompts.pattern import PORT_PATTERN
from captioning.prompts.templates import compose
from data.slots import NONE, SLOTS, VOCABULARY

RAW = "A fat young man is wearing a red shirt and blue jeans. He is carrying a bag and is not wearing glasses."
SLOTS_OF_RAW = parse_caption(RAW)
DISSENT = CleaningConfig(drop_dissent=True)


def cleaned(config, *, raw=RAW, confidence=None, majority=None):
    return clean_caption(raw, parse_caption(raw), confidence=confidence or {}, majority=majority or {}, config=config)


def test_by_default_nothing_changes():
    found = cleaned(CleaningConfig(), confidence=dict.fromkeys(SLOTS, -50.0), majority={"gender": "female"})
    assert (found.text, found.dropped) == (RAW, ())
    assert found.slots == SLOTS_OF_RAW


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
    assert clear_majorities(rows, CleaningConfig()) == {}


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
    found = clean_caption(
        RAW,
        SLOTS_OF_RAW,
        confidence={"carrying": -9.0},
        majority={},
        config=CleaningConfig(drop_below=0.5),
        pattern=PORT_PATTERN,
    )
    assert found.text == "A young man is wearing a red shirt. The man is wearing blue jeans."
    assert found.slots == SLOTS_OF_RAW | {"carrying": None}


SOME_SLOTS = st.fixed_dictionaries({slot: st.sampled_from([*VOCABULARY[slot], None]) for slot in SLOTS})


@given(SOME_SLOTS, SOME_SLOTS, st.fixed_dictionaries({slot: st.floats(-3, 0) for slot in SLOTS}))
def test_a_cleaned_caption_adds_nothing(slots, majority, confidence):
    config = CleaningConfig(drop_below=0.5, drop_dissent=True)
    known = {slot: value for slot, value in majority.items() if value}
    found = clean_caption(compose(slots), slots, confidence=confidence, majority=known, config=config)
    said = parse_caption(found.text)
    for slot in SLOTS:
        assert said[slot] in (None, slots[slot])
        if slot in found.dropped:
            assert said[slot] is None
            assert confidence[slot] < math.log(0.5) or slots[slot] != known[slot]
