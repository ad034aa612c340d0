"""Templates: exact prompts, `compose` compared with captions written by hand, and custom TOML files."""

import pytest

from captioning.prompts.pattern import PAPER_PATTERN, PERSON, PHRASES, PORT_PATTERN, back_reference
from captioning.prompts.templates import LLAVA_SYSTEM, Template, builtin_templates, compose, get_template
from data.errors import ConfigError
from data.slots import NONE, VOCABULARY

PROMPTS = {
    "scgi": (
        "USER: <image>\nDescribe the person in the image following this template: "
        "A [age] [gender] is wearing [upper clothes] and [lower clothes]. "
        "The [gender] is wearing [shoes] and carrying a [bag]. "
        "The [gender] has [hair length] and [glasses]. ASSISTANT:"
    ),
    "port45": (
        "USER: <image>\nDescribe the most obvious person only. Ignore background. "
        "Use at most 45 words and follow this template: "
        "A [age] [gender] is wearing [upper clothes]. [gender] is wearing [lower clothes]. "
        "The [gender] is wearing [shoes] and carrying [others/accessories]. "
        "The [gender] has [hair length] and [wearing glasses or not]. ASSISTANT:"
    ),
    "free": (
        "USER: <image>\nWrite a description about the overall appearance of the person in the image, including the "
        "attributes: clothing, shoes, hairstyle, gender and belongings. "
        "If any attribute is not visible, you can ignore it. "
        "Do not imagine any contents that are not in the image. ASSISTANT:"
    ),
    "closed": (
        "USER: <image>\nDescribe the person in the image following this template: "
        "A [age] [gender] is wearing [upper clothes] and [lower clothes]. "
        "The [gender] is wearing [shoes] and carrying a [bag]. "
        "The [gender] has [hair length] and [glasses]. "
        "Choose every word from these lists and leave out what is not visible. "
        "Age: young, middle-aged, elderly. Gender: man, woman. "
        "Colors: black, white, gray, red, orange, yellow, green, blue, purple, pink, brown. "
        "Upper clothes: t-shirt, shirt, sweater, hoodie, jacket, coat. Lower clothes: pants, jeans, shorts, skirt. "
        "Shoes: black shoes, white sneakers, red sneakers, brown boots, sandals. "
        "Bag: backpack, handbag, shoulder bag, suitcase. Hair: short, long, ponytail, bald. "
        "Glasses: glasses, sunglasses. ASSISTANT:"
    ),
}

FULL = {
    "gender": "female",
    "age": "young",
    "upper_color": "red",
    "upper_type": "t-shirt",
    "lower_color": "blue",
    "lower_type": "jeans",
    "shoes": "white sneakers",
    "carrying": "backpack",
    "hair": "long",
    "glasses": "glasses",
}

CAPTIONS = [
    (
        FULL,
        "A young woman is wearing a red t-shirt and blue jeans. "
        "The woman is wearing white sneakers and carrying a backpack. The woman has long hair and glasses.",
    ),
    ({}, "A person."),
    ({"age": "elderly"}, "An elderly person."),
    ({"gender": "male", "age": "middle-aged"}, "A middle-aged man."),
    ({"gender": "male", "upper_color": "orange", "upper_type": "coat"}, "A man is wearing an orange coat."),
    ({"gender": "male", "lower_color": "gray", "lower_type": "skirt"}, "A man is wearing a gray skirt."),
    ({"lower_type": "shorts"}, "A person is wearing shorts."),
    ({"upper_color": "black"}, "A person is wearing a black upper garment."),
    ({"lower_color": "black"}, "A person is wearing a black lower garment."),
    ({"upper_color": "red", "upper_type": "dress"}, "A person is wearing a red dress."),
    ({"gender": "female", "shoes": "sandals"}, "A woman. The woman is wearing sandals."),
    ({"carrying": "suitcase", "glasses": NONE}, "A person. The person is carrying a suitcase."),
    ({"carrying": NONE, "glasses": NONE, "shoes": NONE}, "A person."),
    ({"carrying": "backpack, umbrella"}, "A person. The person is carrying a backpack and an umbrella."),
    ({"carrying": "backpack, cup, luggage"}, "A person. The person is carrying a backpack, a cup and luggage."),
    ({"hair": "bald", "glasses": "sunglasses"}, "A person. The person has a bald head and sunglasses."),
    ({"hair": "ponytail"}, "A person. The person has a ponytail."),
    ({"glasses": "glasses"}, "A person. The person has glasses."),
]


def test_there_are_four_templates():
    assert [template.id for template in builtin_templates()] == list(PROMPTS)


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_exact(name):
    assert get_template(name).prompt() == PROMPTS[name]


def test_the_system_sentence_comes_first():
    template = Template(id="x", instruction="Describe.", system=LLAVA_SYSTEM)
    assert template.prompt() == f"{LLAVA_SYSTEM} USER: <image>\nDescribe. ASSISTANT:"


