"""What a file may be: its kind from its name, and words for what its bytes and its faults are.

`kind_of` is asked for every file that a rescan sees, so it must stay pure and cheap: no I/O, no
imports of decoders. It only says who is to try; the decoders go by content.
"""

from __future__ import annotations

from phi4d.job import Kind

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


def kind_of(name: bytes) -> Kind | None:
    """The kind that a file's name promises, or None for a name that is none of ours.

    Args:
        name: base name or path, as the file system has it. Hidden files (a leading dot) are None:
            they are other programs' temporary files more often than not.
    """
    base = name.rpartition(b"/")[2]
    stem, _, extension = base.rpartition(b".")
    if not stem or base.startswith(b"."):
        return None
    return KINDS.get(extension.lower())


_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (0, b"GIF8", "a GIF picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftyphei", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIF picture"),
    (4, b"ftypM4A", "an M4A recording"),
    (4, b"ftyp", "an MP4 file"),
    (8, b"WAVE", "a WAV recording"),
    (0, b"fLaC", "a FLAC recording"),
    (0, b"OggS", "an Ogg recording"),
    (0, b"ID3", "an MP3 recording"),
    (0, b"\x1a\x45\xdf\xa3", "a WebM or Matroska file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive or an office document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\x7fELF", "a program"),
    (0, b"%!PS", "a PostScript document"),
)
HEAD_BYTES = 4096
"""As much of a file's beginning as `describe` wants."""


def describe(head: bytes) -> str:
    """What a file's first bytes look like, in words for an operator: "a PDF document", "text".

    Only for messages: nothing is decided by it.
    """
    for offset, magic, words in _SIGNATURES:
        if head.startswith(magic, offset):
            return words
    if not head.strip(b"\0"):
        return "nothing but zeros"
    if b"\0" not in head:
        # A head cut in the middle of a character is still text.
        text = head.decode("utf-8", "replace").rstrip("\N{REPLACEMENT CHARACTER}")
        if all(c.isprintable() or c.isspace() for c in text):
            page = text.lstrip().lower().startswith(("<!doctype html", "<html"))
            return "a web page" if page else "text"
    return "unknown data"


def cause(error: BaseException) -> str:
    """A codec's exception as a few words on one line, without the path that the worker adds."""
    words = getattr(error, "strerror", None) or str(error)  # PyAV's errors have it, OSError or not
    return " ".join(words.split())[:200] or type(error).__name__
