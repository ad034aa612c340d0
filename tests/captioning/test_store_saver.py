"""Claims, shards and the thread that writes them: when rows reach the disk and when a bucket is released."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from captioning.prompts.replies import Reply
from captioning.store.claims import BUCKETS, Claims, bucket_of, buckets_of_part
from captioning.store.rows import CaptionRow
from captioning.store.saver import FLUSH_ROWS, FLUSH_SECONDS, Saver
from data.errors import ClipScgiError, ConfigError


class Shards:
    """A stand-in for the caption store that records the appended rows."""

    def __init__(self, error: Exception | None = None) -> None:
        self.written: list[list[str]] = []
        self.error = error

    def append(self, rows):
        if self.error:
            raise self.error
        self.written.append([row.image_sha256 for row in rows])


class Clock:
    """A clock that stands still until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shards():
    return Shards()


@pytest.fixture
def claims(tmp_path):
    return Claims(tmp_path)


def row(name: str, text: str | None = "A man.") -> CaptionRow:
    if text is None:
        return CaptionRow(image_sha256=name, status="image_error", error="truncated")
    return CaptionRow.of(name, Reply(text=text, n_tokens=3, truncated=False))


def free(folder, bucket: int) -> bool:
    other = Claims(folder)
    taken = other.take(bucket)
    other.release_all()
    return taken


def test_rows_are_written_in_shards_of_the_set_size(clock, shards, claims):
    saver = Saver(shards, claims, flush_rows=3, clock=clock)
    saver.expect(0xAB, {f"ab{n}" for n in range(9)})
    claims.take(0xAB)
    saver.add([row("ab0")])
    saver.add([row("ab1")])
    assert saver._writing is None
    saver.add([row("ab2")])
    saver.add([row("ab3"), row("ab4"), row("ab5"), row("ab6")])
    saver.add([row("ab7")])
    saver.close()
    assert shards.written == [["ab0", "ab1", "ab2"], ["ab3", "ab4", "ab5", "ab6"], ["ab7"]]


def test_rows_that_waited_longer_than_the_limit_are_written_with_the_next(clock, shards, claims):
    saver = Saver(shards, claims, clock=clock)
    saver.expect(0xAB, {"ab0", "ab1", "ab2", "ab3"})
    claims.take(0xAB)
    clock.now += FLUSH_SECONDS
    saver.add([row("ab0")])
    assert saver._writing is None
    clock.now += 0.5
    saver.add([row("ab1")])
    assert [r.image_sha256 for r in saver._writing[1]] == ["ab0", "ab1"]
    clock.now += FLUSH_SECONDS  # counted from the last shard
    saver.add([row("ab2")])
    clock.now += 0.5
    saver.add([row("ab3")])
    saver.close()
    assert shards.written == [["ab0", "ab1"], ["ab2", "ab3"], []]


def test_the_limits():
    assert (FLUSH_ROWS, FLUSH_SECONDS) == (256, 5.0)


def test_a_bucket_is_released_when_its_last_image_is_on_disk(clock, shards, claims, tmp_path):
    saver = Saver(shards, claims, flush_rows=2, clock=clock)
    for bucket, images in ((0x0A, {"0a1", "0a2", "0a3"}), (0x0B, {"0b1"})):
        assert claims.take(bucket)
        saver.expect(bucket, images)
    saver.add([row("0a1"), row("0b1")])
    assert not free(tmp_path, 0x0B)  # perhaps written by now, but the saver has not checked
    saver.add([row("0a2"), row("0a3", None)])
    assert free(tmp_path, 0x0B)
    assert not free(tmp_path, 0x0A)
    saver.add([])
    saver._settle()
    assert free(tmp_path, 0x0A)
    assert shards.written == [["0a1", "0b1"], ["0a2"]]
    saver.close()


def test_an_error_of_the_writing_thread_reaches_the_caller_and_all_buckets_are_released(clock, claims, tmp_path):
    saver = Saver(Shards(OSError("gone")), claims, clock=clock)
    for bucket in (1, 2):
        claims.take(bucket)
        saver.expect(bucket, {f"{bucket:02x}0"})
    saver.add([row("010")])
    with pytest.raises(OSError, match="gone"):
        saver.close()
    assert free(tmp_path, 1)
    assert free(tmp_path, 2)
    with pytest.raises(RuntimeError, match="shutdown"):
        saver._thread.submit(print)


def test_the_bucket_is_the_first_byte_of_the_digest():
    assert [bucket_of(name) for name in ("00ff", "0f00", "a7b1", "ff00")] == [0, 15, 167, 255]


def test_buckets_of_parts():
    assert list(buckets_of_part(1, 100)) == [1, 101, 201]
    assert list(buckets_of_part(255, 256)) == [255]
    assert list(buckets_of_part(0, 1)) == list(range(256))


@pytest.mark.parametrize("of", [1, 2, 3, 7, 256])
def test_parts_have_nearly_equal_size_and_cover_all_buckets(of):
    parts = [buckets_of_part(part, of) for part in range(of)]
    assert sorted(bucket for part in parts for bucket in part) == list(range(BUCKETS))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("part", "of"), [(-1, 4), (4, 4), (0, 257), (0, 0)])
def test_parts_that_do_not_exist(part, of):
    with pytest.raises(ConfigError) as error:
        buckets_of_part(part, of)
    assert str(error.value) == (
        f"part={part} of={of}: part must be at least 0 and less than of, and of at most 256; for example part=0 of=4"
    )


def test_two_workers_exclude_each_other_bucket_by_bucket(tmp_path):
    one, other = Claims(tmp_path / "deep" / "store"), Claims(tmp_path / "deep" / "store")
    assert one.take(10)
    assert not other.take(10)
    assert other.take(11)
    one.release(10)
    assert other.take(10)
    other.release_all()
    assert one.take(10)
    assert one.take(11)
    assert sorted(path.name for path in (tmp_path / "deep" / "store" / "claims").iterdir()) == ["0a", "0b"]
    with pytest.raises(KeyError):
        one.release(12)


def test_a_refused_claim_leaves_no_open_file(tmp_path):
    one, other = Claims(tmp_path), Claims(tmp_path)
    one.take(3)
    before = _open_files()
    assert not other.take(3)
    assert _open_files() == before
    one.release(3)
    assert _open_files() == before - 1


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_full_disk_stops_a_claim_with_its_remedy(claims, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ClipScgiError, match=f"^the disk of {tmp_path}/claims is full: no work could be claimed. Free"):
        claims.take(3)
