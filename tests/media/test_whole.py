"""Whether files are all there: real ones of every format, cut at many places, padded, prolonged."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from functools import cache
from inspect import isfunction
from pathlib import Path
from typing import Any

import mediakit
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phi4d.media import whole
from phi4d.media.probe import identify
from phi4d.media.whole import View


def missing(data: bytes, how: Callable[[View], str] | None = None) -> str:
    """What is said of a file that holds these bytes; its format is told by them, or given."""
    descriptor = os.memfd_create("file")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        if how is None:
            found = identify(data[:4096])
            assert found
            how = found.missing
        return how(View(descriptor, len(data)))
    finally:
        os.close(descriptor)


def noise(width: int = 160, height: int = 120) -> Image.Image:
    samples = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(samples)


def sound(name: str, subtype: str = "PCM_16", **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, mediakit.tone(1.0)[:-3], 16_000, subtype, format=name, **options)
    return file.getvalue()


def muxed(codec: str, container: str, **options: Any) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        samples = mediakit.tone(1.0, 48_000, channels=2)
        path = mediakit.encoded(folder / "a", codec, container, samples, 48_000, **options)
        return path.read_bytes()

    return make


EXIF = Image.Exif()
EXIF[0x010E] = "a description " * 1000

PICTURES: dict[str, Callable[[Path], bytes]] = {
    "JPEG": lambda _: mediakit.saved(noise(), "JPEG"),
    "JPEG, progressive": lambda _: mediakit.saved(noise(), "JPEG", progressive=True),
    "JPEG, restart marks": lambda _: mediakit.saved(noise(), "JPEG", restart_marker_blocks=4),
    "JPEG, much before it": lambda _: mediakit.saved(
        noise(), "JPEG", exif=EXIF, icc_profile=bytes(200_000), comment=b"c" * 60_000
    ),
    "JPEG, larger than what is searched": lambda _: mediakit.saved(
        noise(1000, 700), "JPEG", quality=95
    ),
    "PNG": lambda _: mediakit.saved(noise(), "PNG"),
    "PNG, larger than what is searched": lambda _: mediakit.saved(noise(500, 500), "PNG"),
    "PNG, animated": lambda _: mediakit.saved(
        noise(), "PNG", save_all=True, append_images=[mediakit.picture(160, 120)]
    ),
    "GIF": lambda _: mediakit.saved(noise(), "GIF"),
    "BMP": lambda _: mediakit.saved(noise(), "BMP"),
    "TIFF": lambda _: mediakit.saved(noise(), "TIFF"),
    "TIFF, many strips": lambda _: mediakit.saved(noise(), "TIFF", strip_size=480),
    "TIFF, compressed": lambda _: mediakit.saved(noise(), "TIFF", compression="tiff_lzw"),
    "TIFF, pages": lambda _: mediakit.saved(
        noise(), "TIFF", save_all=True, append_images=[noise()]
    ),
    "TIFF, big": lambda _: mediakit.saved(noise(), "TIFF", big_tiff=True),
    "WebP": lambda _: mediakit.saved(noise(), "WEBP"),
    "AVIF": lambda _: mediakit.saved(noise(), "AVIF"),
    "HEIF": lambda _: mediakit.saved(noise(), "HEIF"),
    "JPEG 2000": lambda _: mediakit.saved(noise(), "JPEG2000"),
    "JPEG 2000, codestream": lambda _: mediakit.saved(noise(), "JPEG2000", no_jp2=True),
}
RECORDINGS: dict[str, Callable[[Path], bytes]] = {
    "WAV": lambda _: sound("WAV"),
    "WAV, odd": lambda _: sound("WAV", "PCM_U8"),
    "WAV, extensible": lambda _: sound("WAVEX"),
    "RF64": lambda _: sound("RF64"),
    "W64": lambda _: sound("W64"),
    "AIFF": lambda _: sound("AIFF"),
    "AU": lambda _: sound("AU"),
    "AU, little": lambda _: sound("AU", endian="LITTLE"),
    "CAF": lambda _: sound("CAF"),
    "M4A": muxed("aac", "ipod"),
    "MP4": muxed("aac", "mp4"),
    "MP4, index first": muxed("aac", "mp4", container_options={"movflags": "faststart"}),
    "MOV": muxed("aac", "mov"),
    "MOV with pictures": muxed("aac", "mov", video=True),
    "Matroska": muxed("libopus", "matroska"),
    "WebM": muxed("libopus", "webm"),
    "AVI": muxed("mp2", "avi", video=True),
}
SILENT: dict[str, Callable[[Path], bytes]] = {
    "MP3": lambda _: sound("MP3", "MPEG_LAYER_III"),
    "FLAC": lambda _: sound("FLAC"),
    "Ogg": lambda _: sound("OGG", "VORBIS"),
    "Opus": lambda _: sound("OGG", "OPUS"),
    "AAC": muxed("aac", "adts"),
    "MPEG stream": muxed("mp2", "mpegts", video=True),
    "AC3": muxed("ac3", "ac3"),
    "PNM": lambda _: mediakit.saved(noise(), "PPM"),
}
"""formats that do not tell"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    @cache
    def make(name: str) -> bytes:
        return (PICTURES | RECORDINGS | SILENT)[name](tmp_path_factory.mktemp("made"))

    return make


