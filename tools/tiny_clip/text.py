"""Sentences about synthetic people for the tiny CLIP: the paper's template, its single clauses, and simpler wordings.

Each sentence comes with the slots it mentions, so that training knows for which other images it is true.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

from data.slots import NONE, SLOTS, VOCABULARY

Facts = Mapping[str, str]
"""Slot -> value, of the visible slots only."""

_NOUN: Final = {"male": "man", "female": "woman"}
_HAIR: Final = {"short": "short hair", "long": "long hair", "ponytail": "a ponytail", "bald": "a bald head"}
_GENERAL_WORDS: Final = (
    "the image shows this photo of a picture person pedestrian street camera view from behind front side walking "
    "standing running looking left right his her he she they is are was wearing wears worn dressed in with and or on "
    "carrying carries holding holds has having no not any nothing visible hat cap scarf belt tie dress suit blouse "
    "sneakers boots sandals shoes heels socks trousers leggings top vest cardigan polo striped plaid plain dark light "
    "bright navy beige khaki cream blond hair hairstyle head face beard bun braided curly straight medium length "
    "eyeglasses purse tote briefcase luggage umbrella phone bicycle child boy girl lady gentleman adult old aged color "
    "colored sleeve sleeves sleeveless long short pair accessory accessories appearance clothing upper lower body "
)


def article(phrase: str) -> str:
    """Put "a" or "an" before `phrase`."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def person(facts: Facts) -> str:
    """Return the known age and gender with an article, such as "a young woman" or "an elderly person"."""
    noun = _NOUN.get(facts.get("gender", ""), "person")
    return article(f"{facts['age']} {noun}" if "age" in facts else noun)


def _upper(facts: Facts) -> str | None:
    if "upper_type" not in facts:
        return None
    words = [facts["upper_color"]] if "upper_color" in facts else []
    return article(" ".join([*words, facts["upper_type"]]))


def _lower(facts: Facts) -> str | None:
    if "lower_type" not in facts:
        return None
    words = [facts["lower_color"]] if "lower_color" in facts else []
    phrase = " ".join([*words, facts["lower_type"]])
    return article(phrase) if facts["lower_type"] == "skirt" else phrase


def _carrying(facts: Facts) -> str | None:
    value = facts.get("carrying", NONE)
    return None if value == NONE else article(value)


def _glasses(facts: Facts) -> str | None:
    value = facts.get("glasses", NONE)
    return None if value == NONE else value


def _join(*parts: str | None) -> str:
    return " and ".join(part for part in parts if part)


def template_sentences(facts: Facts) -> str:
    """Return the text of the paper's caption template, without clauses for unknown facts (CLIP-SCGI, section 3.2)."""
    subject = person(facts)
    worn = _join(_upper(facts), _lower(facts))
    sentences = [f"{subject[0].upper()}{subject[1:]}{f' is wearing {worn}' if worn else ''}."]
    the = f"The {subject.split()[-1]}"
    carried = _carrying(facts)
    shoes = f"wearing {facts['shoes']}" if "shoes" in facts else None
    if second := _join(shoes, f"carrying {carried}" if carried else None):
        sentences.append(f"{the} is {second}.")
    if third := _join(_HAIR.get(facts.get("hair", "")), _glasses(facts)):
        sentences.append(f"{the} has {third}.")
    return " ".join(sentences)


def _plain(facts: Facts, rng: random.Random) -> str:
    """Return a one-line description like a search query, with clauses in random order."""
    clauses = [
        f"{rng.choice(['wearing', 'in', 'dressed in'])} {_join(_upper(facts), _lower(facts))}",
        f"{rng.choice(['with', 'wearing'])} {facts.get('shoes', '')}",
        f"{rng.choice(['carrying', 'with', 'holding'])} {_carrying(facts) or ''}",
        f"with {_HAIR.get(facts.get('hair', ''), '')}",
        f"{rng.choice(['with', 'wearing'])} {_glasses(facts) or ''}",
    ]
    said = [clause for clause in clauses if not clause.endswith(" ")]
    rng.shuffle(said)
    return f"{rng.choice(['', 'a photo of ', 'the image shows '])}{person(facts)} {', '.join(said)}".strip()


def _template(facts: Facts, _: random.Random) -> str:
    return template_sentences(facts)


_WORDINGS: Final[tuple[Callable[[Facts, random.Random], str], ...]] = (_template, _template, _plain)
# Share of sentences that mention every visible fact; the others mention a random part.
_COMPLETE: Final = 0.5


def training_text(facts: Facts, rng: random.Random) -> tuple[str, dict[str, str]]:
    """Return a random sentence about a person and the facts it mentions."""
    known = {slot: facts[slot] for slot in SLOTS if slot in facts}
    if rng.random() > _COMPLETE:
        keep = rng.uniform(0.3, 1.0)
        known = {slot: value for slot, value in known.items() if rng.random() < keep}
    text = rng.choice(_WORDINGS)(known, rng)
    return text, mentioned(known)


def mentioned(facts: Facts) -> dict[str, str]:
    """Return the facts that a sentence about `facts` mentions: no color without its garment, and never "none"."""
    said = {slot: value for slot, value in facts.items() if value != NONE}
    for part in ("upper", "lower"):
        if f"{part}_type" not in said:
            said.pop(f"{part}_color", None)
    return said


def tokenizer_corpus(seed: int, size: int) -> list[str]:
    """Return texts for training the tokenizer: sentences about random people, and common words."""
    rng = random.Random(seed)
    texts = []
    for _ in range(size):
        facts = {slot: rng.choice(values) for slot, values in VOCABULARY.items()}
        texts.append(training_text(facts, rng)[0])
    words = _GENERAL_WORDS.split()
    return texts + [" ".join(rng.sample(words, len(words))) for _ in range(size // 20)]
