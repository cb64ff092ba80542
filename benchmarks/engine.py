"""The engine against transformers' own generate: 32 clips and 16 pictures, random weights.

    python benchmarks/engine.py [--device cpu] [--size mid|full|small] [--dtype bfloat16]

Three ways to answer the same requests, each with the media's preparation:

- `one`: transformers' class and generate as they come, a file at a time, adapters beside the
  weights by peft: the way of the model's card.
- `static`: the same in batches, in order of arrival. A batch goes on until its longest answer
  ends.
- `phi4d`: this engine's stream, adapters merged, or beside with `--unmerged`.

Clips have 5 to 30 s, and answers of 3.3 tokens a second of sound, whatever the model would say;
pictures have answers of 100 tokens. `mid` has 300 million parameters, in the proportions of the
published model; `full` is its size, and its pictures have 1920x1080. Pictures are cut into crops by
this engine's tiler in all three, since transformers' own wants torchvision.

Times real time: seconds of sound for each second. The last line is JSON. Needs torch, transformers,
peft, safetensors and numpy; `full` 11 GB of disk, freed afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import Phi4MultimodalFeatureExtractor, Phi4MultimodalForCausalLM, logging

sys.path.insert(0, str(Path(__file__).parent))
from models import CONFIGS, made, requests, wait

from phi4d.engine.phi4 import ADAPTER, Phi4Engine
from phi4d.engine.pixels import mask, pixels
from phi4d.engine.plan import Slot
from phi4d.engine.requests import Asked
from phi4d.job import SAMPLE_RATE_HZ, Completion, Kind, Request
from phi4d.prepared.tiles import tile


class Rival:
    """transformers' class with peft's adapters, nothing of it corrected."""

    def __init__(self, folder: Path, device: str, dtype: str, ours: Phi4Engine) -> None:
        self._model = Phi4MultimodalForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
        ).eval()
        for name in ADAPTER.values():
            # peft matches whole names; the published pattern begins in the midst of them
            described = folder / f"{name}-lora" / "adapter_config.json"
            content = json.loads(described.read_text())
            content["target_modules"] = r"model\." + content["target_modules"]
            described.write_text(json.dumps(content))
            self._model.load_adapter(
                str(folder), adapter_name=name, adapter_kwargs={"subfolder": f"{name}-lora"}
            )
        self._model.to(device)
        self._device = device
        self._ours = ours

    def answer(self, requests: Sequence[Request]) -> int:
        """Answer one batch; returns the tokens that were wanted."""
        kind = requests[0].kind
        for module in self._model.modules():  # its own set_adapter asks for one version of peft
            if isinstance(module, BaseTunerLayer):
                module.set_adapter(ADAPTER[kind])
        inputs = self._clips(requests) if kind is Kind.AUDIO else self._pictures(requests)
        most = max(request.max_new_tokens for request in requests)
        with torch.inference_mode():
            out = self._model.generate(
                **{name: value.to(self._device) for name, value in inputs.items()},
                do_sample=False,
                min_new_tokens=most,
                max_new_tokens=most,
                suppress_tokens=sorted(self._ours._tokens.media),  # fault E
            )
        assert out.shape[1] == inputs["input_ids"].shape[1] + most
        return sum(request.max_new_tokens for request in requests)

    def _clips(self, requests: Sequence[Request]) -> dict[str, Any]:
        samples: Any = [request.media for request in requests]
        extract = Phi4MultimodalFeatureExtractor()
        made = dict(extract(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"))
        made = {name: value for name, value in made.items() if value is not None}
        counts = made["audio_embed_sizes"].tolist()
        return made | self._ids(requests, counts, self._ours._ready().audio_id)

    def _pictures(self, requests: Sequence[Request]) -> dict[str, Any]:
        tiles = [tile(request.media, self._ours.max_crops) for request in requests]
        counts = [one.tokens for one in tiles]
        return {
            "image_pixel_values": torch.stack([pixels(one) for one in tiles]),
            "image_sizes": torch.tensor([[one.height, one.width] for one in tiles]),
            "image_attention_mask": torch.stack([mask(one) for one in tiles]),
        } | self._ids(requests, counts, self._ours._ready().image_id)

    def _ids(self, requests: Sequence[Request], counts: list[int], media: int) -> dict[str, Any]:
        rows = [
            self._ours._tokens.prompt(request.prompt, media, count)
            for request, count in zip(requests, counts, strict=True)
        ]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self._model.config.pad_token_id)
        attend = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
            attend[i, length - len(row) :] = 1
        return {"input_ids": ids, "attention_mask": attend}


def stream(engine: Phi4Engine, requests: Sequence[Request]) -> int:
    """Answer by the engine's stream; returns the tokens."""
    waiting = [Asked(request) for request in requests]
    tokens = 0

    def take(room: int) -> list[Asked]:
        taken, waiting[:] = waiting[:room], waiting[room:]
        return taken

    def told(asked: Asked, ended: object) -> None:
        nonlocal tokens
        assert isinstance(ended, Completion), ended
        assert ended.new_tokens == asked.request.max_new_tokens
        tokens += ended.new_tokens

    engine.serve(take, told)
    return tokens


