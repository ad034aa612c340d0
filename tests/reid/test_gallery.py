"""Gallery: what is added, updated and found, and that what is removed is gone from the disk."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from data.errors import ClipScgiError, ConfigError, DataError
from reid.gallery.entry import EMBEDDING
from reid.gallery.gallery import Gallery
from reid.gallery.layout import FORMAT, HEADER, PARTS, Space
from reid.gallery.snapshot import Snapshot
from reid.gallery.writer import Writer
from tests.helpers.galleries import SPACE, WIDTH, entry, small_gallery, vectors
from tests.helpers.small_disk import grow, small_disk


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def paths(found) -> list[str]:
    return [hit.entry.path for hit in found.hits]


def test_a_search_ranks_every_entry_by_its_similarity(tmp_path):
    gallery = small_gallery(tmp_path / "g")
    rows, query = vectors(40), vectors(1, seed=5)[0]
    expected = rows @ query
    found = gallery.search(query, top=7)
    assert [hit.entry for hit in found.hits] == [entry(int(row)) for row in np.argsort(-expected)[:7]]
    np.testing.assert_allclose([hit.score for hit in found.hits], np.sort(expected)[::-1][:7], rtol=1e-6)
    assert [hit.rank for hit in found.hits] == list(range(1, 8))
    assert (found.passed, found.total, found.index) == (40, 40, None)
    assert len(gallery.search(100 * query[None], top=999).hits) == 40
    assert gallery.search(100 * query, top=1).hits[0].score == pytest.approx(found.hits[0].score, rel=1e-6)


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        ("camera=2", lambda e: e.camera == 2),
        ("upper_color=red and camera in (0, 1)", lambda e: e.attributes["upper_color"] == "red" and e.camera in (0, 1)),
        ("confidence >= 0.8", lambda e: e.confidence >= 0.8),
        ("time >= 2026-01-02T01:00", lambda e: e.time >= datetime(2026, 1, 2, 1)),
        ("label='person 3' or label='person 4'", lambda e: e.label in ("person 3", "person 4")),
        ("camera=7", lambda e: False),
    ],
)
def test_a_filter_selects_before_the_ranking(tmp_path, where, fits):
    gallery = small_gallery(tmp_path / "g")
    query = vectors(1, seed=6)[0]
    scores = vectors(40) @ query
    wanted = [row for row in np.argsort(-scores) if fits(entry(int(row)))]
    found = gallery.search(query, top=5, where=where)
    assert [hit.entry for hit in found.hits] == [entry(int(row)) for row in wanted[:5]]
    assert (found.passed, found.total) == (len(wanted), 40)


def test_equal_similarities_are_in_the_order_of_the_gallery(tmp_path):
    gallery = Gallery.open(tmp_path / "g", space=SPACE)
    same = np.repeat(vectors(1), 30, axis=0)
    gallery.add([entry(number) for number in range(30)], same)
    assert paths(gallery.search(same[0], top=4)) == [entry(number).path for number in range(4)]


def test_known_content_is_not_added_again_but_brought_up_to_date(tmp_path):
    gallery = small_gallery(tmp_path / "g", 10)
    before = contents(tmp_path / "g")
    again = gallery.add([entry(number) for number in range(10)], vectors(10))
    assert (again.added, again.updated, again.unchanged) == (0, 0, 10)
    assert contents(tmp_path / "g") == before, "nothing was written"
    moved = entry(3, path="/elsewhere/3.jpg", label=None, camera=None, time=None, caption=None, attributes={})
    renamed = entry(4, label="Ann", caption="New.", attributes={"hair": "long"}, confidences={})
    new = entry(77)
    done = gallery.add([moved, renamed, entry(5), new], vectors(4, seed=9))
    assert (done.added, done.updated, done.unchanged) == (1, 2, 1)
    stored = {item.sha256: item for item in gallery.snapshot().take(np.arange(11))}
    assert stored[moved.sha256] == entry(3, path="/elsewhere/3.jpg", copies=(entry(3).path,)), (
        "what the new source does not know stays"
    )
    assert stored[renamed.sha256] == renamed, "a caption replaces the former one with its attributes"
    np.testing.assert_array_equal(gallery.snapshot().embeddings(np.arange(10)), vectors(10))
    np.testing.assert_array_equal(gallery.snapshot().embeddings(np.array([10])), vectors(4, seed=9)[3:])
    assert b"Somebody in blue, number 4." not in contents(tmp_path / "g")


def test_attributes_without_a_caption_replace_the_former_ones(tmp_path):
    gallery = small_gallery(tmp_path / "g", 4)
    said = {"caption": None, "attributes": {"hair": "long"}, "confidences": {}}
    assert gallery.add([entry(2, **said)], vectors(1)).updated == 1
    assert gallery.snapshot().take(np.array([2])) == [entry(2, **said)]


def test_another_camera_of_known_content_replaces_its_embedding(tmp_path):
    gallery = small_gallery(tmp_path / "g", 6)
    other = vectors(1, seed=3)
    done = gallery.add([entry(2, camera=9)], other)
    assert (done.added, done.updated) == (0, 1)
    assert gallery.search(other[0], top=1).hits[0].entry == entry(2, camera=9)
    assert gallery.search(other[0], top=1).hits[0].score == pytest.approx(1, abs=1e-6)


def test_copies_are_kept_once_and_contradicting_ones_are_named(tmp_path):
    gallery = Gallery.open(tmp_path / "g", space=SPACE)
    copy, contradiction = entry(0, path="/b.jpg"), entry(0, path="/c.jpg", label="Bob")
    done = gallery.add([entry(0), entry(1), copy, contradiction], vectors(4))
    assert (done.added, done.copies, done.disagreeing) == (2, 2, ("/c.jpg",))
    assert len(gallery) == 2
    assert gallery.snapshot().take(np.arange(1)) == [entry(0, copies=("/b.jpg", "/c.jpg"))]
    again = gallery.add([entry(0), copy, contradiction], vectors(3))
    assert (again.updated, again.unchanged) == (0, 1)
    assert gallery.add([entry(0, path="/d.jpg")], vectors(1)).updated == 1
    paths = {entry(0).path, "/b.jpg", "/c.jpg", "/d.jpg"}
    assert {*gallery.snapshot().take(np.arange(1))[0].paths} == paths
    for path in paths:
        assert gallery.remove(path=path, dry_run=True).removed == 1


def test_a_copy_at_another_path_keeps_the_entry_without_the_removed_path(tmp_path):
    gallery = Gallery.open(tmp_path / "g", space=SPACE)
    names = [str(tmp_path / folder / "x.jpg") for folder in ("a", "b", "c")]
    for name in names:
        Path(name).parent.mkdir()
        Path(name).write_bytes(b"image")
    gallery.add([entry(0, path=names[0], copies=(names[1], names[2])), entry(1)], vectors(2))
    planned = gallery.remove(path=tmp_path / "a", dry_run=True)
    assert planned == gallery.remove(path=tmp_path / "a")
    assert (planned.removed, planned.left, planned.kept) == (0, 2, (names[1],))
    assert gallery.search(vectors(1)[0], top=1).hits[0].entry == entry(0, path=names[1], copies=(names[2],))
    assert names[0].encode() not in contents(tmp_path / "g")
    done = gallery.remove(path=tmp_path)
    assert (done.removed, done.left, done.kept) == (1, 1, ())


@pytest.mark.parametrize("label", ['O\'Brien "x"', "a, b; c", "名前", "Zoe\u0308", " blank ", "-1", "unknown", "a\nb"])
def test_any_label_is_found_and_removed(tmp_path, label):
    gallery = small_gallery(tmp_path / "g", 8)
    gallery.add([entry(90, label=label)], vectors(1, seed=4))
    quoted = "'" + label.replace("'", "''") + "'"
    assert gallery.search(vectors(1)[0], where=f"label={quoted}").passed == 1
    assert gallery.remove(label=label).removed == 1
    assert gallery.search(vectors(1)[0], where=f"label={quoted}").hits == []


@pytest.mark.parametrize(
    ("what", "gone"),
    [
        ({"label": "person 2"}, range(8, 12)),
        ({"path": "/photos/person 3/00013.jpg"}, [13]),
        ({"path": "/photos/person 3"}, range(12, 16)),
        ({"path": "/photos/pers"}, []),
        ({"where": "time >= 2026-01-01T05:00 and time < 2026-01-01T09:00"}, range(5, 9)),
        ({"where": "time >= 2026-01-02 and time <= 2026-01-02"}, range(24, 40)),
        ({"label": "person 2", "where": "camera=2"}, [8, 11]),
        ({"label": "person 99"}, []),
        ({"where": "camera >= 0"}, range(40)),
    ],
)
def test_what_is_removed_is_gone_from_the_disk(tmp_path, what, gone):
    gallery = small_gallery(tmp_path / "g")
    rows, gone = vectors(40), set(gone)
    assert gallery.remove(**what, dry_run=True).removed == len(gone)
    assert len(gallery) == 40, "a dry run only counts"
    done = gallery.remove(**what)
    assert (done.removed, done.left) == (len(gone), 40 - len(gone))
    assert len(gallery) == 40 - len(gone)
    found, disk = gallery.search(rows[0], top=99), contents(tmp_path / "g")
    assert {hit.entry.sha256 for hit in found.hits} == {entry(n).sha256 for n in range(40) if n not in gone}
    for number in range(40):
        item = entry(number)
        for text in (item.sha256.encode(), item.path.encode(), item.caption.encode(), rows[number].tobytes()):
            assert (text in disk) == (number not in gone), f"entry {number}: {text[:40]!r}"
    for person in range(10):
        left = any(number not in gone for number in range(4 * person, 4 * person + 4))
        assert (b"person %d" % person in disk) == left


@pytest.mark.parametrize("what", [{"label": ""}, {"path": ""}, {"where": ""}, {"label": "person 2", "path": ""}])
def test_an_empty_text_removes_nothing(tmp_path, what, monkeypatch):
    monkeypatch.chdir("/")
    gallery = small_gallery(tmp_path / "g", 12)
    with pytest.raises(ConfigError, match=r"remove: \w+ is empty"):
        gallery.remove(**what)
    assert len(gallery) == 12


def test_removing_also_deletes_what_a_killed_writer_left(tmp_path):
    gallery = small_gallery(tmp_path / "g", 8)
    snapshot = gallery.snapshot()
    parts = tmp_path / "g" / PARTS
    for name in ("0" * 32 + ".arrow", f".{'1' * 32}.arrow.x.tmp"):
        (parts / name).write_bytes((parts / snapshot.header.parts[0].name).read_bytes())
    (tmp_path / "g" / f".{HEADER}.abc.tmp").write_text("person 1")
    gallery.remove(label="person 1")
    assert b"person 1" not in contents(tmp_path / "g")
    assert len(list(parts.iterdir())) == 1


def test_a_search_sees_one_state_while_others_change_it(tmp_path):
    """Labels are changed and removed in a loop; a reader never sees a mixture, nor a missing file."""
    folder = tmp_path / "g"
    gallery = Gallery.open(folder, space=SPACE)
    gallery.add([entry(number, label="0") for number in range(30)], vectors(30))
    stop, problems, seen = threading.Event(), [], set()

    def read() -> None:
        own = Gallery.open(folder)
        while not stop.is_set():
            hits = own.search(vectors(1)[0], top=99).hits
            state = {hit.entry.label for hit in hits}
            seen.update(state)
            if len(state) != 1 or len(hits) != 30:
                problems.append((state, len(hits)))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(1, 25):
        gallery.add([entry(number, label=str(turn)) for number in range(30)], vectors(30))
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert len(seen) > 1


def test_a_second_writer_is_told_and_harms_nothing(tmp_path):
    gallery = small_gallery(tmp_path / "g", 8)
    with Writer(tmp_path / "g") as writer:
        with pytest.raises(ConfigError, match=r"another process is changing the gallery .*run again"):
            gallery.add([entry(50)], vectors(1))
        with pytest.raises(ConfigError, match="another process is changing"):
            gallery.remove(label="person 1")
        writer.append([entry(51)], vectors(1, seed=2))
    assert len(gallery) == 9


def test_many_small_additions_leave_few_files(tmp_path):
    gallery = Gallery.open(tmp_path / "g", space=SPACE)
    for number in range(70):
        gallery.add([entry(number)], vectors(1, seed=number))
    assert len(gallery) == 70
    assert len(list((tmp_path / "g" / PARTS).iterdir())) <= 8
    for number in (0, 33, 69):
        assert paths(gallery.search(vectors(1, seed=number)[0], top=1)) == [entry(number).path]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 2.0])
def test_unusable_embeddings_are_refused_whole(tmp_path, value):
    gallery = small_gallery(tmp_path / "g", 8)
    rows = vectors(3)
    rows[1] = value
    with pytest.raises(DataError, match=r"1 embeddings are not finite or not of length one, such as .*00021.jpg"):
        gallery.add([entry(20), entry(21), entry(22)], rows)
    assert len(gallery) == 8
    with pytest.raises(ConfigError, match=r"the shape \[1, 3\]; expected \[1, 16\]"):
        gallery.add([entry(20)], np.ones((1, 3), np.float32))


@pytest.mark.parametrize("query", [np.zeros(WIDTH), np.full(WIDTH, np.nan), np.full(WIDTH, np.inf)])
def test_a_query_without_direction_is_refused(tmp_path, query):
    with pytest.raises(DataError, match="zero, NaN or infinite"):
        small_gallery(tmp_path / "g", 8).search(query.astype(np.float32))


def test_what_cannot_be_searched_is_refused(tmp_path):
    gallery = small_gallery(tmp_path / "g", 8)
    with pytest.raises(ConfigError, match=r"shape \[3\]; expected \[16\], an embedding of model train/a+, mode joint"):
        gallery.search(np.ones(3, np.float32))
    with pytest.raises(ConfigError, match="top must be at least 1"):
        gallery.search(vectors(1)[0], top=0)
    with pytest.raises(ConfigError, match="give what to remove"):
        gallery.remove()


def test_a_refused_first_addition_leaves_no_gallery_and_a_later_one_keeps_it(tmp_path):
    folder, broken = tmp_path / "g", np.full((1, WIDTH), np.nan, np.float32)

    def add(*additions):
        with Writer(folder, SPACE) as writer:
            for number, rows in enumerate(additions):
                writer.append([entry(number)], rows)

    with pytest.raises(DataError, match="not finite"):
        add(broken)
    assert not (folder / HEADER).exists()
    with pytest.raises(DataError, match="not finite"):
        add(vectors(1), broken)
    assert len(Gallery.open(folder)) == 1


def test_an_empty_gallery_answers(tmp_path):
    gallery = Gallery.open(tmp_path / "g", space=SPACE)
    for where in (None, "camera=3"):
        found = gallery.search(vectors(1)[0], where=where)
        assert (found.hits, found.passed, found.total) == ([], 0, 0)
    assert gallery.remove(label="x").removed == 0
    info = gallery.info()
    assert (info.rows, info.labels, info.cameras, info.since) == (0, 0, (), None)
    assert gallery.add([], np.empty((0, WIDTH), np.float32)).added == 0


def test_a_gallery_may_be_moved_and_searched_from_a_read_only_place(tmp_path):
    small_gallery(tmp_path / "g", 8)
    (tmp_path / "g").rename(tmp_path / "moved")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "moved").rglob("*"))
    gallery = Gallery.open(tmp_path / "moved")
    assert paths(gallery.search(vectors(8)[3], top=1, where="camera=0")) == [entry(3).path]
    gallery.info()
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "moved").rglob("*")) == before


def test_info_counts_what_is_known(tmp_path):
    gallery = small_gallery(tmp_path / "g", 12)
    bare = entry(50, label=None, camera=None, time=None, caption=None, attributes={}, confidences={})
    gallery.add([bare], vectors(1, seed=1))
    info = gallery.info()
    assert (info.space, info.rows, info.labels, info.cameras) == (SPACE, 13, 3, (0, 1, 2))
    assert (info.since, info.until) == (datetime(2026, 1, 1), datetime(2026, 1, 1, 11))
    assert {info.with_label, info.with_camera, info.with_time, info.with_caption} == {12}
    assert info.size_bytes == len(contents(tmp_path / "g"))
    assert gallery.similar_labels("persom 1")[0] == "person 1"


def test_times_are_stored_in_utc(tmp_path):
    gallery = Gallery.open(tmp_path / "g", space=SPACE)
    late = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    gallery.add([entry(0, time=late), entry(1, time=datetime(2026, 1, 1, tzinfo=UTC))], vectors(2))
    times = [hit.time for hit in gallery.snapshot().take(np.arange(2))]
    assert times == [datetime(2025, 12, 31, 23), datetime(2026, 1, 1)]


def test_another_model_or_mode_is_refused(tmp_path):
    small_gallery(tmp_path / "g", 8)
    for other in (Space("b" * 32, "joint", WIDTH), Space("a" * 32, "image", WIDTH)):
        with pytest.raises(ConfigError, match=r"embeddings of model train/a+, mode joint.*but these are of .*another"):
            Gallery.open(tmp_path / "g", space=other)


def test_only_a_new_or_own_folder_becomes_a_gallery(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"is not a gallery, and contains other files, such as a.jpg"):
        Gallery.open(tmp_path / "photos", space=SPACE)
    with pytest.raises(ConfigError, match="is a file, not a gallery"):
        Gallery.open(tmp_path / "file", space=SPACE)
    with pytest.raises(ConfigError, match=r"nowhere is not a gallery .*clip-scgi gallery add"):
        Gallery.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is not a gallery"):
        Gallery.open(tmp_path / "file")
    assert not (tmp_path / "nowhere").exists()
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["a.jpg"]


def change_header(folder: Path, **changes) -> None:
    path = folder / HEADER
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_newer_format_is_refused_and_an_older_schema_is_read(tmp_path):
    gallery = small_gallery(tmp_path / "g", 8)
    part = tmp_path / "g" / PARTS / gallery.snapshot().header.parts[0].name
    with pa.memory_map(str(part)) as source:
        table = pa.ipc.open_file(source).read_all()
        old = pa.table({name: table[name].to_pylist() for name in ("path", "sha256", "label", "upper_color")})
        old = old.append_column(EMBEDDING, table[EMBEDDING].combine_chunks())
        with pa.ipc.new_file(str(part) + ".new", old.schema) as writer:
            writer.write_table(old)
    Path(f"{part}.new").replace(part)
    older = Gallery.open(tmp_path / "g")
    hit = older.search(vectors(8)[3], top=1, where="camera=unknown and upper_color=red").hits[0].entry
    assert (hit.label, hit.camera, hit.attributes) == ("person 0", None, {"upper_color": "red"})
    assert older.remove(path=entry(0).path, dry_run=True).removed == 1
    assert older.add([entry(number) for number in range(9)], vectors(9)).updated == 8
    assert older.search(vectors(8)[3], where="camera=0").passed == 3
    change_header(tmp_path / "g", format=FORMAT + 1)
    with pytest.raises(ConfigError, match=r"format 2, but this version of clip-scgi reads formats up to 1; update"):
        Gallery.open(tmp_path / "g")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder, part: (folder / HEADER).write_text("{"),
        lambda folder, part: change_header(folder, space={"model": "x"}),
        lambda folder, part: change_header(folder, parts=[{"name": part.name, "rows": 7}]),
        lambda folder, part: part.write_bytes(part.read_bytes()[:500]),
        lambda folder, part: part.write_bytes(b"nothing"),
    ],
)
def test_damage_is_one_message(tmp_path, damage):
    gallery = small_gallery(tmp_path / "g", 8)
    damage(tmp_path / "g", tmp_path / "g" / PARTS / gallery.snapshot().header.parts[0].name)
    with pytest.raises(ClipScgiError, match=r"gallery\.json|is damaged"):
        Gallery.open(tmp_path / "g")


def test_a_missing_part_is_one_message(tmp_path):
    gallery = small_gallery(tmp_path / "g", 8)
    (tmp_path / "g" / PARTS / gallery.snapshot().header.parts[0].name).unlink()
    with pytest.raises(ClipScgiError, match="lacks a file that its header names"):
        Snapshot.open(tmp_path / "g")


def test_a_full_disk_changes_nothing_and_says_so(tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        gallery = Gallery.open(disk / "g", space=SPACE)
        gallery.add([entry(number) for number in range(2000)], vectors(2000))
        many = [entry(number) for number in range(2000, 20_000)]
        with pytest.raises(ClipScgiError, match=r"the disk of .* is full: 18,000 images could not be added"):
            gallery.add(many, vectors(len(many)))
        assert len(Gallery.open(disk / "g")) == 2000
        grow(disk, "20m")
        assert gallery.add(many, vectors(len(many))).added == 18_000
        assert len(Gallery.open(disk / "g")) == 20_000
        assert len(list((disk / "g" / PARTS).iterdir())) <= 2
