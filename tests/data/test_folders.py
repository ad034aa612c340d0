"""The readers `folders` and `images`: labels, cameras, and what lies in a tree besides images."""

from __future__ import annotations

import unicodedata

import pytest

from data.columns.records import ImageRecord
from data.datasets import DatasetConfig, load_dataset, scan_dataset
from data.errors import ConfigError, DataError
from data.process.pattern_search import first_groups
from tests.helpers.data_trees import litter, put

NFC, NFD = (unicodedata.normalize(form, "Chloé Durand") for form in ("NFC", "NFD"))
PEOPLE = ("Alice Smith/IMG 00.jpg", f"{NFD}/2024/June/a.JPG", f"{NFD}/b.png", "0012/x.jpg", "0012/y.webp", "7up/z.tiff")


def scan(reader, root, **options):
    return scan_dataset(DatasetConfig(reader=reader, root=str(root), **options))


def reasons(scanned):
    return {row.path: row.reason for row in scanned.rejected}


@pytest.fixture
def root(tmp_path):
    put(tmp_path / "people", *PEOPLE)
    return tmp_path / "people"


def test_the_topmost_folder_is_the_label_and_sorted_labels_are_numbered(root):
    found = scan("folders", root)
    labels = {record.path: (record.label, record.pid) for record in found.records}
    assert labels == {
        "0012/x.jpg": ("0012", 1),
        "0012/y.webp": ("0012", 1),
        "7up/z.tiff": ("7up", 2),
        "Alice Smith/IMG 00.jpg": ("Alice Smith", 3),
        f"{NFD}/2024/June/a.JPG": (NFC, 4),
        f"{NFD}/b.png": (NFC, 4),
    }
    assert {record.camid for record in found.records} == {-1}
    assert found.rejected == []


def test_labels_of_copies_on_other_file_systems_are_the_same(root, tmp_path):
    put(tmp_path / "copy", *(unicodedata.normalize("NFC", path) for path in reversed(PEOPLE)))
    here, there = scan("folders", root), scan("folders", tmp_path / "copy")

    def composed(record: ImageRecord) -> tuple[str, str, int, str]:
        return unicodedata.normalize("NFC", record.path), record.split, record.pid, record.label

    assert sorted(map(composed, here.records)) == sorted(map(composed, there.records))


def test_two_folders_of_one_label_are_one_identity_with_a_notice(root):
    put(root, f"{NFC}/c.jpg", first_seed=20)
    found = scan("folders", root)
    assert len({record.pid for record in found.records if record.label == NFC}) == 1
    (notice,) = [notice for notice in found.notices if "Unicode" in notice]
    assert notice.startswith(f"1 label(s) have more than one folder, such as {NFC}: ")


def test_everything_else_in_the_tree_is_rejected_with_a_reason(root, tmp_path):
    put(root, "lost.jpg", "0012/.thumbnails/x.jpg", ".cache/a/b.jpg", first_seed=20)
    (root / "0012" / "notes.txt").write_text("x")
    (root / "README").write_text("x")
    (root / "empty").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(root / "7up")
    (root / "7up" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "7up" / "self.jpg").symlink_to(root / "7up" / "self.jpg")
    (root / "round").symlink_to(root / "round")
    (root / "7up" / "out.jpg").symlink_to(tmp_path / "outside.jpg")
    (tmp_path / "outside.jpg").write_bytes(b"x")
    litter(root, root / "7up")
    found = scan("folders", root)
    assert {record.path for record in found.records} == set(PEOPLE)
    assert reasons(found) == {
        "lost.jpg": "no_label",
        "0012/.thumbnails": "hidden",
        ".cache": "hidden",
        "0012/notes.txt": "not_an_image",
        "README": "not_an_image",
        "elsewhere": "linked_folder",
        "again": "linked_folder",
        "7up/gone.jpg": "missing",
        "7up/self.jpg": "missing",
        "round": "not_an_image",
        "7up/out.jpg": "outside_root",
    }
    assert all(row.detail for row in found.rejected)
    assert "1 folder(s) do not contain an image, such as empty" in found.notices


@pytest.mark.parametrize("reader", ["folders", "images"])
def test_a_manifest_of_the_same_images_in_the_root_is_not_part_of_the_dataset(root, reader):
    before = scan(reader, root)
    for name in ("manifest.csv", "manifest.tsv", "manifest.parquet", "0012/manifest.csv"):
        (root / name).write_text("path,pid\n")
    after = scan(reader, root)
    assert after.records == before.records
    assert reasons(after) == {"0012/manifest.csv": "not_an_image"}


def test_names_that_are_not_utf8_are_rejected(root):
    (root / "7up" / "caf\udce9.jpg").write_bytes(b"x")
    assert reasons(scan("folders", root)) == {"7up/caf\\xe9.jpg": "bad_path"}


