"""The caption parser: it inverts `compose`, parses free prose, and agrees with 200 hand-checked real captions."""

import hashlib
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.attributes.lexicon import DEGRADING, LEXICON
from captioning.attributes.parse import coverage, parse_caption
from captioning.prompts.pattern import PAPER_PATTERN, PORT_PATTERN, compose
from data.slots import NONE, SLOTS, VOCABULARY
from tests.helpers.places import GOLDEN, shared_folder

REAL_CAPTIONS = GOLDEN / "real_captions.json"
GLUE = ("a", "no", "and", "or", "not", "is", "with", "carrying", "wearing", "red", ",", ".", "of")
TEMPLATE = "{} person is wearing a {} shirt. The person is wearing black pants and carrying {}."


def said(text):
    """The slots that the caption answers; all others must be None."""
    slots = parse_caption(text)
    assert list(slots) == list(SLOTS)
    return {slot: value for slot, value in slots.items() if value is not None}


def without_denials(slots):
    return {slot: None if slots.get(slot) == NONE else slots.get(slot) for slot in SLOTS}


# Written by hand. Text -> exactly the slots that it answers.
PROSE = {
    "A man in a black suit with a red tie is walking down the street. He has short hair and wears glasses.": {
        "gender": "male",
        "upper_color": "black",
        "upper_type": "suit",
        "hair": "short",
        "glasses": "glasses",
    },
    "The woman, in her 20s, is wearing a navy blue tank top, white denim shorts and flip flops. "
    "She isn't carrying anything.": {
        "gender": "female",
        "age": "young",
        "upper_color": "blue",
        "upper_type": "tank top",
        "lower_color": "white",
        "lower_type": "shorts",
        "shoes": "flip-flops",
        "carrying": NONE,
    },
    "A 45-year-old lady dressed in a light grey trench coat and dark trousers, holding a red umbrella "
    "in her right hand.": {
        "gender": "female",
        "age": "middle-aged",
        "upper_color": "gray",
        "upper_type": "coat",
        "lower_type": "pants",
        "carrying": "umbrella",
    },
    "The image shows a young girl with a pony tail, a pink tee shirt, blue jean shorts and white running shoes. "
    "She has a rucksack on her back.": {
        "gender": "female",
        "age": "young",
        "upper_color": "pink",
        "upper_type": "t-shirt",
        "lower_color": "blue",
        "lower_type": "shorts",
        "shoes": "white sneakers",
        "hair": "ponytail",
        "carrying": "backpack",
    },
    "A bald elderly gentleman wears a brown cardigan over a white shirt with khaki pants. No bag, no glasses.": {
        "gender": "male",
        "age": "elderly",
        "upper_color": "brown",
        "upper_type": "cardigan",
        "lower_color": "brown",
        "lower_type": "pants",
        "hair": "bald",
        "glasses": NONE,
        "carrying": NONE,
    },
    "The person is wearing a long-sleeved black and white striped shirt, and a short red skirt. "
    "Her hair is long and black.": {
        "gender": "female",
        "upper_color": "black",
        "upper_type": "shirt",
        "lower_color": "red",
        "lower_type": "skirt",
        "hair": "long",
    },
    "The woman's shirt is white and her pants are black. Her long hair is tied in a ponytail.": {
        "gender": "female",
        "upper_color": "white",
        "upper_type": "shirt",
        "lower_color": "black",
        "lower_type": "pants",
        "hair": "ponytail",
    },
    "A woman in black. She is carrying a large black leather handbag on her shoulder and a plastic bag in her hand.": {
        "gender": "female",
        "upper_color": "black",
        "carrying": "handbag, plastic bag",
    },
    "An old man without glasses is pushing a bicycle, with a backpack on his back.": {
        "gender": "male",
        "age": "elderly",
        "glasses": NONE,
        "carrying": "backpack, bicycle",
    },
    "A woman is wearing a yellow dress and sunglasses, and is carrying a purse, a water bottle and a phone.": {
        "gender": "female",
        "upper_color": "yellow",
        "upper_type": "dress",
        "glasses": "sunglasses",
        "carrying": "cell phone, handbag, water bottle",
    },
    "A man wearing neither glasses nor a hat.": {"gender": "male", "glasses": NONE},
    "The man does not appear to be wearing glasses. He does not have a bag.": {
        "gender": "male",
        "glasses": NONE,
        "carrying": NONE,
    },
    "The person is not wearing any glasses or a hat and is not carrying any bag.": {"glasses": NONE, "carrying": NONE},
    "A man is wearing a pink shirt. The man is wearing yellow pants. He is wearing a watch.": {
        "gender": "male",
        "upper_color": "pink",
        "upper_type": "shirt",
        "lower_color": "yellow",
        "lower_type": "pants",
    },
    "She is wearing a backpack and carrying a baseball bat.": {
        "gender": "female",
        "carrying": "backpack, baseball bat",
    },
    "He is carrying a black and blue bag and has short hair.": {"gender": "male", "carrying": "bag", "hair": "short"},
    "She is wearing a white top and a blue pair of jeans.": {
        "gender": "female",
        "upper_color": "white",
        "upper_type": "top",
        "lower_color": "blue",
        "lower_type": "jeans",
    },
    "A short-haired man in shorts and sandals.": {
        "gender": "male",
        "lower_type": "shorts",
        "shoes": "sandals",
        "hair": "short",
    },
    "A man wears no shoes.": {"gender": "male", "shoes": NONE},
    "The woman wears a coat. Her coat is red.": {"gender": "female", "upper_color": "red", "upper_type": "coat"},
    "A man is wearing black clothes. He has brown hair.": {"gender": "male", "upper_color": "black", "hair": "brown"},
    "A woman in her early sixties with shoulder-length hair": {"gender": "female", "age": "elderly", "hair": "medium"},
    # The first garment with a color is used.
    "A woman is wearing a shirt. She is wearing a blue dress. The woman is wearing a green shirt.": {
        "gender": "female",
        "upper_color": "blue",
        "upper_type": "dress",
    },
    # A truncated reply, a repeated instruction, another language, the empty text.
    "A man is wearing a white shirt. The man is wearing black shoes and carrying a back": {
        "gender": "male",
        "upper_color": "white",
        "upper_type": "shirt",
        "shoes": "black shoes",
    },
    "A [age] [gender] is wearing [upper clothes]. The [gender] has [hair length] and [wearing glasses or not].": {},
    "The woman is carrying others/accessories. The woman has hair and is wearing glasses or not.": {"gender": "female"},
    "Ein Mann trägt eine Jacke. 一个男人": {},
    "": {},
}


