"""What a file is: its kind by name and by content, whether it is all there, and words for it.

`kind_of` is asked for every file that a rescan sees, so it must stay pure and cheap: no I/O.
`inspect` looks into those that are new. Neither imports a codec; the decoders go by content, too.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phi4d.errors import FileChanged, FileError
from phi4d.job import Fingerprint, Inspection, Kind
from phi4d.media import whole
from phi4d.media.files import open_descriptor, read_fault
from phi4d.media.whole import View

_EXTENSIONS = {
    Kind.IMAGE: (
        "jpg jpeg jpe jfif mpo png apng webp gif bmp dib tif tiff avif avifs heic heics heif heifs "
        "hif jp2 j2k jpx jpf pbm pgm ppm pnm"
    ),
    Kind.AUDIO: (
        "wav wave w64 rf64 bwf flac ogg oga opus spx mp3 mp2 mpga m4a m4b m4r aac adts wma asf amr "
        "awb aif aiff aifc caf au snd ac3 eac3 mka webm weba mp4 m4v mkv mov qt 3gp 3g2 3gpp wmv "
        "avi mpg mpeg ts mts m2ts flv ogv voc"
    ),
}
KINDS: dict[bytes, Kind] = {
    extension.encode(): kind for kind, names in _EXTENSIONS.items() for extension in names.split()
}
"""Extension, in lower case and without its dot, to kind. Videos count as audio: their sound."""
_NOUNS = {Kind.IMAGE: "a picture", Kind.AUDIO: "a recording"}


def kind_of(name: bytes) -> Kind | None:
    """The kind that a file's name promises, or None for a name that is none of ours.

    Args:
        name: base name or path, as the file system has it.
    """
    return KINDS.get(_extension(name))


def _extension(name: bytes) -> bytes:
    """In lower case, without its dot; empty if there is none, as in ``.jpg``."""
    stem, _, extension = name.rpartition(b"/")[2].rpartition(b".")
    return extension.lower() if stem else b""


@dataclass(frozen=True, slots=True)
class Format:
    """A format that its first bytes give away."""

    words: str
    """with its article: "a PNG picture" """
    kind: Kind | None
    """None: nothing that is ever decoded"""
    begins: Callable[[bytes], object]
    """tells by a file's first bytes"""
    missing: Callable[[View], str] = whole.unknown
    """tells what of a file is not there, as in `phi4d.media.whole`"""
    shared: bool = False
    """others build formats of their own on it, which cannot be told from it here: a name with an
    extension that is not ours is believed"""


def _bytes(pattern: bytes) -> Callable[[bytes], object]:
    return re.compile(pattern, re.DOTALL).match


def _mpeg_audio(head: bytes) -> bool:
    """Two frames of MPEG layer II or III or of AAC, one right after the other.

    The mark of one alone is eleven set bits, which any data may have.
    """
    length = _frame_bytes(head)
    return length > 0 and _frame_bytes(head[length:]) > 0


_KBIT_1_2 = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_KBIT_1_3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBIT_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""kbit/s of MPEG 1 layer II, of layer III, and of MPEG 2 and 2.5: ISO 11172-3, 13818-3, 2.4.2.3"""


def _frame_bytes(data: bytes) -> int:
    """The length that a frame's header tells, ISO 11172-3, 2.4.1.3; 0 if it is none."""
    if len(data) < 6 or data[0] != 0xFF or data[1] < 0xE0:
        return 0
    version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
    if layer == 0 and data[1] >= 0xF0:  # ADTS, ISO 13818-7, 6.2
        length = (data[3] & 3) << 11 | data[4] << 3 | data[5] >> 5
        return length if length > 7 else 0  # its header alone has that
    rate, frequency, padding = data[2] >> 4, data[2] >> 2 & 3, data[2] >> 1 & 1
    if version == 1 or layer not in (1, 2) or rate in (0, 15) or frequency == 3:
        return 0
    kbit = (_KBIT_2 if version != 3 else _KBIT_1_2 if layer == 2 else _KBIT_1_3)[rate - 1]
    hertz = (44_100, 48_000, 32_000)[frequency] >> {3: 0, 2: 1, 0: 2}[version]
    half = layer == 1 and version != 3  # a frame of layer III holds half as much from MPEG 2 on
    return (72 if half else 144) * kbit * 1000 // hertz + padding


