"""What the GPU's checks share: the device, a checkpoint of random weights, requests."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import checkpoints

from phi4d.engine.checkpoint import read
from phi4d.engine.layout import Layout
from phi4d.engine.phi4 import Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.job import Completion, Kind, Request

DEVICE = os.environ.get("PHI4D_GPU", "cuda:0")
SIZE = os.environ.get("PHI4D_GPU_SIZE", "full")
HERE = DEVICE == "cpu" or torch.cuda.is_available()
"""whether there is a device to check on"""


@functools.cache
def checkpoint(size: str = SIZE, layout: Layout = Layout.ORIGINAL) -> Path:
    """The folder of random weights, drawn on the device; removed at the end."""
    root = Path(tempfile.mkdtemp(prefix="phi4d-gpu-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    small = size == "small"
    checkpoints.make(
        root / "model",
        checkpoints.small() if small else checkpoints.REAL,
        layout,
        ranks={"vision": 4, "speech": 5} if small else None,
        device=DEVICE,
    )
    return root / "model"


def engine(slot: Slot, size: str = SIZE) -> Phi4Engine:
    """An engine on it."""
    return Phi4Engine.load(read(checkpoint(size)).folder, slot)


def picture(height: int, width: int, seed: int = 0, tokens: int = 16) -> Request:
    """A request about noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Request(Kind.IMAGE, "Describe the image.", pixels, tokens)


def clip(seconds: float, seed: int = 0, tokens: int = 16) -> Request:
    """A request about hiss."""
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000))
    return Request(
        Kind.AUDIO, "Transcribe the audio clip into text.", samples.astype(np.float32), tokens
    )


def pictures(tokens: int = 16) -> list[Request]:
    """Eight of different sizes, 448x448 and 900x600 among them."""
    sizes = [(448, 448), (600, 900), (300, 300), (700, 500)]
    sizes += [(90, 700), (1024, 1024), (5, 5), (448, 900)]
    return [picture(*size, seed, tokens) for seed, size in enumerate(sizes)]


def clips(tokens: int = 16) -> list[Request]:
    """Eight of different lengths, one over 40 s."""
    lengths = (0.3, 1.0, 2.7, 5.0, 8.0, 13.0, 30.0, 41.0)
    return [clip(length, seed, tokens) for seed, length in enumerate(lengths)]


def launched(it: Phi4Engine) -> None:
    """From now on it launches its steps kernel by kernel."""
    loops = it._loops
    if loops._standing is not None:
        loops._standing.close()
    loops._standing = loops._graphs = None


def captured(it: Phi4Engine) -> int:
    """How many steps are captured; each time one is captured in vain, that is for good."""
    loop = it._loops._standing
    assert loop is not None
    return sum(len(lane._captured) for lane in loop._lanes.values())


def cache_bytes(it: Phi4Engine) -> int:
    """What its caches take."""
    arena = it._loops._arena
    return arena.nbytes if arena else 0


def alone(it: Phi4Engine, requests: list[Request]) -> list[Completion]:
    """Each request asked for itself."""
    return [it.generate([request])[0] for request in requests]


def same_beginning(left: str, right: str) -> int:
    """How many words two answers have in common from their beginning."""
    count = 0
    for one, other in zip(left.split(), right.split(), strict=False):
        if one != other:
            break
        count += 1
    return count
