"""The audit: agreement computed by hand, one caption for every flag, the page, and the stage."""

import base64
import io
import json
import math
import random
import re
from collections import Counter
from html.parser import HTMLParser

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import escape
from PIL import Image

from captioning.attributes.parse import parse_caption
from captioning.audit.columns import read_captions
from captioning.audit.flags import FLAGS
from captioning.audit.stage import FLAG_ROWS, IDENTITIES, AuditConfig, AuditStage
from captioning.audit.words import degrading_words
from captioning.prompts.replies import has_template_form, is_looping
from captioning.prompts.templates import compose
from data.artifacts.contents import caption_contents
from data.artifacts.fingerprint import digest_bytes
from data.artifacts.store import ArtifactStore
from data.columns.source import TableRows
from data.errors import DataError
from data.files import write_table
from data.schemas import CAPTIONS, LABEL
from data.slots import SLOTS, VOCABULARY
from tests.helpers.stages import audit, describe_by_hand, make_artifact, run_on


def caption(text, pid, *, split="train", status="ok", template="scgi", **changes):
    """One row of captions.parquet."""
    row = dict.fromkeys(CAPTIONS.names)
    row |= {"split": split, "pid": pid, "camid": 1, "caption": text, "raw_text": text, "status": status}
    row |= {"template_id": template, "truncated": status == "truncated", "image_sha256": "0" * 64}
    return row | {f"attr_{slot}": value for slot, value in parse_caption(text or "").items()} | changes


def made(tmp_path, rows):
    store = ArtifactStore(tmp_path / "store")
    rows = [row | {"image_path": f"{i:05d}.jpg"} for i, row in enumerate(rows)]

    def produce(folder):
        pq.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), folder / "captions.parquet")

    return store, make_artifact(store, "caption", {"rows": len(rows)}, produce).ref


def audited(tmp_path, rows, **config):
    store, ref = made(tmp_path, rows)
    folder = audit(store, captions=ref, config=AuditConfig(**config)).ref.folder
    summary = json.loads((folder / "audit.json").read_text())
    return summary, pd.read_parquet(folder / "identities.parquet"), pd.read_parquet(folder / "flags.parquet"), folder


def flags_of(tmp_path, rows, **config):
    return [set(found) for found in audited(tmp_path, rows, **config)[2]["flags"]]


RED, BLUE, PLAIN = "A man is wearing a red shirt.", "A woman is wearing a blue shirt.", "A man is wearing a shirt."


def test_agreement_computed_by_hand(tmp_path):
    # Identity 7: red, red, red, blue; identity 8: one red; junk and a distractor of the gallery do not count.
    rows = [caption(text, 7) for text in (RED, RED, BLUE, RED, PLAIN)] + [caption(RED, 8)]
    rows += [caption(BLUE, -1, split="gallery"), caption(BLUE, 0, split="gallery")]
    summary, identities, flags, _ = audited(tmp_path, rows)
    assert (summary["images"], summary["identities"], summary["mixed_gender_identities"]) == (8, 2, 1)
    assert summary["by_status"] == {"ok": 8}
    assert len(identities) == 2 * len(SLOTS)
    seven = identities[identities.pid == 7].set_index("slot")
    assert list(seven.index) == list(SLOTS)
    color = seven.loc["upper_color"]
    assert (color.n_images, color.n_named, color.majority, color.agreement) == (5, 4, "red", 0.75)
    assert color.entropy == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert json.loads(color["values"]) == {"blue": 1, "red": 3}
    assert seven.loc["gender"].agreement == 0.8
    hair = seven.loc["hair"]
    assert hair.n_named == 0
    assert pd.isna(hair.majority)
    assert pd.isna(hair.agreement)
    assert (hair.entropy, hair["values"]) == (0, "{}")
    slot = summary["slots"]["upper_color"]
    assert slot["values"] == {"blue": 3, "red": 4}
    assert slot["coverage"] == 7 / 8
    assert slot["agreement"] == 0.75  # identity 8 has one caption, so it does not count
    assert summary["slots"]["hair"] == {"coverage": 0.0, "agreement": 1.0, "entropy": 0.0, "values": {}}
    assert list(flags["dissent"]) == [False, False, True, False, False, False, False, False]
    assert list(flags["dissent_slots"][2]) == ["gender", "upper_color"]


