"""``clip-scgi gallery``: sources, times, captions, search as table and page, removal, and messages."""

from __future__ import annotations

import hashlib
import re
import shutil
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.artifacts.store import ArtifactStore
from data.schemas import CAPTIONS
from data.synthetic.world import WorldConfig, write_market1501
from flows.cli.app import main
from flows.cli.retrieval.gallery_search import common_folder
from reid import Embedder
from reid.config.train import TrainConfig
from reid.gallery.gallery import Gallery
from tests.helpers.page_text import page_lines
from tests.helpers.places import working_copy
from tests.helpers.small_models import write_model
from tests.helpers.small_runs import FINISHED_RUN

ON_CPU = ["--set", "evaluate.device=cpu"]
N = 12


@pytest.fixture(scope="module")
def base(module_folder):
    """A home with a model of the recipe demo, twelve photos with a manifest with times, captions, and a gallery."""
    base = module_folder("gallery")
    store = ArtifactStore(base / "home")
    store.record_use(write_model(store), dataset="demo", recipe="demo")
    world = WorldConfig(seed=3, train_identities=2, test_identities=2, cameras=2, images_per_camera=2)
    market = write_market1501(base / "market", world)
    photos = base / "photos"
    photos.mkdir()
    rows, captions = [], []
    for number, path in enumerate(sorted(market.glob("*/*.jpg"))[:N]):
        pid, camera = re.match(r"(\d+)_c(\d)", path.name).groups()
        name = f"2026-01-{number + 1:02d}_080000_{number}.jpg"
        shutil.copyfile(path, photos / name)
        time = "" if number == 0 else f"2026-02-{number:02d}T10:00:00"
        row = {"path": name, "split": "gallery", "label": f"person {pid}", "camid": int(camera)}
        rows.append({**row, "time": time, "seen at": "12:00"})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        color = "red" if number % 2 else "blue"
        confidence = {"conf_upper_color": np.log(0.9 if number % 3 else 0.5)}
        said = {"caption": f"Somebody in {color} <b>.", "attr_upper_color": color}
        captions.append({"image_path": name, "image_sha256": digest, **said, **confidence})
    pd.DataFrame(rows).to_csv(photos / "manifest.csv", index=False)
    pd.DataFrame(captions).reindex(columns=CAPTIONS.names).to_parquet(base / "captions.parquet")
    shutil.rmtree(market)
    return base


@pytest.fixture
def place(base, tmp_path, monkeypatch):
    """The same in a folder that the test may change, which is the working folder."""
    return working_copy(base, tmp_path, monkeypatch, columns=220)


def add(*words: str) -> int:
    return main(["gallery", "add", "g", *words, *ON_CPU])


def add_all() -> None:
    assert add("photos/manifest.csv", "--model", "demo", "--mode", "joint", "--captions", "captions.parquet") == 0


def test_a_manifest_gives_labels_cameras_and_times_and_a_file_captions(place, capsys):
    add_all()
    shown = capsys.readouterr().out
    assert f"{N} images added, 0 brought up to date, 0 unchanged; {N} images; model train/" in shown
    assert f"unknown in this source: time of 1 of {N} images" in shown
    entries = sorted(Gallery.open("g").snapshot().take(np.arange(N)), key=lambda entry: entry.path)
    assert entries[0].time is None
    assert entries[3].time == datetime(2026, 2, 3, 10)
    assert entries[3].path == str(place / "photos/2026-01-04_080000_3.jpg")
    assert entries[3].label.startswith("person ")
    assert entries[3].camera in (1, 2)
    assert (entries[3].caption, entries[3].attributes) == ("Somebody in red <b>.", {"upper_color": "red"})
    assert entries[3].confidence == pytest.approx(0.5, abs=1e-6)
    assert add("photos/manifest.csv") == 0, "model and mode are those of the gallery"
    assert f"0 images added, 0 brought up to date, {N} unchanged" in capsys.readouterr().out


