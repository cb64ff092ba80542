from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mediakit
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phi4d.errors import FileChanged, FileError, SourceFault
from phi4d.job import Fingerprint, Inspection, Kind
from phi4d.media.probe import FORMATS, KINDS, describe, identify, inspect, kind_of


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
        (b".hidden.jpg", Kind.IMAGE),
        (b".jpg", None),
        (b"folder.jpg/.x.png", Kind.IMAGE),
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


def look(path: Path) -> Inspection:
    return inspect(os.fsencode(path), Fingerprint.of(path.stat(follow_symlinks=False)))


def muxed(codec: str, container: str) -> Callable[[Path], object]:
    samples = mediakit.tone(1.0, 48_000)
    return lambda path: mediakit.encoded(path, codec, container, samples, 48_000)


def stored(name: str, subtype: str | None = None) -> Callable[[Path], object]:
    rate = 8000 if name in ("VOC", "AU") else 48_000
    return lambda path: soundfile.write(path, mediakit.tone(1.0, rate), rate, subtype, format=name)


def drawn(name: str, **options: object) -> Callable[[Path], object]:
    return lambda path: mediakit.picture().save(path, name, **options)


CONTENT: dict[str, tuple[Callable[[Path], object], Kind, str]] = {
    "JPEG": (drawn("JPEG"), Kind.IMAGE, "a JPEG picture"),
    "MPO": (drawn("MPO"), Kind.IMAGE, "a JPEG picture"),
    "PNG": (drawn("PNG"), Kind.IMAGE, "a PNG picture"),
    "GIF": (drawn("GIF"), Kind.IMAGE, "a GIF picture"),
    "WebP": (drawn("WEBP"), Kind.IMAGE, "a WebP picture"),
    "BMP": (drawn("BMP"), Kind.IMAGE, "a BMP picture"),
    "TIFF": (drawn("TIFF"), Kind.IMAGE, "a TIFF picture"),
    "BigTIFF": (drawn("TIFF", big_tiff=True), Kind.IMAGE, "a TIFF picture"),
    "AVIF": (drawn("AVIF"), Kind.IMAGE, "an AVIF picture"),
    "HEIC": (drawn("HEIF"), Kind.IMAGE, "a HEIC picture"),
    "JPEG 2000": (drawn("JPEG2000"), Kind.IMAGE, "a JPEG 2000 picture"),
    "J2K": (drawn("JPEG2000", no_jp2=True), Kind.IMAGE, "a JPEG 2000 picture"),
    "PPM": (drawn("PPM"), Kind.IMAGE, "a PNM picture"),
    "WAV": (stored("WAV"), Kind.AUDIO, "a WAV recording"),
    "RF64": (stored("RF64"), Kind.AUDIO, "a WAV recording"),
    "W64": (stored("W64"), Kind.AUDIO, "a Wave64 recording"),
    "AIFF": (stored("AIFF"), Kind.AUDIO, "an AIFF recording"),
    "AU": (stored("AU"), Kind.AUDIO, "an AU recording"),
    "CAF": (stored("CAF"), Kind.AUDIO, "a CAF recording"),
    "VOC": (stored("VOC"), Kind.AUDIO, "a VOC recording"),
    "FLAC": (stored("FLAC"), Kind.AUDIO, "a FLAC recording"),
    "Ogg": (stored("OGG"), Kind.AUDIO, "an Ogg recording"),
    "MP3": (stored("MP3"), Kind.AUDIO, "an MP3 or AAC recording"),
    "MP3 with a tag": (muxed("libmp3lame", "mp3"), Kind.AUDIO, "an MP3 recording"),
    "MP2": (muxed("mp2", "mp2"), Kind.AUDIO, "an MP3 or AAC recording"),
    "AAC": (muxed("aac", "adts"), Kind.AUDIO, "an MP3 or AAC recording"),
    "M4A": (muxed("aac", "ipod"), Kind.AUDIO, "an M4A recording"),
    "MP4": (muxed("aac", "mp4"), Kind.AUDIO, "an MP4 file"),
    "MOV": (muxed("aac", "mov"), Kind.AUDIO, "an MP4 file"),
    "Matroska": (muxed("libopus", "matroska"), Kind.AUDIO, "a WebM or Matroska file"),
    "WMA": (muxed("libmp3lame", "asf"), Kind.AUDIO, "a Windows Media recording"),
    "FLV": (muxed("aac", "flv"), Kind.AUDIO, "a Flash film"),
    "AVI": (muxed("mp2", "avi"), Kind.AUDIO, "an AVI film"),
    "MPEG": (muxed("mp2", "mpeg"), Kind.AUDIO, "an MPEG film"),
    "MPEG-TS": (muxed("mp2", "mpegts"), Kind.AUDIO, "an MPEG film"),
}