def cuts(size: int, first: int) -> Iterator[int]:
    """Lengths from the smallest at which the format is told, evenly, and close to the end."""
    yield from range(first, size - 8, max(1, size // 61))
    yield from range(size - 8, size - 4)  # PNG's last four are a checksum, which nobody misses


@pytest.mark.parametrize("name", [*PICTURES, *RECORDINGS])
def test_a_file_is_incomplete_until_its_end_is_there(
    made: Callable[[str], bytes], name: str
) -> None:
    data = made(name)
    assert missing(data) == ""
    found = identify(data[:4096])
    assert found
    early = [cut for cut in cuts(len(data), 48) if not missing(data[:cut], found.missing)]
    # Bytes that look like the end are in it; a value of no account is behind the picture; later
    # pages are not looked at.
    allowed = {"GIF": 3, "TIFF, compressed": 4, "TIFF, pages": 35}.get(name, 0)
    assert len(early) <= allowed, early


@pytest.mark.parametrize("name", SILENT)
def test_what_does_not_tell_counts_as_whole(made: Callable[[str], bytes], name: str) -> None:
    data = made(name)
    for cut in (len(data), len(data) - 1, len(data) // 2):
        if found := identify(data[: min(cut, 4096)]):
            assert missing(data[:cut], found.missing) == ""


ENDS = {
    "zeros": bytes(300),
    "many zeros": bytes(1_000_000),
    "words": b"\nappended by a program\n",
    "rubbish": np.random.default_rng(1).bytes(500),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", [*PICTURES, *RECORDINGS])
def test_what_was_appended_does_not_matter(
    made: Callable[[str], bytes], name: str, end: str
) -> None:
    assert missing(made(name) + ENDS[end]) == ""


@pytest.mark.parametrize(
    "name", [name for name in PICTURES if name.startswith(("JPEG", "PNG", "GIF"))]
)
@pytest.mark.parametrize("room", [2_000, 100_000, 6_000_000])
def test_room_that_is_not_written_yet_is_no_end(
    made: Callable[[str], bytes], name: str, room: int
) -> None:
    data = made(name)
    early = [
        cut
        for cut in cuts(len(data), 100)
        if cut < len(data) - 8 and not missing(data[:cut] + bytes(room))
    ]
    assert len(early) <= (3 if name == "GIF" else 0), early


def test_a_film_behind_a_photo_does_not_hide_its_end(made: Callable[[str], bytes]) -> None:
    photo, film = made("JPEG"), made("MP4")
    rubbish = np.random.default_rng(2).bytes(400_000).replace(b"\xff\xd9", b"\0\0")
    assert missing(photo + film) == ""
    assert missing(photo + rubbish) == ""


def test_a_preview_in_the_header_is_not_the_end() -> None:
    # given a photo with a small JPEG in its EXIF data, cut off behind it
    preview = mediakit.saved(noise(32, 32), "JPEG")
    exif = b"Exif\0\0" + preview
    data = mediakit.saved(noise(), "JPEG", exif=exif)
    assert data.count(b"\xff\xd9") == 2
    assert missing(data) == ""
    assert missing(data[: len(exif) + 400]) == "whose end is not there"


@pytest.mark.parametrize("number", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024, 0x80000024])
def test_lengths_of_programs_that_write_to_a_pipe_say_nothing(
    made: Callable[[str], bytes], number: int
) -> None:
    wav, aiff, au = bytearray(made("WAV")), bytearray(made("AIFF")), bytearray(made("AU"))
    wav[4:8] = struct.pack("<I", number)
    aiff[4:8] = struct.pack(">I", number)
    au[8:12] = struct.pack(">I", number)
    for data in (wav, aiff, au):
        assert missing(bytes(data[:20_000])) == ""


def test_a_file_without_its_last_odd_byte_of_padding_is_whole(
    made: Callable[[str], bytes],
) -> None:
    data = made("WAV, odd")
    assert len(data) % 2 == 0
    assert missing(data[:-1]) == ""
    assert missing(data[:-2])


def test_lengths_beyond_four_gigabytes_are_read(made: Callable[[str], bytes]) -> None:
    rf64 = bytearray(made("WAV")[:60])
    rf64[:4], rf64[4:8], rf64[12:16] = b"RF64", b"\xff" * 4, b"ds64"
    rf64[20:28] = struct.pack("<Q", 5_000_000_000)
    assert missing(bytes(rf64)) == "of which 60 bytes of 5,000.0 MB are there"
    mp4 = b"\0\0\0\x10ftypisom\0\0\0\0" + struct.pack(">I4sQ", 1, b"mdat", 6_000_000_000)
    assert missing(mp4) == "of which 32 bytes of 6,000.0 MB are there"


def test_a_recorder_that_does_not_know_the_length_yet_is_believed() -> None:
    head = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov"
    assert missing(head + b"\0\0\0\0mdat" + b"sound" * 100) == ""
    segment = b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\x01" + b"\xff" * 7
    assert missing(segment + b"cluster") == ""


def test_a_tag_that_is_longer_than_the_file_has_no_sound_behind_it(
    made: Callable[[str], bytes],
) -> None:
    tag = b"ID3\x03\0\0" + bytes([0, 0, 64, 0]) + bytes(64 * 128)
    assert missing(tag + made("MP3")) == ""
    assert missing(tag[:5000]) == "whose end is not there"


def test_the_amount_is_said(made: Callable[[str], bytes]) -> None:
    data = made("WAV")
    assert missing(data[:1000]) == f"of which 1,000 bytes of {len(data):,} bytes are there"


PARSERS = [
    how
    for name, how in vars(whole).items()
    if isfunction(how) and how.__module__ == whole.__name__ and name[0] != "_"
]
HEADS = [
    b"RIFF\x10\0\0\0WAVE", b"caff\0\x01\0\0", b"II*\0\x08\0\0\0", b"MM\0+\0\x08\0\0",
    b"\xff\xd8\xff",
    b"\0\0\0\x10ftypisom", b"\x1a\x45\xdf\xa3\x84", b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", b"",
]  # fmt: skip


@given(head=st.sampled_from(HEADS), rest=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_have_an_answer(head: bytes, rest: bytes) -> None:
    for how in PARSERS:
        assert isinstance(missing(head + rest, how), str)


def test_hostile_numbers_are_stepped_over_a_bounded_number_of_times() -> None:
    # given files that would be walked for ever, or for millions of steps
    directories = b"II*\0\x08\0\0\0" + b"\xff\x0f" + bytes(12) * 4095
    boxes = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08free" * 1_000_000
    chunks = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0aAAa1234" * 1_000_000
    segments = b"\xff\xd8" + b"\xff\xe0\0\x02" * 1_000_000
    for data in (directories, boxes, chunks, segments):
        reads = Counting(data)
        found = identify(data[:4096])
        assert found
        assert isinstance(found.missing(reads), str)  # type: ignore[arg-type]  # a View to it
        assert reads.count < 20_000


class Counting:
    """A `View` of bytes that counts how often it is read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.count = data, len(data), 0

    def at(self, offset: int, count: int) -> bytes:
        self.count += 1
        return self.data[offset : offset + min(count, whole.TAIL_BYTES)]

    number = View.number
