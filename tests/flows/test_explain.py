"""``clip-scgi explain``: the picture it writes, the numbers it prints, and the messages of what cannot work."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data.artifacts.store import ArtifactStore
from data.index.stage import index
from data.people import IdentityName
from data.stages.images import IndexedImages
from flows.cli.app import main
from flows.recipes import build_recipe
from flows.worlds import ensure_world
from reid.relevance.sheet import draw_sheet
from tests.helpers.small_runs import SMALL_MODEL
from tests.helpers.stages import caption, train

SETTINGS = [part for text in SMALL_MODEL for part in ("--set", text)]
NUMBER = r"-?\d+\.\d{4}"


@pytest.fixture(scope="module")
def trained(module_folder):
    """Return the home of a trained demo, its model's folder, and two images of one person."""
    home = module_folder("home")
    store, recipe = ArtifactStore(home), build_recipe("demo", SMALL_MODEL)
    root = ensure_world(store, recipe.synthetic)
    indexed = index(store, config=recipe.data.model_copy(update={"root": str(root)}))
    place = {"images": indexed.made.ref, "images_root": indexed.images.root}
    captions = caption(store, config=recipe.caption, **place).made.ref
    model = train(store, captions=captions, config=recipe.train, **place).ref
    query = min((root / "query").glob("*.jpg"))
    gallery = min((root / "bounding_box_test").glob(f"{query.name[:4]}_*.jpg"))
    return home, model.folder, query, gallery


def test_maps_of_two_images_of_the_dataset(trained, tmp_path, capsys):
    home, folder, query, gallery = trained
    command = ["explain", str(query), str(gallery), "--home", str(home), "--device", "cpu"]
    out = tmp_path / "new" / "maps.png"
    assert main([*command, "--recipe", "demo", *SETTINGS, "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^similarity {NUMBER} \(image mode, gradient\)$", printed, re.MULTILINE)
    assert re.search(
        rf"^deleting 25 % of the query's patches lowers it by {NUMBER} \(most relevant\), by {NUMBER} "
        rf"\(center of the image\), by {NUMBER} ± {NUMBER} \(random, 20 choices\), by {NUMBER} \(least\)\n"
        r"for this query, the map (beats|does not beat) the center of the image and beats \d+ of 20 random choices; "
        r"the center beats \d+ of 20 random choices$",
        printed,
        re.MULTILINE,
    )
    assert str(out) in printed
    full = Image.open(out)
    assert np.asarray(full.convert("HSV"))[..., 1].max() > 150, "maps are in color"

    # By fingerprint and by folder: no recipe, so no caption, so no maps of CGI unless a caption is given.
    by_name, by_folder, captioned = (tmp_path / name for name in ("a.jpg", "b.png", "c.png"))
    assert (
        main([*command, "--model", folder.name[:8], "--mode", "fused", "--method", "rollout", "-o", str(by_name)]) == 0
    )
    assert "(fused mode, rollout)" in capsys.readouterr().out
    assert main([*command, "--model", str(folder), "-o", str(by_folder)]) == 0
    assert main([*command, "--model", str(folder), "--caption", "a man in a red coat", "-o", str(captioned)]) == 0
    widths = [Image.open(path).width for path in (by_name, by_folder, captioned, out)]
    assert widths[0] == widths[1] < widths[2] == widths[3]
    assert by_folder.read_bytes() != out.read_bytes()


def test_a_text_label_stands_above_the_maps(trained, tmp_path, monkeypatch):
    home, _, query, gallery = trained
    titles = []

    def draw(rows, *rest):
        titles.extend(row.title for row in rows)
        return draw_sheet(rows, *rest)

    monkeypatch.setattr("reid.relevance.pair.draw_sheet", draw)
    command = ["explain", str(query), str(gallery), "--home", str(home), "--device", "cpu", "--recipe", "demo"]
    command += [*SETTINGS, "-o", str(tmp_path / "maps.png")]
    assert main(command) == 0
    assert titles == [f"query: {query.name}", f"gallery: {gallery.name}"]
    titles.clear()
    monkeypatch.setattr(IndexedImages, "names", lambda _: lambda pid: IdentityName(pid, "Anna\nLee"))
    assert main(command) == 0
    pid = int(query.name[:4])
    assert titles == [
        f"{role}: {path.name}, Anna Lee (pid {pid})" for role, path in (("query", query), ("gallery", gallery))
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "name one model: --recipe RECIPE"),
        (["--recipe", "demo", "--model", "x"], "name one model"),
        (["--model", "x", "--set", "train.seed=1"], "--set changes a recipe"),
        (["--model", "nothing"], "'nothing' does not name a trained model"),
        (
            ["--recipe", "demo", "--set", "train.seed=99", *SETTINGS],
            "missing stages: train. Run `clip-scgi train demo`",
        ),
        (["--model", "FOLDER", "--out", "maps.tiff"], "must end in .png"),
        (["--model", "FOLDER", *3 * ["--caption", "a man"]], "give one or two captions"),
    ],
)
def test_what_cannot_work_is_one_message(trained, options, words, capsys):
    home, folder, query, gallery = trained
    given = [str(folder) if option == "FOLDER" else option for option in options]
    assert main(["explain", str(query), str(gallery), "--home", str(home), *given]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_unreadable_image_is_named(trained, tmp_path, capsys):
    home, folder, query, _ = trained
    assert main(["explain", str(query), str(tmp_path / "no.jpg"), "--home", str(home), "--model", str(folder)]) == 1
    assert re.search(r"explain: GALLERY \S*no\.jpg cannot be used: .*\(missing\)", capsys.readouterr().err)


def test_help_loads_no_model_library():
    code = (
        "import sys; from flows.cli.app import main; assert main(['explain', '--help']) == 0;"
        "assert not {'torch', 'prefect', 'PIL', 'pyarrow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "QUERY" in done.stdout
