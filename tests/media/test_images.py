from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import mediakit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from phi4d.errors import FileError
from phi4d.media import images
from phi4d.prepared.preparation import Preparation

UPRIGHT = ["red", "green", "blue", "white"]


def decode(data: bytes, **limits: Any) -> tuple[np.ndarray, dict[str, float]]:
    picture, facts = images.picture(io.BytesIO(data), **limits)
    return images.samples(picture), facts


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000", "PPM"]
)
def test_every_format_gives_the_same_picture(kind: str) -> None:
    samples, facts = decode(mediakit.saved(mediakit.picture(), kind))

    assert samples.shape == (64, 96, 3)
    assert samples.dtype == np.uint8
    assert mediakit.corners(samples) == UPRIGHT
    assert facts == {"width": 96.0, "height": 64.0}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    # given a picture whose camera was held in one of the eight ways
    data = mediakit.saved(mediakit.picture(), kind, exif=exif(orientation))

    samples, facts = decode(data)

    # then it is as Pillow's own function has it
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert mediakit.corners(samples) == mediakit.corners(np.asarray(upright.convert("RGB")))
    assert (facts["width"], facts["height"]) == upright.size
    assert samples.shape == (upright.height, upright.width, 3)


def test_a_turned_heic_is_turned_once() -> None:
    data = mediakit.saved(mediakit.picture(), "HEIF", exif=exif(6).tobytes())

    samples, facts = decode(data)

    assert samples.shape == (96, 64, 3)
    assert mediakit.corners(samples) == ["blue", "red", "white", "green"]
    assert facts == {"width": 64.0, "height": 96.0}


def test_damaged_exif_in_a_sound_picture_is_passed_over() -> None:
    broken = b"Exif\0\0II*\0\xff\xff\xff\xff rubbish"
    samples, _ = decode(mediakit.saved(mediakit.picture(), "JPEG", exif=broken))
    assert mediakit.corners(samples) == UPRIGHT


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    # given a black picture whose left half is transparent
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:, :4] = 0
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (8, 8), 0)
        image.putalpha(Image.fromarray(alpha))
        data = mediakit.saved(image, "PNG")
    else:
        image = Image.fromarray(np.where(alpha, 0, 1).astype(np.uint8), "L")
        if mode == "P":
            image = image.convert("P")
            image.putpalette([0, 0, 0, 90, 90, 90])
        data = mediakit.saved(image, "PNG", transparency=1)

    samples, _ = decode(data)

    assert samples[0, 0].tolist() == [255, 255, 255]
    assert samples[0, 7].tolist() == [0, 0, 0]


