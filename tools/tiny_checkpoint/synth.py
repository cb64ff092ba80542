"""Synthetic pictures and recordings with true answers.

Pictures hold one to three coloured shapes on a plain ground; recordings hold digits spoken by
espeak-ng. Everything is drawn from the ``random.Random`` that is passed in, so that a seed names a
sample for ever. This room imports no torch: tests make their inbox files with it.
"""

from __future__ import annotations

import ctypes
import io
import math
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Samples = NDArray[np.float32]

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 80, 220),
           "yellow": (240, 210, 40)}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
KINDS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
COUNTS = ("one", "two", "three")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = ((448, 448), (640, 480), (800, 600), (300, 400), (512, 512), (320, 240))
"""Picture sizes, in pixels, that the demo and the tests use."""

SPEECH_RATE = 16_000
"""The model's sample rate in Hz."""
ACCENTS = ("gmw/en-US", "gmw/en", "gmw/en-GB-scotland", "gmw/en-029", "gmw/en-GB-x-gbclan",
           "gmw/en-GB-x-gbcwmd", "en-us-nyc")  # fmt: skip
VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m7", "+m8", "+f1", "+f2", "+f4", "+f5", "+klatt2",
            "+Andy", "+steph", "+adam", "+linda")  # fmt: skip
HELD_OUT_VOICES = ("gmw/en-GB-x-rp", "gmw/en-US+m5", "gmw/en+f3")
"""An accent and two variants that no training clip is spoken with."""


# ------------------------------------------------------------------------------------- pictures
@dataclass(frozen=True, slots=True)
class Thing:
    """One shape: centre and radius as fractions of the picture's longer side."""

    x: float
    y: float
    radius: float
    kind: int
    """Index into `KINDS`."""
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, free of its size in pixels."""

    things: tuple[Thing, ...]
    ground: tuple[int, int, int]

    @property
    def answer(self) -> str:
        """The true description, for example ``one red circle and two blue squares``."""
        return describe([thing.kind for thing in self.things])

    def draw(self, width: int, height: int) -> Image.Image:
        """Draw at a size whose proportions are those that the scene was laid out for."""
        image = Image.new("RGB", (width, height), self.ground)
        canvas, scale = ImageDraw.Draw(image), max(width, height)
        for thing in self.things:
            x, y, r = thing.x * scale, thing.y * scale, thing.radius * scale
            match SHAPES[thing.kind % len(SHAPES)]:
                case "circle":
                    canvas.ellipse((x - r, y - r, x + r, y + r), fill=thing.rgb)
                case "square":
                    h = r * 0.88
                    canvas.rectangle((x - h, y - h, x + h, y + h), fill=thing.rgb)
                case _:
                    base = y + r * 0.75
                    corners = [(x, y - r), (x + r * 0.95, base), (x - r * 0.95, base)]
                    canvas.polygon(corners, fill=thing.rgb)
        return image


def describe(kinds: list[int]) -> str:
    """Put a list of kinds into words, in the order of `KINDS`."""
    groups = []
    for kind in sorted(set(kinds)):
        count = kinds.count(kind)
        groups.append(f"{COUNTS[count - 1]} {KINDS[kind]}{'s' if count > 1 else ''}")
    return groups[0] if len(groups) == 1 else f"{', '.join(groups[:-1])} and {groups[-1]}"


def scene(rng: Random, size: tuple[int, int], most: int = 3) -> Scene:
    """Lay out one to ``most`` shapes that do not touch, for pictures of this size's proportions."""
    longer = max(size)
    right, bottom = size[0] / longer, size[1] / longer
    wanted = min(most, rng.choice((1, 2, 2, 3, 3)))
    places: list[tuple[float, float, float]] = []
    tries = 0
    while len(places) < wanted:
        if (tries := tries + 1) % 200 == 0:  # boxed in: begin again
            places.clear()
        r = rng.uniform(0.11, 0.16)
        x, y = rng.uniform(r + 0.01, right - r - 0.01), rng.uniform(r + 0.01, bottom - r - 0.01)
        if all(math.hypot(x - a, y - b) > 1.15 * (r + q) for a, b, q in places):
            places.append((x, y, r))
    kinds = [rng.randrange(len(KINDS)) for _ in places]
    if rng.random() < 0.35:  # repeats common enough to learn to count
        kinds = [kinds[0] if rng.random() < 0.7 else kind for kind in kinds]
    brightness = rng.choice((rng.randint(0, 45), rng.randint(215, 255)))
    palette = list(COLOURS.values())
    return Scene(
        tuple(
            Thing(x, y, r, kind, _near(rng, palette[kind // len(SHAPES)], 20))
            for (x, y, r), kind in zip(places, kinds, strict=True)
        ),
        _near(rng, (brightness,) * 3, 10),
    )


def _near(rng: Random, rgb: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, v + rng.randint(-spread, spread))) for v in rgb)
    return red, green, blue


def wear_picture(rng: Random, image: Image.Image) -> Image.Image:
    """What files do to pictures: sometimes a little noise, blur or a lossy codec."""
    fate = rng.random()
    if fate < 0.06:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(1, 6), (image.height, image.width, 3)
        )
        return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    if fate < 0.14:
        return image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.5)))
    if fate < 0.25:
        file = io.BytesIO()
        image.save(file, rng.choice(("JPEG", "WEBP")), quality=rng.randint(60, 95), method=0)
        return Image.open(file).convert("RGB")
    return image