def test_a_folder_has_times_by_pattern_and_is_brought_up_to_date_when_it_moves(place, capsys):
    (place / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (place / "photos/copy.jpg").write_bytes((place / "photos/2026-01-04_080000_3.jpg").read_bytes())
    assert add("photos", "--model", "demo", "--time-pattern", "%Y-%m-%d_%H%M%S") == 0
    shown = capsys.readouterr().out
    assert f"{N} images added" in shown
    assert f"unknown in this source: label of {N + 1}, camera of {N + 1}, caption of {N + 1}" in shown.replace(
        "time of 1, ", ""
    )
    assert "1 copy of other images left out" in shown
    assert "unusable: 1 file, such as broken.jpg (truncated)" in shown
    assert Gallery.open("g").info().since == datetime(2026, 1, 1, 8)
    (place / "photos/copy.jpg").unlink()
    (place / "photos").rename(place / "moved")
    assert add("moved") == 0
    assert f"0 images added, {N} brought up to date, 0 unchanged" in capsys.readouterr().out
    info = Gallery.open("g").info()
    assert (info.rows, info.with_time) == (N, N), "the times of the first addition stay"
    assert main(["gallery", "remove", "g", "--path", "moved/2026-01-04_080000_3.jpg"]) == 0
    assert f"1 image removed, {N - 1} left" in capsys.readouterr().out


def test_a_features_file_needs_no_model(place, capsys):
    assert main(["embed", "photos/manifest.csv", "--model", "demo", "--mode", "joint", *ON_CPU]) == 0
    shutil.rmtree("home")
    capsys.readouterr()
    assert add("features.parquet", "--captions", "captions.parquet", "--time-pattern", "%Y-%m-%d") == 0
    assert f"{N} images added" in capsys.readouterr().out
    info = Gallery.open("g").info()
    assert (info.space.mode, info.with_label, info.with_caption, info.with_time) == ("joint", N, N, N)
    frame = pd.read_parquet("features.parquet")
    found = Gallery.open("g").search(np.asarray(frame["embedding"][4]), top=1)
    assert found.hits[0].entry.sha256 == frame["sha256"][4]
    assert add("features.parquet", "--model", "demo") == 1
    assert "features.parquet has its embeddings already; remove --model" in capsys.readouterr().err


def test_a_features_file_that_cannot_be_trusted_is_refused_whole_and_makes_no_gallery(place, capsys):
    assert main(["embed", "photos/manifest.csv", "--model", "demo", "--mode", "joint", *ON_CPU]) == 0
    table = pq.read_table("features.parquet")
    rows = table.to_pylist()
    own = rows[0]["model_fingerprint"]
    mixed = [row | {"model_fingerprint": "f" * 32} if number > 8 else row for number, row in enumerate(rows)]
    nan = [*rows[:-1], rows[-1] | {"embedding": [float("nan")] * len(rows[0]["embedding"])}]
    for name, content, message in (
        ("mixed", mixed, f"of model train/{own}, but of its {N} rows, 3 of train/{'f' * 32}: they are not comparable"),
        ("nan", nan, f"1 embedding of {N} not finite or not of length one, such as that of 2026-01-12"),
    ):
        pq.write_table(pa.Table.from_pylist(content, schema=table.schema), f"{name}.parquet")
        assert add(f"{name}.parquet") == 1
        assert message in capsys.readouterr().err
        assert not (place / "g").exists()
    pq.write_table(table.drop_columns(["sha256"]), "bare.parquet")
    assert add("bare.parquet") == 1
    assert "bare.parquet does not have the column(s) sha256" in capsys.readouterr().err
    assert not (place / "g").exists()
    shutil.copyfile("mixed.parquet", "features.parquet")
    assert main(["embed", "photos/manifest.csv", "--model", "demo", "--mode", "joint", *ON_CPU]) == 0
    assert "3 rows of features.parquet had an embedding of another model" in capsys.readouterr().out
    assert add("features.parquet") == 0


@pytest.mark.xdist_group("flow")
def test_a_recipe_brings_its_captions(finished, tmp_path, capsys, monkeypatch):
    home, _ = finished
    monkeypatch.setenv("CLIP_SCGI_HOME", str(home))
    settings = [part for text in FINISHED_RUN for part in ("--set", text)]
    assert main(["gallery", "add", str(tmp_path / "g"), "demo", "--mode", "joint", *settings]) == 0
    assert "captions" not in capsys.readouterr().err
    info = Gallery.open(tmp_path / "g").info()
    assert info.with_caption == info.rows > 20
    entry = Gallery.open(tmp_path / "g").snapshot().take(np.arange(1))[0]
    assert entry.attributes
    assert entry.split in ("train", "query", "gallery")


def test_search_prints_a_table_and_writes_a_page(place, capsys):
    add_all()
    capsys.readouterr()
    query = str(place / "photos/2026-01-04_080000_3.jpg")
    where = "upper_color=red and time >= 2026-02-02 and confidence >= 0.4"
    words = ["gallery", "search", "g", "--image", query, "--where", where, "--top", "3", "--page", "out/hits.html"]
    assert main([*words, *ON_CPU]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"│\s+1 │\s+1\.000 │ person \d+ +│ +\d │ 2026-02-03 10:00:00 │ 2026-01-04_080000_3\.jpg", shown)
    assert f"imagesbelow{place / 'photos'}/" in re.sub(r"\s", "", shown)
    assert f"5 of {N} images pass the filter and were compared" in shown
    page = (place / "out/hits.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "Somebody in red &lt;b&gt;." in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert f"filter {where}" in " ".join(page_lines(page))
    assert main(["gallery", "search", "g", "--text", "a man in a red coat", "--top", "2", *ON_CPU]) == 0
    shown = capsys.readouterr().out
    embedder = Embedder.load("demo", device="cpu")
    images = sorted((place / "photos").glob("*.jpg"))
    scores = embedder.embed_images(images, mode="joint") @ embedder.embed_texts(["a man in a red coat"])[0]
    assert f"{np.sort(scores)[-1]:.3f}" in shown
    assert images[int(np.argmax(scores))].name in shown


def test_a_page_says_what_cannot_be_shown_and_escapes_everything(place, capsys):
    add_all()
    gone, changed = (place / f"photos/2026-01-{day:02d}_080000_{day - 1}.jpg" for day in (2, 3))
    gone.unlink()
    changed.write_bytes(changed.read_bytes() + b"x")
    sentence = "a <script>alert(1)</script> man"
    assert main(["gallery", "search", "g", "--text", sentence, "--top", "99", "--page", "hits.html", *ON_CPU]) == 0
    page = (place / "hits.html").read_text()
    assert "<script" not in page
    assert "image missing" in " ".join(page_lines(page))
    assert "image changed" in " ".join(page_lines(page))
    assert page.count("data:image/jpeg;base64,") == N - 2


def test_all_filtered_out_and_an_empty_gallery_are_answers(place, capsys):
    add_all()
    search = ["gallery", "search", "g", "--text", "a man", "--page", "hits.html", *ON_CPU]
    assert main([*search, "--where", "camera=99"]) == 0
    shown = capsys.readouterr().out
    assert f"no image passes the filter 'camera=99' (0 of {N})" in shown
    assert re.search(r"values of camera: [12] \(\d+\), [12] \(\d+\)\n", shown)
    nothing = "upper_color=green and time > 2030-01-01 and hair=long"
    assert main([*search, "--where", nothing]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"values of upper_color: (blue|red) \(6\), (blue|red) \(6\)\n", shown)
    assert "values of time: from 2026-02-01 10:00:00 to 2026-02-11 10:00:00\n" in shown
    assert "values of hair: unknown for all images\n" in shown
    assert "No image passes the filter." in (place / "hits.html").read_text()
    assert main(["gallery", "remove", "g", "--where", "camera >= 0"]) == 0
    assert main(search) == 0
    assert "the gallery is empty; add images" in capsys.readouterr().out
    assert main(["gallery", "info", "g"]) == 0
    assert re.search(r"images\s+0 .*cameras\s+none.*index\s+none: every search is exact", capsys.readouterr().out, re.S)


def test_a_person_is_removed_from_the_disk(place, capsys):
    add_all()
    label = Gallery.open("g").snapshot().table["label"][0].as_py()
    assert main(["gallery", "remove", "g", "--label", label, "--dry-run"]) == 0
    assert "would be removed" in capsys.readouterr().out
    assert main(["gallery", "remove", "g", "--label", label]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"/g: \d+ images? removed, \d+ left\n", shown)
    assert label.encode() not in b"".join(path.read_bytes() for path in (place / "g").rglob("*") if path.is_file())
    assert main(["gallery", "remove", "g", "--label", label.replace("person", "persom")]) == 1
    assert "0 images removed" in capsys.readouterr().err
    assert main(["gallery", "info", "g"]) == 0
    assert re.search(r"mode\s+joint, \d+ values each", capsys.readouterr().out)


def test_an_image_is_removed_by_the_path_of_a_copy(place, capsys):
    name = "2026-01-04_080000_3.jpg"
    copy = place / "photos/copy.jpg"
    shutil.copyfile(place / "photos" / name, copy)
    assert add("photos", "--model", "demo") == 0
    assert add("photos") == 0
    assert f"0 images added, 0 brought up to date, {N} unchanged" in capsys.readouterr().out
    assert main(["gallery", "remove", "g", "--path", "photos/other.jpg"]) == 1
    assert f"no image at this path: {place}/photos/other.jpg" in capsys.readouterr().err
    assert main(["gallery", "remove", "g", "--path", "photos/copy.jpg"]) == 0
    shown = capsys.readouterr().out
    assert f"0 images removed, {N} left; 1 image also at another path, such as {place}/photos/{name}, kept" in shown
    assert str(copy).encode() not in b"".join(path.read_bytes() for path in (place / "g").rglob("*") if path.is_file())
    assert add("photos") == 0
    (place / "photos" / name).unlink()
    assert main(["gallery", "remove", "g", "--path", "photos/copy.jpg"]) == 0
    assert f"1 image removed, {N - 1} left\n" in capsys.readouterr().out
    assert main(["gallery", "remove", "g", "--path", "photos"]) == 0
    assert f"{N - 1} images removed, 0 left\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "g", "photos", "--mode", "image"], "the gallery .*/g has embeddings of .*mode joint, .*these are of "),
        (["add", "new", "photos"], "gallery add: name the model, such as --model demo"),
        (["add", "photos", "photos", "--model", "demo"], "photos is not a gallery, and contains other files"),
        (["add", "g", "nothing"], "'nothing' is neither a folder, nor a manifest file, nor a recipe"),
        (["add", "g", "photos", "--time-column", "when"], "--time-column needs a manifest; the reader here is images"),
        (["add", "g", "photos/manifest.csv", "--time-column", "when"], "does not have the column 'when'"),
        (
            ["add", "g", "photos/manifest.csv", "--time-column", "seen at"],
            "column seen at: '12:00' is not a time",
        ),
        (["add", "g", "photos", "--time-pattern", "%q"], "%q at position 1 is unknown; use each of %Y"),
        (["add", "g", "photos", "--time-pattern", "%H%M"], "'%H%M' does not contain a date; for example"),
        (["add", "g", "photos", "--captions", "photos/manifest.csv"], "cannot be read as captions"),
        (["add", "g", "photos", "--captions", "no.parquet"], "cannot be read as captions"),
        (["search", "nowhere", "--text", "a man"], "nowhere is not a gallery"),
        (["search", "g", "--text", "a man", "--where", "colour=red"], "position 1: the column 'colour' does not exist"),
        (["search", "g", "--text", "a man", "--image", "x.jpg"], "give one query"),
        (["search", "g", "--text", " "], "the sentence is empty"),
        (["search", "g", "--image", "captions.parquet"], "captions.parquet"),
        (["search", "g", "--text", "a man", "--home", "elsewhere"], "the model of the gallery, train/.*--model"),
        (["search", "g", "--text", "a man", "--page", "photos"], "photos is a folder; give a file"),
        (["search", "g", "--text", "a man", "--page", "captions.parquet"], "captions.parquet does not end in .html"),
        (["remove", "g"], "give what to remove: --label, --path, or --where"),
        (["remove", "nowhere", "--label", "x"], "nowhere is not a gallery"),
        (["info", "photos"], "photos is not a gallery"),
    ],
)
def test_what_cannot_work_is_one_message(gallery_place, capsys, words, message):
    run = ["gallery", *words, *(ON_CPU if words[0] in ("add", "search") else [])]
    assert main(run) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert not (gallery_place / "new").exists()
    assert not (gallery_place / "nowhere").exists()
    assert len(Gallery.open("g")) == N


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["gallery", "remove", "g", "--path", ""], "argument 5 (after --path) is empty; give a value"),
        (["gallery", "remove", "g", "--path="], "--path= is empty; give a value"),
        (["gallery", "remove", "g", "--label", ""], "(after --label) is empty"),
        (["gallery", "remove", "g", "--label", "person 1", "--where", ""], "(after --where) is empty"),
        (["gallery", "add", "", "photos"], "argument 3 (after add) is empty"),
        (["gallery", "add", "g", "photos", "--captions", ""], "(after --captions) is empty"),
        (["embed", "", "--model", "demo"], "(after embed) is empty"),
        (["embed", "photos", "--model", "demo", "--out", ""], "(after --out) is empty"),
        (["corrections", "import", ""], "(after import) is empty"),
    ],
)
def test_an_empty_argument_is_not_the_working_directory(gallery_place, capsys, words, problem):
    before = sorted(gallery_place.rglob("*"))
    assert main(words) == 2
    assert problem in capsys.readouterr().err
    assert sorted(gallery_place.rglob("*")) == before
    assert len(Gallery.open("g")) == N


