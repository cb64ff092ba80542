"""What several benchmarks share: models of random weights, and what they are asked."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
checkpoints = importlib.import_module("checkpoints")

from phi4d.engine.layout import Layout  # noqa: E402 - the path is set above
from phi4d.job import SAMPLE_RATE_HZ, Kind, Request  # noqa: E402

TRANSCRIBE = "Transcribe the audio clip into text."
DESCRIBE = "Describe the image."
TOKENS_PER_SECOND = 3.3
PICTURE_TOKENS = 100
SIZES = {"mid": (448, 448), "small": (448, 448), "full": (1920, 1080)}
"""pictures, width and height"""


def mid() -> dict[str, Any]:
    """A configuration of some 300 million parameters; heads are as large as the real ones."""
    config: dict[str, Any] = json.loads(json.dumps(checkpoints.REAL))
    config |= {
        "vocab_size": 32_064, "hidden_size": 1152, "intermediate_size": 3072,
        "num_hidden_layers": 14, "num_attention_heads": 9, "num_key_value_heads": 3,
        "bos_token_id": 31_999, "pad_token_id": 31_999, "eos_token_id": [31_999, 32_020],
    }  # fmt: skip
    config["vision_config"] |= {
        "hidden_size": 448, "intermediate_size": 1664, "num_hidden_layers": 12,
        "num_attention_heads": 7, "image_token_id": 32_010,
    }  # fmt: skip
    config["audio_config"] |= {
        "hidden_size": 384, "intermediate_size": 576, "num_blocks": 12, "num_attention_heads": 6,
        "ext_pw_out_channel": 384, "depthwise_separable_out_channel": 384,
        "nemo_conv_channels": 384, "audio_token_id": 32_011,
    }  # fmt: skip
    return config


CONFIGS = {
    "mid": (mid, {"vision": 96, "speech": 120}),
    "small": (checkpoints.small, {"vision": 4, "speech": 5}),
    "full": (lambda: checkpoints.REAL, None),
}


@contextlib.contextmanager
def made(size: str, device: str, parent: Path | None = None) -> Iterator[Path]:
    """The folder of a model with random weights, which are drawn on a device; it is removed."""
    with tempfile.TemporaryDirectory(prefix="phi4d-model-", dir=parent) as name:
        config, ranks = CONFIGS[size]
        folder = Path(name) / "model"
        checkpoints.make(folder, config(), Layout.CONVERTED, ranks=ranks, device=device)
        yield folder


def wait(device: str) -> None:
    """Until the device has done all."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def requests(size: str, clips: int, pictures: int) -> tuple[list[Request], list[Request]]:
    """Clips and pictures of noise, the same each time."""
    rng = np.random.default_rng(0)
    sounds = [
        Request(
            Kind.AUDIO,
            TRANSCRIBE,
            rng.normal(0, 0.1, round(seconds * SAMPLE_RATE_HZ)).astype(np.float32),
            round(seconds * TOKENS_PER_SECOND),
        )
        for seconds in rng.uniform(5, 30, clips)
    ]
    width, height = SIZES[size]
    seen = [
        Request(
            Kind.IMAGE,
            DESCRIBE,
            rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            PICTURE_TOKENS,
        )
        for _ in range(pictures)
    ]
    return sounds, seen
