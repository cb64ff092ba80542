"""How long answers wait for their next token while a large picture is read.

    python benchmarks/waits.py [--size mid] [--crops 12] [--tokens 100000 1024 512]

A clip's answer is being written when a picture comes. For each number of tokens that a step may
read (100,000: all at once), the longest that the clip waited for its next token, and the time until
both were answered. On the CPU these are seconds of one thread's work, so that other programs do not
count. Weights are random; the last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import models as bench

from phi4d.engine.loop import PROMPT_TOKENS, Loop
from phi4d.engine.phi4 import ADAPTER, Phi4Engine
from phi4d.engine.plan import Slot
from phi4d.job import CROP_PX, Kind, Request

ANSWER = 400
"""tokens of the clip's answer, at most: it goes on longer than the picture takes"""


def clock(device: str) -> float:
    """Seconds; of work on the CPU."""
    bench.wait(device)
    return time.process_time() if device == "cpu" else time.perf_counter()


def waits(engine: Phi4Engine, asked: list[Request], tokens: int) -> dict[str, float]:
    """The clip's longest wait, and the time of all, if a step reads so many tokens."""
    loaded = engine._ready()
    loop = Loop(
        loaded,
        stop=(),
        never=engine._tokens.media,
        rows=2,
        cache_tokens=100_000,
        prompt_tokens=tokens,
    )
    clip, picture = (engine._prompt(loaded, request) for request in asked)
    loop.submit(clip, ADAPTER[Kind.AUDIO])
    loop.step(lambda: None)
    loop.step(lambda: None)
    seen = loop.submit(picture, ADAPTER[Kind.IMAGE])
    begun, longest = clock(engine.device), 0.0
    while not seen.ended:
        before = clock(engine.device)
        loop.step(lambda: None)
        longest = max(longest, clock(engine.device) - before)
    return {"longest_s": round(longest, 3), "all_s": round(clock(engine.device) - begun, 2)}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(bench.CONFIGS))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument("--crops", type=int, default=12, help="of the picture, in rows of four")
    parser.add_argument(
        "--tokens", type=int, nargs="+", help="default: all, and as the engine does"
    )
    options = parser.parse_args()
    device: str = options.device
    size = options.size or ("mid" if device == "cpu" else "full")
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(
        0, 256, (-(-options.crops // 4) * CROP_PX, 4 * CROP_PX, 3), dtype=np.uint8
    )
    clip = dataclasses.replace(bench.requests(size, 1, 0)[0][0], max_new_tokens=ANSWER)
    asked = [clip, Request(Kind.IMAGE, bench.DESCRIBE, pixels, 2)]
    rows = []
    with bench.made(size, device) as folder, torch.inference_mode():
        engine = Phi4Engine.load(folder, Slot(device, options.dtype, merged=True))
        prompt = engine._prompt(engine._ready(), asked[1])
        print(f"picture of {options.crops} crops, {len(prompt.ids)} tokens")
        waits(engine, [clip, bench.requests(size, 0, 1)[1][0]], 1024)
        for tokens in options.tokens or [100_000, PROMPT_TOKENS[device.split(":", maxsplit=1)[0]]]:
            rows.append({"tokens": tokens, **waits(engine, asked, tokens)})
            print(
                "{tokens:6} tokens a step: waited {longest_s:7.3f} s at most, {all_s:7.2f} s in "
                "all".format(**rows[-1]),
                flush=True,
            )
        engine.close()
    result = {"device": device, "size": size, "dtype": options.dtype, "crops": options.crops}
    print(json.dumps(result | {"torch": torch.__version__, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
