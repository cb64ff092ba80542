from __future__ import annotations

from pathlib import Path

from phi4d.doctor import decoders
from phi4d.doctor.check import Status
from phi4d.media.codecs import Codec


def test_a_codec_that_lacks_something_fails():
    good, bad = decoders.libraries(
        [Codec("av", "18.1, FFmpeg 8.1"), Codec("Pillow", "12.0, WebP 1.6", "AVIF")]
    )

    assert (good.status, good.found) == (Status.OK, "18.1, FFmpeg 8.1")
    assert (bad.status, bad.found) == (Status.FAIL, "12.0, WebP 1.6; it does not read: AVIF")
    assert "pip install" in bad.advice


def test_those_that_are_installed_are_well():
    assert {check.status for check in decoders.libraries()} == {Status.OK}


def test_the_samples_are_decoded():
    image, audio = decoders.samples()

    assert (image.check, image.status) == ("decoding image", Status.OK)
    assert image.found.startswith("PNG, JPG, WEBP")
    assert (audio.check, audio.status) == ("decoding audio", Status.OK)
    assert audio.found.startswith("WAV, FLAC, OGG, MP3")


def test_one_that_cannot_be_decoded_fails(tmp_path: Path, make_recording):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    make_recording(tmp_path / "tone.wav")

    image, audio = decoders.samples(tmp_path)

    assert image.status is Status.FAIL
    assert image.found.startswith("broken.png: ")
    assert audio.status is Status.OK
