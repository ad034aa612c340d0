"""The contact sheet: the choice of people, the text beside them, and images that cannot be read."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from captioning.audit.contact_sheet import SheetConfig, chosen, contact_sheet, sheet_columns
from captioning.audit.pen import Pen, missing_notice
from data.artifacts.fingerprint import digest_bytes
from data.errors import DataError

RED, GRAY = (200, 10, 10), (226, 230, 237)
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
                rows.append((path, "gallery", pid, camid, "A man is wearing a black shirt.", "ok", sha256))
    return pd.DataFrame(rows, columns=sheet_columns([]))


def pixels(sheet: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == color).all(axis=2).sum())


def test_identities_are_drawn_by_the_seed_and_cameras_take_turns(people):
    shown = chosen(people, SMALL)
    assert shown == chosen(people.sample(frac=1, random_state=1), SMALL), "the order of the table does not matter"
    assert all(item.pid > 0 for person in shown for item in person)
    assert [[item.camid for item in person] for person in shown] == [[1, 1, 2, 2]] * 3
    draws = {tuple(person[0].pid for person in chosen(people, SheetConfig(identities=2, seed=s))) for s in range(20)}
    assert len(draws) > 3
    everybody = chosen(people, SheetConfig(identities=99, each=99))
    assert [len(person) for person in everybody] == [6] * 4


def test_identity_zero_is_shown_where_it_is_a_person(people):
    people.loc[people["pid"] == 0, "split"] = "train"
    assert [person[0].pid for person in chosen(people, SheetConfig(identities=99))] == [0, 3, 5, 8, 9]


def test_images_keep_their_shape_and_stand_in_rows(people, tmp_path):
    sheet, _ = contact_sheet(people, tmp_path, SMALL)
    assert sheet.size == (12 + 4 * (50 + 100 + 24), 12 + 3 * (100 + 12))
    assert pixels(sheet, RED) == 3 * 4 * 50 * 100
    assert pixels(sheet, GRAY) == 0


def test_what_is_no_longer_the_captioned_image_is_a_gray_field(people, tmp_path):
    first, second, third = (item.image_path for person in chosen(people, SMALL) for item in person[:1])
    (tmp_path / first).unlink()
    Image.new("RGB", (30, 60), "blue").save(tmp_path / second)
    people.loc[people["image_path"] == third, "image_path"] = "../outside.png"
    sheet, _ = contact_sheet(people, tmp_path, SMALL)
    assert pixels(sheet, (0, 0, 255)) == 0
    assert pixels(sheet, RED) == 9 * 50 * 100
    assert pixels(sheet, GRAY) > 2 * 50 * 100


def test_a_failed_caption_says_why(people, tmp_path):
    plain, _ = contact_sheet(people, tmp_path, SMALL)
    people["status"], people["caption"] = "image_error", pd.Series([None] * len(people), dtype="str")
    assert pixels(contact_sheet(people, tmp_path, SMALL)[0], (192, 38, 38)) > pixels(plain, (192, 38, 38)) == 0


def test_a_text_label_stands_beside_the_picture(people, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(Pen, "write", lambda _self, _left, _top, words, _ink: lines.append(" ".join(words)))
    contact_sheet(people, tmp_path, SMALL)
    plain, shown = " ".join(lines), {person[0].pid for person in chosen(people, SMALL)}
    lines.clear()
    labels = people["pid"].map(lambda pid: "" if pid < 1 else f"אנה <b>\n{'x' * 200}{pid}")
    contact_sheet(people.assign(label=labels), tmp_path, SMALL)
    labeled = " ".join(lines).replace("x x", "xx")
    for pid in shown:
        assert f"identity {pid}, camera 1" in plain
        assert f"(pid {pid}), camera 1" in labeled
    assert "identity אנה <b> xx" in labeled
    assert "x" * 20 not in labeled
    assert sheet_columns(["label", "n_tokens"])[-1] == "label"


def written(words: list[str]) -> np.ndarray:
    """The columns that have ink, of a line of words drawn in black on white."""
    image = Image.new("RGB", (800, 40), "white")
    Pen(image).write(4, 4, words, (0, 0, 0))
    return (np.asarray(image.convert("L")) < 160).any(axis=0)


def test_the_only_font_tells_what_it_lacks():
    pen = Pen(Image.new("RGB", (90, 20)))
    pen.write(0, 0, ["a", "man\ufdd0"], (0, 0, 0))
    assert pen.missing == {"\ufdd0"}


def test_a_sheet_tells_what_its_font_lacks(people, tmp_path):
    assert contact_sheet(people, tmp_path, SMALL)[1] == set()
    people["caption"] = "A man \ufdd0 in red."
    assert contact_sheet(people, tmp_path, SMALL)[1] == {"\ufdd0"}
    assert missing_notice({"\ufdd0"}, "sheet.png").startswith("sheet.png: 1 character is in no installed font")


def gaps(columns: np.ndarray) -> list[int]:
    """The widths of the stretches without ink, between the first and the last ink."""
    at = np.flatnonzero(columns)
    return [int(step) - 1 for step in np.diff(at) if step > 1]


SENTENCE = "A young man is wearing a gray t-shirt. The woman is at a taxi; A wavy Avenue, V. Taylor f j ill"


@pytest.mark.parametrize("pair", list(itertools.pairwise(SENTENCE.split())), ids=" ".join)
def test_the_gap_between_words_is_wider_than_any_between_letters(pair):
    inside = [gap for word in SENTENCE.split() for gap in gaps(written([word]))]
    first, second = (int(written([word]).sum() + sum(gaps(written([word])))) for word in pair)
    both = np.flatnonzero(written(list(pair)))
    between = int(both[-1] - both[0] + 1) - first - second
    assert between >= max(inside) + 2


def test_lines_fit_their_width_and_a_long_word_goes_on_in_the_next():
    pen = Pen(Image.new("RGB", (1, 1)))
    text = "A middle-aged woman is wearing an extraordinarilylongwordthatfitsnowhere and black shoes"
    lines = list(pen.wrapped(text.split(), 80))
    assert all(pen.length(line) <= 80 for line in lines)
    assert "".join(word for line in lines for word in line) == text.replace(" ", "")
    assert sum("extraordinarily".startswith(word[:4]) for line in lines for word in line) == 1
    assert len(lines) < len(text.split()) + 3


@pytest.mark.parametrize("width", [1, 5, 30])
def test_a_column_narrower_than_a_letter_still_ends(width):
    pen = Pen(Image.new("RGB", (1, 1)))
    lines = list(pen.wrapped(["Wide", "letters"], width))
    assert "".join(word for line in lines for word in line) == "Wideletters"


def test_the_length_of_a_line_is_what_is_drawn():
    words = SENTENCE.split()[:8]
    ink = np.flatnonzero(written(words))
    assert abs(Pen(Image.new("RGB", (1, 1))).length(words) - (ink[-1] - ink[0] + 1)) <= 3


def test_nothing_of_a_caption_reaches_the_next_picture(people, tmp_path):
    people["caption"] = "an-extraordinarily-long-word-that-fits-nowhere-and-goes-on " * 9
    sheet = np.asarray(contact_sheet(people, tmp_path, SMALL)[0])
    cell, band = SMALL.height // 2 + SMALL.text + 24, SMALL.height + 12
    for column in range(4):
        beside = 12 + column * cell + SMALL.height // 2 + 6
        assert (sheet[:, beside + SMALL.text + 1 : 12 + (column + 1) * cell] == 255).all()
    for row in range(1, 4):
        assert (sheet[row * band + 4 : row * band + 12] == 255).all()


def test_a_sheet_without_known_people_is_refused(people, tmp_path):
    with pytest.raises(DataError, match="only junk and distractors"):
        contact_sheet(people[people["pid"] < 1], tmp_path, SMALL)
