"""The engine on the CPU: threads and how they wait, layout of convolutions, torch.compile.

    python benchmarks/cpu.py [--size mid|small] [--rounds 6] [--only threads layout compile]

- `threads`: two clips of 5 s and a picture, by one process whose OpenMP threads spin while they
  wait for each other, as torch has them, and by one whose threads sleep, as phi4d has them, in
  turn; seconds by the clock, and of CPU time.
- `layout`: a clip's tower and a picture's, convolutions with channels last and not.
- `compile`: a step of 1, 8 and 32 answers as it is, in the shapes of CUDA graphs, and compiled.

The last two have one thread, and CPU time counts, the least of some: other processes hardly matter
to it. The last line is JSON. Weights are random, in bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import models
import torch

from phi4d.engine import lane as lanes
from phi4d.engine.embedding import Embedding
from phi4d.engine.lane import Lane, Ticket
from phi4d.engine.phi4 import ADAPTER, Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.engine.requests import Asked
from phi4d.engine.sampling import Ways
from phi4d.job import SAMPLE_RATE_HZ, Request

WAITS = {"spin": "", "sleep": "PASSIVE"}
"""values of OMP_WAIT_POLICY"""
MOST = 1 << 20
"""the work of a turn of reading: all at once"""


def load(folder: Path) -> Phi4Engine:
    """The engine, whose answers go on to their limit."""
    return Phi4Engine.load(folder, Slot("cpu", "bfloat16", merged=True), endless=True)


def asked(size: str) -> list[Request]:
    """Two short clips and a picture."""
    clips, pictures = models.requests(size, 2, 1)
    few = 5 * SAMPLE_RATE_HZ
    short = [dataclasses.replace(one, media=one.media[:few], max_new_tokens=16) for one in clips]
    return [*short, *(dataclasses.replace(one, max_new_tokens=4) for one in pictures)]


def answer(engine: Phi4Engine, requests: Sequence[Request]) -> None:
    """By the engine's stream."""
    coming = [[Asked(request) for request in requests]]
    engine.serve(lambda _: coming.pop() if coming else [], lambda *_: None)


def serve_rounds(folder: Path, size: str) -> None:
    """Answer for each number of threads that comes in a line; the other end of `Other`."""
    engine, requests = load(folder), asked(size)
    answer(engine, requests)
    print("ready", flush=True)
    for line in sys.stdin:
        torch.set_num_threads(int(line))
        clock, cpu = time.perf_counter(), time.process_time()
        answer(engine, requests)
        taken = [time.perf_counter() - clock, time.process_time() - cpu]
        print(json.dumps([round(each, 2) for each in taken]), flush=True)


class Other:
    """A process that waits in one of the ways."""

    def __init__(self, folder: Path, size: str, policy: str) -> None:
        command = [sys.executable, __file__, "--size", size, "--serve", str(folder)]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_WAIT_POLICY": policy} if policy else None,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while self._said() != "ready":
            pass

    def round(self, threads: int) -> list[float]:
        """Seconds by the clock, and of CPU time."""
        assert self._process.stdin
        self._process.stdin.write(f"{threads}\n")
        self._process.stdin.flush()
        return list(json.loads(self._said()))

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _said(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the other process ended")
        return line.strip()


def threads(folder: Path, size: str, rounds: int) -> dict[str, Any]:
    """All ways to wait, in turn."""
    others = {name: Other(folder, size, policy) for name, policy in WAITS.items()}
    counts = sorted({1, len(os.sched_getaffinity(0))})
    found: dict[str, list[list[float]]] = {}
    for _ in range(rounds):
        for name, other in others.items():
            for count in counts:
                found.setdefault(f"{name}, threads: {count}", []).append(other.round(count))
    for name, taken in found.items():
        clock, cpu = zip(*taken, strict=True)
        print(
            f"{name:28} {min(clock):6.2f} to {max(clock):6.2f} s, of CPU {min(cpu):6.2f} to "
            f"{max(cpu):6.2f} s"
        )
    for other in others.values():
        other.close()
    load_average = [round(each, 1) for each in os.getloadavg()]
    return {"rounds": found, "load": load_average}


def least(call: Callable[[], object], times: int) -> float:
    """Milliseconds of CPU time, after a call that does not count."""
    call()
    taken = []
    for _ in range(times):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return round(1e3 * min(taken), 1)


def layout(engine: Phi4Engine, size: str) -> dict[str, Any]:
    """The towers with their convolutions in either layout."""
    loaded, found = engine._ready(), {}
    clips, pictures = models.requests(size, 1, 1)
    for name, request in (("clip", clips[0]), ("picture", pictures[0])):
        model = loaded.use(ADAPTER[request.kind])
        prompt = engine._prompt(loaded, request)

        def embed(model: Any = model, prompt: Any = prompt) -> None:
            embedding = Embedding(model, [prompt], MOST)
            while embedding.turns:
                embedding.turn()

        for form in (torch.channels_last, torch.contiguous_format, torch.channels_last):
            for module in model.model.embed_tokens_extend.modules():
                if isinstance(module, torch.nn.Conv2d):
                    module.to(memory_format=form)  # type: ignore[call-overload]
            key = f"{name}, {str(form).removeprefix('torch.')}"
            found[key] = min(least(embed, 5), found.get(key, float("inf")))
    for name, taken in found.items():
        print(f"{name:28} {taken:8.1f} ms of CPU time")
    return found


def compiled(engine: Phi4Engine, size: str) -> dict[str, Any]:
    """A step in three forms."""
    loaded, found = engine._ready(), {}
    (clip,), _ = models.requests(size, 1, 0)
    ten = clip.media[: 10 * SAMPLE_RATE_HZ]
    prompt = engine._prompt(loaded, dataclasses.replace(clip, media=ten, max_new_tokens=200))
    ways, as_it_is = Ways(draws=False, penalizes=False), lanes.go_on
    for rows in (1, 8, 32):
        lane = Lane(loaded, "speech", engine._tokens.media)
        lane.open(rows, 512)
        while len(lane.running) < rows:
            reading = lane.admit([Ticket(prompt, "speech", 0)], MOST)
            while lane.reading:
                lane.read(reading)

        def shaped(lane: Lane = lane, rows: int = rows) -> None:
            lane._step(rows, 256, ways)

        row = {"as it is": least(lane.go_on, 20), "in shapes": least(shaped, 20)}
        lanes.go_on = torch.compile(as_it_is, dynamic=False)  # type: ignore[assignment]
        begun = time.perf_counter()
        shaped()
        row["seconds to compile"] = round(time.perf_counter() - begun, 1)
        row["compiled"] = least(shaped, 20)
        lanes.go_on = as_it_is
        found[str(rows)] = row
        print(f"step of {rows:2} answers, ms of CPU time: {row}", flush=True)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--size", choices=["mid", "small"], default="mid")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="+", default=["threads", "layout", "compile"])
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_rounds(options.serve, options.size)
        return 0
    result: dict[str, Any] = {"size": options.size, "torch": torch.__version__}
    with models.made(options.size, "cpu") as folder:
        if "threads" in options.only:
            result["threads"] = threads(folder, options.size, options.rounds)
        torch.set_num_threads(1)
        engine = load(folder)
        with torch.inference_mode():
            if "layout" in options.only:
                result["layout"] = layout(engine, options.size)
            if "compile" in options.only:
                result["compile"] = compiled(engine, options.size)
        engine.close()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