@pytest.fixture(scope="module")
def filled(base, module_folder):
    """The same with a filled gallery; commands that are refused leave it as it is."""
    folder = module_folder("filled")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CLIP_SCGI_HOME", str(folder / "home"))
        add_all()
    return folder


@pytest.fixture
def gallery_place(filled, monkeypatch):
    monkeypatch.chdir(filled)
    monkeypatch.setenv("CLIP_SCGI_HOME", str(filled / "home"))
    return filled


def test_a_gallery_of_another_mode_refuses_sentences(place, capsys):
    assert add("photos", "--model", "demo") == 0
    assert main(["gallery", "search", "g", "--text", "a man", *ON_CPU]) == 1
    assert "sentences are not comparable with the gallery's embeddings of the mode image" in capsys.readouterr().err
    assert main(["gallery", "search", "g", "--image", str(next((place / "photos").glob("*.jpg"))), *ON_CPU]) == 0


def test_another_model_is_refused_before_anything_is_embedded(place, capsys):
    add_all()
    other = write_model(ArtifactStore(place / "home"), TrainConfig(device="cpu", seed=9))
    assert add("photos", "--model", other.fingerprint) == 1
    assert re.search(
        rf"embeddings of model train/\w+, mode joint.*these are of model train/{other.fingerprint}",
        capsys.readouterr().err,
    )