@pytest.mark.parametrize("name", ["photo", "scan.xyz", "wrong.jpg", "wrong.mp3"])
@pytest.mark.parametrize("case", [case for case in CONTENT if "TIFF" not in case])
def test_the_content_decides_whatever_the_name_says(tmp_path: Path, case: str, name: str) -> None:
    make, kind, words = CONTENT[case]
    make(tmp_path / name)
    assert look(tmp_path / name) == Inspection(kind, True, f"{words} by its content")


@pytest.mark.parametrize("case", ["TIFF", "BigTIFF"])
def test_what_cameras_build_on_tiff_is_passed_over(tmp_path: Path, case: str) -> None:
    make, kind, words = CONTENT[case]
    make(tmp_path / "scan")
    make(tmp_path / "scan.jpg")
    make(tmp_path / "scan.nef")
    assert look(tmp_path / "scan") == Inspection(kind, True, f"{words} by its content")
    assert look(tmp_path / "scan.jpg") == Inspection(kind, True, f"{words} by its content")
    assert look(tmp_path / "scan.nef") == Inspection(
        None, True, "begins as a TIFF picture, and its name says otherwise"
    )


def test_every_format_of_ours_has_an_example() -> None:
    ours = {found.words for found in FORMATS if found.kind}
    rare = {"a HEIF picture", "a QuickTime film", "an AMR recording"}  # nothing here writes them
    assert ours - {words for _, _, words in CONTENT.values()} == rare


