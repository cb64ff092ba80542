"""Which codecs are installed and what they can read, for `phi4d doctor`. It decodes nothing.

Each is imported only when it is asked, so that one that is broken does not hide the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version


@dataclass(frozen=True, slots=True)
class Codec:
    """A library that decodes."""

    name: str
    """of its distribution, as pip knows it"""
    found: str
    """its version and its parts, or what is wrong"""
    lacks: str = ""
    """what cannot be read with it; nothing if all is well"""


def report() -> Iterator[Codec]:
    """Each codec in turn."""
    for name, ask, reads in (
        ("Pillow", _pillow, "pictures"),
        ("pillow-heif", _pillow_heif, "HEIC pictures"),
        ("soundfile", _soundfile, "recordings"),
        ("av", _av, "AAC, WMA and the sound of videos"),
        ("soxr", _soxr, "recordings of other than 16 kHz"),
        ("silero-vad", _silero, "recordings over 30 s"),
    ):
        yield _asked(name, ask, reads)


def _asked(name: str, ask: Callable[[], tuple[str, str]], reads: str) -> Codec:
    try:
        parts, lacks = ask()
        return Codec(name, f"{version(name)}{parts and f', {parts}'}", lacks)
    except Exception as error:  # a library that is broken may raise anything at its import
        words = " ".join(str(error).split()) or type(error).__name__
        return Codec(name, f"cannot be used ({words})", reads)


def _pillow() -> tuple[str, str]:
    features = import_module("PIL.features")
    formats = {"webp": "WebP", "avif": "AVIF", "jpg_2000": "JPEG 2000", "jpg": "JPEG"}
    there = [f"{formats[key]} {features.version(key)}" for key in formats if features.check(key)]
    lacking = [words for key, words in formats.items() if not features.check(key)]
    return ", ".join(there), ", ".join(lacking)


def _pillow_heif() -> tuple[str, str]:
    return f"libheif {import_module('pillow_heif').libheif_version()}", ""


def _soundfile() -> tuple[str, str]:
    return f"libsndfile {import_module('soundfile').__libsndfile_version__}", ""


def _av() -> tuple[str, str]:
    return f"FFmpeg {import_module('av').ffmpeg_version_info}", ""


def _soxr() -> tuple[str, str]:
    return f"libsoxr {import_module('soxr').__libsoxr_version__}", ""


def _silero() -> tuple[str, str]:
    import_module("phi4d.media.speech").SpeechModel()
    return f"onnxruntime {version('onnxruntime')}", ""
