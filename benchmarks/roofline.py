"""What the machine could do at best, and what the engine does: towers, prompts, tokens.

    python benchmarks/roofline.py [--device cpu] [--size mid|full|small] [--dtype bfloat16]

The machine's own measures are a product of large matrices (operations a second) and one of a large
matrix with a vector (bytes a second). A part's floor is the longer of two times: its operations, as
torch counts them, at the one, and its weights, with the cache where there is one, at the other.
Each time is the best of some. Weights are random; `mid` is that of benchmarks/engine.py. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import models as bench

from phi4d.engine.decoding import read_prompts
from phi4d.engine.embedding import Embedding, Prompt
from phi4d.engine.graphs import Graphs
from phi4d.engine.grouping import evenly
from phi4d.engine.lane import Lane, Ticket
from phi4d.engine.loop import PROMPT_TOKENS
from phi4d.engine.phi4 import ADAPTER, Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.engine.seats import Filling, Seats, token_bytes
from phi4d.job import Kind, Request

BATCHES = (1, 8, 32, 64)
CLIP_S = 30
LONG = 4096
"""tokens of the prompt that is read in stretches, as the loop does"""
ANSWER = 64
"""tokens that there is room for behind each prompt"""


def best(call: Callable[[], object], device: str, times: int = 5) -> float:
    """Seconds of the fastest call of some."""
    seconds = []
    for _ in range(times):
        bench.wait(device)
        begun = time.perf_counter()
        call()
        bench.wait(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def machine(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Operations and bytes a second."""
    side = 4096 if device == "cpu" else 16_384
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    operations = 2 * side**3 / best(lambda: a @ b, device)
    large = torch.ones(16_384, 16_384, device=device)
    vector = torch.ones(16_384, device=device)
    return operations, large.nbytes / best(lambda: large @ vector, device)


def operations_of(call: Callable[[], object]) -> int:
    """As torch counts them."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of tensors, each once."""
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def encoded(model: Any, prompt: Prompt, most: int) -> Embedding:
    """A prompt's embeddings, by turns of the tower."""
    made = Embedding(model, [prompt], most)
    while made.turns:
        made.turn()
    return made


def parts(engine: Phi4Engine, size: str, batches: Iterable[int]) -> list[tuple[Any, ...]]:
    """Name, call, and the bytes that it must read, of each part."""
    loaded = engine._ready()
    samples = torch.randn(CLIP_S * 16_000, generator=torch.Generator().manual_seed(0)) / 10
    clip = Request(Kind.AUDIO, bench.TRANSCRIBE, samples.numpy(), ANSWER)
    picture = bench.requests(size, 0, 1)[1][0]
    most = PROMPT_TOKENS[engine.device.split(":")[0]] // 2
    made: list[tuple[Any, ...]] = []
    for name, request in (("clip of 30 s", clip), ("picture", picture)):
        model = loaded.use(ADAPTER[request.kind])
        prompt = engine._prompt(loaded, request)
        towers = model.model.embed_tokens_extend
        tower = towers.audio_embed if request is clip else towers.image_embed
        calls = len(Embedding(model, [prompt], most).turns)
        made.append(
            (
                f"tower, {name}",
                lambda model=model, prompt=prompt: encoded(model, prompt, most),
                calls * nbytes(tower.parameters()),
            )
        )
    prompt = engine._prompt(loaded, clip)
    model = loaded.use("speech")
    weights = nbytes([*model.model.layers.parameters(), model.lm_head.weight])
    embeds = encoded(model, prompt, most).embeds
    length = embeds.shape[1]
    for sizes in ([length], [LONG], evenly(LONG, most)):
        count = sum(sizes)
        there = embeds.repeat(1, -(-count // length), 1)[:, :count]
        name = f"prompt of {count} tokens"
        if len(sizes) > 1:
            name += f" in {len(sizes)} parts"
        made.append((name, Reading(model, there, sizes), len(sizes) * weights))
    for count in batches:
        graphs = None if engine.device == "cpu" else Graphs(engine.device)
        lane = Lane(loaded, "speech", engine._tokens.media, graphs)
        lane.open(count, length + ANSWER)

        def go_on(lane: Lane = lane, count: int = count) -> None:
            while len(lane.running) < count:
                reading = lane.admit([Ticket(prompt, "speech", 0)], length)
                while lane.reading:
                    lane.read(reading)
            lane.go_on().tokens()

        cache = count * length * token_bytes(model)
        made.append((f"token, {count} answers", go_on, weights + cache))
    return made


class Reading:
    """Reads a prompt, in stretches of so many tokens."""

    def __init__(self, model: Any, embeds: torch.Tensor, sizes: Iterable[int]) -> None:
        self._model = model
        self._embeds = embeds
        self._sizes = sizes
        self._seats = Seats(model, 1, embeds.shape[1])

    def __call__(self) -> None:
        """In the stretches."""
        self.read(self._sizes)

    def whole(self) -> None:
        """In one: so many operations are needed, and torch cannot count those of stretches."""
        self.read([self._embeds.shape[1]])

    def read(self, sizes: Iterable[int]) -> None:
        """In stretches of so many tokens."""
        row = torch.zeros(1, dtype=torch.int64, device=self._embeds.device)
        begin = 0
        for size in sizes:
            filling = Filling.at(self._seats, row, begin, begin + size)
            read_prompts(self._model, self._embeds, row + self._embeds.shape[1], filling)
            begin += size


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(bench.CONFIGS))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--folder", type=Path, help="for the weights; default: a temporary one")
    options = parser.parse_args()
    size = options.size or ("mid" if options.device == "cpu" else "full")
    place = Path(tempfile.mkdtemp(prefix="phi4d-roofline-", dir=options.folder))
    rows = []
    try:
        config, ranks = bench.CONFIGS[size]
        bench.checkpoints.make(
            place / "model", config(), bench.Layout.CONVERTED, ranks=ranks, device=options.device
        )
        slot = Slot(options.device, options.dtype, merged=True)
        engine = Phi4Engine.load(place / "model", slot, rows=1)
        with torch.inference_mode():
            operations, read = machine(options.device, getattr(torch, options.dtype))
            print(f"machine: {operations / 1e12:.2f} TFLOP/s, {read / 1e9:.1f} GB/s")
            for name, call, weights in parts(engine, size, options.batches):
                call()
                counted = operations_of(call.whole if isinstance(call, Reading) else call)
                floor = max(counted / operations, weights / read)
                seconds = best(call, options.device)
                rows.append(
                    {
                        "part": name,
                        "floor_ms": round(1e3 * floor, 2),
                        "measured_ms": round(1e3 * seconds, 2),
                        "ratio": round(floor / seconds, 3),
                        "bound": "bytes" if weights / read > counted / operations else "operations",
                    }
                )
                print(
                    "{part:30} floor {floor_ms:9.2f} ms ({bound:10})  measured {measured_ms:9.2f} "
                    "ms  {ratio:6.1%} of what is possible".format(**rows[-1]),
                    flush=True,
                )
    finally:
        shutil.rmtree(place)
    result = {"device": options.device, "size": size, "dtype": options.dtype, "rows": rows}
    machine_is = {"operations": round(operations), "bytes": round(read)}
    print(json.dumps(result | {"machine": machine_is, "torch": torch.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