@pytest.mark.parametrize("names", [("train", "test"), ("Query", "Gallery"), ("bounding_box_train",)])
def test_folders_that_are_splits_are_not_taken_for_people(tmp_path, names):
    put(tmp_path, *(f"{name}/a/x.jpg" for name in names))
    with pytest.raises(DataError, match=r"are splits \(.*data.reader=market1501.*one folder per person"):
        scan("folders", tmp_path)


# Cameras


@pytest.mark.parametrize(
    ("pattern", "cameras"),
    [(r"cam(\d+)", [2, 10, 2]), (r"/(cam\d+)", [2, 1, 2]), (r"-([a-z]+)\.", [2, 1, 2])],
)
def test_the_group_of_the_pattern_is_the_camera(tmp_path, pattern, cameras):
    put(tmp_path, "Alice/cam02-north.jpg", "Alice/cam10-east.jpg", "Bob/deep/cam2-north.jpg")
    records = load_dataset("folders", tmp_path, camera_pattern=pattern)
    numbers = {record.path: record.camid for record in records}
    if pattern == r"/(cam\d+)":  # as text, cam02 and cam2 are two cameras
        cameras = [1, 2, 3]
    assert [numbers[path] for path in sorted(numbers)] == cameras


@pytest.mark.parametrize(
    ("pattern", "share"),
    [(r"cam(\d+)", "any of the 6 image"), (r"IMG (\d+)", "5 of the 6 image"), (r"x(q)?", "any of")],
)
def test_a_pattern_that_does_not_fit_every_path_is_refused(root, pattern, share):
    with pytest.raises(DataError) as error:
        scan("folders", root, camera_pattern=pattern)
    text = str(error.value)
    assert text.startswith(f"data.camera_pattern={pattern} does not find a camera in {share}")
    assert "such as 0012/x.jpg, 0012/y.webp, 7up/z.tiff" in text
    assert 'data.camera_pattern=""' in text


def test_the_hint_of_a_wrong_camera_pattern_names_a_path_that_exists(tmp_path):
    put(tmp_path, "Alice/day 1/cam2_00.jpg", first_seed=1)
    with pytest.raises(DataError) as error:
        scan("folders", tmp_path, camera_pattern=r"kamera(\d+)")
    assert r"(cam(\d+) finds camera 2 in Alice/day 1/cam2_00.jpg)" in str(error.value)
    put(tmp_path, "Aaron/00.jpg", first_seed=2)
    with pytest.raises(DataError) as error:
        scan("folders", tmp_path, camera_pattern=r"cam(\d+)")
    assert r"(cam(\d+) would find camera 3 if it were Aaron/cam3_00.jpg)" in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("cam(", "is not a regular expression"),
        ("cam", "has 0 groups"),
        ("(a)(b)", "has 2 groups, but needs exactly one"),
        ("(a{99999999999})", "is not a regular expression"),
        ("(" * 9999 + ")" * 9999, "is not a regular expression"),
    ],
)
def test_a_pattern_needs_one_group(tmp_path, pattern, told):
    with pytest.raises(ConfigError) as error:
        load_dataset("folders", tmp_path, camera_pattern=pattern)
    assert f"camera_pattern: {told}" in str(error.value)
    assert r"data.camera_pattern=cam(\d+)" in str(error.value)


def test_a_pattern_that_backtracks_for_years_is_one_message(tmp_path, monkeypatch):
    path = f"anna/{'a' * 60}.jpg"
    put(tmp_path, path)
    limited = "data.readers.folders.first_groups"
    monkeypatch.setattr(limited, lambda *args, seconds: first_groups(*args, seconds=min(seconds, 1)))
    with pytest.raises(DataError) as error:
        scan("folders", tmp_path, camera_pattern="((?:a+)+)!")
    assert str(error.value) == (
        f"data.camera_pattern=((?:a+)+)! is too slow for the image paths, such as {path}: it does not end within 1 s. "
        r"Avoid a repetition inside a repetition, such as (a+)+; cam(\d+) is fast"
    )


# The reader images


def test_images_are_the_gallery_without_people_and_cameras(root):
    put(root, "lost.jpg", first_seed=20)
    (root / "notes.txt").write_text("x")
    found = scan("images", root)
    assert {record.path for record in found.records} == {*PEOPLE, "lost.jpg"}
    assert {(r.split, r.pid, r.camid, r.label) for r in found.records} == {("gallery", 0, -1, "")}
    assert reasons(found) == {"notes.txt": "not_an_image"}
    assert found.notices == []


def test_a_folder_that_does_not_exist_names_the_setting(tmp_path):
    for reader in ("folders", "images"):
        with pytest.raises(DataError, match=r"does not exist; set data\.root"):
            scan(reader, tmp_path / "nowhere")
        with pytest.raises(ConfigError, match=rf"data.root is empty; .* such as data.root=/data/{reader}"):
            scan_dataset(DatasetConfig(reader=reader))
