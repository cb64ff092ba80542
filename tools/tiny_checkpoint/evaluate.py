"""The figures of the model card, on held-out data, through the product's own engine.

Run alone: ``python tools/tiny_checkpoint/evaluate.py [folder] [count]``. The seeds here are used
nowhere else, and the voices are those that no training clip is spoken with.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np
import synth
import tiny
from audio_encoder import edits

from phi4d.engine.phi4 import ADAPTER, Phi4Engine
from phi4d.job import Kind, Request

CHECKPOINT = Path(__file__).parents[2] / "phi4d" / "demo" / "checkpoint"
USUAL = dict(ADAPTER)
PICTURE_SEED, SPEECH_SEED = 7_100_000_000, 5_100_000_000


class Examiner:
    """Asks the engine, and can give it the wrong adapter or none."""

    def __init__(self, folder: Path) -> None:
        self._engine = Phi4Engine.load(folder, threads=1)
        self.seconds = 0.0

    def ask(self, kind: Kind, media: Iterable[np.ndarray], size: int = 10) -> list[str]:
        """Answers, in batches."""
        prompt = (tiny.IMAGE_PROMPTS if kind is Kind.IMAGE else tiny.AUDIO_PROMPTS)[0]
        requests = [Request(kind, prompt, medium, max_new_tokens=64) for medium in media]
        start, texts = time.perf_counter(), []
        for at in range(0, len(requests), size):
            texts += [c.text.strip() for c in self._engine.generate(requests[at : at + size])]
        self.seconds = (time.perf_counter() - start) / len(requests)
        return texts

    def swap(self, adapter: str | None, kind: Kind) -> None:
        """Answer ``kind`` with another adapter from now on, or with none."""
        models = self._engine._loaded.models  # the product has no use for this
        models["none"] = models["vision"]
        ADAPTER[kind] = adapter or "none"

    def restore(self) -> None:
        """Let the engine choose again."""
        ADAPTER.update(USUAL)


def pictures(size: tuple[int, int], count: int, seed: int) -> list[tuple[np.ndarray, str]]:
    """Held-out pictures of a size, as the files hold them, and their answers."""
    drawn = (synth.picture(Random(seed + n), size) for n in range(count))
    return [(np.asarray(image), answer) for image, answer in drawn]


def clips(count: int, seed: int, *, worn: bool) -> list[tuple[np.ndarray, str]]:
    """Held-out recordings in voices not trained on, and their answers."""
    made = []
    for n in range(count):
        rng = Random(seed + n)
        samples, rate, answer = synth.speech(rng, held_out=True)
        samples = synth.wear_speech(rng, samples, rate) if worn else samples
        made.append((synth.at_rate(samples, rate), answer))
    return made


def word_error_rate(pairs: list[tuple[str, str]]) -> float:
    """Edits over words, of (wanted, heard) pairs."""
    wrong = sum(edits(wanted.split(), heard.split()) for wanted, heard in pairs)
    return wrong / sum(len(wanted.split()) for wanted, _ in pairs)


def evaluate(folder: Path = CHECKPOINT, count: int = 200) -> list[tuple[str, str]]:
    """All figures, as (what, figure) lines."""
    examiner, lines = Examiner(folder), []

    def tell(what: str, figure: str) -> None:
        print(f"{what}: {figure}", flush=True)
        lines.append((what, figure))

    def examine(kind: Kind, pairs: list[tuple[np.ndarray, str]]) -> list[tuple[str, str]]:
        heard = examiner.ask(kind, [medium for medium, _ in pairs])
        found = [(answer, text) for (_, answer), text in zip(pairs, heard, strict=True)]
        print("   ", [pair for pair in found if pair[0] != pair[1]][:3])
        return found

    def exact(pairs: list[tuple[str, str]]) -> str:
        return f"{sum(a == b for a, b in pairs) / len(pairs):.1%} exact"

    for number, size in enumerate(synth.SIZES):
        found = examine(Kind.IMAGE, pictures(size, count, PICTURE_SEED + 10_000 * number))
        name = f"pictures of {size[0]}x{size[1]}"
        tell(name, f"{exact(found)}, {examiner.seconds:.2f} s each")
    heard = clips(count, SPEECH_SEED, worn=False)
    found = examine(Kind.AUDIO, heard)
    rate = f"{word_error_rate(found):.1%} word error rate, {exact(found)}"
    tell("spoken digits, voices not trained on", f"{rate}, {examiner.seconds:.2f} s each")
    found = examine(Kind.AUDIO, clips(count, SPEECH_SEED + 10_000, worn=True))
    tell(
        "the same with noise, narrow bands and codecs",
        f"{word_error_rate(found):.1%} word error rate, {exact(found)}",
    )

    seen = pictures((448, 448), count, PICTURE_SEED + 90_000)
    for kind, pairs in ((Kind.IMAGE, seen), (Kind.AUDIO, heard)):
        wrong = "speech" if kind is Kind.IMAGE else "vision"
        for adapter in (wrong, None):
            examiner.swap(adapter, kind)
            told = "no adapter" if adapter is None else f"the {adapter} adapter"
            what = "pictures" if kind is Kind.IMAGE else "spoken digits"
            tell(f"{what} with {told}", exact(examine(kind, pairs)))
        examiner.restore()
    return lines


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKPOINT,
             int(sys.argv[2]) if len(sys.argv) > 2 else 200)  # fmt: skip
