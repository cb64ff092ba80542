"""What Phi-4-multimodal wants beside its weights: the peak of live tensors, with no arithmetic.

    python benchmarks/working_memory.py

The full-size model is loaded by phi4d's own loader, from a file of fake tensors: these have shapes
and sizes, but no memory. Every storage that an operation makes is counted from its making to its
end. Adapters are beside the weights, which wants more than merged ones, by the adapters' own
products. Attention is that of torch's flash kernel for the CPU, which like those of a GPU keeps no
matrix of scores. Not counted: what a GPU's context and libraries take, and what an allocator loses
between blocks.

4 bits are not counted: like 8, they are made a whole weight for each use.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from checkpoints import on_paper

from phi4d.engine import loader
from phi4d.engine.checkpoint import Checkpoint
from phi4d.engine.decoding import read_prompts
from phi4d.engine.embedding import Embedding, Prompt
from phi4d.engine.grouping import evenly
from phi4d.engine.loop import PROMPT_TOKENS
from phi4d.engine.plan import Slot
from phi4d.engine.seats import Filling, Seats
from phi4d.job import GREEDY
from phi4d.prepared.clip import Clip
from phi4d.prepared.tiles import Tiles, tile

DTYPES = ("bfloat16", "float16")
QUANTIZATIONS = ("none", "8bit")
PICTURES = ((4000, 3900, 4), (4000, 2950, 12), (4000, 3900, 36))
"""width, height and the most crops. Not quite the grid's shape: where a crop is partly white, a
mask takes its part of the memory"""
PROMPTS = ((400, "speech"), (1329, "vision"), (3918, "vision"), (9585, "vision"))
"""tokens and adapter"""
TURN = PROMPT_TOKENS["cuda"] // 2
"""work of a turn of reading, in tokens"""
FAKE = FakeTensorMode(allow_non_fake_inputs=True)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are made while it is on, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for old in tree_leaves((args, kwargs)):
            if isinstance(old, torch.Tensor):
                self._known.add(old.untyped_storage())  # whatever was there before is not ours
        made = func(*args, **(kwargs or {}))
        for new in tree_leaves(made):
            if isinstance(new, torch.Tensor):
                self._count(new.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class FakeReader:
    """In place of the loader's reader of files."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors = checkpoint.tensors

    def get(self, name: str, *, keep: bool = False) -> torch.Tensor:  # noqa: ARG002 - the reader's
        """A tensor as it would be stored."""
        with FAKE:
            return torch.empty(self._tensors[name].shape, dtype=torch.bfloat16)

    def release(self) -> None:
        """Nothing was mapped."""


def load(slot: Slot) -> loader.Loaded:
    """The full-size model without weights."""
    with patch.object(loader, "_Reader", FakeReader), FAKE:
        return loader.load(on_paper(), slot)


def measure(call: Callable[[], object]) -> int:
    """The peak of bytes that a call makes, its result included."""
    with torch.no_grad(), LiveBytes() as live:
        kept = call()
    del kept
    return live.peak


def encode(loaded: loader.Loaded, media: Tiles | Clip) -> int:
    """A tower and its projector over a picture or clip."""
    seen = isinstance(media, Tiles)
    token = loaded.image_id if seen else loaded.audio_id
    model = loaded.use("vision" if seen else "speech")
    prompt = Prompt([token] * media.tokens, 1, media, GREEDY)

    def encoded() -> Embedding:
        made = Embedding(model, [prompt], TURN)
        while made.turns:
            made.turn()
        return made

    return measure(encoded)


def answer(loaded: loader.Loaded, tokens: int, adapter: str) -> int:
    """The language model over a prompt in its stretches, without what it keeps in the cache."""
    model = loaded.use(adapter)
    with FAKE:
        embeds = torch.empty(1, tokens, model.config.hidden_size, dtype=model.dtype)
        seats = Seats(model, 1, tokens)
    row = torch.zeros(1, dtype=torch.int64)

    def read() -> None:
        whole, begin = embeds.clone(), 0
        for size in evenly(tokens, TURN):
            filling = Filling.at(seats, row, begin, begin + size)
            read_prompts(model, whole, row + tokens, filling)
            begin += size

    return measure(read)


def main() -> None:
    """Print the figures."""
    loaded = load(Slot("cpu", "bfloat16"))
    for width, height, most in PICTURES:
        tiles = tile(np.zeros((height, width, 3), np.uint8), most)
        print(f"picture of {1 + tiles.crops} crops: {encode(loaded, tiles):,} bytes")
    clip = Clip(np.zeros((3000, 80), np.float32))
    print(f"clip of 30 s: {encode(loaded, clip):,} bytes")
    for dtype, quantization in product(DTYPES, QUANTIZATIONS):
        loaded = load(Slot("cpu", dtype, quantization=quantization))
        for tokens, adapter in PROMPTS:
            peak = answer(loaded, tokens, adapter)
            print(f"{dtype}, {quantization}: prompt of {tokens} tokens: {peak:,} bytes")


if __name__ == "__main__":
    main()