def test_half_transparent_is_half_white() -> None:
    samples, _ = decode(mediakit.saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    assert abs(int(samples[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    deep = Image.fromarray(np.repeat(ramp[None], 16, axis=0))

    samples, _ = decode(mediakit.saved(deep, kind))

    assert samples.shape == (16, 256, 3)
    assert np.abs(samples[0, :, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[-2.0, 0.0, 2.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, np.nan, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[7.0, 7.0, 7.0]], np.float32), [0, 0, 0]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 100_000, 200_000]], np.int32), [0, 128, 255]),
    ],
)
def test_samples_of_unknown_range_are_stretched(values: np.ndarray, expected: list[int]) -> None:
    samples, _ = decode(mediakit.saved(Image.fromarray(values), "TIFF"))
    assert np.abs(samples[0, :, 1].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "PNG" if mode in ("L", "1", "P") else "JPEG"
    samples, _ = decode(mediakit.saved(mediakit.picture().convert(mode), kind))

    assert samples.shape == (64, 96, 3)
    assert samples[-8, -8].min() > 240  # the white corner
    if mode not in ("L", "1"):
        assert mediakit.corners(samples) == UPRIGHT


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    later = [Image.new("RGB", (96, 64), colour) for colour in ("black", "yellow")]
    data = mediakit.saved(mediakit.picture(), kind, save_all=True, append_images=later)
    samples, _ = decode(data)
    assert mediakit.corners(samples) == UPRIGHT


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "HEIF", "MPO"])
def test_frames_and_pages_beyond_the_limit_are_refused(kind: str) -> None:
    # given a picture of three frames
    later = [Image.new("RGB", (96, 64), colour) for colour in ("black", "yellow")]
    data = mediakit.saved(mediakit.picture(), kind, save_all=True, append_images=later)

    # when as many may be, it is read, and its first one counts
    samples, _ = decode(data, max_frames=3)
    assert mediakit.corners(samples) == UPRIGHT

    # when fewer may be, it is refused
    with pytest.raises(FileError, match=rf"is a {kind} of more than 2 frames or pages"):
        decode(data, max_frames=2)


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_damage_behind_the_first_frame_is_no_fault_of_it(kind: str) -> None:
    later = [Image.new("RGB", (96, 64), colour) for colour in ("black", "yellow")]
    whole = mediakit.saved(mediakit.picture(), kind, save_all=True, append_images=later)
    alone = mediakit.saved(mediakit.picture(), kind)
    for cut in range(len(alone), len(whole), 97):
        samples, _ = decode(whole[:cut])
        assert mediakit.corners(samples) == UPRIGHT


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_the_model_cannot_use_is_reduced(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MODEL_PIXELS", 1000)

    samples, facts = decode(mediakit.saved(mediakit.picture(400, 300), kind))

    assert facts == {"width": 400.0, "height": 300.0}
    assert 4 * 1000 <= samples.shape[0] * samples.shape[1] <= 16 * 1000
    assert abs(samples.shape[1] / samples.shape[0] - 4 / 3) < 0.05
    assert mediakit.corners(samples) == UPRIGHT


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_it_does_not_look_at_of_this_picture_is_reduced(kind: str) -> None:
    # given a picture of twenty times the pixels that are looked at
    prepare = Preparation(max_crops=1)
    assert prepare.looked_at(1500, 2000) == 448 * 336
    data = mediakit.saved(mediakit.picture(2000, 1500), kind)

    samples, facts = decode(data, looked_at=prepare.looked_at)

    # then four times are left, and the model is shown the same
    assert facts == {"width": 2000.0, "height": 1500.0}
    assert samples.shape == (750, 1000, 3)
    shown, whole = (prepare.picture(found) for found in (samples, decode(data)[0]))
    assert shown.layout == whole.layout
    assert np.abs(shown.picture.astype(int) - whole.picture).mean() < 1
    assert mediakit.corners(shown.picture) == UPRIGHT


def test_what_the_model_can_use_is_not_touched() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    samples, _ = decode(mediakit.saved(Image.fromarray(noise), "PNG"))
    assert np.array_equal(samples, noise)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    # given a PNG whose header promises 10 gigapixels and that holds no data at all
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )

    with pytest.raises(
        FileError, match=r"100000 x 100000 = 10,000 megapixels; at most 200 are read"
    ):
        decode(data)


def test_the_limit_on_pixels_can_be_set() -> None:
    data = mediakit.saved(mediakit.picture(), "PNG")
    decode(data, max_pixels=96 * 64)
    with pytest.raises(FileError, match="raise max_megapixels"):
        decode(data, max_pixels=96 * 64 - 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"I am not a picture.\n" * 20, "holds text"),
        (b"<html><body>404</body></html>", "holds a web page"),
        (b"\x00" * 5000, "holds nothing but zeros"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "holds a PostScript document"),
        (b"\xff\xd8\xff", "begins as a JPEG picture but is damaged or cut off"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "holds a WAV recording"),
        (b"%PDF-1.4\n", "holds a PDF document"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, words: str) -> None:
    with pytest.raises(FileError, match=words):
        decode(data)


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000", "PPM"]
)
def test_a_picture_that_is_cut_off_is_an_error_that_says_so(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = mediakit.saved(Image.fromarray(noise), kind)

    with pytest.raises(FileError, match=r"cut off|damaged") as caught:
        decode(data[: len(data) * 6 // 10])

    assert "copy it again" in str(caught.value)
    assert "\n" not in str(caught.value)


SEEDS = {
    kind: mediakit.saved(mediakit.picture(24, 16), kind)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP")
}


@given(
    kind=st.sampled_from(sorted(SEEDS)),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_changed_bytes_give_a_picture_or_a_file_error(
    kind: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SEEDS[kind])
    for position, value in changes:
        data[position % len(data)] = value
    try:
        samples, _ = decode(bytes(data), max_pixels=1_000_000)
    except FileError:
        return
    assert samples.ndim == 3
    assert samples.shape[2] == 3
