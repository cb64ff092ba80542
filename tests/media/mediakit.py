"""Real pictures and recordings for the media tests, made by real encoders."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pillow_heif
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from phi4d.job import SAMPLE_RATE_HZ

pillow_heif.register_heif_opener()

CORNERS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
"""upper left, upper right, lower left; the fourth is white"""


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """Four corners of four colours, so that any turn or flip shows."""
    samples = np.full((height, width, 3), 255, np.uint8)
    samples[: height // 2, : width // 2] = CORNERS["red"]
    samples[: height // 2, width // 2 :] = CORNERS["green"]
    samples[height // 2 :, : width // 2] = CORNERS["blue"]
    return Image.fromarray(samples)


def corners(samples: NDArray[np.uint8]) -> list[str]:
    """Names of the corners' colours: upper left, upper right, lower left, lower right."""
    height, width, _ = samples.shape
    known = {**CORNERS, "white": (255, 255, 255)}
    found = []
    for y in (height // 8, -height // 8):
        for x in (width // 8, -width // 8):
            pixel = samples[y, x].astype(int)
            found.append(min(known, key=lambda name: np.abs(pixel - known[name]).sum()))
    return found


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tone(
    seconds: float, rate: int = SAMPLE_RATE_HZ, hz: float = 440.0, channels: int = 1
) -> NDArray[np.float32]:
    """(samples, channels) of a sine at half of full scale, the same in all channels."""
    times = np.arange(round(seconds * rate)) / rate
    wave = (0.5 * np.sin(2 * np.pi * hz * times)).astype(np.float32)
    return np.repeat(wave[:, None], channels, axis=1)


def loudest_hz(samples: NDArray[np.float32], rate: int = SAMPLE_RATE_HZ) -> float:
    """The strongest frequency."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def encoded(
    path: Path,
    codec: str,
    container: str,
    samples: NDArray[np.float32],
    rate: int,
    *,
    video: bool = False,
    sound: bool = True,
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """A recording, or a video with or without sound, written by FFmpeg's encoders."""
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1", 16: "hexadecagonal"}[samples.shape[1]]
    with av.open(str(path), "w", format=container, options=container_options or {}) as out:
        moving = out.add_stream("mpeg4", rate=10) if video else None
        stream = out.add_stream(codec, rate=rate, layout=layout) if sound else None
        if stream is not None:
            stream.options = codec_options or {}
        if moving is not None:
            moving.width, moving.height, moving.pix_fmt = 32, 32, "yuv420p"
            for _ in range(round(len(samples) / rate * 10)):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                out.mux(moving.encode(frame))
            out.mux(moving.encode(None))
        if stream is not None:
            for start in range(0, len(samples), 1024):
                block = samples[start : start + 1024].reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
                frame.sample_rate, frame.pts = rate, start
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return path


def spoken(text: str, folder: Path) -> NDArray[np.float32]:
    """(samples,) of a synthetic voice at 22,050 Hz."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    path = folder / "spoken.wav"
    subprocess.run(["espeak-ng", "-v", "en-us", "-w", str(path), text], check=True)
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 22050
    return samples
