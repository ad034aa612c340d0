"""Words that captions use for people, garments, hair and carried items, and the value that each one means.

Keys are lower-case words with hyphens written as spaces ("t shirt"). Words about a person's build, worth or nakedness
are in `DEGRADING` only: the audit flags them, and they never become a value.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from data.slots import COLORS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Entry(NamedTuple):
    """The meaning of a noun.

    kind: a slot such as glasses, or upper, lower, thing, bag or worn (worn, but in no slot). value: of the slot; None
    if the noun names only the kind ("clothes").
    """

    kind: str
    value: str | None


COLOR_WORDS: Final[dict[str, str]] = {
    **{color: color for color in COLORS},
    **dict.fromkeys(("grey", "silver", "charcoal"), "gray"),
    **dict.fromkeys(("khaki", "tan", "beige", "camel", "bronze"), "brown"),
    **dict.fromkeys(("navy", "turquoise", "cyan", "aqua", "indigo", "denim blue"), "blue"),
    **dict.fromkeys(("maroon", "burgundy", "crimson", "scarlet"), "red"),
    **dict.fromkeys(("violet", "lavender", "lilac", "plum"), "purple"),
    **dict.fromkeys(("magenta", "fuchsia", "rose"), "pink"),
    **dict.fromkeys(("cream", "ivory"), "white"),
    **dict.fromkeys(("olive", "teal", "mint", "lime"), "green"),
    **dict.fromkeys(("gold", "golden", "mustard"), "yellow"),
    **dict.fromkeys(("coral", "peach"), "orange"),
}
"""Color word -> one of the eleven colors; khaki, tan and beige are brown."""

GENDER_NOUNS: Final[dict[str, str]] = {
    **dict.fromkeys(("woman", "women", "female", "females", "lady", "ladies", "girl", "girls", "gal"), "female"),
    **dict.fromkeys(("man", "men", "male", "males", "guy", "gentleman", "boy", "boys", "fellow"), "male"),
}
GENDER_PRONOUNS: Final[dict[str, str]] = {
    **dict.fromkeys(("she", "her", "hers", "herself"), "female"),
    **dict.fromkeys(("he", "him", "his", "himself"), "male"),
}
YOUNG_NOUNS: Final = _words(
    "boy boys girl girls child children kid kids toddler baby infant teenager teen teens adolescent youth"
)
PERSON_NOUNS: Final = (
    frozenset(GENDER_NOUNS) | YOUNG_NOUNS | _words("person people individual adult pedestrian citizen")
)
AGE_WORDS: Final[dict[str, str]] = {
    **dict.fromkeys(("young", "younger", "youthful", "teenage", "teenaged"), "young"),
    **dict.fromkeys(("elderly", "senior"), "elderly"),
}
"""Words that mean a person's age anywhere in a caption."""
AGE_WORDS_BEFORE_PERSON: Final[dict[str, str]] = {
    **dict.fromkeys(("old", "older", "aged"), "elderly"),
    **dict.fromkeys(("little",), "young"),
}
"""Words that mean a person's age only before a word for a person ("an old man", not "an old coat")."""


def _entries(kind: str, words: dict[str, str | None]) -> dict[str, Entry]:
    return {
        word.strip(): Entry(kind, value) for names, value in words.items() for word in names.split(",") if word.strip()
    }


