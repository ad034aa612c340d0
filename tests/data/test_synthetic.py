"""The synthetic world: determinism, layout, true attributes and difficulty."""

import ast
import hashlib
import json
import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.errors import ConfigError, DataError
from data.slots import COLORS, SLOTS, VOCABULARY
from data.synthetic.cameras import sample_camera
from data.synthetic.people import hex_color, make_person, sample_attributes, sample_outfit, shade
from data.synthetic.render import render
from data.synthetic.world import (
    DOMAINS,
    IMAGES_PER_IDENTITY,
    WorldConfig,
    person_at,
    training_sample,
    training_samples,
    write_market1501,
)
from tests.helpers.places import REPO, require_pinned_pillow

NAME = re.compile(r"^(-?\d+)_c(\d)s(\d)_(\d+)_(\d+)\.jpg$")
SMALL = WorldConfig(seed=5, train_identities=5, test_identities=4, images_per_camera=2, cameras=3,
                    distractors=3, junk=2)  # fmt: skip
PLAIN = {
    "gender": "female", "age": "young", "upper_color": "blue", "upper_type": "t-shirt", "lower_color": "gray",
    "lower_type": "pants", "shoes": "black shoes", "hair": "short", "glasses": "none", "carrying": "none",
}  # fmt: skip


def _digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _camera(difficulty=0.0, index=1):
    return sample_camera(np.random.default_rng(100 + index), index, difficulty)


def _show(attributes, heading, seed=0, difficulty=0.0):
    person = make_person(attributes, np.random.default_rng(seed), difficulty)
    return render(person, _camera(), np.random.default_rng(seed), difficulty=0.0, heading=heading)


@pytest.fixture(scope="module")
def world(module_folder):
    return write_market1501(module_folder("world") / "small", SMALL)


@pytest.fixture(scope="module")
def table(world):
    return pd.read_parquet(world / "attributes.parquet")


def test_same_bytes_for_any_number_of_workers(world, tmp_path):
    assert _digests(write_market1501(tmp_path / "again", SMALL, workers=2)) == _digests(world)


def test_a_larger_world_contains_the_smaller_one(world, tmp_path):
    bigger = WorldConfig(**{**vars(SMALL), "train_identities": 6, "distractors": 5, "junk": 3})
    grown = _digests(write_market1501(tmp_path / "bigger", bigger))
    small = _digests(world)
    unnamed = {path: digest for path, digest in small.items() if "/00" not in path or "/0000_" in path}
    train = {path: digest for path, digest in small.items() if path.startswith("bounding_box_train/")}
    expected = {**unnamed, **train}
    del expected["attributes.parquet"]
    assert len(expected) == 5 * 6 + 3 + 2
    assert expected.items() <= grown.items()
    # The test people are the same too; only their numbers follow those of the training people.
    queries = [{d for p, d in files.items() if p.startswith("query/")} for files in (small, grown)]
    assert len(queries[0]) == 4 * 3
    assert queries[0] == queries[1]


def test_later_settings_leave_existing_worlds_as_they_are(world):
    """At their defaults they change no byte."""
    require_pinned_pillow()
    content = hashlib.sha256(json.dumps(_digests(world), sort_keys=True).encode()).hexdigest()
    assert content == "aa384e5a0d80248c5ce08799bf40c2f0bdf83cd0cd2c373ff20f5c09eb83bea4"


def test_later_settings_name_a_world_only_if_they_are_chosen():
    assert set(SMALL.identity()) == {
        "seed", "train_identities", "test_identities", "images_per_camera", "cameras", "lookalikes", "difficulty",
        "distractors", "junk",
    }  # fmt: skip
    chosen = WorldConfig(**{**vars(SMALL), "train_cameras": (1, 2), "clothes": 2})
    assert chosen.identity() == {**SMALL.identity(), "train_cameras": (1, 2), "clothes": 2}