def test_a_model_with_camera_embeddings_embeds_again_when_the_camera_differs(place, capsys):
    config = TrainConfig(method="clip_baseline", device="cpu", sie=1.0)
    model = write_model(ArtifactStore(place / "home"), config)
    assert add("photos/manifest.csv", "--model", model.fingerprint) == 0
    before = Gallery.open("g").snapshot().embeddings(np.arange(N))
    table = pd.read_csv("photos/manifest.csv")
    table.loc[:2, "camid"] = 3 - table.loc[:2, "camid"]
    table.to_csv("photos/manifest.csv", index=False)
    capsys.readouterr()
    assert add("photos/manifest.csv") == 0
    assert f"0 images added, 3 brought up to date, {N - 3} unchanged" in capsys.readouterr().out
    after = Gallery.open("g").snapshot()
    changed = np.abs(after.embeddings(np.arange(N)) - before).max(axis=1) > 1e-5
    assert changed.sum() == 3
    cameras = {entry.path: entry.camera for entry in after.take(np.arange(N))}
    assert cameras == {str(place / "photos" / row.path): row.camid for row in table.itertuples()}
    assert add("photos") == 1
    assert f"the camera is unknown for {N} images, such as {place}/photos/" in capsys.readouterr().err
    image = str(next((place / "photos").glob("*.jpg")))
    assert main(["gallery", "search", "g", "--image", image, *ON_CPU]) == 1
    assert "the camera of the query image is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paths", "folder"),
    [
        (["/d/a/1.jpg"], "/d/a/"),
        (["/d/a/1.jpg", "/d/ab/2.jpg"], "/d/"),
        (["/a/1.jpg", "/b/2.jpg"], ""),
        (["a/1.jpg", "/b/2.jpg"], ""),
        (["/1.jpg"], ""),
    ],
)
def test_the_table_names_the_common_folder_once(paths, folder):
    assert common_folder(paths) == folder
