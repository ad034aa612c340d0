"""The attribute slots of a person caption and their closed vocabularies.

A *slot* is one question that a caption answers about the person in a crop. Its value is a string from the vocabulary
below, ``NONE`` if the caption says that there is nothing of the kind ("not wearing glasses"), and ``None`` if the
caption does not say.

Synthetic people are drawn from these vocabularies, and closed-choice decoding answers with them; free captions may
contain other values (``captioning.attributes.parse`` normalizes them where it can).
"""

from __future__ import annotations

from typing import Final

SLOTS: Final = (
    "gender",
    "age",
    "upper_color",
    "upper_type",
    "lower_color",
    "lower_type",
    "shoes",
    "hair",
    "glasses",
    "carrying",
)
"""Slot names in the order of the paper's template (CLIP-SCGI, section 3.2)."""

NONE: Final = "none"
"""Value of a slot that is known to be empty: nothing carried, no glasses."""

GENDERS: Final = ("female", "male")
AGES: Final = ("young", "middle-aged", "elderly")
COLORS: Final = (
    "black",
    "white",
    "gray",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
)
UPPER_TYPES: Final = ("t-shirt", "shirt", "sweater", "hoodie", "jacket", "coat")
LOWER_TYPES: Final = ("pants", "jeans", "shorts", "skirt")
SHOES: Final = ("black shoes", "white sneakers", "red sneakers", "brown boots", "sandals")
HAIR: Final = ("short", "long", "ponytail", "bald")
GLASSES: Final = ("glasses", "sunglasses", NONE)
CARRYING: Final = ("backpack", "handbag", "shoulder bag", "suitcase", NONE)

VOCABULARY: Final[dict[str, tuple[str, ...]]] = {
    "gender": GENDERS,
    "age": AGES,
    "upper_color": COLORS,
    "upper_type": UPPER_TYPES,
    "lower_color": COLORS,
    "lower_type": LOWER_TYPES,
    "shoes": SHOES,
    "hair": HAIR,
    "glasses": GLASSES,
    "carrying": CARRYING,
}