def test_labels_of_the_captions_reach_the_identities_and_the_fingerprint(tmp_path):
    rows = [caption(RED, 7), caption(BLUE, 8)]
    assert "label" not in audited(tmp_path / "plain", rows)[1]

    def labeled(folder, *labels):
        def produce(out):
            table = pa.Table.from_pylist([row | {"image_path": "x"} for row in rows], schema=CAPTIONS)
            table = table.append_column(LABEL, pa.array(labels))
            write_table(out / "captions.parquet", table, table.schema)

        store = ArtifactStore(folder)
        return audit(
            store, captions=make_artifact(store, "caption", {"labels": labels}, produce).ref, config=AuditConfig()
        )

    first, second = labeled(tmp_path / "a", "Chloé", "Bob"), labeled(tmp_path / "b", "Chloé", "Eve")
    identities = pd.read_parquet(first.ref.folder / "identities.parquet")
    assert set(zip(identities["pid"], identities["label"], strict=True)) == {(7, "Chloé"), (8, "Bob")}
    assert first.ref.fingerprint != second.ref.fingerprint


def test_identity_zero_is_a_person_outside_the_gallery(tmp_path):
    summary, identities, _, _ = audited(tmp_path, [caption(RED, 0), caption(BLUE, 0, split="gallery")])
    assert summary["identities"] == 1
    assert set(identities.pid) == {0}


def test_a_tie_goes_to_the_first_in_the_alphabet_and_is_not_a_dissent(tmp_path):
    _, identities, flags, _ = audited(tmp_path, [caption(RED, 1), caption(RED, 1), caption(BLUE, 1), caption(BLUE, 1)])
    row = identities[(identities.slot == "upper_color")].iloc[0]
    assert (row.majority, row.agreement, row.entropy) == ("blue", 0.5, 1.0)
    assert not flags["dissent"].any()


def test_statistics_equal_a_plain_loop(tmp_path):
    generator = random.Random(3)
    rows = []
    for _ in range(400):
        slots = {slot: generator.choice((*VOCABULARY[slot], None)) for slot in SLOTS}
        rows.append(caption(compose(slots), generator.randrange(1, 40)))
    _, identities, _, _ = audited(tmp_path, rows)
    for record in identities.to_dict("records"):
        own = [row for row in rows if row["pid"] == record["pid"]]
        named = [row[f"attr_{record['slot']}"] for row in own if row[f"attr_{record['slot']}"]]
        tally = Counter(named)
        assert (record["n_images"], record["n_named"]) == (len(own), len(named))
        assert json.loads(record["values"]) == dict(tally)
        if not named:
            continue
        best = max(tally.values())
        assert record["majority"] == min(value for value, n in tally.items() if n == best)
        assert record["agreement"] == pytest.approx(best / len(named))
        entropy = -sum(n / len(named) * math.log2(n / len(named)) for n in tally.values())
        assert record["entropy"] == pytest.approx(entropy, abs=1e-12)


FLAGGED = [
    (caption("A man is wearing a red shirt and black pants.", 1), set()),
    (caption(None, 1, status="image_error", error="truncated file"), {"failed"}),
    (caption("The quick brown fox jumps.", 1, status="unparsed"), {"unparsed", "off_template"}),
    (caption("A man is wearing a red shirt and", 1, status="truncated"), {"truncated"}),
    (caption("A fat man is wearing a red shirt.", 1), {"degrading"}),
    (caption("A man is wearing a red shirt.", 1, conf_gender=math.log(0.4)), {"low_confidence"}),
    (caption("A man is wearing a red shirt.", 1, conf_gender=math.log(0.6)), set()),
    (caption("A man is here.", 1), {"off_template"}),
    (caption("The image shows a man in a red shirt.", 1), {"off_template"}),
    (caption("The image shows a man in a red shirt.", 1, template="free"), set()),
    (caption("A [age] [gender] is wearing a red shirt.", 1), {"off_template"}),
    (caption("A man is wearing a red shirt. " + "The man has hair. " * 3, 1), {"looping"}),
]


