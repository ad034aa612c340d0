"""Metadata never decides whether an image is used, only its orientation."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from data.errors import RejectedRow
from data.images import decode as images
from data.images.decode import REASONS, open_rgb
from data.images.metadata import without_metadata

TAGS = sorted({int(tag) for tag in (*ExifTags.TAGS, *ExifTags.GPSTAGS)} - {0x0112})
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 0: 4, 99: 4}
COUNTS = (0, 1, 2, 7, 0xFFFF, 0xFFFFFFFF)
PATTERNS = (b"\0" * 16, b"\xff" * 16, b"72 dots per inch", b"\1\0\0\0\0\0\0\0" * 2)
KINDS = ("JPEG", "PNG", "WEBP")


def picture():
    rows, columns = np.mgrid[:24, :16]
    return Image.fromarray(np.stack([rows * 10, columns * 15, rows + columns], axis=-1).astype(np.uint8))


def encoded(kind, **options):
    stream = io.BytesIO()
    picture().save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}), **options)
    return stream.getvalue()


PLAIN = {kind: encoded(kind) for kind in KINDS}
EXPECTED = {kind: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for kind, content in PLAIN.items()}


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def with_exif(kind, block):
    """Return a file with an EXIF block of any bytes."""
    if kind == "TIFF":
        return encoded("TIFF", exif=b"Exif\0\0" + block)
    plain = PLAIN[kind]
    if kind == "JPEG":
        return plain[:2] + segment(0xE1, b"Exif\0\0" + block) + plain[2:]
    if kind == "PNG":
        return plain[:33] + chunk(b"eXIf", block) + plain[33:]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([0x08, 0, 0, 0, 15, 0, 0, 23, 0, 0])
    body = b"WEBP" + extended + plain[12:] + b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif(entries, order="<", first=8, next_ifd=0, tail=b""):
    """Return an EXIF block of raw entries (tag, type, count, four bytes)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", first)
    body = struct.pack(order + "H", len(entries))
    body += b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + body + struct.pack(order + "I", next_ifd) + tail


def cases():
    """Yield a malformed EXIF block per tag, type and count, and blocks with malformed directories."""
    rng = random.Random(0)
    for tag in TAGS:
        for kind in SIZES:
            pattern, order, count = rng.choice(PATTERNS), rng.choice("<>"), rng.choice(COUNTS)
            value = pattern[:4] if rng.random() < 0.5 else struct.pack(order + "I", rng.choice((0, 8, 26, 60, 1 << 31)))
            yield exif([(tag, kind, count, value)], order, next_ifd=rng.choice((0, 8, 1 << 31)), tail=pattern)
    for pointer in (0x8769, 0x8825, 0xA005, 0x014A):  # directories that refer to themselves, or to nothing
        for place in (0, 8, 10, 7, 1 << 30):
            yield exif([(pointer, 4, 1, struct.pack("<I", place))] * 3, next_ifd=8)
    yield from (exif([], first=place) for place in (0, 4, 7, 9999, 0xFFFFFFFF))
    yield from (exif([(1, 3, 1, b"\1\0\0\0")])[:size] for size in range(26))
    yield b"\0" * 64
    yield exif([(n, 3, 1, b"\0" * 4) for n in range(5000)])


@pytest.mark.parametrize("kind", KINDS)
def test_any_exif_leaves_the_pixels_as_they_are(kind):
    blocks = list(cases())
    for block in blocks:
        assert np.array_equal(np.asarray(open_rgb(with_exif(kind, block))), EXPECTED[kind]), block
    assert len(blocks) > 4500


@pytest.mark.filterwarnings("ignore:Metadata Warning")
def test_any_exif_as_pillow_writes_it_leaves_the_pixels_as_they_are():
    values = ("300", b"\0", 0, 65535, 1.5, (1, 2), "")
    count = 0
    for tag in TAGS:
        for value in values:
            block, stream = Image.Exif(), io.BytesIO()
            block[tag], block[0x0112] = value, 6
            try:
                picture().save(stream, "JPEG", exif=block, quality=95)
            except Exception:  # Pillow cannot write this combination
                continue
            assert open_rgb(stream.getvalue()).size == (24, 16), (tag, value)
            count += 1
    assert count > 700


