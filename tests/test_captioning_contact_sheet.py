"""The contact sheet: who is shown, what stands beside them, and that no file can spoil it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont

from captioning.contact_sheet import COLUMNS, SheetConfig, chosen, contact_sheet, wrapped
from data.errors import DataError
from data.fingerprint import digest_bytes

RED, GREY = (200, 10, 10), (226, 230, 237)
SMALL = SheetConfig(identities=3, each=4, height=100, text=100)


@pytest.fixture
def people(tmp_path):
    """Four people, junk and a distractor; two cameras, three images in each; all files are red."""
    rows = []
    for pid in (-1, 0, 3, 5, 8, 9):
        for camid in (1, 2):
            for number in range(3):
                path = f"{pid}_{camid}_{number}.png"
                Image.new("RGB", (30, 60), RED).save(tmp_path / path)
                sha256 = digest_bytes((tmp_path / path).read_bytes())
                rows.append((path, pid, camid, "A man is wearing a black shirt.", "ok", sha256))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def pixels(sheet: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == color).all(axis=2).sum())


def test_identities_are_drawn_by_the_seed_and_cameras_take_turns(people):
    shown = chosen(people, SMALL)
    assert shown == chosen(people.sample(frac=1, random_state=1), SMALL), "the order of the table does not matter"
    assert all(item["pid"] > 0 for person in shown for item in person)
    assert [[item["camid"] for item in person] for person in shown] == [[1, 1, 2, 2]] * 3
    draws = {tuple(person[0]["pid"] for person in chosen(people, SheetConfig(identities=2, seed=s))) for s in range(20)}
    assert len(draws) > 3
    everybody = chosen(people, SheetConfig(identities=99, each=99))
    assert [len(person) for person in everybody] == [6] * 4


def test_images_keep_their_shape_and_stand_in_rows(people, tmp_path):
    sheet = contact_sheet(people, tmp_path, SMALL)
    assert sheet.size == (12 + 4 * (50 + 100 + 24), 12 + 3 * (100 + 12))
    assert pixels(sheet, RED) == 3 * 4 * 50 * 100
    assert pixels(sheet, GREY) == 0


def test_what_is_no_longer_the_captioned_image_is_a_grey_field(people, tmp_path):
    first, second, third = (item["image_path"] for person in chosen(people, SMALL) for item in person[:1])
    (tmp_path / first).unlink()
    Image.new("RGB", (30, 60), "blue").save(tmp_path / second)
    people.loc[people["image_path"] == third, "image_path"] = "../outside.png"
    sheet = contact_sheet(people, tmp_path, SMALL)
    assert pixels(sheet, (0, 0, 255)) == 0
    assert pixels(sheet, RED) == 9 * 50 * 100
    assert pixels(sheet, GREY) > 2 * 50 * 100


def test_a_failed_caption_says_why(people, tmp_path):
    plain = contact_sheet(people, tmp_path, SMALL)
    people["status"], people["caption"] = "image_error", None
    assert pixels(contact_sheet(people, tmp_path, SMALL), (192, 38, 38)) > pixels(plain, (192, 38, 38)) == 0


def test_lines_fit_their_width():
    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(11)
    text = "A middle-aged woman is wearing an extraordinarilylongwordthatfitsnowhere and black shoes"
    words = text.split()
    lines = list(wrapped(words, draw, font, 80))
    assert " ".join(lines).split() == words
    assert all(draw.textlength(line, font=font) <= 80 or " " not in line for line in lines)
    assert len(lines) < len(words)


def test_nobody_to_show_is_an_error(people, tmp_path):
    with pytest.raises(DataError, match="no identity"):
        contact_sheet(people[people["pid"] < 1], tmp_path, SMALL)