def test_single_flags(tmp_path):
    rows = [row | {"pid": pid} for pid, (row, _) in enumerate(FLAGGED, start=1)]
    assert flags_of(tmp_path, rows, duplicate_identities=99) == [expected for _, expected in FLAGGED]


def test_hallucination_is_an_item_in_one_crop_of_many(tmp_path):
    carried = ["a backpack", "a handbag", "a bag and a cell phone", "a dog", "a backpack"]
    rows = [caption(f"A man is carrying {thing}.", 1) for thing in carried]
    rows += [caption("A man is wearing glasses.", 1), caption("A man is carrying a dog.", 2)]
    marked = audited(tmp_path, rows)[2]["hallucination"]
    # All bags are one item; phone and dog occur once. Identity 2 has too few captions.
    assert list(marked) == [False, False, True, True, False, False, False]


def test_hallucination_thresholds(tmp_path):
    rows = [caption(f"A man is carrying {thing}.", 1) for thing in ("a dog", "a dog", "a cup", "a bag", "a bag")]
    assert list(audited(tmp_path / "a", rows, rare_images=2, rare_of=5)[2]["hallucination"]) == [True] * 5
    assert not audited(tmp_path / "b", rows, rare_of=6)[2]["hallucination"].any()


def test_duplicates_across_identities(tmp_path):
    rows = [caption(RED, 1), caption(RED, 1), caption(RED.upper(), 2), caption(BLUE, 1), caption(BLUE, 1)]
    rows += [caption(BLUE, -1, split="gallery")]
    summary, _, flags, _ = audited(tmp_path, rows)
    assert list(flags["duplicate"]) == [True, True, True, False, False, False]
    assert summary["duplicates_across_identities"] == 1
    assert not audited(tmp_path / "more", rows, duplicate_identities=3)[2]["duplicate"].any()


class InSevens(TableRows):
    """The rows of a table in batches of seven."""

    def batches(self, *columns):
        for table in super().batches(*columns):
            yield from (table.slice(start, 7) for start in range(0, len(table), 7))


@pytest.mark.parametrize("label", [False, True])
def test_captions_read_in_batches_are_the_same_numbers(label):
    rows = [row for row, _ in FLAGGED for _ in range(3)] + [caption(text, 5) for text in (BLUE, RED.upper(), RED)]
    table = pa.Table.from_pylist([row | {"image_path": "x"} for row in rows], schema=CAPTIONS)
    if label:
        table = table.append_column(LABEL, pa.array([f"person {row['pid']}" for row in rows]))
    whole, parts = (read_captions(source(table), AuditConfig()) for source in (TableRows, InSevens))
    assert (whole.values, whole.statuses) == (parts.values, parts.statuses)
    for name in ("pids", "splits", "is_person", "answers", "texts"):
        assert (getattr(whole, name) == getattr(parts, name)).all(), name
    for flag, mask in whole.flags.items():
        assert (mask == parts.flags[flag]).all(), flag
    assert (whole.labels is None) == (not label)
    if label:
        assert [whole.labels[1][at] for at in whole.labels[0]] == [parts.labels[1][at] for at in parts.labels[0]]


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("", False),
        ("A man is wearing a black shirt. The man is wearing black pants. The man is wearing black shoes.", False),
        ("A man is wearing a shirt. The man is wearing a shirt and carrying a bag.", False),
        ("A man is wearing a shirt. He is wearing a shirt and is wearing a shirt.", True),
        ("black and black and black and black and", True),
        ("the the the", True),
        ("He walks, walks on.", False),
    ],
)
def test_loops(text, looping):
    assert is_looping(text, 3) is looping


@pytest.mark.parametrize(
    ("text", "looping"),
    [("a b " * 4000, True), ("ab" * 8000, False), (" ".join(str(i) for i in range(4000)), False)],
)
def test_loops_in_a_long_reply(text, looping):
    assert is_looping(text, 3) is looping