def turned(kind, orientation):
    return np.asarray(Image.fromarray(EXPECTED[kind]).transpose(images._TRANSPOSE[orientation]))


ORIENTED = [
    (3, 1, "H", 2), (4, 1, "I", 4), (1, 1, "B", 1), (8, 1, "h", 2), (9, 1, "i", 4), (6, 1, "b", 1), (13, 1, "I", 4),
    (3, 2, "H", 2),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_orientation_of_any_type_is_applied(kind, order, orientation):
    for code, count, form, size in ORIENTED:
        value = struct.pack(order + form, orientation) + b"\0" * (4 - size)
        odd = (0x011A, 2, 4, b"text")
        content = with_exif(kind, exif([odd, (0x0112, code, count, value), odd], order))
        assert np.array_equal(np.asarray(open_rgb(content)), turned(kind, orientation)), (code, count)
    text = exif([(0x0112, 2, 2, str(orientation).encode() + b"\0\0\0")], order)
    fraction = exif(
        [(0x0112, 5, 1, struct.pack(order + "I", 26))], order, tail=struct.pack(order + "II", orientation, 1)
    )
    for block in (text, fraction):
        assert np.array_equal(np.asarray(open_rgb(with_exif(kind, block))), turned(kind, orientation))


@pytest.mark.parametrize(
    "entry",
    [
        (3, 1, b"\0\0\0\0"), (3, 1, b"\x09\0\0\0"), (3, 1, b"\xff\xff\0\0"), (3, 0, b"\6\0\0\0"),
        (8, 1, b"\xfa\xff\0\0"), (2, 2, b"x\0\0\0"), (2, 9, b"\xff\xff\0\0"),
        (5, 1, b"\xff\0\0\0"), (5, 1, b"\x1a\0\0\0"),
        (11, 1, b"\0\0\xc0\x7f"),
        (12, 1, b"\x1a\0\0\0"), (99, 1, b"\6\0\0\0"), (4, 9, b"\xff\xff\xff\xff"),
    ],
)  # fmt: skip
def test_an_orientation_that_cannot_be_read_is_none(entry):
    content = with_exif("JPEG", exif([(0x0112, *entry)], tail=b"\6\0\0\0\0\0\0\0"))
    assert np.array_equal(np.asarray(open_rgb(content)), EXPECTED["JPEG"])


def jpeg(*segments):
    return PLAIN["JPEG"][:2] + b"".join(segments) + PLAIN["JPEG"][2:]


def png(*chunks, after=b""):
    plain = PLAIN["PNG"]
    return plain[:33] + b"".join(chunks) + plain[33:-12] + after + plain[-12:]


XMP = b'<rdf:Description tiff:Orientation="6"/>'
ITXT = b"XML:com.adobe.xmp\0"
HEX = b"\nexif\n      26\n" + (b"Exif\0\0" + exif([(0x0112, 3, 1, b"\6\0\0\0")])).hex().encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)), "JPEG"),
        (png(chunk(b"iTXt", ITXT + b"\0\0\0\0" + XMP)), "PNG"),
        (png(after=chunk(b"iTXt", ITXT + b"\1\0\0\0" + zlib.compress(XMP))), "PNG"),
        (png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(HEX))), "PNG"),
        (png(after=chunk(b"tEXt", b"Raw profile type exif\0" + HEX)), "PNG"),
        (png(after=chunk(b"eXIf", exif([(0x0112, 3, 1, b"\6\0\0\0")]))), "PNG"),
    ],
)
def test_an_orientation_elsewhere_is_followed_too(content, kind):
    assert np.array_equal(np.asarray(open_rgb(content)), turned(kind, 6))


