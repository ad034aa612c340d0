"""``clip-scgi search``: the meaning of a query, and that nothing is captioned or trained without --train."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from data.artifacts.store import ArtifactStore
from data.errors import ConfigError, DataError
from data.index.stage import index
from data.stages.stage import RunContext
from flows.cli import search as commands_search
from flows.cli.app import main
from flows.cli.search import Searchable, find_trained, looks_like_path, read_query
from flows.recipes import build_recipe
from flows.worlds import ensure_world
from tests.helpers.data_trees import put
from tests.helpers.small_runs import SMALL_MODEL
from tests.helpers.stages import caption, train

SETTINGS = [part for text in SMALL_MODEL for part in ("--set", text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a man in a red shirt", False),
        ("man", False),
        ("a man, 30 yrs. old", False),
        ("photo.jpg", True),
        ("photo.JPEG ", True),
        ("a photo.webp", True),
        ("people/1", True),
        ("a red and/or blue shirt", True),
        ("~", True),
        ("~/x", True),
        ("..\\x", True),
    ],
)
def test_what_looks_like_a_path(text, expected):
    assert looks_like_path(text) is expected


@pytest.fixture
def picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 40)).save(tmp_path / "one.png")
    Image.new("RGB", (20, 40)).save(tmp_path / "person", "PNG")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    return tmp_path / "one.png"


def test_a_query_is_a_file_if_it_exists_else_a_sentence(picture, monkeypatch):
    assert read_query(str(picture), image=None, text=None) == picture
    assert str(read_query("person", image=None, text=None)) == "person"
    assert read_query("person", image=None, text=None).is_file()
    assert read_query("a man", image=None, text=None) == "a man"
    assert read_query("folder", image=None, text=None) == "folder", "a word that happens to name a folder"
    assert read_query("x" * 5000, image=None, text=None) == "x" * 5000
    assert read_query(None, image=None, text="person") == "person"
    assert read_query(None, image=None, text="and/or.jpg") == "and/or.jpg"
    monkeypatch.setenv("HOME", str(picture.parent))
    assert read_query(None, image="~/one.png", text=None) == picture


@pytest.mark.parametrize(
    ("given", "image", "text", "words"),
    [
        ("no.jpg", None, None, "'no.jpg' looks like a path, but that file does not exist.*--text no.jpg"),
        ("folder/", None, None, "looks like a path"),
        ("~nobody/x", None, None, "looks like a path"),
        ("a/" + "x" * 5000, None, None, "looks like a path"),
        (None, "no.jpg", None, "--image: no.jpg is not a file"),
        (None, "folder", None, "--image: folder is not a file"),
        (None, "a man", None, "--image: a man is not a file"),
        ("", None, None, "the sentence is empty"),
        (" \n", None, None, "the sentence is empty"),
        (None, None, "  ", "the sentence is empty"),
        (None, None, None, "give one query"),
        ("a", "one.png", None, "give one query"),
        (None, "one.png", "a", "give one query"),
    ],
)
def test_a_query_that_cannot_work_is_one_message(picture, given, image, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_query(given, image=image, text=text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "reason"), [("broken.jpg", "not_an_image"), ("empty.jpg", "empty_file")])
def test_an_unreadable_image_is_reported_with_its_reason(picture, name, reason, capsys):
    with pytest.raises(DataError, match=rf"{name} cannot be used: .*{reason}"):
        read_query(name, image=None, text=None)
    assert main(["search", "demo", "--image", name]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_query_may_come_after_options(monkeypatch):
    found = []
    monkeypatch.setattr(
        commands_search, "find_people", lambda name, _, query, **options: found.append((name, query, options["top"]))
    )
    for words in (["demo", "--top", "3", "a man"], ["--top", "3", "demo", "a man"], ["demo", "a man", "--top", "3"]):
        assert main(["search", *words]) == 0
    assert found == [("demo", "a man", 3)] * 3
    for words in (["search", "demo", "a", "b"], ["search", "demo", "a", "--tops", "3"]):
        assert main(words) == 2
    assert len(found) == 3


def test_a_model_that_is_not_trained_is_a_message_with_the_stages_and_the_command(tmp_path, capsys):
    home = tmp_path / "my home"
    assert main(["search", "demo", "a man", "--home", str(home), *SETTINGS]) == 1
    error = capsys.readouterr().err
    assert "missing stages: index, caption, train." in error
    command = f"clip-scgi train demo --home '{home}' {' '.join(SETTINGS)}"
    assert f"Run `{command}` first, or add --train" in error
    assert not home.exists(), "nothing was made"
    assert main(["search", "demo_baseline", "a man", "--home", str(home), *SETTINGS]) == 1
    assert "; missing stages: index, train." in capsys.readouterr().err


def test_search_finds_the_model_and_names_missing_stages(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # paths on one line
    store, recipe = ArtifactStore(tmp_path), build_recipe("demo", SMALL_MODEL)
    root = ensure_world(store, recipe.synthetic)
    data = recipe.data.model_copy(update={"root": str(root)})
    assert find_trained(store, recipe) == ["index", "caption", "train"]
    indexed = index(store, config=data)
    assert find_trained(store, recipe) == ["caption", "train"]
    place = {"images": indexed.made.ref, "images_root": indexed.images.root}
    captions = caption(store, config=recipe.caption, **place).made.ref
    assert find_trained(store, recipe) == ["train"]
    model = train(store, captions=captions, config=recipe.train, **place).ref
    found = find_trained(store, recipe)
    assert found == Searchable(run=RunContext(store=store, indexed=indexed.images), model=model)
    again = build_recipe("demo", [*SMALL_MODEL, "train.seed=5"])
    assert find_trained(store, again) == ["train"]

    command = ["search", "demo", "--home", str(tmp_path), *SETTINGS]
    assert main([*command, "--text", "a man in a red shirt", "--top", "1000"]) == 0
    shown = capsys.readouterr().out
    n_gallery = shown.count("bounding_box_test")
    assert n_gallery >= 3
    assert f"the gallery has {n_gallery} images; all of them are shown" in shown
    assert main([*command, "--text", "red " * 100]) == 1
    error = capsys.readouterr().err
    assert "this model reads 1 to 75" in error
    assert error.count("\n") == 1
    image = min((root / "bounding_box_test").glob("0*.jpg"))
    script = (
        "import sys; from flows.cli.app import main; status = main(sys.argv[1:]);"
        "assert 'prefect' not in sys.modules; raise SystemExit(status)"
    )
    pipes = {"capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script, *command, str(image)], check=False, **pipes)
    assert done.returncode == 0, done.stderr
    assert image.name in done.stdout
    assert "1.000" in done.stdout

    image.rename(image.with_name("0901_c9s1_000001_01.jpg"))  # another identity
    assert main([*command, "a man"]) == 1
    assert "; missing stages: caption, train." in capsys.readouterr().err


def test_text_labels_stand_in_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    people = {"1.jpg": "anna", "2.jpg": "anna", "3.jpg": f"[red]{'x' * 90}", "4.jpg": "שלום"}
    put(tmp_path, *people)
    lines = ["path,split,pid", *(f"{path},gallery,{label}" for path, label in people.items())]
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    reader = ["data.reader=manifest", "data.split=auto"]
    recipe = build_recipe("folders", [f"data.root={tmp_path}", "evaluate.device=cpu", *reader])
    store = ArtifactStore(tmp_path / "home")
    run = RunContext(store=store, indexed=index(store, config=recipe.data).images)
    # The untrained model: the table is the same.
    monkeypatch.setattr("flows.cli.search.find_trained", lambda *_: Searchable(run=run, model=recipe.train))
    assert main(["search", "folders", "a man", "--home", str(tmp_path / "home")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("anna (pid 2)") == 2
    assert f"[red]{'x' * 18}… (pid 1)" in shown
    assert "שלום (pid 3)" in shown


def test_images_without_labels_are_searched_with_the_untrained_model(tmp_path, capsys):
    put(tmp_path / "crops", "a.jpg", "deep/b.jpg")
    common = [
        "--set",
        f"data.root={tmp_path / 'crops'}",
        "--set",
        "evaluate.device=cpu",
        "--home",
        str(tmp_path / "home"),
    ]
    for query in (["--text", "a woman in a red coat"], ["--image", str(tmp_path / "crops" / "a.jpg")]):
        assert main(["search", "images", *query, *common]) == 0
        assert "the gallery has 2 images; all of them are shown" in capsys.readouterr().out