@pytest.mark.parametrize(
    ("content", "name", "kind", "why"),
    [
        (b"%PDF-1.7\n", "a.jpg", Kind.IMAGE, "a picture by its name; holds a PDF document"),
        (b"%PDF-1.7\n", "a", None, "holds a PDF document"),
        (b"PK\x03\x04 rest", "a.wav", Kind.AUDIO, "a recording by its name; holds a ZIP archive"),
        (b"\x7fELF\x02", "a.xyz", None, "holds a program"),
        (b"words, words", "a.png", Kind.IMAGE, "a picture by its name; holds text"),
        (b"words, words", "readme", None, "holds text"),
        (b"BMW is a make of cars, and no picture", "cars", None, "holds text"),
        (b"P5 is a format", "a", None, "holds text"),
        (b"\x01\x02\0\x03", "a.ac3", Kind.AUDIO, "a recording by its name; holds unknown data"),
        (b"\xff\xfb\x90\x64\0 one frame is none", "a", None, "holds unknown data"),
        (b"II*\0\x10\0\0\0CR\x02\0", "a", None, "holds a Canon raw picture"),
        (b"\0\0\0\x18ftypcrx ", "a", None, "holds a Canon raw picture"),
    ],
)
def test_what_has_no_known_content_goes_by_its_name(
    tmp_path: Path, content: bytes, name: str, kind: Kind | None, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    found = look(tmp_path / name)
    assert (found.kind, found.whole) == (kind, True)
    assert found.why.startswith(why)


def test_what_is_not_written_yet_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert look(tmp_path / "a.jpg") == Inspection(Kind.IMAGE, False, "is empty (0 bytes)")
    (tmp_path / "b.mp3").write_bytes(bytes(100_000))
    assert look(tmp_path / "b.mp3") == Inspection(
        Kind.AUDIO, False, "begins with nothing but zeros: it is not written yet"
    )
    (tmp_path / "c").touch()
    assert look(tmp_path / "c") == Inspection(None, True, "is empty (0 bytes)")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    data = mediakit.saved(mediakit.picture(), "PNG")
    (tmp_path / "a.png").write_bytes(data[:-20])
    soundfile.write(tmp_path / "b.wav", np.zeros(60_000), 16_000)
    os.truncate(tmp_path / "b.wav", 20_000)
    assert look(tmp_path / "a.png") == Inspection(
        Kind.IMAGE, False, "a PNG picture whose end is not there"
    )
    assert look(tmp_path / "b.wav") == Inspection(
        Kind.AUDIO, False, "a WAV recording of which 20,000 bytes of 0.1 MB are there"
    )


# --- what cannot be looked into -----------------------------------------------------------------


def png(path: Path) -> Fingerprint:
    Image.new("RGB", (4, 4)).save(path, "PNG")
    return Fingerprint.of(path.stat())


def test_a_file_that_is_gone_or_another_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    seen = png(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileChanged, match="changed after it was seen"):
        inspect(os.fsencode(path), seen)
    path.unlink()
    with pytest.raises(FileChanged, match="is gone"):
        inspect(os.fsencode(path), seen)


@pytest.mark.parametrize("what", ["folder", "link", "dangling", "fifo", "socket", "device"])
def test_what_took_a_files_place_is_a_change_and_hangs_nobody(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.png"
    seen = png(path)
    path.rename(tmp_path / "other")
    match what:
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("other")
        case "dangling":
            path.symlink_to("nothing")
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        case "device":
            path = Path("/dev/null")
    with pytest.raises(FileChanged):
        inspect(os.fsencode(path), seen)


def test_a_change_while_it_is_looked_at_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    seen = png(path)
    read = os.pread

    def grow(descriptor: int, count: int, offset: int) -> bytes:
        with path.open("ab") as file:
            file.write(b"more")
        return read(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", grow)
    with pytest.raises(FileChanged, match="changed after it was seen"):
        inspect(os.fsencode(path), seen)


def test_a_disk_that_fails_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    seen = png(path)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(SourceFault, match=r"cannot be read now \(input/output error\)"):
        inspect(os.fsencode(path), seen)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
def test_a_file_without_rights_is_not_at_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    png(path)
    path.chmod(0)
    rights = "-dac_override,-dac_read_search"
    code = (
        "import os, sys; from phi4d.errors import SourceFault; from phi4d.job import Fingerprint\n"
        "from phi4d.media.probe import inspect\n"
        "try: inspect(os.fsencode(sys.argv[1]), Fingerprint.of(os.stat(sys.argv[1])))\n"
        "except SourceFault as fault: print(fault)"
    )
    command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
    command += [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot be read (permission denied)")


@given(head=st.binary(max_size=300), extension=st.sampled_from(sorted(KINDS)), named=st.booleans())
def test_any_bytes_can_be_looked_into(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, extension: bytes, named: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / (f"a.{extension.decode()}" if named else "a")
    path.write_bytes(head)
    found = look(path)
    path.unlink()
    assert found.why
    assert found.kind or not named


def test_looking_leaves_nothing_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    png(tmp_path / "a.png")
    look(tmp_path / "a.png")
    with pytest.raises(FileError):
        inspect(os.fsencode(tmp_path), Fingerprint(1, 1, 1))
    assert os.listdir("/proc/self/fd") == before


def test_looking_loads_no_codec_and_no_numpy() -> None:
    code = "import sys, phi4d.media.probe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"numpy", "PIL", "av", "soundfile", "onnxruntime"}


@given(st.binary(max_size=64))
def test_what_one_finds_all_agree_upon(head: bytes) -> None:
    found = identify(head)
    assert found is None or describe(head) == found.words