@pytest.mark.parametrize(
    ("xmp", "orientation"),
    [
        (b"<rdf:Description tiff:Orientation='6'/>", 6),
        (b'<rdf:Description tiff:Orientation = "8" />', 8),
        (b"<tiff:Orientation>\n 3 \n</tiff:Orientation>", 3),
        (b'<rdf:Description tiff:Orientation="0"/>', 1),
        (b'<rdf:Description tiff:Orientation="9"/>', 1),
        (b'<rdf:Description tiff:Orientation="61"/>', 1),
        (b'<rdf:Description tiff:Orientation=""/>', 1),
    ],
)
def test_the_orientation_of_an_xmp_packet_is_read_as_xml_has_it(xmp, orientation):
    content = jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp))
    expected = EXPECTED["JPEG"] if orientation == 1 else turned("JPEG", orientation)
    assert np.array_equal(np.asarray(open_rgb(content)), expected)


@pytest.mark.parametrize("big", [True, False])
@pytest.mark.parametrize("cut", [1, 2, 50, 200, 800])
def test_a_tiff_file_without_its_last_pixels_is_truncated(cut, big):
    """Removing the metadata must not replace missing pixels."""
    whole = encoded("TIFF", compression="raw", big_tiff=big)
    assert np.array_equal(np.asarray(open_rgb(whole)), np.asarray(picture()))
    with pytest.raises(RejectedRow) as caught:
        open_rgb(whole[:-cut])
    assert caught.value.reason == "truncated"