def test_form_and_degrading_words():
    assert has_template_form("A 20-year-old fat woman. The woman has long hair.")
    assert not has_template_form("A woman.\n- long hair")
    assert not has_template_form("A woman. Nice day.")
    assert not has_template_form("")
    assert degrading_words("A Fat man with a fat, ugly dog. Fatigue.") == ("fat", "ugly")


class _Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = Counter(), []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        assert not any(name in ("src", "onload") or "http" in (value or "") for name, value in attrs)

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_escapes_captions_and_says_where_to_look(tmp_path):
    hostile = 'A fat man <script>alert("1")</script> is wearing a <b>red</b> shirt.'
    rows = [caption(hostile, 7), caption(RED, 7), caption(RED, 7), caption(BLUE, 7)]
    rows[3]["attr_shoes"] = "<i>boots</i>"
    page = (audited(tmp_path, rows)[3] / "captions.audit.html").read_text()
    parsed = _Text()
    parsed.feed(page)
    text = " ".join("".join(parsed.text).split())
    assert parsed.tags["script"] == parsed.tags["b"] == parsed.tags["i"] == parsed.tags["img"] == 0
    assert hostile in text
    assert "Identity 7" in text
    assert "male 3 · female 1" in text
    for flag in ("degrading", "dissent"):
        assert f'id="flag-{flag}"' in page


NAME = 'of "<b>them</b>" & co'


def audited_with_images(tmp_path, rows, *, name=NAME, leave_out=(), **config):
    """Audit rows with one-color images on disk; return the artifact and its page."""
    store, root = ArtifactStore(tmp_path / "store"), tmp_path / "people"
    root.mkdir(exist_ok=True)
    rows = [row | {"image_path": f"<b>{at}.png"} for at, row in enumerate(rows)]
    for at, row in enumerate(rows):
        path = root / row["image_path"]
        Image.new("RGB", (30, 60), (8 * at, 255 - 8 * at, 128)).save(path)
        row["image_sha256"] = digest_bytes(path.read_bytes())
        if at in leave_out:
            path.unlink()
    table = pa.Table.from_pylist(rows, schema=CAPTIONS)
    captions = make_artifact(
        store, "caption", {}, lambda folder: pq.write_table(table, folder / "captions.parquet")
    ).ref
    images = make_artifact(store, "index", {}, lambda folder: describe_by_hand(folder, name=name)).ref
    done = audit(store, captions=captions, images=images, images_root=root, config=AuditConfig(**config))
    return done, (done.ref.folder / "captions.audit.html").read_text()


class _Cards(HTMLParser):
    """The cards of the page: the source of the picture, and its text."""

    def __init__(self, html):
        super().__init__()
        self.cards, self.tags = [], Counter()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        attrs = dict(attrs)
        if attrs.get("class") == "card":
            self.cards.append({"src": None, "text": ""})
        if tag == "img":
            self.cards[-1]["src"] = attrs["src"]

    def handle_data(self, data):
        if self.cards:
            self.cards[-1]["text"] += data


def color_of(source: str) -> tuple[int, ...]:
    data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
    return Image.open(io.BytesIO(data)).convert("RGB").getpixel((15, 30))


def test_doubtful_captions_are_shown_with_their_images(tmp_path):
    rows = [caption(text, 7) for text in (RED, RED, RED, BLUE)] + [caption("A fat man is wearing a shirt.", 8)]
    _, html = audited_with_images(tmp_path, rows)
    page = _Cards(html)
    assert page.tags["b"] == page.tags["script"] == page.tags["link"] == 0
    assert len(page.cards) == 6 == page.tags["img"]  # one dissent, one demeaning word, four of the worst identity
    for card in page.cards:
        at = int(re.search(r"<b>(\d)\.png", card["text"])[1])
        assert color_of(card["src"]) == pytest.approx((8 * at, 255 - 8 * at, 128), abs=4)
    dissent = page.cards[1]["text"]
    assert "gender: female, most say male" in dissent
    assert "upper color: blue, most say red" in dissent