def picture(rng: Random, size: tuple[int, int]) -> tuple[Image.Image, str]:
    """A clean picture of ``size`` (width, height) in pixels, and its true description."""
    drawn = scene(rng, size)
    return drawn.draw(*size), drawn.answer


# --------------------------------------------------------------------------------------- speech
class Espeak:
    """espeak-ng through its shared library: the command costs 150 ms a call, this some 5 ms."""

    _SPEED, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER in speak_lib.h

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._chunks: list[NDArray[np.int16]] = []
        self.rate: int = self._library.espeak_Initialize(2, 200, None, 0)  # 2: synchronous
        if self.rate <= 0:
            raise RuntimeError("espeak-ng does not start: is its data (espeak-ng-data) installed?")
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = prototype(self._collect)  # must outlive the library's use of it
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, wave: Any, count: int, _events: Any) -> int:
        if count > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int, span: int) -> Samples:
        """Speak: ``speed`` in words a minute, ``pitch`` and its ``span`` from 0 to 100."""
        self._chunks.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice}")
        settings = ((self._SPEED, speed), (self._PITCH, pitch), (self._RANGE, span))
        for parameter, value in settings:
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(
            ctypes.c_char_p(data), ctypes.c_size_t(len(data)), 0, 1, 0, 1, None, None
        )
        self._library.espeak_Synchronize()
        return np.concatenate(self._chunks).astype(np.float32) / 32768


@cache
def espeak() -> Espeak:
    """The one instance that the library allows in a process."""
    return Espeak()


def silence(rng: Random, rate: int, least: float, most: float) -> Samples:
    """Zeros for ``least`` to ``most`` seconds."""
    return np.zeros(int(rng.uniform(least, most) * rate), np.float32)


def spoken_groups(
    rng: Random, groups: int, *, held_out: bool = False, pause: tuple[float, float] = (0.2, 1.5)
) -> tuple[Samples, int, list[str]]:
    """Several groups of one to six digits in one voice, with pauses (seconds) between them."""
    voice = rng.choice(HELD_OUT_VOICES) if held_out else rng.choice(ACCENTS) + rng.choice(VARIANTS)
    speed, pitch, span = rng.randint(120, 230), rng.randint(25, 80), rng.randint(30, 70)
    engine = espeak()
    parts, answers = [silence(rng, engine.rate, 0, 0.3)], []
    for index in range(groups):
        words = [rng.choice(DIGITS) for _ in range(rng.randint(1, 6))]
        text = (", " if rng.random() < 0.2 else " ").join(words)
        if index:
            parts.append(silence(rng, engine.rate, *pause))
        parts.append(engine.say(text, voice, speed, pitch, span))
        answers.append(" ".join(words))
    parts.append(silence(rng, engine.rate, 0, 0.3))
    loudness = 10 ** (rng.uniform(-12, 3) / 20)
    return (np.concatenate(parts) * loudness).clip(-1, 1), engine.rate, answers


def speech(rng: Random, held_out: bool = False) -> tuple[Samples, int, str]:
    """One group of one to six spoken digits: mono samples in [-1, 1], their rate, the answer.

    Args:
        rng: where every choice is drawn from.
        held_out: speak with a voice that no training clip is spoken with.
    """
    samples, rate, answers = spoken_groups(rng, 1, held_out=held_out)
    return samples, rate, answers[0]


def at_rate(samples: Samples, rate: int, wanted: int = SPEECH_RATE) -> Samples:
    """Resample mono samples."""
    return samples if rate == wanted else soxr.resample(samples, rate, wanted)


def wear_speech(rng: Random, samples: Samples, rate: int) -> Samples:
    """What microphones and files do to speech: noise, more silence, a narrow band, a codec."""
    around = [silence(rng, rate, 0, 1.0) if rng.random() < 0.3 else silence(rng, rate, 0, 0)
              for _ in range(2)]  # fmt: skip
    worn = np.concatenate((around[0], samples, around[1]))
    if rng.random() < 0.7:
        worn = worn + noise(rng, len(worn), rng.uniform(-80, -38))
    if rng.random() < 0.25:
        narrow = rng.choice((8_000, 11_025, 12_000))
        worn = at_rate(at_rate(worn, rate, narrow), narrow, rate)
    if rng.random() < 0.15:
        file = io.BytesIO()
        kind = rng.choice(({"format": "MP3"}, {"format": "OGG", "subtype": "VORBIS"}))
        soundfile.write(file, worn.clip(-1, 1), rate, **kind)
        file.seek(0)
        worn = soundfile.read(file, dtype="float32")[0]
    return worn.clip(-1, 1).astype(np.float32)


def noise(rng: Random, count: int, level: float) -> Samples:
    """White or smoothed noise of ``level`` dB below full scale."""
    wave = np.random.default_rng(rng.getrandbits(32)).standard_normal(count).astype(np.float32)
    if rng.random() < 0.4:  # a rumble rather than a hiss
        wave = np.convolve(wave, np.full(8, 8**-0.5, np.float32), "same")
    return wave * np.float32(10 ** (level / 20))
