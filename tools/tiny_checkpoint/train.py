"""Make the toy checkpoint and the demo's samples: ``python tools/tiny_checkpoint/train.py``.

Two lanes run side by side, a process and a thread for each stage. What a stage has finished is kept
in ``work``, so that a run that was stopped goes on; remove the folder to begin anew. The logs of
the stages lie there as well.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from subprocess import STDOUT, run
from threading import Event
from typing import Any

HERE = Path(__file__).parent
WORK = HERE / "work"
DEMO = HERE.parents[1] / "phi4d" / "demo"
COUNT = 200
"""Held-out samples for each figure."""
START = time.monotonic()

NAMES = ("clips", "encoder", "base", "speech", "tower", "whole", "views", "vision")
OUT = {name: WORK / f"{name}.pt" for name in NAMES}
STAGES: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "base": ("base_model", "train", (3200,)),
    "clips": ("speech_data", "make", (7000,)),
    "encoder": ("audio_encoder", "train", (OUT["clips"], 1200)),
    "speech": ("speech_adapter", "train", (OUT["clips"], OUT["base"], OUT["encoder"], 600)),
    "tower": ("vision_tower", "train", (5000, 2e-3)),
    "whole": ("vision_tower", "train", (1400, 5e-4, OUT["tower"])),
    "views": ("vision_adapter", "make", (OUT["whole"], 3500, 500)),
    "vision": ("vision_adapter", "train", (OUT["base"], OUT["whole"], OUT["views"])),
}
"""Module and function of each stage, and what it takes after the path that it writes."""
LANES = (("tower", "whole", "views", "vision"), ("base", "clips", "encoder", "speech"))


def main() -> None:
    """Run what has not been run, then write and examine the checkpoint."""
    WORK.mkdir(exist_ok=True)
    base_done = Event()
    with ThreadPoolExecutor(len(LANES)) as pool:
        for lane in [pool.submit(run_lane, lane, base_done) for lane in LANES]:
            lane.result()

    import checkpoint
    import evaluate
    import samples

    checkpoint.write(OUT["base"], OUT["speech"], OUT["vision"], DEMO / "checkpoint")
    samples.write(DEMO / "samples")
    figures = evaluate.evaluate(DEMO / "checkpoint", COUNT)
    checkpoint.write_card(DEMO / "checkpoint", figures, COUNT)


def run_lane(lane: tuple[str, ...], base_done: Event) -> None:
    """Run a lane's stages in order; however it ends, the other lane does not wait for ever."""
    try:
        for name in lane:
            if name == "vision":
                base_done.wait()
            run_stage(name)
            if name == "base":
                base_done.set()
    finally:
        base_done.set()


def run_stage(name: str) -> None:
    """Run one stage in a process of its own, unless it is done."""
    done = OUT[name].with_suffix(".done")
    if done.exists():
        return
    begun = time.monotonic()
    with OUT[name].with_suffix(".log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, name]
        run(command, check=True, stdout=log, stderr=STDOUT, env=environment)
    done.touch()
    now = time.monotonic()
    print(f"[{now - START:6.0f} s] {name}: {now - begun:.0f} s", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        module, function, arguments = STAGES[sys.argv[1]]
        getattr(import_module(module), function)(OUT[sys.argv[1]], *arguments)
    else:
        main()
