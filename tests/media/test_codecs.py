from __future__ import annotations

import sys

import pytest

from phi4d.media import codecs


def test_all_that_are_installed_say_their_version():
    found = {codec.name: codec for codec in codecs.report()}

    assert set(found) == {"Pillow", "pillow-heif", "soundfile", "av", "soxr", "silero-vad"}
    for codec in found.values():
        assert codec.found[0].isdigit()
        assert codec.lacks == ""
    for part in ("WebP", "AVIF", "JPEG 2000"):
        assert part in found["Pillow"].found
    assert "FFmpeg" in found["av"].found
    assert "libsndfile" in found["soundfile"].found


def test_a_format_that_pillow_was_built_without_is_lacking(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.features.check", lambda name: name != "avif")

    pillow = next(codecs.report())

    assert pillow.lacks == "AVIF"
    assert "AVIF" not in pillow.found


def test_a_library_that_cannot_be_imported_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "soundfile", None)

    found = {codec.name: codec for codec in codecs.report()}

    assert found["soundfile"].found.startswith("cannot be used (import of soundfile")
    assert found["soundfile"].lacks == "recordings"
    assert found["av"].lacks == ""
