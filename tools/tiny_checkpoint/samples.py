"""The demo's sample files, with their true answers: ``phi4d/demo/samples``.

Seeds of their own, never trained or evaluated on. Run alone to write them again:
``python tools/tiny_checkpoint/samples.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import synth

SEED = 31_000_000
FOLDER = Path(__file__).parents[2] / "phi4d" / "demo" / "samples"
PICTURES = {
    "shapes-448x448.png": (448, 448),
    "shapes-640x480.jpg": (640, 480),
    "shapes-800x600.webp": (800, 600),
    "shapes-300x400.png": (300, 400),
}
RECORDINGS = {
    "digits-16k.wav": 100,
    "digits-44k-stereo.flac": 101,
    "digits-48k.ogg": 112,
    "digits-long.mp3": 104,
}
"""Names, and what is added to `SEED`: samples that the checkpoint gets right."""
LONG_PAUSE_S = (3.4, 3.9)
"""A pause of 3 s always ends a piece, so that each group of digits is one."""


def write(folder: Path = FOLDER) -> dict[str, str | list[str]]:
    """Write the samples and ``expected.json``; return what that holds."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, str | list[str]] = {}
    for number, (name, size) in enumerate(PICTURES.items()):
        image, expected[name] = synth.picture(Random(SEED + number), size)
        image.save(folder / name, quality=88)
    for name, number in RECORDINGS.items():
        expected[name] = _record(Random(SEED + number), folder / name)
    text = json.dumps(expected, indent=2) + "\n"
    (folder / "expected.json").write_text(text, encoding="utf-8")
    return expected


def _record(rng: Random, path: Path) -> str | list[str]:
    """Write one recording; the long one's answer is a list of its groups."""
    if "long" in path.name:
        parts: list[synth.Samples] = []
        answers: list[str] = []
        while sum(map(len, parts)) < 42 * synth.SPEECH_RATE:
            samples, rate, (answer,) = synth.spoken_groups(rng, 1)
            pause = synth.silence(rng, synth.SPEECH_RATE, *LONG_PAUSE_S)
            parts += [synth.at_rate(samples, rate), pause]
            answers.append(answer)
        soundfile.write(path, np.concatenate(parts), synth.SPEECH_RATE, compression_level=0.7)
        return answers
    samples, rate, answer = synth.speech(rng)
    wanted = {"wav": 16_000, "flac": 44_100, "ogg": 48_000}[path.suffix[1:]]
    samples = synth.at_rate(samples, rate, wanted)
    if "stereo" in path.name:
        samples = np.stack((samples, samples * np.float32(0.8)), axis=1)
    soundfile.write(path, samples, wanted)
    return answer


if __name__ == "__main__":
    for name, answer in write().items():
        print(f"{name}: {answer}")
