"""The history of corrections: edits, conflicts, several processes, killed writers."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from captioning.attributes import parse_caption
from captioning.corrections import ConflictError, Corrections, Edit, EditError, ModelCaption
from data.errors import DataError
from data.slots import NONE, VOCABULARY
from tests.helpers.fresh_processes import FORK_SERVER, join_all, run_and_kill

IMAGE, OTHER = "a" * 64, "b" * 64
TEXT = (
    "A young woman is wearing a red coat and blue jeans. The woman is wearing white sneakers and carrying a backpack. "
    "The woman has long hair and glasses."
)
MODEL = ModelCaption(TEXT, "f" * 32)


@pytest.fixture
def kept(tmp_path) -> Corrections:
    return Corrections.open(tmp_path)


def save(kept: Corrections, edit: Edit, expected: int, author: str = "ada", image: str = IMAGE):
    return kept.save(image, edit, author=author, expected_revision=expected, against=MODEL)


def test_nothing_is_written_before_the_first_change(kept, tmp_path):
    assert kept.current([IMAGE]) == {}
    assert kept.current() == {}
    assert kept.history(IMAGE) == ()
    assert list(tmp_path.iterdir()) == []


def test_a_text_leads_and_its_slots_are_read_from_it(kept):
    saved = save(kept, Edit.of_text("  A man is wearing\na green hoodie. "), 0)
    assert saved.text == "A man is wearing a green hoodie."
    assert saved.slots == parse_caption(saved.text)
    assert (saved.revision, saved.kind, saved.author, saved.provenance) == (1, "text", "ada", "human")
    assert saved.against == MODEL
    assert saved.time.tzinfo is UTC
    assert abs((datetime.now(UTC) - saved.time).total_seconds()) < 60


def test_slots_lead_and_their_text_is_composed_with_the_answers_that_were_not_named(kept):
    saved = save(kept, Edit.of_slots({"upper_color": "Green ", "glasses": NONE, "carrying": "umbrella, handbag"}), 0)
    assert saved.text == (
        "A young woman is wearing a green coat and blue jeans. The woman is wearing white sneakers and carrying a "
        "handbag and an umbrella. The woman has long hair."
    )
    changed = {"upper_color": "green", "glasses": NONE, "carrying": "handbag, umbrella"}
    assert saved.slots == parse_caption(TEXT) | changed
    again = save(kept, Edit.of_slots({"hair": None}), 1)
    assert again.slots == saved.slots | {"hair": None}
    assert again.text is not None
    assert "hair" not in again.text


@pytest.mark.parametrize(("slot", "value"), [(slot, value) for slot, values in VOCABULARY.items() for value in values])
def test_text_and_slots_agree_for_every_value_of_the_vocabularies(kept, slot, value):
    saved = save(kept, Edit.of_slots({slot: value}), 0)
    assert saved.text is not None
    assert parse_caption(saved.text)[slot] == (None if value == NONE else value)


def test_the_pattern_of_the_template_writes_the_text(tmp_path):
    saved = save(Corrections.open(tmp_path, "port45"), Edit.of_slots({"age": None}), 0)
    assert saved.text is not None
    assert saved.text.startswith("A woman is wearing a red coat. The woman is wearing blue jeans. ")


def test_templates_have_corrections_of_their_own(tmp_path):
    save(Corrections.open(tmp_path, "port45"), Edit.of_text("A man."), 0)
    assert Corrections.open(tmp_path).current() == {}


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (Edit.of_text("  \n"), "text of a caption is empty"),
        (Edit.of_text("a" * 2001), "has 2,001 characters: write at most 2,000"),
        (Edit.of_text("a\x00b"), "control characters"),
        (Edit.of_text("a\ud800b"), "control characters"),
        (Edit.of_slots({}), "none given: give at least one of gender"),
        (Edit.of_slots({"hat": "cap"}), "unknown slot 'hat': expected gender"),
        (Edit.of_slots({"gender": "robot"}), "invalid gender 'robot': expected female or male"),
        (Edit.of_slots({"upper_color": "grey"}), "upper_color: 'grey' would be read as 'gray'; write 'gray'"),
        (Edit.of_slots({"hat": "cap", "gender": "x"}), "2 problems"),
        (Edit.of_slots({"upper_color": "red and The man has no hair. He"}), "contains the end of a sentence"),
        (Edit.of_slots({"shoes": "boots\nA man"}), "contains the end of a sentence or of a line"),
        (Edit.of_slots({"upper_color": "red and wearing black"}), "would be read as"),
        (Edit.of_slots({"upper_type": "kaftanoid"}), "'kaftanoid' is not read back from the caption; write one of"),
        (
            Edit.of_slots({"carrying": "umbrella and wearing green boots", "shoes": None}),
            "shoes: would be read as .green boots. from the words of the other slots",
        ),
    ],
)
def test_an_edit_that_cannot_be_kept_is_refused_and_nothing_is_written(kept, edit, told):
    with pytest.raises(EditError, match=told):
        save(kept, edit, 0)
    assert kept.history(IMAGE) == ()


def test_only_an_existing_caption_is_wrong(kept):
    with pytest.raises(EditError, match="only an existing caption can be marked as wrong"):
        kept.save(IMAGE, Edit.wrong(), author="ada", expected_revision=0)
    saved = save(kept, Edit.wrong(), 0)
    assert (saved.text, saved.slots) == (None, {})


@pytest.mark.parametrize(("image", "author"), [("A" * 64, "ada"), ("../x", "ada"), (IMAGE, " "), (IMAGE, "a\x07b")])
def test_images_and_authors_are_checked(kept, image, author):
    with pytest.raises(EditError, match=r"is not the sha256 of an image|invalid author"):
        kept.save(image, Edit.of_text("A man."), author=author, expected_revision=0)


def test_a_reset_keeps_the_history(kept):
    save(kept, Edit.of_text("A man."), 0)
    save(kept, Edit.reset(), 1)
    now = kept.current([IMAGE, OTHER])[IMAGE]
    assert (now.kind, now.revision, now.corrects(TEXT)) == ("reset", 2, False)
    assert [entry.kind for entry in kept.history(IMAGE)] == ["text", "reset"]


def test_the_second_of_two_editors_is_told_and_nothing_is_lost(tmp_path):
    one, two = Corrections.open(tmp_path), Corrections.open(tmp_path)
    save(one, Edit.of_text("A man in red."), 0, "ada")
    with pytest.raises(ConflictError, match=r"changed meanwhile by ada at .* UTC \(text\): revision 1 is") as caught:
        save(two, Edit.of_text("A man in blue."), 0, "bob")
    theirs, mine = caught.value.theirs, caught.value.mine
    assert (theirs and theirs.text, mine.text, mine.applied) == ("A man in red.", "A man in blue.", False)
    assert one.current()[IMAGE].author == "ada"
    assert [entry.text for entry in one.history(IMAGE)] == ["A man in red.", "A man in blue."]
    settled = save(two, Edit.of_text("A man in purple."), 1, "bob")
    assert (settled.revision, settled.applied, one.current()[IMAGE]) == (3, True, settled)


def test_two_edits_at_once_in_threads(tmp_path):
    """Of twenty editors who saw the same caption, one succeeds and nineteen are told; all twenty edits are kept."""
    kept, told = Corrections.open(tmp_path), []

    def edit(number: int) -> None:
        try:
            save(kept, Edit.of_text(f"Person {number}."), 0, f"editor {number}")
        except ConflictError as error:
            told.append(error)

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 19
    assert {entry.author for entry in kept.history(IMAGE)} == {f"editor {number}" for number in range(20)}
    assert sum(entry.applied for entry in kept.history(IMAGE)) == 1


def correct_many(home: str, name: str, count: int) -> None:
    """Edit one image as `name` until `count` edits are applied, and write down each acknowledged revision."""
    kept, done = Corrections.open(Path(home)), 0
    with Path(home, f"{name}.log").open("a") as log:
        while done < count:
            now = kept.current([IMAGE])
            try:
                saved = save(kept, Edit.of_text(f"{name} {done}."), now[IMAGE].revision if now else 0, name)
            except ConflictError:
                continue
            log.write(f"{saved.revision} {saved.text}\n")
            log.flush()
            done += 1


def acknowledged(home: Path) -> dict[int, str]:
    lines = [line for log in home.glob("*.log") for line in log.read_text().splitlines()]
    return {int(line.split(" ", 1)[0]): line.split(" ", 1)[1] for line in lines}


def test_two_processes_edit_the_same_caption(tmp_path):
    processes = [FORK_SERVER.Process(target=correct_many, args=(str(tmp_path), name, 25)) for name in ("ada", "bob")]
    for process in processes:
        process.start()
    join_all(processes)
    history = Corrections.open(tmp_path).history(IMAGE)
    assert [entry.revision for entry in history] == list(range(1, len(history) + 1))
    assert {entry.revision: entry.text for entry in history if entry.applied} == acknowledged(tmp_path)
    assert len(acknowledged(tmp_path)) == 50
    seen = 0
    for entry in history:  # every applied edit was made on the one before it
        assert entry.applied == (entry.seen == seen)
        seen = entry.revision if entry.applied else seen


def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path):
    for round_ in range(3):
        run_and_kill(correct_many, str(tmp_path), f"round{round_}", 10**9, after=0.2 + 0.05 * round_)
        kept = Corrections.open(tmp_path)
        found = {entry.revision: entry.text for entry in kept.history(IMAGE)}
        told = acknowledged(tmp_path)
        assert told
        assert told.items() <= found.items()
    assert save(kept, Edit.of_text("The end."), kept.current()[IMAGE].revision).revision == len(found) + 1


def test_a_line_that_was_not_finished_is_ignored_and_removed_by_the_next_change(kept):
    save(kept, Edit.of_text("A man."), 0)
    whole = kept.file.read_bytes()
    kept.file.write_bytes(whole + whole[: len(whole) // 2])
    fresh = Corrections(kept.file.parent, kept.template)
    assert [entry.revision for entry in fresh.history(IMAGE)] == [1]
    save(fresh, Edit.of_text("A woman."), 1)
    assert [entry.text for entry in kept.history(IMAGE)] == ["A man.", "A woman."]
    assert len(kept.file.read_bytes().splitlines()) == 2


def test_a_damaged_line_is_named(kept):
    save(kept, Edit.of_text("A man."), 0)
    save(kept, Edit.of_text("A woman."), 1)
    lines = kept.file.read_text().splitlines()
    for bad in ("{}", "xyz", "[]", lines[0].replace('"text"', '"poem"', 1)):
        kept.file.write_text(f"{bad}\n{lines[1]}\n")
        with pytest.raises(DataError, match=r"history.jsonl: line 1 is damaged .* restore the file from a backup"):
            Corrections(kept.file.parent, kept.template).current()


def test_a_replaced_file_is_read_again(kept, tmp_path):
    save(kept, Edit.of_text("A man."), 0)
    other = Corrections.open(tmp_path / "other")
    save(other, Edit.of_text("A woman."), 0)
    other.file.replace(kept.file)
    assert kept.current()[IMAGE].text == "A woman."
    kept.file.unlink()
    assert kept.current() == {}


def test_one_line_per_change_that_a_person_can_read(kept):
    save(kept, Edit.of_slots({"hair": "bald"}), 0)
    (line,) = kept.file.read_text().splitlines()
    fields = json.loads(line)
    assert fields["slots"]["hair"] == "bald"
    assert fields["against"] == [TEXT, "f" * 32]


def test_wrong_is_about_one_text_and_a_text_about_the_image(kept):
    wrong = save(kept, Edit.wrong(), 0)
    assert wrong.corrects(TEXT)
    assert not wrong.corrects("A man.")
    assert wrong.is_stale("A man.")
    text = save(kept, Edit.of_text("A woman."), 1)
    assert text.corrects("A man.")
    assert text.is_stale("A man.")
    assert not text.is_stale(f" {TEXT}")
