from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.job import Kind
from phi4d.media.probe import KINDS, describe, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"a.jpg", Kind.IMAGE),
        (b"A.JPEG", Kind.IMAGE),
        (b"sub/folder/photo.HeIc", Kind.IMAGE),
        (b"two.dots.png", Kind.IMAGE),
        (b"not utf-8 \xff\xfe.tif", Kind.IMAGE),
        (b"new\nline.webp", Kind.IMAGE),
        (b"voice.wav", Kind.AUDIO),
        (b"voice.Opus", Kind.AUDIO),
        (b"film.mkv", Kind.AUDIO),
        (b"call.3gp", Kind.AUDIO),
        (b"memo.m4a", Kind.AUDIO),
        (b"notes.txt", None),
        (b"vector.svg", None),
        (b"drawing.eps", None),
        (b"jpg", None),
        (b"noextension", None),
        (b"", None),
        (b"photo.jpg.part", None),
        (b"photo.jpg~", None),
        (b".hidden.jpg", None),
        (b".jpg", None),
        (b"folder.jpg/.x.png", None),
        (b"folder.jpg/readme", None),
        (b"photo.jpg/", None),
        (b"photo.", None),
    ],
)
def test_the_kind_is_told_by_the_extension(name: bytes, kind: Kind | None) -> None:
    assert kind_of(name) is kind


@given(st.binary(max_size=60))
def test_any_name_has_a_kind_or_none(name: bytes) -> None:
    assert kind_of(name) in (Kind.IMAGE, Kind.AUDIO, None)


@pytest.mark.parametrize("extension", sorted(KINDS))
def test_every_extension_is_known_in_any_case(extension: bytes) -> None:
    assert kind_of(b"x." + extension.upper()) is kind_of(b"x." + extension) is KINDS[extension]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"hello world\n", "text"),
        ("Grüße".encode()[:3], "text"),
        (b"  <!DOCTYPE html><html>", "a web page"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04rest", "a ZIP archive or an office document"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "a WAV recording"),
        (b"\x00\x00\x00\x18ftypheic", "a HEIC picture"),
        (b"\x00\x00\x00\x18ftypisom", "an MP4 file"),
        (b"\x00" * 100, "nothing but zeros"),
        (b"\x01\x02\x00\x03", "unknown data"),
    ],
)
def test_what_a_file_holds_is_said_in_words(head: bytes, words: str) -> None:
    assert describe(head) == words


@given(st.binary(max_size=200))
def test_any_bytes_can_be_described(head: bytes) -> None:
    assert describe(head)