def test_the_digest_covers_everything_that_can_change_a_caption():
    template = Template(id="x", instruction="Describe.", pattern=PAPER_PATTERN)
    digests = [template.digest]
    for change in (
        {"instruction": "Describe!"},
        {"system": "Hello."},
        {"max_new_tokens": 5},
        {"pattern": PORT_PATTERN},
        {"pattern": ()},
    ):
        digests.append(template.model_copy(update=change).digest)
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    assert template.model_copy(update={"id": "y"}).digest == template.digest


@pytest.mark.parametrize(("slots", "caption"), CAPTIONS)
def test_captions_are_exact(slots, caption):
    assert compose(slots) == caption


def test_the_ports_pattern_has_four_sentences():
    assert compose(FULL, PORT_PATTERN) == (
        "A young woman is wearing a red t-shirt. The woman is wearing blue jeans. "
        "The woman is wearing white sneakers and carrying a backpack. The woman has long hair and glasses."
    )


@pytest.mark.parametrize("slots", [{"hat": "red"}, {"gender": "robot"}])
def test_compose_refuses_unknown_slots_and_genders(slots):
    with pytest.raises(ConfigError):
        compose(slots)


def test_choices_cover_the_closed_vocabulary_once():
    sizes = {name: len(phrase.choices()) for name, phrase in PHRASES.items()}
    assert sizes == {"upper": 84, "lower": 60, "shoes": 6, "carrying": 5, "hair": 5, "glasses": 3}
    for phrase in (PERSON, *PHRASES.values()):
        texts = [choice.text for choice in phrase.choices()]
        assert len(set(texts)) == len(texts)
        assert all(value is None for _, value in phrase.choices()[-1].values)
    assert [choice.text for choice in PERSON.choices()][:4] == [
        "A young woman",
        "A young man",
        "A young person",
        "A middle-aged woman",
    ]


def test_a_caption_is_its_literals_and_chosen_phrases():
    """A decoder that walks the pattern by hand writes what `compose` writes."""
    slots = {slot: values[0] for slot, values in VOCABULARY.items()} | {"hair": None, "glasses": "glasses"}
    text = []
    for sentence in PAPER_PATTERN:
        kept = [clause for clause in sentence.clauses if PHRASES[clause.phrase].render(slots)]
        words = PERSON.render(slots) if sentence.introduces else back_reference(slots)
        for i, clause in enumerate(kept):
            words += (clause.later if i else clause.first) + PHRASES[clause.phrase].render(slots)
        text.append(words + ".")
    assert " ".join(text) == compose(slots)


TOML = """
id = "two-sentences"
instruction = "Describe the person."
max_new_tokens = 60

[[pattern]]
introduces = true
clauses = [{phrase = "upper", first = " is wearing ", later = " and "}]

[[pattern]]
clauses = [{phrase = "carrying", first = " carries ", later = " and carries "}]
"""


def test_a_toml_file_is_a_template(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    template = get_template(str(path))
    assert (template.id, template.max_new_tokens) == ("two-sentences", 60)
    assert template.prompt() == "USER: <image>\nDescribe the person. ASSISTANT:"
    assert compose(FULL, template.pattern) == "A young woman is wearing a red t-shirt. The woman carries a backpack."


def test_all_problems_of_a_toml_file_are_listed(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('id = "a b"\ninstruction = "USER: hi"\nmax_new_tokens = 0\nsistem = "x"\n')
    with pytest.raises(ConfigError) as caught:
        get_template(path)
    message = str(caught.value)
    for part in (
        str(path),
        "4 problems",
        "id:",
        "instruction:",
        "max_new_tokens:",
        "sistem: no such setting",
        "system",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ('[[pattern]]\nclauses = [{phrase = "hair", first = " has ", later = " and "}]', "introduces"),
        ('[[pattern]]\nintroduces = true\nclauses = [{phrase = "hat", first = " has ", later = " and "}]', "phrase"),
        (
            "[[pattern]]\nintroduces = true\nclauses = [{phrase = 'hair', first = ' ', later = ' '},"
            " {phrase = 'hair', first = ' ', later = ' '}]",
            "hair occurs twice",
        ),
    ],
)
def test_invalid_patterns(tmp_path, pattern, told):
    path = tmp_path / "mine.toml"
    path.write_text(f'id = "mine"\ninstruction = "Describe."\n{pattern}\n')
    with pytest.raises(ConfigError, match=told):
        get_template(path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("nobody", None, "scgi, port45, free, closed"),
        ("absent.toml", None, "does not exist"),
        ("broken.toml", b"id = ", "not valid TOML"),
        ("latin.toml", b'id = "\xe9"', "cannot be read"),
        ("empty.toml", b"", "2 problems"),
        ("taken.toml", b'id = "scgi"\ninstruction = "x"', "built-in"),
        ("blank.toml", b'id = "mine"\ninstruction = "  "', "must not be empty"),
    ],
)
def test_clear_errors(tmp_path, name, content, told):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        get_template(path if name.endswith(".toml") else name)