def test_chosen_cameras_take_the_images_that_they_take_in_the_whole_world(world, tmp_path):
    chosen = WorldConfig(**{**vars(SMALL), "train_cameras": (2, 1), "test_cameras": (1, 3)})
    root = write_market1501(tmp_path / "chosen", chosen)
    table = pd.read_parquet(root / "attributes.parquet")
    seen = {split: set(group["camid"]) for split, group in table.groupby("split")}
    assert seen == {"train": {1, 2}, "query": {1, 3}, "gallery": {1, 3}}
    part, whole = _digests(root), _digests(world)
    people = {path for path in part if path.startswith(("bounding_box_train", "query"))}
    assert len(people) == 5 * 2 * 2 + 4 * 2
    assert all(part[path] == whole[path] for path in people)


def test_clothes_follow_the_camera_and_the_person_stays(tmp_path, world):
    dressed = WorldConfig(**{**vars(SMALL), "clothes": 2, "distractors": 0, "junk": 0})
    root = write_market1501(tmp_path / "dressed", dressed)
    table = pd.read_parquet(root / "attributes.parquet")
    slots = list(SLOTS)
    assert table.groupby(["pid", "camid"])[slots].nunique().eq(1).all(axis=None)
    outfits = table.groupby(["pid", "camid"])[slots].first().unstack("camid")
    for slot in slots:
        first, second, third = (outfits[slot, camera] for camera in (1, 2, 3))
        assert first.equals(third)
        assert first.equals(second) == (slot not in {"upper_color", "upper_type"}), slot
    # The first outfit is the one that people without others wear.
    files, plain = _digests(root), _digests(world)
    assert all((files[path] == plain[path]) == ("_c2s" not in path) for path in files if path.endswith(".jpg"))


@pytest.mark.parametrize("outfit", [1, 2])
def test_another_outfit_leaves_all_else_as_it_is(outfit):
    person, dressed = (person_at((4, 22), 5, 2, 0.5, number) for number in (0, outfit))
    assert dressed.body == person.body
    same = {name for name, value in vars(person.details).items() if getattr(dressed.details, name) == value}
    assert {"skin", "hair", "beard", "frame", "lower", "shoes", "socks", "belt", "bag"} <= same
    assert not {"upper", "trim", "hood_lining", "print_at"} & same
    assert dressed.look["upper_rgb"] == hex_color(dressed.details.upper.rgb) != person.look["upper_rgb"]
    assert dressed.look["lower_rgb"] == person.look["lower_rgb"]
    lookalike = person_at((4, 22), 4, 2, 0.5, outfit)
    assert lookalike.attributes == dressed.attributes
    assert lookalike.details != dressed.details


def test_another_outfit_is_drawn_from_all_garments():
    rng = np.random.default_rng(0)
    changed = [sample_outfit(PLAIN, rng) for _ in range(300)]
    for slot in SLOTS:
        expected = set(VOCABULARY[slot]) if slot in {"upper_color", "upper_type"} else {PLAIN[slot]}
        assert {attributes[slot] for attributes in changed} == expected


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"train_cameras": (0, 1)}, "train_cameras: must be numbers from 1 to 3, the number of cameras, not [0, 1];"),
        ({"test_cameras": (2, 4)}, "test_cameras: must be numbers from 1 to 3, the number of cameras, not [2, 4];"),
        ({"test_cameras": (2, 2)}, "test_cameras: must be different cameras, not [2, 2]; set test_cameras=[1,2]"),
        ({"test_cameras": (3,)}, "test_cameras: must be at least 2 cameras, because queries are matched across"),
        ({"clothes": 4}, "clothes: must be at most the number of cameras, 3; set clothes=3"),
        ({"clothes": 0}, "clothes: must be at least 1, not 0; set clothes=1"),
    ],
)
def test_problems_of_cameras_and_clothes(setting, told):
    with pytest.raises(ConfigError) as caught:
        WorldConfig(**{**vars(SMALL), **setting})
    assert told in str(caught.value)


def test_layout_and_names(world, table):
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    on_disk = {path.relative_to(world).as_posix() for path in world.rglob("*.jpg")}
    assert on_disk == set(table["path"])
    assert len(on_disk) == len(table)
    for row in table.itertuples():
        folder, name = row.path.split("/")
        match = NAME.match(name)
        assert match is not None, name
        assert (int(match[1]), int(match[2]), folder) == (row.pid, row.camid, folders[row.split])
    with Image.open(world / table["path"][0]) as image:
        assert (image.size, image.mode, image.format) == ((64, 128), "RGB", "JPEG")