FORMATS: tuple[Format, ...] = (
    Format("a JPEG picture", Kind.IMAGE, _bytes(rb"\xff\xd8\xff"), whole.jpeg),
    Format("a PNG picture", Kind.IMAGE, _bytes(rb"\x89PNG\r\n\x1a\n"), whole.png),
    Format("a GIF picture", Kind.IMAGE, _bytes(rb"GIF8[79]a"), whole.gif),
    Format("a WebP picture", Kind.IMAGE, _bytes(rb"RIFF....WEBP"), whole.riff),
    Format("a Canon raw picture", None, _bytes(rb"(?:II\*\0.{4}CR|....ftypcrx )")),
    Format(
        "a TIFF picture",
        Kind.IMAGE,
        _bytes(rb"II[*+]\0|MM\0[*+]"),
        whole.tiff,
        shared=True,  # cameras' raw pictures, whose first page is a thumbnail
    ),
    # "BM" may begin a text; the length of the second header is one of seven
    Format("a BMP picture", Kind.IMAGE, _bytes(rb"BM.{12}[\x0c\x10(48@l|]\0\0\0"), whole.bmp),
    Format("a JPEG 2000 picture", Kind.IMAGE, _bytes(rb"\0\0\0\x0cjP  \r\n"), whole.jpeg2000),
    Format("a JPEG 2000 picture", Kind.IMAGE, _bytes(rb"\xff\x4f\xff\x51"), whole.codestream),
    Format("an AVIF picture", Kind.IMAGE, _bytes(rb"....ftypavi[fs]"), whole.heif),
    Format("a HEIC picture", Kind.IMAGE, _bytes(rb"....ftyphe[iv][cxms]"), whole.heif),
    Format("a HEIF picture", Kind.IMAGE, _bytes(rb"....ftypm(?:i[fa]|sf)[12f]"), whole.heif),
    Format("a PNM picture", Kind.IMAGE, _bytes(rb"P[1-6][ \t\r\n]+[0-9#]")),
    Format("an M4A recording", Kind.AUDIO, _bytes(rb"....ftypM4[ABP]"), whole.movie),
    Format("an MP4 file", Kind.AUDIO, _bytes(rb"....ftyp"), whole.movie),
    Format(
        "a QuickTime film",  # as they were before there was ftyp
        Kind.AUDIO,
        _bytes(rb"[\0-\x0f]...(?:moov|mdat|wide|skip|free|pnot)"),
        whole.movie,
    ),
    Format("a WAV recording", Kind.AUDIO, _bytes(rb"(?:RIFF|RF64|BW64)....WAVE"), whole.riff),
    Format(
        "a Wave64 recording", Kind.AUDIO, _bytes(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28"), whole.w64
    ),
    Format("an AVI film", Kind.AUDIO, _bytes(rb"RIFF....AVI "), whole.riff),
    Format("an AIFF recording", Kind.AUDIO, _bytes(rb"FORM....AIF[FC]"), whole.aiff),
    Format("an AU recording", Kind.AUDIO, _bytes(rb"\.snd\0\0|dns\..{2}\0\0"), whole.au),
    Format("a CAF recording", Kind.AUDIO, _bytes(rb"caff\0\x01"), whole.caf),
    Format("a FLAC recording", Kind.AUDIO, _bytes(rb"fLaC")),
    Format("an Ogg recording", Kind.AUDIO, _bytes(rb"OggS")),
    Format("an MP3 recording", Kind.AUDIO, _bytes(rb"ID3[\x02-\x04]"), whole.id3),
    Format("an MP3 or AAC recording", Kind.AUDIO, _mpeg_audio),
    Format("an AMR recording", Kind.AUDIO, _bytes(rb"#!AMR")),
    Format("a WebM or Matroska file", Kind.AUDIO, _bytes(rb"\x1a\x45\xdf\xa3"), whole.matroska),
    Format("a Windows Media recording", Kind.AUDIO, _bytes(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11")),
    Format("a Flash film", Kind.AUDIO, _bytes(rb"FLV\x01")),
    Format("an MPEG film", Kind.AUDIO, _bytes(rb"\0\0\x01[\xb3\xba]")),
    Format("an MPEG film", Kind.AUDIO, _bytes(rb"(?:G.{187}){3}|.{4}(?:G.{191}){3}")),
    Format("a VOC recording", Kind.AUDIO, _bytes(rb"Creative Voice File\x1a")),
    Format("a PDF document", None, _bytes(rb"%PDF")),
    Format("a ZIP archive or an office document", None, _bytes(rb"PK\x03\x04")),
    Format("a gzip archive", None, _bytes(rb"\x1f\x8b")),
    Format("a 7z archive", None, _bytes(rb"7z\xbc\xaf")),
    Format("a RAR archive", None, _bytes(rb"Rar!")),
    Format("a program", None, _bytes(rb"\x7fELF")),
    Format("a PostScript document", None, _bytes(rb"%!PS")),
)
"""The first that fits counts."""
HEAD_BYTES = 4096
"""As much of a file's beginning as `identify` and `describe` want."""


def identify(head: bytes) -> Format | None:
    """The format that a file's first bytes give away; many have no such mark."""
    return next((found for found in FORMATS if found.begins(head)), None)


def describe(head: bytes) -> str:
    """What a file's first bytes look like, in words for an operator: "a PDF document", "text"."""
    if found := identify(head):
        return found.words
    if not head.strip(b"\0"):
        return "nothing but zeros"
    if b"\0" not in head:
        # A head cut in the middle of a character is still text.
        text = head.decode("utf-8", "replace").rstrip("\N{REPLACEMENT CHARACTER}")
        if all(c.isprintable() or c.isspace() for c in text):
            page = text.lstrip().lower().startswith(("<!doctype html", "<html"))
            return "a web page" if page else "text"
    return "unknown data"


def look(path: Path) -> tuple[Kind, Fingerprint]:
    """What a file is that somebody names.

    Raises:
        FileError: it cannot be read, or is neither a picture nor a recording.
    """
    try:
        fingerprint = Fingerprint.of(path.stat(follow_symlinks=False))
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}") from error
    found = inspect(os.fsencode(path), fingerprint)
    if found.kind is None:
        raise FileError(f"is neither a picture nor a recording: it {found.why}")
    return found.kind, fingerprint


def inspect(path: bytes, fingerprint: Fingerprint) -> Inspection:
    """Look into a file: what it is by its content, else by its name, and whether it is all there.

    Cheap, and safe on what strangers wrote: a few small reads, no codec.

    Args:
        path: where it is.
        fingerprint: the version that is meant.

    Raises:
        FileChanged: it is gone, no regular file, or another version.
        SourceFault: it cannot be read at the moment.
    """
    try:
        descriptor = open_descriptor(path)
    except FileChanged:
        raise
    except FileError as error:
        raise FileChanged(str(error)) from error
    try:
        _check(descriptor, fingerprint)
        found = _look(path, View(descriptor, fingerprint.size))
        _check(descriptor, fingerprint)
    except OSError as error:
        raise read_fault(error) from error
    finally:
        os.close(descriptor)
    return found


def _check(descriptor: int, fingerprint: Fingerprint) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise FileChanged("is no regular file any more")
    if Fingerprint.of(status) != fingerprint:
        raise FileChanged("changed after it was seen")


def _look(path: bytes, file: View) -> Inspection:
    named = kind_of(path)
    if not file.size:
        return Inspection(named, named is None, "is empty (0 bytes)")
    head = file.at(0, HEAD_BYTES)
    found = identify(head)
    if found and found.shared and named is None and _extension(path):
        return Inspection(None, True, f"begins as {found.words}, and its name says otherwise")
    if found and found.kind:
        missing = found.missing(file)
        return Inspection(found.kind, not missing, f"{found.words} {missing or 'by its content'}")
    if named is None:
        return Inspection(None, True, f"holds {describe(head)}")
    if not head.strip(b"\0"):
        return Inspection(named, False, "begins with nothing but zeros: it is not written yet")
    return Inspection(named, True, f"{_NOUNS[named]} by its name; holds {describe(head)}")
