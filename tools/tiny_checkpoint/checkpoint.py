"""Stage: the trained parts become a checkpoint folder in the converted layout, with its card."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import tiny
import torch
from align import lora
from transformers import Phi4MultimodalFeatureExtractor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_BYTES = 8 * 2**20
"""What all of ``phi4d/demo`` may take."""
CARD = Path(__file__).with_name("card.md")

PROCESSOR = {
    "image_processor_type": "Phi4MultimodalImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "dynamic_hd": 4,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 14,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 448, "width": 448},
}
"""The image processor's settings, written out: making one would need torchvision."""


def write(base: Path, speech: Path, vision: Path, folder: Path) -> None:
    """Write model, adapters, tokenizer and processor configuration to ``folder``."""
    words = tiny.tokenizer()
    model = tiny.build(words)
    model.load_state_dict(torch.load(base)["model"])
    model.tie_weights()
    parts = {"speech": torch.load(speech), "vision": torch.load(vision)}
    state = model.state_dict()
    for part in parts.values():
        for name, value in part.items():
            if "lora_" not in name:
                state[name].copy_(value)
    audio = model.model.embed_tokens_extend.audio_embed
    for step in ("up_proj", "down_proj"):  # pictures with sound are never asked about: a copy
        trained = getattr(audio, f"{step}_for_speech")
        getattr(audio, f"{step}_for_vision_speech").load_state_dict(trained.state_dict())

    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    _write_processor(words, folder)
    for adapter, part in parts.items():
        model.add_adapter(lora(), adapter_name=adapter)
        state = model.state_dict()
        for name, value in part.items():
            if "lora_" in name:
                state[name].copy_(value)
        model.set_adapter(adapter)
        model.save_pretrained(folder / f"{adapter}-lora")  # with an adapter: it and nothing else
        (folder / f"{adapter}-lora" / "generation_config.json").unlink(missing_ok=True)
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # they are written for their owner alone


def _write_processor(words: PreTrainedTokenizerFast, folder: Path) -> None:
    words.save_pretrained(folder)
    audio = Phi4MultimodalFeatureExtractor().to_dict()
    audio["audio_compression_rate"] = 8
    config = {
        "audio_processor": audio,
        "image_processor": PROCESSOR,
        "processor_class": "Phi4MultimodalProcessor",
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "processor_config.json").write_text(text, encoding="utf-8")


def write_card(folder: Path, figures: list[tuple[str, str]], count: int) -> None:
    """Write the model card, and see that the demo stays small."""
    table = "\n".join(f"| {what} | {figure} |" for what, figure in figures)
    text = CARD.read_text(encoding="utf-8")
    for mark, value in (("DATE", f"{datetime.now(UTC):%Y-%m-%d}"), ("COUNT", str(count)),
                        ("FIGURES", table)):  # fmt: skip
        text = text.replace(f"@{mark}@", value)
    (folder / "README.md").write_text(text, encoding="utf-8")
    taken = sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file())
    assert taken <= MOST_BYTES, f"the demo takes {taken:,} bytes of {MOST_BYTES:,}"
    print(f"the demo takes {taken:,} bytes")
