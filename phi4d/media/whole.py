"""Whether a file is all there, as far as its own format tells: a declared length, or an end mark.

Asked by the daemon about strangers' files, so: no codec, a few small reads, bounds everywhere, and
any bytes have an answer. Each function takes a `View` and returns what is missing, in words that
follow the format's name ("of which 1.2 MB of 3.4 MB are there"), or nothing: the file is whole, or
cannot be known not to be. A whole file that is called incomplete waits for minutes; one that is
called whole too early is refused as cut off, and taken again when it changes. So in doubt it is
whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

TAIL_BYTES = 1 << 16
"""how much of a file's end is searched for its end mark"""
ZEROS_BYTES = 1 << 22
"""how many zeros at a file's end may be padding; beyond, they are room that is not written yet"""
_MAX_PARTS = 256
"""boxes, chunks or segments that are stepped over; PNG has its own limit"""
_MAX_PNG_CHUNKS = 1 << 14
_NO_END = "whose end is not there"


@dataclass(frozen=True, slots=True)
class View:
    """An open file, for small reads at any place."""

    descriptor: int
    size: int
    """bytes"""

    def at(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes, at most `TAIL_BYTES`; nothing beyond the end.

        Raises:
            OSError: they cannot be read.
        """
        if not 0 <= offset < self.size:
            return b""
        return os.pread(self.descriptor, min(count, TAIL_BYTES), offset)

    def number(self, offset: int, count: int, order: Literal["big", "little"]) -> int:
        """The whole number in ``count`` bytes; what lies beyond the end counts as zeros."""
        return int.from_bytes(self.at(offset, count).ljust(count, b"\0"), order)


def unknown(_: View) -> str:
    """A format that tells nothing: MP3, FLAC, Ogg, MPEG streams."""
    return ""


def riff(file: View) -> str:
    """WAV, WebP, AVI; also RF64, whose length is in its ds64 chunk (EBU Tech 3306)."""
    if file.at(0, 4) == b"RIFF":
        length = file.number(4, 4, "little")
    elif file.at(12, 4) == b"ds64":
        length = file.number(20, 8, "little")
    else:
        return ""
    return _short_of(file, length + 8) if _is_length(length) else ""


def w64(file: View) -> str:
    """Sony Wave64: the length of everything is at 16."""
    length = file.number(16, 8, "little")
    return _short_of(file, length) if _is_length(length) else ""


def aiff(file: View) -> str:
    """AIFF and AIFF-C."""
    length = file.number(4, 4, "big")
    return _short_of(file, length + 8) if _is_length(length) else ""


def au(file: View) -> str:
    """Sun's .snd, in either order of bytes."""
    order: Literal["big", "little"] = "big" if file.at(0, 1) == b"." else "little"
    start, length = file.number(4, 4, order), file.number(8, 4, order)
    return _short_of(file, start + length) if _is_length(length) else ""


def caf(file: View) -> str:
    """Apple's Core Audio Format: chunks after a header of 8 bytes."""
    at = 8
    for _ in range(_MAX_PARTS):
        if at >= file.size:
            return _NO_END  # there was no chunk of sound
        length = file.number(at + 4, 8, "big")
        if length >> 63:  # -1: to the end
            return ""
        if at + 12 + length > file.size:
            return _amount(file, at + 12 + length)
        if file.at(at, 4) == b"data":
            return ""
        at += 12 + length
    return ""


def id3(file: View) -> str:
    """A recording after an ID3v2 tag, whose length is four bytes of seven bits (ID3v2.4, 3.1)."""
    length = 0
    for byte in file.at(6, 4):
        length = length << 7 | byte & 0x7F
    return _NO_END if 10 + length >= file.size else ""


def matroska(file: View) -> str:
    """Matroska and WebM: an EBML header, then a segment that may tell its length."""
    size = _ebml_size(file, 4)
    if size is None:
        return ""
    at = size[1] + size[0]
    if file.at(at, 4) != b"\x18\x53\x80\x67":
        return _NO_END if at >= file.size else ""
    size = _ebml_size(file, at + 4)
    return "" if size is None else _short_of(file, size[1] + size[0])


def movie(file: View) -> str:
    """MP4, M4A, QuickTime (ISO 14496-12): the samples, and the box that says where they are."""
    return _boxed(file, b"moov")


def heif(file: View) -> str:
    """HEIC, AVIF (ISO 23008-12): as `movie`, but the box ``meta`` describes the picture."""
    return _boxed(file, b"meta")


def _boxed(file: View, index: bytes) -> str:
    found: set[bytes] = set()
    for kind, end in _boxes(file):
        there = {index, b"mdat"} <= found
        if end > file.size and not (there and kind not in _CARRYING):
            return _amount(file, end)
        found.add(kind)
    if index == b"meta" and b"idat" in file.at(0, TAIL_BYTES):  # a small picture within the index
        found.add(b"mdat")
    return "" if {index, b"mdat"} <= found or b"?" in found else _NO_END


_CARRYING = {b"moov", b"mdat", b"meta", b"moof"}
"""Boxes without which nothing can be decoded; others may be a phone's, or rubbish."""


def jpeg2000(file: View) -> str:
    """JPEG 2000 in boxes (ISO 15444-1, annex I)."""
    for kind, end in _boxes(file):
        if end > file.size:
            return _amount(file, end)
        if kind == b"jp2c":
            return codestream(replace(file, size=end))
        if kind == b"?":
            return ""
    return _NO_END


def codestream(file: View) -> str:
    """A JPEG 2000 codestream: it ends with FFD9, which its data cannot hold."""
    return "" if b"\xff\xd9" in _tail(file, 2) else _NO_END


def jpeg(file: View) -> str:
    """JPEG: segments up to the first scan, then data that end with FFD9.

    Cameras append whatever they like after that: previews, films, notes. The data tell themselves
    from all that: in them FF is followed by 00 or a restart mark, or begins the next scan.
    """
    at = 2
    for _ in range(_MAX_PARTS):
        mark = file.at(at, 4)
        if at + 4 > file.size:
            return "" if mark[:2] == b"\xff\xd9" else _NO_END
        if mark[0] != 0xFF:
            # Damaged; or room for the rest has been made, and it is not written yet.
            return "" if _tail(file, at) else _NO_END
        if mark[1] == 0xD9:
            return ""
        if mark[1] == 0xFF or mark[1] == 0x01 or 0xD0 <= mark[1] <= 0xD7:
            at += 1 if mark[1] == 0xFF else 2
            continue
        at += 2 + int.from_bytes(mark[2:], "big")
        if mark[1] == 0xDA:
            break
    else:
        return ""
    tail = _tail(file, at)
    if b"\xff\xd9" in tail:
        return ""
    followers = re.findall(rb"\xff([^\xff])", tail, re.DOTALL)
    return _NO_END if set(followers) <= _JPEG_FOLLOWERS else ""


_JPEG_FOLLOWERS = {bytes([b]) for b in (0x00, *range(0xD0, 0xD8), 0xC4, 0xDA, 0xDB, 0xDD)}


def png(file: View) -> str:
    """PNG: chunks up to IEND."""
    if b"\0\0\0\0IEND" in _tail(file, 8):
        return ""
    at = 8
    for _ in range(_MAX_PNG_CHUNKS):
        if at + 12 > file.size:
            return _NO_END
        head = file.at(at, 8)
        if head[4:] == b"IEND":
            return ""
        if not head[4:].isalpha():
            return "" if _tail(file, at) else _NO_END
        at += 12 + int.from_bytes(head[:4], "big")
    return ""


def gif(file: View) -> str:
    """GIF: a trailer of one byte after the last block, which ends with a zero."""
    tail = _tail(file, 13)
    return "" if tail.endswith(b";") or b"\0;" in tail[-1024:] else _NO_END


def bmp(file: View) -> str:
    """BMP: the length in the header, often wrong, or where the rows of pixels end."""
    length, start = file.number(2, 4, "little"), file.number(10, 4, "little")
    lengths = [length] if length > start else []
    if file.number(14, 4, "little") >= 40 and file.number(30, 4, "little") in (0, 3):
        width = file.number(18, 4, "little")
        height = abs(int.from_bytes(file.at(22, 4), "little", signed=True))
        row = (width * file.number(28, 2, "little") + 31) // 32 * 4
        lengths.append(start + row * height)
    return _short_of(file, min(lengths)) if lengths else ""


def tiff(file: View) -> str:
    """TIFF 6.0 and BigTIFF: the first page's directory, its strips or tiles, the next directory."""
    order: Literal["big", "little"] = "little" if file.at(0, 2) == b"II" else "big"
    big = file.number(2, 2, order) == 43
    wide, entry, counted = (8, 20, 8) if big else (4, 12, 2)
    at = file.number(8 if big else 4, wide, order)
    count = file.number(at, counted, order)
    end = at + counted + count * entry + wide
    if at == 0 or count > 4096:
        return ""  # damaged
    if end > file.size:
        return _amount(file, end)
    places: dict[int, list[int]] = {}
    for i in range(count):
        tag = at + counted + i * entry
        name = file.number(tag, 2, order)
        if name in (273, 279, 324, 325):  # where strips and tiles are, and how many bytes they have
            places[name] = _last_values(file, tag, wide, order)
    for where, length in ((273, 279), (324, 325)):
        for begin, size in zip(places.get(where, []), places.get(length, []), strict=False):
            end = max(end, begin + size)
    end = max(end, file.number(at + counted + count * entry, wide, order))
    return _short_of(file, end)


def _last_values(file: View, tag: int, wide: int, order: Literal["big", "little"]) -> list[int]:
    """Up to 1,024 of a directory entry's numbers, from the last one backwards."""
    width = {3: 2, 4: 4, 16: 8}.get(file.number(tag + 2, 2, order), 0)
    count = file.number(tag + 4, wide, order)
    at = tag + 4 + wide
    if not width or not count:
        return []
    if width * count > wide:
        at = file.number(at, wide, order)
    first = max(0, count - 1024)
    data = file.at(at + first * width, (count - first) * width)
    if len(data) < (count - first) * width:
        return [file.size + 1]  # not even the numbers are there
    return [
        int.from_bytes(data[i : i + width], order) for i in range(len(data) - width, -1, -width)
    ]


def _boxes(file: View) -> Iterator[tuple[bytes, int]]:
    """Kinds and ends of the outermost boxes; ``?`` where what follows is none."""
    at = 0
    for _ in range(_MAX_PARTS):
        if at >= file.size:
            return
        head = file.at(at, 16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        elif size == 0 and kind.strip(b"\0"):
            size = file.size - at
        if size < 8 or not _BOX_NAME.fullmatch(kind):
            # Rubbish after the last box; or zeros, which may be room that is not written yet.
            if len(head) >= 8 and head.strip(b"\0"):
                yield b"?", at
            return
        yield kind, at + size
        at += size
    yield b"?", at


_BOX_NAME = re.compile(rb"[ -~\xa9]{4}")


def _ebml_size(file: View, at: int) -> tuple[int, int] | None:
    """An EBML element's length, and where its content begins; None where it is not known."""
    data = file.at(at, 8)
    if not data or not data[0]:
        return None
    width = 9 - data[0].bit_length()
    size = int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1)
    return None if size == (1 << 7 * width) - 1 else (size, at + width)


def _tail(file: View, start: int) -> bytes:
    """The end of what follows ``start``, without zeros that pad it; nothing if it is all zeros."""
    end, floor = file.size, max(start, file.size - ZEROS_BYTES)
    while end > floor:
        begin = max(floor, end - TAIL_BYTES)
        block = file.at(begin, end - begin).rstrip(b"\0")
        if block:
            end = begin + len(block)
            begin = max(start, end - TAIL_BYTES)
            return file.at(begin, end - begin)
        end = begin
    return b""


def _is_length(length: int) -> bool:
    """Whether it is a length, and not what programs put there that write to a pipe.

    They put nothing, or the greatest number there is, or that of signed numbers: ffmpeg
    0xFFFFFFFF, sox 0x7FFFF024, arecord 0x80000024.
    """
    if length in range(0x7FFFF000, 0x80001000) or length in range(0xFFFFF000, 0x100000000):
        return False
    return 0 < length < 1 << 63


def _short_of(file: View, length: int) -> str:
    """What is missing; one byte may be, with which chunks of an odd length are padded."""
    return _amount(file, length) if file.size < length - 1 else ""


def _amount(file: View, length: int) -> str:
    return f"of which {_bytes(file.size)} of {_bytes(length)} are there"


def _bytes(count: int) -> str:
    return f"{count:,} bytes" if count < 100_000 else f"{count / 1e6:,.1f} MB"