@pytest.mark.parametrize("text", PROSE)
def test_prose(text):
    assert said(text) == PROSE[text]


@pytest.mark.parametrize(
    ("phrase", "age"),
    [
        ("A young man", "young"),
        ("A 20-year-old man", "young"),
        ("A man, 39 years old,", "young"),
        ("A man in his 40s", "middle-aged"),
        ("A middle aged man", "middle-aged"),
        ("A man aged 59", "middle-aged"),
        ("A man in his late sixties", "elderly"),
        ("An elderly man", "elderly"),
        ("The man is old", "elderly"),
        ("A little boy", "young"),
        ("A man in an old coat", None),
        ("A man with 20 bags", None),
        ("A man carrying a young child", None),
        ("A 999-year-old man", None),
    ],
)
def test_ages(phrase, age):
    assert parse_caption(f"{phrase} is here.")["age"] == age


@pytest.mark.parametrize("pattern", [PAPER_PATTERN, PORT_PATTERN])
def test_each_closed_value_survives_alone(pattern):
    for slot, values in VOCABULARY.items():
        for value in values:
            assert parse_caption(compose({slot: value}, pattern)) == without_denials({slot: value})


@pytest.mark.parametrize("pattern", [PAPER_PATTERN, PORT_PATTERN])
def test_it_inverts_compose_for_all_pairs_of_garments(pattern):
    for color in (*VOCABULARY["upper_color"], None):
        for upper in (*VOCABULARY["upper_type"], "dress", "tank top", None):
            for lower in (*VOCABULARY["lower_type"], "leggings", None):
                slots = without_denials({"upper_color": color, "upper_type": upper, "lower_type": lower})
                assert parse_caption(compose(slots, pattern)) == slots
                slots = without_denials({"lower_color": color, "upper_type": upper, "lower_type": lower})
                assert parse_caption(compose(slots, pattern)) == slots