def batches(all_of_them: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """In order, so many at a time."""
    for begin in range(0, len(all_of_them), size):
        yield all_of_them[begin : begin + size]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(CONFIGS), help="default: mid on the CPU, else full")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument(
        "--rows",
        type=int,
        help="answers of phi4d at a time; default: as many as pay. On a GPU their memory is taken "
        "at the start, and the others need some beside it",
    )
    parser.add_argument("--batch", type=int, default=16, help="rows of a static batch")
    parser.add_argument("--unmerged", action="store_true")
    parser.add_argument("--only", nargs="+", default=["one", "static", "phi4d"])
    parser.add_argument("--folder", type=Path, help="for the weights; default: a temporary one")
    options = parser.parse_args()
    size = options.size or ("mid" if options.device == "cpu" else "full")
    with made(size, options.device, options.folder) as folder:
        result = measure(folder, size, options)
    print(json.dumps(result))
    return 0


def measure(folder: Path, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """All ways, in one process, a warming request of each kind before each."""
    logging.set_verbosity_error()  # it says that weights are missing which are not
    slot = Slot(options.device, options.dtype, merged=not options.unmerged)
    engine = Phi4Engine.load(folder, slot, rows=options.rows, endless=True)
    rival = None
    if {"one", "static"} & set(options.only):
        rival = Rival(folder, options.device, options.dtype, engine)
    clips, pictures = requests(size, options.clips, options.pictures)
    sound_s = sum(len(request.media) for request in clips) / SAMPLE_RATE_HZ
    parameters = sum(tensor.numel() for tensor in engine._ready().models["vision"].parameters())

    def ways(rows: int) -> dict[str, Callable[[Sequence[Request]], int]]:
        made: dict[str, Callable[[Sequence[Request]], int]] = {
            "phi4d": lambda all_of_them: stream(engine, all_of_them)
        }
        if rival is not None:
            made["one"] = lambda them: sum(rival.answer(one) for one in batches(them, 1))
            made["static"] = lambda them: sum(rival.answer(some) for some in batches(them, rows))
        return made

    def timed(way: Callable[[Sequence[Request]], int], them: Sequence[Request]) -> dict[str, float]:
        way(them[:1])
        wait(options.device)
        begun = time.perf_counter()
        tokens = way(them)
        wait(options.device)
        seconds = time.perf_counter() - begun
        return {"seconds": round(seconds, 2), "tokens_a_second": round(tokens / seconds, 1)}

    rows: dict[str, dict[str, Any]] = {}
    for name in options.only:
        way = ways(options.batch)[name]
        row: dict[str, Any] = {}
        if clips:
            row["clips"] = timed(way, clips)
            row["clips"]["real_time"] = round(sound_s / row["clips"]["seconds"], 1)
        if pictures:
            row["pictures"] = timed(way, pictures)
            row["pictures"]["a_second"] = round(len(pictures) / row["pictures"]["seconds"], 2)
        rows[name] = row
        print(f"{name:8} {said(row)}", flush=True)
    engine.close()
    return {
        "device": options.device,
        "size": size,
        "parameters": parameters,
        "dtype": options.dtype,
        "merged": not options.unmerged,
        "clips": len(clips),
        "sound_seconds": round(sound_s, 1),
        "pictures": len(pictures),
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
        "times_one": over(rows, "one"),
        "times_static": over(rows, "static"),
    }


def said(row: dict[str, Any]) -> str:
    """One line of the table."""
    words = []
    if "clips" in row:
        form = "clips {seconds:8.1f} s {real_time:8.1f} x real time {tokens_a_second:8.1f} tok/s"
        words.append(form.format(**row["clips"]))
    if "pictures" in row:
        form = "pictures {seconds:8.1f} s {a_second:7.2f} a second {tokens_a_second:8.1f} tok/s"
        words.append(form.format(**row["pictures"]))
    return "   ".join(words)


def over(rows: dict[str, dict[str, Any]], other: str) -> dict[str, float]:
    """How many times as fast as another way."""
    if other not in rows or "phi4d" not in rows:
        return {}
    return {
        kind: round(rows[other][kind]["seconds"] / ours["seconds"], 2)
        for kind, ours in rows["phi4d"].items()
    }


if __name__ == "__main__":
    sys.exit(main())