LATIN = bytes(range(128, 256))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (jpeg(segment(0xE0, b"JFIF\0\1")), "JPEG"),
        (jpeg(segment(0xEE, b"Adobe")), "JPEG"),
        (jpeg(segment(0xE2, b"ICC_PROFILE\0" + LATIN)), "JPEG"),
        (jpeg(segment(0xE2, b"ICC_PROFILE\0")), "JPEG"),
        (jpeg(segment(0xE2, b"MPF\0MM\0*" + b"\xff" * 40)), "JPEG"),
        (jpeg(segment(0xE2, b"MPF\0")), "JPEG"),
        (jpeg(segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0" + b"\xff" * 4)), "JPEG"),
        (jpeg(segment(0xFE, LATIN), segment(0xFE, b"")), "JPEG"),
        (jpeg(b"\xff\xff\xff\1 junk \0\xff\0"), "JPEG"),
        (jpeg(segment(0xE1, b"Exif\0\0"), segment(0xE1, b"Exif"), segment(0xE1, b"")), "JPEG"),
        *(
            (place, "PNG")
            for body in (LATIN, b"", b"\0", b"name\0\0" + b"\xff" * 9, b"name\0\0" + zlib.compress(b"0" * (1 << 26)))
            for kind in b"iCCP tEXt zTXt iTXt gAMA cHRM pHYs sRGB eXIf acTL fcTL".split()
            for place in (png(chunk(kind, body)), png(after=chunk(kind, body)))
        ),
        (png(chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0"), "PNG"),
        (PLAIN["PNG"][:-12] + struct.pack(">I", 1 << 30) + b"tEXtcut off", "PNG"),
    ],
)  # fmt: skip
def test_other_metadata_that_is_damaged_leaves_the_pixels_as_they_are(content, kind):
    assert np.array_equal(np.asarray(open_rgb(content)), EXPECTED[kind])


@pytest.mark.parametrize(
    ("compression", "big"), [("raw", True), ("raw", False), ("tiff_lzw", False), ("tiff_adobe_deflate", False)]
)
def test_any_tag_of_a_tiff_file_that_is_not_of_its_pixels_is_passed_over(compression, big):
    plain = encoded("TIFF", compression=compression, big_tiff=big)
    assert (plain[2:4] == b"+\0") is big
    form, entry = ("<Q", "<HHQQ") if big else ("<I", "<HHII")
    start = 8 if big else 4
    offset = struct.unpack_from(form, plain, start)[0]
    head = 8 if big else 2
    count, size = int.from_bytes(plain[offset : offset + head], "little"), struct.calcsize(entry)
    old = plain[offset + head : offset + head + count * size]
    for tag in (270, 274, 282, 283, 296, 305, 315, 330, 700, 33723, 34377, 34665, 34675, 34853, 40965, 65000):
        for kind in SIZES:
            for number, value in ((1, 6), (0xFFFFFF, 8), (3, 0xFFFFFFFF)):
                if tag == 274 and number == 1:
                    continue
                odd = struct.pack(entry, tag, kind, number, value)
                body = (count + 1).to_bytes(head, "little") + old + odd + struct.pack(form, offset)
                content = plain[:start] + struct.pack(form, len(plain)) + plain[start + struct.calcsize(form) :] + body
                assert np.array_equal(np.asarray(open_rgb(content)), np.asarray(picture())), (tag, kind, number)
    turn = struct.pack(entry, 274, 3, 1, 6)
    body = (count + 1).to_bytes(head, "little") + old + turn + bytes(start)
    content = plain[:start] + struct.pack(form, len(plain)) + plain[start + struct.calcsize(form) :] + body
    assert np.array_equal(np.asarray(open_rgb(content)), np.asarray(picture().transpose(Image.Transpose.ROTATE_270)))


def test_any_extension_of_a_gif_file_leaves_the_pixels_as_they_are():
    rng, plain = random.Random(0), encoded("GIF")
    expected = np.asarray(open_rgb(plain))
    start = 13 + (3 << (plain[10] & 7) + 1)
    known = (b"NETSCAPE2.0", b"\1", b"\1\0", b"XMP DataXMP", b"ICCRGBG1012", LATIN)
    for label in (0x01, 0xFE, 0xFF, 0xCE, 0x99) * 100:
        blocks = [rng.choice(known) for _ in range(rng.randint(0, 3))]
        odd = bytes([0x21, label]) + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
        assert np.array_equal(np.asarray(open_rgb(plain[:start] + odd + plain[start:])), expected), odd


def test_the_transparent_color_of_a_gif_file_is_no_metadata():
    image = Image.new("P", (20, 40), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.paste(0, (0, 0, 20, 20))
    stream = io.BytesIO()
    image.save(stream, "GIF", transparency=0, comment=b"hello")
    found = np.asarray(open_rgb(stream.getvalue()))
    assert (found[:20] == 255).all()
    assert found[30, 5].tolist() == [200, 100, 50]


def test_files_without_metadata_are_decoded_as_they_are():
    for content in (PLAIN["PNG"], PLAIN["WEBP"], encoded("GIF"), encoded("BMP"), encoded("PPM"), b"", b"text"):
        assert without_metadata(content) == (content, 1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (kind("?"), "truncated")
        for kind in (TypeError, AttributeError, struct.error, ZeroDivisionError, RecursionError, SyntaxError)
    ]
    + [(OverflowError(), "truncated"), (AssertionError(), "truncated"), (BufferError(), "truncated")]
    + [(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "?"), "truncated"), (zlib.error("?"), "truncated")]
    + [(MemoryError(), "out_of_memory"), (Image.DecompressionBombError("?"), "too_large")]
    + [(Image.DecompressionBombWarning("?"), "too_large")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["open", "load"])
def test_any_exception_of_a_decoder_is_a_reason(monkeypatch, error, reason, where):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(images.Image, "open", fail) if where == "open" else monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", fail
    )
    with pytest.raises(RejectedRow) as caught:
        open_rgb(PLAIN["PNG"])
    assert caught.value.reason == reason
    assert reason in REASONS


def test_a_stop_is_not_a_damaged_file(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(images.Image, "open", stop)
    with pytest.raises(KeyboardInterrupt):
        open_rgb(PLAIN["PNG"])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", [*KINDS, "TIFF"])
def test_cut_and_flipped_files_are_rejected_with_a_known_reason_or_decoded(kind):
    rng, content = np.random.default_rng(1), with_exif(kind, exif([(0x0112, 3, 1, b"\6\0\0\0")]))
    files = [content[:size] for size in range(1, len(content), 3)]
    for _ in range(300):
        broken = bytearray(content)
        for place in rng.integers(len(broken), size=3):
            broken[place] = int(rng.integers(256))
        files.append(bytes(broken))
    for file in files:
        try:
            assert open_rgb(file, max_pixels=100_000).mode == "RGB"
        except RejectedRow as error:
            assert error.reason in REASONS  # noqa: PT017