@pytest.mark.parametrize("pattern", [PAPER_PATTERN, PORT_PATTERN])
def test_it_inverts_compose_at_random(pattern):
    generator = random.Random(7)
    for _ in range(4000):
        slots = {slot: generator.choice((*VOCABULARY[slot], None)) for slot in SLOTS}
        assert parse_caption(compose(slots, pattern)) == without_denials(slots)


@settings(max_examples=150)
@given(st.text(max_size=400))
def test_any_string_is_parsed_without_an_exception(text):
    assert list(parse_caption(text)) == list(SLOTS)


@settings(max_examples=150)
@given(st.lists(st.sampled_from([*LEXICON, *GLUE]), max_size=30))
def test_any_word_salad_is_parsed_and_can_be_composed_again(words):
    slots = parse_caption(" ".join(words))
    assert parse_caption(compose(slots)) == without_denials(slots)


@pytest.mark.parametrize("word", sorted(DEGRADING))
def test_degrading_words_never_become_values(word):
    slots = parse_caption(TEMPLATE.format(f"A {word}", word, f"a {word} dog and a {word}"))
    assert not any(word in (value or "").split() for value in slots.values())


def test_coverage_counts_answers():
    answered = coverage(["A man has glasses.", "A person is not wearing glasses.", "Nothing."])
    assert answered["gender"] == pytest.approx(1 / 3)
    assert answered["glasses"] == pytest.approx(2 / 3)
    assert coverage([])["hair"] == 0


def real_captions():
    path = shared_folder("real", "captions", "market1501-llava-1.5-7b-sample.jsonl")
    return [json.loads(line)["caption"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_hundred_hand_checked_real_captions():
    golden = json.loads(REAL_CAPTIONS.read_text(encoding="utf-8"))["slots"]
    by_digest = {hashlib.sha256(text.encode()).hexdigest(): text for text in real_captions()}
    assert len(golden) == 200
    wrong = [
        (digest, slot, value, expected.get(slot))
        for digest, expected in golden.items()
        for slot, value in parse_caption(by_digest[digest]).items()
        if value != expected.get(slot)
    ]
    assert len(wrong) <= 0.03 * len(golden) * len(SLOTS), wrong


def test_real_captions_name_a_gender():
    assert coverage(real_captions())["gender"] >= 0.95


# Independent of the parser: simple patterns for the values that a caption names.
_COLORS = "black|white|gray|grey|red|orange|yellow|green|blue|purple|pink|brown|tan|khaki"
NAMED = {
    "upper_type": r"shirt|jacket|dress\b|sweater|hoodie|\bcoat|\bvest|\btop\b",
    "upper_color": rf"wearing an? ({_COLORS}) (shirt|jacket|dress|sweater|hoodie|coat|vest|top)\b",
    "lower_type": r"pants|shorts|jeans|skirt",
    "lower_color": rf"({_COLORS}) (pants|shorts|jeans|skirt)",
    "carrying": r"backpack|handbag|purse|carrying an? \w+",
    "hair": r"\b(short|long|\w+) hair",
    "glasses": r"glasses\.",
}


@pytest.mark.parametrize("slot", NAMED)
def test_values_named_in_real_captions_are_found(slot):
    missed = [text for text in real_captions() if re.search(NAMED[slot], text) and parse_caption(text)[slot] is None]
    assert not missed


def test_real_captions_composed_again_have_the_same_slots():
    for text in real_captions():
        slots = parse_caption(text)
        assert parse_caption(compose(slots)) == without_denials(slots)
