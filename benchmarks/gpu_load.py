"""Plan, load and ask the full-size model on a GPU, with random weights that are drawn there.

    python benchmarks/gpu_load.py [--device cuda:0] [--size full|small] [--folder DIR]

For bfloat16 with merged and with unmerged adapters, 8 bits, and 4 bits where bitsandbytes is
installed: what the plan foresees, the seconds of loading, the memory that the weights take and the
peak while answering, and the tokens a second of one picture, one clip, and eight clips at once. The
last line is JSON. Needs torch, transformers, safetensors and numpy; 11 GB of disk for the weights,
which are removed afterwards. `--device cpu --size small` tries the script itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

LOADS: dict[str, dict[str, str]] = {
    "merged": {"merge_adapters": "always", "quantization": "none"},
    "unmerged": {"merge_adapters": "never", "quantization": "none"},
    "8bit": {"quantization": "8bit"},
    "4bit": {"quantization": "4bit"},
}
TOKENS = 64
GB = 1e9


def main() -> int:
    """Run all loads and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--folder", type=Path, help="for the weights; default: a temporary one")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(Path(options.one[0]), options.one[1], options.device)))
        return 0
    import torch

    if options.device != "cpu" and not torch.cuda.is_available():
        print("no GPU here; --device cpu --size small tries the script itself")
        return 1
    place = Path(tempfile.mkdtemp(prefix="phi4d-gpu-load-", dir=options.folder))
    rows: list[dict[str, Any]] = []
    try:
        made = [sys.executable, str(ROOT / "tools" / "checkpoints.py"), str(place / "model")]
        made += ["--layout", "original", "--size", options.size, "--device", options.device]
        subprocess.run(made, check=True)
        for load in LOADS:
            if load == "4bit" and not importlib.util.find_spec("bitsandbytes"):
                print("4bit      left out: bitsandbytes is not installed")
                continue
            command = [sys.executable, __file__, "--device", options.device]
            command += ["--one", str(place / "model"), load]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                print(f"{load:9} failed with exit code {done.returncode}")
                rows.append({"load": load, "failed": done.returncode})
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            print(
                "{load:9} load {load_s:6.1f} s  weights {weights_gb:5.2f} GB (plan {plan_gb:5.2f})"
                "  peak {peak_gb:5.2f} GB  picture {picture_tps:6.1f} tok/s  clip {clip_tps:6.1f}"
                " tok/s  8 clips {clips_tps:6.1f} tok/s".format(**row),
                flush=True,
            )
    finally:
        shutil.rmtree(place)
    print(json.dumps({"device": options.device, "size": options.size, "rows": rows}))
    return 1 if any("failed" in row for row in rows) else 0


def one(folder: Path, load: str, device: str) -> dict[str, Any]:
    """Plan, load and ask in this process."""
    import numpy as np
    import torch

    from phi4d.engine import devices
    from phi4d.engine.checkpoint import read
    from phi4d.engine.phi4 import Phi4Engine
    from phi4d.engine.plan import Wishes, plan
    from phi4d.job import Kind, Request

    cuda = device != "cpu"
    size = read(folder).size
    wishes = Wishes(device, **LOADS[load])
    (slot,) = plan(
        devices.probe() if cuda else [], devices.cpu(), size, wishes, devices.installed()
    )
    begun = time.perf_counter()
    engine = Phi4Engine.load(folder, slot, rows=8)
    if cuda:
        torch.cuda.synchronize(device)
    load_s = time.perf_counter() - begun
    arena = engine._loops._arena
    weights = torch.cuda.memory_allocated(device) if cuda else 0
    weights -= arena.nbytes if arena else 0

    rng = np.random.default_rng(0)
    picture = Request(
        Kind.IMAGE,
        "Describe the image.",
        rng.integers(0, 256, (1080, 1920, 3), dtype=np.uint8),
        TOKENS,
    )
    clips = [
        Request(
            Kind.AUDIO,
            "Transcribe the audio clip into text.",
            rng.normal(0, 0.1, 30 * 16_000).astype(np.float32),
            TOKENS,
        )
        for _ in range(8)
    ]

    def tokens_a_second(requests: list[Request]) -> float:
        engine.generate(requests)  # the first time chooses kernels and fills the allocator
        begun = time.perf_counter()
        answers = engine.generate(requests)
        return sum(answer.new_tokens for answer in answers) / (time.perf_counter() - begun)

    result = {
        "load": load,
        "why": slot.why,
        "attention": slot.attention,
        "load_s": round(load_s, 1),
        "weights_gb": round(weights / GB, 2),
        "plan_gb": round(slot.needs_bytes / GB, 2),
        "picture_tps": round(tokens_a_second([picture]), 1),
        "clip_tps": round(tokens_a_second(clips[:1]), 1),
        "clips_tps": round(tokens_a_second(clips), 1),
    }
    peak = torch.cuda.max_memory_allocated(device) if cuda else 0
    return result | {"peak_gb": round(peak / GB, 2), "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(main())