_UPPER: Final = _entries(
    "upper",
    {
        "t shirt, tshirt, tee shirt, tee, t shirts, tshirts": "t-shirt",
        "shirt, shirts, dress shirt, button up shirt, button down shirt, undershirt": "shirt",
        "sweater, pullover, jumper, sweaters": "sweater",
        "hoodie, hoody, hooded sweatshirt, hooded sweater, hoodies": "hoodie",
        "jacket, jackets, windbreaker, anorak, suit jacket, bomber": "jacket",
        "coat, coats, overcoat, trench coat, raincoat, rain coat, parka": "coat",
        "dress, dresses, sundress, gown, sun dress": "dress",
        "tank top, tanktop, singlet": "tank top",
        "polo shirt, polo": "polo shirt",
        "crop top": "crop top",
        "top, tops": "top",
        "blouse": "blouse",
        "sweatshirt": "sweatshirt",
        "cardigan": "cardigan",
        "blazer": "blazer",
        "vest, waistcoat": "vest",
        "suit": "suit",
        "jersey": "jersey",
        "tunic": "tunic",
        "uniform": "uniform",
        "robe": "robe",
        "poncho": "poncho",
        "jumpsuit": "jumpsuit",
        "romper": "romper",
        "overalls": "overalls",
        "bikini": "bikini",
        "swimsuit, bathing suit": "swimsuit",
        "tracksuit, track suit": "tracksuit",
        "upper garment, upper clothes, upper clothing": None,
        "clothes, clothing, outfit, attire, garment": None,
    },
)
_LOWER: Final = _entries(
    "lower",
    {
        "pants, pant, trousers, trouser, slacks, chinos, sweatpants, sweat pants, joggers, capris, khakis": "pants",
        "jeans, jean, denims": "jeans",
        "shorts, board shorts, jean shorts, denim shorts": "shorts",
        "skirt, skirts, miniskirt, mini skirt": "skirt",
        "leggings": "leggings",
        "tights, pantyhose": "tights",
        "lower garment, lower clothes, lower clothing": None,
    },
)
_SHOES: Final = _entries(
    "shoes",
    {
        "shoes, shoe, dress shoes, leather shoes, footwear": "shoes",
        "sneakers, sneaker, trainers, running shoes, tennis shoes, athletic shoes, sports shoes, gym shoes": "sneakers",
        "boots, boot": "boots",
        "sandals, sandal": "sandals",
        "flip flops, flip flop": "flip-flops",
        "slippers": "slippers",
        "heels, high heels": "high heels",
        "flats": "flats",
        "loafers": "loafers",
    },
)
_GLASSES: Final = _entries(
    "glasses",
    {
        "glasses, eyeglasses, eye glasses, spectacles, reading glasses": "glasses",
        "sunglasses, sun glasses": "sunglasses",
    },
)
_BAGS: Final = _entries(
    "bag",
    {
        "backpack, backpacks, rucksack, knapsack, back pack, book bag, bookbag, schoolbag, school bag": "backpack",
        "handbag, handbags, hand bag, purse, purses, clutch": "handbag",
        "shoulder bag, shoulder bags, messenger bag, crossbody bag, cross body bag, satchel, sling bag": "shoulder bag",
        "suitcase, suitcases, luggage, trolley case": "suitcase",
        "tote bag, tote": "tote bag",
        "shopping bag, shopping bags, grocery bag": "shopping bag",
        "plastic bag, plastic bags": "plastic bag",
        "paper bag": "paper bag",
        "duffel bag, duffle bag, gym bag": "duffel bag",
        "laptop bag, computer bag": "laptop bag",
        "fanny pack, waist bag, waist pack": "waist bag",
        "briefcase": "briefcase",
        "bag, bags": "bag",
        "cell phone, cell phones, cellphone, mobile phone, phone, smartphone, mobile, cellular phone": "cell phone",
    },
)
_PLAIN_THINGS: Final = sorted(
    _words(
        "bicycle bottle book cup umbrella box skateboard frisbee guitar camera laptop dog baby towel basket pillow "
        "blanket motorcycle wallet surfboard banana toothbrush gun ball racket newspaper magazine tablet cane stick "
        "paper toy object remote lighter"
    )
)
_THINGS: Final = _entries(
    "thing",
    {
        **{f"{word}, {word}s": word for word in _PLAIN_THINGS},
        "bike, bikes": "bicycle",
        "boxes": "box",
        "water bottle, bottle of water, water bottles": "water bottle",
        "tennis racket, tennis racquet": "tennis racket",
        "baseball bat": "baseball bat",
        "baseball glove": "baseball glove",
        "shopping cart": "shopping cart",
        "stroller, baby stroller, pram": "stroller",
        "cup of coffee, coffee cup": "cup",
    },
)
_WORN: Final = _entries(
    "worn",
    {
        "hat, cap, baseball cap, tie, belt, scarf, socks, sock, watch, wristwatch, bracelet, necklace, ring, helmet, "
        "bicycle helmet, motorcycle helmet, lanyard, glove, gloves, wristband, mask, face mask, apron, headphones, "
        "earrings, stockings": None
    },
)

