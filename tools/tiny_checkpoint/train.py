"""Make the toy checkpoint and the demo's samples: ``python tools/tiny_checkpoint/train.py``.

Two lanes run side by side, a process and a thread for each stage. What a stage has finished is kept
in ``work``, so that a run that was stopped goes on; remove the folder to begin anew. The logs of
the stages lie there as well.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import STDOUT, run
from threading import Event

HERE = Path(__file__).parent
WORK = HERE / "work"
DEMO = HERE.parents[1] / "phi4d" / "demo"
COUNT = 200
"""Held-out samples for each figure."""
START = time.monotonic()

Stage = Callable[[Path], None]
NAMES = ("clips", "encoder", "base", "speech", "tower", "views", "vision")
CLIPS, ENCODER, BASE, SPEECH, TOWER, VIEWS, VISION = (WORK / f"{name}.pt" for name in NAMES)


def clips(out: Path) -> None:
    """Speak 7,000 clips."""
    import speech_data

    speech_data.make(out, 7000)


def encoder(out: Path) -> None:
    """Teach the audio encoder to hear."""
    import audio_encoder

    audio_encoder.train(CLIPS, out, 1200)


def base(out: Path) -> None:
    """Teach the base language model its words."""
    import base_model

    base_model.train(out, 3200)


def speech(out: Path) -> None:
    """Teach the speech adapter."""
    import speech_adapter

    speech_adapter.train(CLIPS, BASE, ENCODER, out, 600)


def tower(out: Path) -> None:
    """Teach the vision tower to see."""
    import vision_tower

    vision_tower.train(out, 5000)


def views(out: Path) -> None:
    """Look at pictures with the frozen tower."""
    import vision_adapter

    vision_adapter.make(TOWER, out, 3000, 500)


def vision(out: Path) -> None:
    """Teach the vision adapter."""
    import vision_adapter

    vision_adapter.train(BASE, TOWER, VIEWS, out, 900, 200)


LANES: tuple[tuple[tuple[Stage, Path], ...], ...] = (
    ((tower, TOWER), (views, VIEWS), (vision, VISION)),
    ((base, BASE), (clips, CLIPS), (encoder, ENCODER), (speech, SPEECH)),
)
NEEDS_BASE = (speech, vision)


def main() -> None:
    """Run what has not been run, then write and examine the checkpoint."""
    WORK.mkdir(exist_ok=True)
    base_done = Event()
    with ThreadPoolExecutor(len(LANES)) as pool:
        for lane in [pool.submit(_run_lane, lane, base_done) for lane in LANES]:
            lane.result()

    import checkpoint
    import evaluate
    import samples

    checkpoint.write(BASE, SPEECH, VISION, DEMO / "checkpoint")
    samples.write(DEMO / "samples")
    figures = evaluate.evaluate(DEMO / "checkpoint", COUNT)
    checkpoint.write_card(DEMO / "checkpoint", figures, COUNT)


def _run_lane(lane: tuple[tuple[Stage, Path], ...], base_done: Event) -> None:
    """Run a lane's stages in order; whoever ends, the other lane need not wait for ever."""
    try:
        for stage, out in lane:
            if stage in NEEDS_BASE:
                base_done.wait()
            _run_stage(stage.__name__, out)
            if stage is base:
                base_done.set()
    finally:
        base_done.set()


def _run_stage(name: str, out: Path) -> None:
    """Run one stage in a process of its own, unless it is done."""
    done = out.with_suffix(".done")
    if done.exists():
        return
    begun = time.monotonic()
    with out.with_suffix(".log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, name]
        run(command, check=True, stdout=log, stderr=STDOUT, env=environment)
    done.touch()
    now = time.monotonic()
    print(f"[{now - START:6.0f} s] {name}: {now - begun:.0f} s", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        stage, out = {s.__name__: (s, o) for lane in LANES for s, o in lane}[sys.argv[1]]
        import torch

        torch.set_num_threads(1)
        stage(out)
    else:
        main()