def test_the_page_names_the_dataset_and_shows_all_splits(tmp_path):
    rows = [caption("A fat man.", pid, split="train") for pid in range(1, 9)]
    rows += [caption("A fat man.", pid, split=split) for pid in (11, 12) for split in ("query", "gallery")]
    _, html = audited_with_images(tmp_path, rows, shown=5)
    assert f"<title>Caption audit of {escape(NAME)}</title>" in html
    assert f"<h1>Caption audit: {escape(NAME)}</h1>" in html
    start = html.index('id="flag-degrading"')
    shown = re.findall(r"identity (\d+) · c1 · (\w+)", html[start : html.index("<h3", start)])
    assert [split for _, split in shown] == ["train", "query", "gallery", "train", "query"]
    assert [pid for pid, _ in shown] == ["1", "11", "11", "2", "12"], "no identity twice before the others"
    counts = html[html.index('<a href="#flag-degrading">') :]
    assert re.findall(r'<td class="num">([\d,]+)</td>', counts)[:4] == ["8", "2", "2", "12"]


def test_links_have_targets(tmp_path):
    html = audited_with_images(tmp_path, [caption("A fat man.", 1), caption(RED, 2)])[1]
    targets = re.findall(r'href="#([^"]+)"', html)
    assert "flag-degrading" in targets
    assert "flag-failed" not in targets
    assert all(f'id="{target}"' in html for target in targets)


def test_a_missing_image_is_reported_and_read_again_next_time(tmp_path):
    rows = [caption("A fat man.", 1), caption("A fat man.", 2)]
    done, html = audited_with_images(tmp_path, rows, leave_out=(1,))
    shown = html.count("<img ")
    assert html.count("image missing") == shown > 0
    again, html = audited_with_images(tmp_path, rows)
    assert not again.cached
    assert again.ref.fingerprint == done.ref.fingerprint
    assert html.count("<img ") == 2 * shown
    assert "image missing" not in html
    assert audited_with_images(tmp_path, rows)[0].cached


def test_schemas_are_explicit_and_files_the_same_each_time(tmp_path):
    rows = [caption(RED, 1), caption(None, 1, status="image_error"), caption(BLUE, 2, status="truncated")]
    first, second = audited(tmp_path / "a", rows)[3], audited(tmp_path / "b", rows)[3]
    assert pq.read_schema(first / "identities.parquet").equals(IDENTITIES)
    assert pq.read_schema(first / "flags.parquet").equals(FLAG_ROWS)
    for name in ("audit.json", "identities.parquet", "flags.parquet", "captions.audit.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("rows", [[], [caption(RED, -1)], [caption(None, 1, status="image_error")]])
def test_nothing_to_compare(tmp_path, rows):
    summary, identities, flags, _ = audited(tmp_path, rows)
    assert summary["images"] == len(flags) == len(rows)
    assert summary["identities"] == identities["pid"].nunique()
    assert all(0 <= summary["slots"][slot]["agreement"] <= 1 for slot in SLOTS)
    assert set(summary["flags"]) == set(FLAGS)


def test_the_stage_is_cached_by_captions_and_thresholds(tmp_path):
    store, ref = made(tmp_path, [caption(RED, 1)])
    assert not audit(store, captions=ref, config=AuditConfig()).cached
    assert audit(store, captions=ref, config=AuditConfig()).cached
    assert not audit(store, captions=ref, config=AuditConfig(majority=0.9)).cached
    named = make_artifact(store, "index", {}, lambda folder: describe_by_hand(folder, name="people")).ref
    ingredients = AuditStage(captions=ref, config=AuditConfig()).ingredients(run_on(store, named))
    assert ingredients["dataset"] == "people"
    assert ingredients["captions"] == caption_contents(ref)["audit"]
    assert ref.path not in json.dumps(ingredients)


def test_missing_captions(tmp_path):
    store, ref = made(tmp_path, [caption(RED, 1)])
    (ref.folder / "captions.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"captions\.parquet"):
        audit(store, captions=ref, config=AuditConfig())