def test_splits(table):
    pids = {split: set(table.loc[table["split"] == split, "pid"]) for split in ("train", "query", "gallery")}
    assert pids == {"train": {1, 2, 3, 4, 5}, "query": {6, 7, 8, 9}, "gallery": {-1, 0, 6, 7, 8, 9}}
    query = table[table["split"] == "query"]
    assert not query.duplicated(["pid", "camid"]).any()
    assert len(query) == 4 * 3
    assert (table["pid"] == 0).sum() == 3
    assert (table["pid"] == -1).sum() == 2


def test_attributes_come_from_the_vocabularies(table):
    people = table[table["pid"] >= 0]
    for slot in SLOTS:
        assert set(people[slot]) <= set(VOCABULARY[slot])
        assert table[f"visible_{slot}"].dtype == bool
    assert people.groupby("pid")[list(SLOTS)].nunique().drop(index=0).eq(1).all(axis=None)
    junk = table[table["pid"] == -1]
    assert junk[list(SLOTS)].isna().all(axis=None)
    assert not junk[[f"visible_{slot}" for slot in SLOTS]].any(axis=None)
    assert people["upper_rgb"].str.fullmatch("#[0-9a-f]{6}").all()


def test_refuses_a_root_that_holds_something(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write_market1501(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("pyarrow.parquet.write_table", lambda *_: 1 / 0)
    tiny = WorldConfig(seed=1, train_identities=1, test_identities=0, images_per_camera=1, cameras=1)
    with pytest.raises(ZeroDivisionError):
        write_market1501(tmp_path / "broken", tiny)
    assert list(tmp_path.iterdir()) == []


def test_problems_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        WorldConfig(seed=-1, train_identities=3, test_identities=2, images_per_camera=1, cameras=12, lookalikes=0,
                    difficulty=1.5)  # fmt: skip
    for name in ("seed", "images_per_camera", "cameras", "lookalikes", "difficulty"):
        assert name in str(caught.value)


def test_stream_is_indexable():
    run = list(training_samples(3, 3, start=6))
    again = training_sample(3, 7)
    assert [sample.index for sample in run] == [6, 7, 8]
    assert np.array_equal(run[1].image, again.image)
    assert run[1].visible == again.visible
    assert again.image.shape == (128, 64, 3)
    assert again.image.dtype == np.uint8
    assert set(again.attributes) == set(again.visible) == set(SLOTS)
    assert not np.array_equal(again.image, training_sample(4, 7).image)


def test_stream_shows_each_identity_through_several_cameras():
    run = list(training_samples(9, IMAGES_PER_IDENTITY))
    assert {sample.identity for sample in run} == {0}
    assert len({sample.camera for sample in run}) == IMAGES_PER_IDENTITY
    assert all(sample.attributes == run[0].attributes for sample in run)


def test_stream_and_worlds_share_no_identity(tmp_path):
    seed = 21
    tiny = WorldConfig(seed=seed, train_identities=9, test_identities=9, images_per_camera=2, cameras=2)
    rows = pd.read_parquet(write_market1501(tmp_path / "w", tiny) / "attributes.parquet")
    looks = {split: set(zip(group["upper_rgb"], group["lower_rgb"], strict=True))
             for split, group in rows.groupby("split")}  # fmt: skip
    assert len(looks["train"]) == len(looks["query"]) == 9
    assert not looks["train"] & looks["query"]
    stream = [person_at((seed, DOMAINS["stream"]), index, 2, 0.5).look for index in range(24)]
    seen = {(look["upper_rgb"], look["lower_rgb"]) for look in stream}
    assert len(seen) == 24
    assert not seen & (looks["train"] | looks["query"])


def test_lookalikes_share_attributes_and_differ_in_pixels():
    people = [person_at((2,), index, 3, 0.5) for index in range(6)]
    for group in (people[:3], people[3:]):
        assert all(person.attributes == group[0].attributes for person in group)
        shots = [render(person, _camera(), np.random.default_rng(1), difficulty=0.0).image for person in group]
        for one, other in combinations(shots, 2):
            assert np.abs(one.astype(float) - other).mean() > 2.0
    assert people[0].attributes != people[3].attributes


def test_difficulty_shrinks_the_differences_between_lookalikes():
    def spread(difficulty):
        people = [person_at((2,), index, 40, difficulty) for index in range(40)]
        return np.std([person.details.upper.rgb for person in people], axis=0).sum()

    assert spread(1.0) < 0.7 * spread(0.0)


def test_shades_of_two_names_never_meet():
    rng = np.random.default_rng(0)
    shades = {name: np.array([shade(rng, name) for _ in range(60)]) for name in COLORS}
    for one, other in combinations(COLORS, 2):
        gaps = np.linalg.norm(shades[one][:, None] - shades[other], axis=2)
        assert gaps.min() > 30, (one, other)


@pytest.mark.parametrize("slot", ["upper_color", "lower_color"])
def test_colors_are_separable_before_the_camera(slot):
    rng = np.random.default_rng(0)
    centers = {name: np.mean([shade(rng, name) for _ in range(200)], axis=0) for name in COLORS}
    right = total = 0
    for number in range(44):
        name = COLORS[number % len(COLORS)]
        shown = _show({**PLAIN, slot: name}, heading=60.0 * number, seed=number)
        drawn = np.array(shown.colors[slot.removesuffix("_color")])
        nearest = min(centers, key=lambda key: np.linalg.norm(0.9 * centers[key] - drawn))
        right, total = right + (nearest == name), total + 1
    assert right / total > 0.95


def test_what_faces_away_is_not_visible():
    for kind in ("glasses", "sunglasses"):
        assert not _show({**PLAIN, "glasses": kind}, 180).visible["glasses"]
        assert _show({**PLAIN, "glasses": kind}, 0).visible["glasses"]
    assert not _show(PLAIN, 180).visible["glasses"]
    tail = {**PLAIN, "hair": "ponytail"}
    assert _show(tail, 180).visible["hair"]
    assert _show(tail, 90).visible["hair"]


@pytest.mark.parametrize("bag", ["backpack", "handbag", "shoulder bag", "suitcase"])
def test_bags_show_in_every_view(bag):
    flags = [_show({**PLAIN, "carrying": bag}, heading, seed).visible["carrying"]
             for heading in (0, 90, 180, 270) for seed in range(5)]  # fmt: skip
    assert np.mean(flags) > 0.85


def test_views_follow_the_heading():
    assert [_show(PLAIN, heading).view for heading in (0, 90, 180, 270, 360)] == [
        "front", "side", "back", "side", "front",
    ]  # fmt: skip


def test_shoes_outside_the_box_are_not_visible():
    """In the most difficult shots, every tenth person is so close that the box may end above the shoes."""
    person = make_person(PLAIN, np.random.default_rng(0), 0.0)
    shots = [render(person, _camera(), np.random.default_rng(seed), difficulty=1.0, heading=0) for seed in range(14)]
    assert any(shot.visible["upper_color"] and not shot.visible["shoes"] for shot in shots)
    assert all(_show(PLAIN, 0, seed).visible["shoes"] for seed in range(14))


def test_men_wear_no_skirts():
    rng = np.random.default_rng(0)
    drawn = [sample_attributes(rng) for _ in range(2000)]
    assert all(person["gender"] == "female" for person in drawn if person["lower_type"] == "skirt")
    assert {(slot, value) for person in drawn for slot, value in person.items()} == {
        (slot, value) for slot in SLOTS for value in VOCABULARY[slot]
    }


def test_imports_stay_light():
    """Drawing needs neither torch nor prefect nor matplotlib, and does not use the global random generator."""
    paths = sorted((REPO / "data" / "synthetic").glob("*.py"))
    assert len(paths) > 5
    for path in paths:
        text = path.read_text()
        names = {
            alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names
        }
        assert not names & {"torch", "prefect", "matplotlib", "random"}
        assert "np.random.seed" not in text
