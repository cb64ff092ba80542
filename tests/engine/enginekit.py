"""What the engine's tests share: the demo's model and media, requests, the reference processor."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import wave
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Phi4MultimodalForCausalLM

from phi4d.engine import Engine
from phi4d.job import SAMPLE_RATE_HZ, Kind, Request

DEMO = Path(str(resources.files("phi4d.demo")))
CHECKPOINT = DEMO / "checkpoint"
_CONFIG = json.loads((CHECKPOINT / "config.json").read_text())
IMAGE_ID: int = _CONFIG["vision_config"]["image_token_id"]
AUDIO_ID: int = _CONFIG["audio_config"]["audio_token_id"]
STOP_IDS = frozenset(_CONFIG["eos_token_id"])
DESCRIBE = "Describe."
TRANSCRIBE = "Transcribe the audio clip into text."
REFERENCE = Path(sys.prefix) / "reference"
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "torchvision").is_dir(),
    reason=f"the reference processor needs torchvision in {REFERENCE}; `make test` puts it there",
)


def upstream_model(attention: str = "sdpa") -> Phi4MultimodalForCausalLM:
    model = Phi4MultimodalForCausalLM.from_pretrained(
        CHECKPOINT, dtype=torch.float32, attn_implementation=attention, local_files_only=True
    )
    return model.eval().requires_grad_(False)


def mended(letter: str, correction: str) -> str:
    """What a test says that finds a fault of upstream no more."""
    return f"upstream has mended fault {letter}: {correction} can go, and the tests of {letter}"


def edit(path: Path, **changes: object) -> None:
    """Change the top-level keys of a JSON file."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def picture(name: str, prompt: str = DESCRIBE, **options: int) -> Request:
    """A request about one of the demo's pictures."""
    with Image.open(DEMO / "samples" / name) as image:
        return Request(Kind.IMAGE, prompt, np.asarray(image.convert("RGB")), **options)


def noise(height: int, width: int, seed: int = 0, **options: int) -> Request:
    """A request about a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Request(Kind.IMAGE, DESCRIBE, pixels, **options)


def speech() -> np.ndarray:
    """The demo's recording that is 16 kHz mono already: (samples,) float32."""
    with wave.open(str(DEMO / "samples" / "digits-16k.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (SAMPLE_RATE_HZ, 1)
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return (samples / 32768).astype(np.float32)


def clip(seconds: float, seed: int = 0, **options: int) -> Request:
    """A request about a clip: the demo's speech, noisy, again and again up to a length."""
    samples = np.resize(speech(), round(seconds * SAMPLE_RATE_HZ))
    hiss = np.random.default_rng(seed).normal(0, 0.02, len(samples))
    return Request(Kind.AUDIO, TRANSCRIBE, (samples + hiss).astype(np.float32), **options)


def long_clip(engine: Engine, tokens: int, limit: int) -> Request:
    """A request whose prompt has exactly that many tokens, most of them words."""
    request = clip(1.0, max_new_tokens=limit)
    (bare,) = engine.generate([dataclasses.replace(request, prompt="", max_new_tokens=1)])
    return dataclasses.replace(request, prompt="." * (tokens - bare.prompt_tokens))


def from_reference(script: str, *arguments: object) -> str:
    """What a script beside this file prints; `REFERENCE` is its first argument."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), REFERENCE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
