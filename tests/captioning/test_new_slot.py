"""A new slot requires its values in data/slots.py, its nouns in the lexicon, and a template that asks for it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.helpers.places import REPO

# In a separate process, because modules read the slots when they are imported.
PROGRAM = """
    from data import slots
    slots.SLOTS += ("headwear",)
    slots.VOCABULARY["headwear"] = ("cap", "helmet", slots.NONE)

    from captioning.attributes import lexicon
    lexicon.LEXICON |= {"cap": lexicon.Entry("headwear", "cap"), "helmet": lexicon.Entry("headwear", "helmet")}

    from captioning.attributes import parse_caption
    from captioning.prompts.pattern import compose
    from captioning.prompts.templates import get_template
    from data.schemas import CAPTIONS

    pattern = get_template("hats.toml").pattern
    text = compose({"gender": "male", "headwear": "cap"}, pattern)
    assert text == "A man is wearing a cap.", text
    assert parse_caption(text)["headwear"] == "cap"
    assert parse_caption("He is wearing a red helmet and a coat.")["headwear"] == "helmet"
    assert parse_caption("She is not wearing a cap.")["headwear"] == slots.NONE
    assert parse_caption("She is wearing a coat.")["headwear"] is None
    assert {"attr_headwear", "conf_headwear"} <= set(CAPTIONS.names)
"""

TEMPLATE = """
    id = "hats"
    instruction = "What is the person wearing on the head?"
    [[pattern]]
    introduces = true
    clauses = [{phrase = "headwear", first = " is wearing ", later = " and "}]
"""


def test_a_new_slot_is_composed_and_parsed(tmp_path):
    (tmp_path / "hats.toml").write_text(textwrap.dedent(TEMPLATE))
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPO)},
        check=True,
        timeout=120,
    )
