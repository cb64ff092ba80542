"""Load the full-size model from both layouts, and answer for one picture and one clip.

    python benchmarks/load.py [--device cpu] [--size full|small] [--folder DIR]

Makes checkpoints with random weights (11 GB each, one after the other, deleted afterwards), loads
each in a process of its own, and prints seconds, peak memory and tokens; the last line is JSON. The
tokens of the two layouts must be identical; the exit code is 1 if they are not, or if a bound of
main memory is passed on the CPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

LOADS = {"bfloat16": ("bfloat16", "none"), "4bit": ("bfloat16", "4bit")}
BOUNDS_GIB = {"bfloat16": 12.0, "4bit": 7.0}
"""of peak resident memory on the CPU"""
TOKENS = 6


def main() -> int:
    """Run all loads and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--folder", type=Path, help="for the checkpoints; default: a temporary one")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(Path(options.one[0]), options.one[1], options.device)))
        return 0
    place = Path(tempfile.mkdtemp(prefix="phi4d-load-", dir=options.folder))
    rows = []
    try:
        for layout in ("original", "converted"):
            make = [sys.executable, str(ROOT / "tools" / "checkpoints.py"), str(place / layout)]
            subprocess.run([*make, "--layout", layout, "--size", options.size], check=True)
            for load in LOADS:
                row = {"layout": layout, "load": load} | child(place / layout, load, options.device)
                rows.append(row)
                print(
                    "{layout:9}  {load:8}  load {load_s:6.1f} s  peak {peak_gib:5.2f} GiB  "
                    "picture {picture_s:6.1f} s  clip {clip_s:6.1f} s  {picture} | {clip}".format(
                        **row
                    ),
                    flush=True,
                )
            shutil.rmtree(place / layout)
    finally:
        shutil.rmtree(place)
    same = all(
        len({row["picture"] + row["clip"] for row in rows if row["load"] == load}) == 1
        for load in LOADS
    )
    within = options.device != "cpu" or all(
        row["peak_gib"] <= BOUNDS_GIB[row["load"]] for row in rows
    )
    print(json.dumps({"same_tokens": same, "within_bounds": within, "rows": rows}))
    return 0 if same and within else 1


def child(folder: Path, load: str, device: str) -> dict[str, object]:
    """One load in a process of its own."""
    command = [sys.executable, __file__, "--device", device, "--one", str(folder), load]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def one(folder: Path, load: str, device: str) -> dict[str, object]:
    """Load, answer, and tell what it took."""
    import resource

    import numpy as np

    from phi4d.engine.phi4 import Phi4Engine
    from phi4d.engine.plan import Slot
    from phi4d.job import Kind, Request

    dtype, quantization = LOADS[load]
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (448, 448, 3), dtype=np.uint8)
    clip = rng.normal(0, 0.1, 10 * 16_000).astype(np.float32)

    def timed(request: Request) -> tuple[float, str]:
        begun = time.perf_counter()
        (answer,) = engine.generate([request])
        return round(time.perf_counter() - begun, 1), answer.text

    begun = time.perf_counter()
    engine = Phi4Engine.load(folder, Slot(device, dtype, quantization=quantization))
    load_s = round(time.perf_counter() - begun, 1)
    picture_s, seen = timed(Request(Kind.IMAGE, "Describe the image.", picture, TOKENS))
    words = "Transcribe the audio clip into text."
    clip_s, heard = timed(Request(Kind.AUDIO, words, clip, TOKENS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "load_s": load_s, "peak_gib": round(peak, 2), "picture_s": picture_s, "clip_s": clip_s,
        "picture": seen, "clip": heard,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