LEXICON: Final[dict[str, Entry]] = {
    **_UPPER,
    **_LOWER,
    **_SHOES,
    **_GLASSES,
    **_THINGS,
    **_BAGS,
    **_WORN,
    "hair": Entry("hair", None),
    "haircut": Entry("hair", None),
    "haired": Entry("hair", None),
}
"""Noun of up to three words -> its meaning; the longest match is used ("dress shirt" is a shirt)."""
LONGEST: Final = max(len(words.split()) for words in LEXICON)

HAIR_LENGTHS: Final[dict[str, str]] = {
    **dict.fromkeys(("short", "shorter", "cropped", "buzzed"), "short"),
    **dict.fromkeys(("long", "longer"), "long"),
    **dict.fromkeys(("medium", "shoulder", "mid", "chin"), "medium"),
}
"""Words before or after "hair"."""
HAIR_STYLES: Final[dict[str, str]] = {
    **dict.fromkeys(("ponytail", "ponytails", "pony tail", "pony tails"), "ponytail"),
    **dict.fromkeys(("bald", "balding", "shaved head", "shaven head", "hairless"), "bald"),
    "bun": "bun",
    **dict.fromkeys(("pigtails", "pigtail"), "pigtails"),
    **dict.fromkeys(("braid", "braids", "braided"), "braided"),
    **dict.fromkeys(("buzz cut", "crew cut"), "short"),
}
"""Words that name a hair style anywhere in a caption; a style precedes a length."""
HAIR_LOOKS: Final[dict[str, str]] = {
    **COLOR_WORDS,
    **{word: word for word in ("blonde", "dark", "light", "curly", "wavy", "straight")},
    "blond": "blonde",
}
"""Words before or after "hair" that are used only without a style or length."""

CARRY_VERBS: Final = _words("carrying carries carry carried holding holds hold pulling pulls pushing pushes dragging")
WEAR_VERBS: Final = _words("wearing wears wear dressed clad has have having with without featuring sporting")
OTHER_VERBS: Final = _words("but while who which that riding walking standing sitting running looking posing next near")
"""Verbs and conjunctions that begin a new segment of a sentence."""
NEGATORS: Final = _words(
    "not never no without neither nor none isn't doesn't aren't don't hasn't haven't wasn't isnt doesnt"
)
AUXILIARIES: Final = _words(
    "is are was were be being been to appear appears seem seems does do currently also either visibly any"
)
DETERMINERS: Final = _words("a an the his her their its some any this that one two three several many no")
PREPOSITIONS: Final = _words(
    "in on over at from near behind around across to along under by for as into onto through beside against of "
    "up down off while slung hanging strapped is are was"
)
ADJECTIVES: Final = _words(
    "small large big tiny huge long short tall thin thick light dark bright pale deep plain striped plaid floral "
    "patterned colorful colourful multicolored checkered printed leather plastic paper denim cotton wooden metal old "
    "new open closed full empty another other same different single small sized heavy stylish casual pair piece bunch "
    "set couple colored coloured visible possible possibly large what like looks appears be"
)
"""Words before the noun of a carried item that do not belong to its name."""
ECHOES: Final = _words(
    "other others accessory accessories item items something anything nothing things thing hand hands belongings "
    "personal"
)
"""Words that a model repeats from the instruction, or that do not name an item."""

DEGRADING: Final = _words(
    "fat obese overweight chubby ugly naked nude sexy hot homeless poor dirty stupid dumb crazy skinny scrawny trashy "
    "slutty creepy thug criminal retarded crippled midget oriental"
)
"""Words that demean or expose a person; the audit flags captions that contain one."""
