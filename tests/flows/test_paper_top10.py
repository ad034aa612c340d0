"""``clip-scgi paper top10``: which queries it chooses, its picture and its page."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.artifacts.store import ArtifactStore
from data.images.thumbnails import Thumbnail
from flows.cli.app import main
from flows.comparison.compare import compare
from flows.comparison.runs import find_run
from flows.paper.drawing import INK, RIGHT, WRONG, frame, mark, pen_on, picture, words_of
from flows.paper.top10 import Top10Config, choose
from tests.helpers.evaluations import image_rows, rank, write_evaluation
from tests.helpers.page_text import HOSTILE, Page


def top10(drawn, out, *words) -> int:
    return main(["paper", "top10", *words, "--home", str(drawn.home), "--out", str(out)])


def difference_of(store, *refs):
    return compare([find_run(ref, store) for ref in refs], store).differences[0]


# The choice -------------------------------------------------------------------------------------------


def test_losses_and_chance_are_shown_as_well_as_gains(drawn):
    difference = difference_of(drawn.store, "benchmark", "demo")
    won, lost, drawn_at_random = choose(difference, Top10Config(each=2, sample=4, seed=5))
    gains = {pair.path: pair.gain for pair in difference.queries}
    order = sorted(gains, key=lambda path: (-gains[path], path))
    assert [pair.path for pair in won.pairs] == order[:2]
    assert {pair.path for pair in lost.pairs} == {path for path in order[-2:] if gains[path] < 0}
    shown = [pair.path for choice in (won, lost, drawn_at_random) for pair in choice.pairs]
    assert len(set(shown)) == len(shown)
    assert len(drawn_at_random.pairs) == 4
    tally = difference.metrics[0].tally
    assert won.title == f"Largest gains of B: 2 of {tally.won} queries won"
    left = len(gains) - len(won.pairs) - len(lost.pairs)
    assert drawn_at_random.title == f"Random sample: 4 of the {left} other queries (seed 5)"


def test_the_seed_alone_draws_the_sample(drawn):
    difference = difference_of(drawn.store, "benchmark", "demo")
    draws = [choose(difference, Top10Config(seed=seed))[2].pairs for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len({tuple(pair.path for pair in pairs) for pairs in draws}) == 4
    aps = [pair.gain for pairs in draws for pair in pairs]
    assert min(aps) <= 0 <= max(aps)


def test_the_same_run_twice_has_only_a_sample(drawn):
    difference = difference_of(drawn.store, "demo", "demo")
    won, lost, sample = choose(difference, Top10Config())
    assert (list(won.pairs), list(lost.pairs), len(sample.pairs)) == ([], [], 3)
    assert won.title == "Largest gains of B: 0 of 0 queries won"


# The page and the picture -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(drawn, module_folder):
    out = module_folder("top10")
    assert top10(drawn, out, "benchmark", "demo", "--each", "1", "--sample", "2") == 0
    return out


def test_the_page_has_ten_images_of_each_method_and_loads_nothing(drawn, written):
    html = (written / "top10.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|https?://", html)
    assert (len(page.classed("query")), len(page.classed("side"))) == (4, 8)
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 4 * (1 + 2 * 10)
    rows = {
        row["query_path"]: row["top_paths"]
        for row in pq.read_table(drawn.demo / "rankings.parquet").to_pylist()
        if row["mode"] == "image"
    }
    titles = [attrs.get("title") for tag, attrs in page.elements if tag == "img"]
    for at in range(0, len(titles), 21):
        assert titles[at + 11 : at + 21] == rows[titles[at]][:10], "the first ten, and no other image in their place"
    for word in ("The queries are chosen by a rule: the 1 whose average precision", "recipe benchmark", "recipe demo"):
        assert word in page.words
    assert re.search(r"mAP: A \d+\.\d, B \d+\.\d, [+−]\d+\.\d points \[", page.words)
    marks = re.findall(r'<li class="(right|wrong)">.*?aria-label="(right|wrong)">(.)</span>', html, re.S)
    assert {tuple(found) for found in marks} == {("right", "right", "✓"), ("wrong", "wrong", "✗")}


def test_the_picture_has_a_row_of_images_per_query_and_method(written):
    sheet = np.asarray(Image.open(written / "top10.png").convert("RGB")).astype(int)
    greens, reds = ((sheet == color).all(axis=2) for color in (RIGHT, WRONG))
    assert greens.any()
    assert reds.any()
    one = 2 * (136 + 16 + 8)
    assert sheet.shape[0] > 4 * 2 * one


def test_frames_differ_without_their_color():
    frames = []
    for right in (True, False):
        image = Image.new("RGB", (136, 272), (128, 128, 128))
        frame(image, right=right)
        mark(image, right=right)
        frames.append(np.asarray(image).astype(int))
    gray = np.full(3, 128)
    borders = [(picture[1] != gray).any(axis=1) for picture in frames]
    assert borders[0].all(), "solid"
    assert 0.4 < borders[1].mean() < 0.7, "dashed"
    signs = [(picture[-36:-4, -36:-4] == 255).all(axis=2) for picture in frames]
    assert signs[0].any()
    assert (signs[0] != signs[1]).any()


def test_an_image_that_is_gone_leaves_the_reason(drawn, tmp_path, capsys):
    assert top10(drawn, tmp_path, "benchmark", "demo", "--images", str(tmp_path / "nowhere"), "--each", "1") == 0
    assert "image missing" in Page((tmp_path / "top10.html").read_text()).words
    home = tmp_path / "home"
    shutil.copytree(drawn.home, home)
    (home / "digests.sqlite").unlink()
    capsys.readouterr()
    assert (
        main(["paper", "top10", "benchmark", "demo", "--home", str(home), "--out", str(tmp_path), "--each", "1"]) == 0
    )
    assert "their folder is unknown; name it with --images FOLDER" in " ".join(capsys.readouterr().err.split())
    gone = picture(Thumbnail(source=None, problem="changed", width=72, height=144), 136, 272)
    assert (np.asarray(gone) == INK).all(axis=2).any()


def test_characters_without_a_font_are_told(tmp_path, capsys):
    store = ArtifactStore(tmp_path / "home")
    images = [row | {"path": f"\ufdd0/{row['path']}"} for row in image_rows()]
    refs = [write_evaluation(store, images, rank(images, noise=1, seed=seed)) for seed in (1, 2)]
    words = [*(ref.fingerprint for ref in refs), "--home", str(store.root), "--out", str(tmp_path)]
    assert main(["paper", "top10", *words]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "top10.png: 1 character is in no installed font that this command knows" in told
    assert told.count("in no installed font") == 1


def test_hostile_names_are_text(tmp_path):
    store = ArtifactStore(tmp_path / "home")
    images = [row | {"path": f"{HOSTILE}/{row['path']}"} for row in image_rows()]
    refs = [
        write_evaluation(store, images, rank(images, noise=1, seed=seed), recipe=HOSTILE, dataset=HOSTILE)
        for seed in (1, 2)
    ]
    words = [*(ref.fingerprint for ref in refs), "--home", str(store.root), "--out", str(tmp_path)]
    assert main(["paper", "top10", *words]) == 0
    parsed = Page((tmp_path / "top10.html").read_text())
    assert parsed.open == []
    assert not [tag for tag, attrs in parsed.elements if tag == "script" or "onerror" in attrs]
    assert HOSTILE in "".join(parsed.text)


def test_what_cannot_work_is_one_message(drawn, tmp_path, capsys):
    gone = next(row for row in drawn.images if row["split"] == "gallery" and row["pid"] > 0)
    fewer = [row for row in drawn.images if row is not gone]
    other = write_evaluation(drawn.store, fewer, rank(fewer, noise=1, seed=4)).fingerprint
    for words, message in (
        (["demo", "nobody"], "'nobody' does not name an evaluation"),
        (["demo", other], "gallery images only in the first"),
        (["demo", "benchmark", "--mode", "joint"], "does not have the row trained, joint mode"),
    ):
        assert top10(drawn, tmp_path / "out", *words) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert top10(drawn, tmp_path, "demo", "benchmark", "--each", "51") == 2


# Words ------------------------------------------------------------------------------------------------


def test_text_is_drawn_in_a_font_that_has_it():
    pen = pen_on(Image.new("RGB", (900, 40), "white"))
    pen.write(0, 0, ["Ein", "Mann,", "мужчина,", "άνδρας,", "رجل"], INK)
    assert pen.missing == set()
    pen.write(0, 0, ["\U0001f9d1\ufdd0"], INK)
    assert "\ufdd0" in pen.missing, "a code point that is not a character"


def test_words_have_no_invisible_characters_and_end():
    assert words_of("a\u202eb\x00c \n d") == ["a", "b", "c", "d"]
    assert words_of("one two three", 8) == ["one", "two…"]
    assert words_of("one", 3) == ["one"]
