"""What Phi-4-multimodal wants beside its weights: the peak of live tensors, with no arithmetic.

    python benchmarks/working_memory.py CONFIG_JSON

The full-size model is built of fake tensors, which have shapes and sizes but no memory, and every
storage that an operation makes is counted from its making to its end. The towers and the language
model are called as ``phi4d/engine/embedding.py`` and ``decoding.py`` call them, in bfloat16, with
unmerged adapters: these want more than merged ones, by the LoRA's own products. Attention is that
of torch's flash kernel for the CPU, which like those of a GPU keeps no matrix of scores. Not
counted: what a GPU's context and libraries take, and what an allocator loses between blocks.

CONFIG_JSON is the published model's configuration, in the native (converted) layout.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM
from transformers.initialization import no_init_weights

from phi4d.engine.corrections import correct
from phi4d.engine.tiler import tile

ADAPTERS = {"vision": (256, 512), "speech": (320, 640)}
"""rank and alpha of the published adapters"""


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


def build(mode: FakeTensorMode, config: Phi4MultimodalConfig) -> Phi4MultimodalForCausalLM:
    """The full-size model of fake bfloat16 weights, corrected, with both adapters unmerged."""
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"), no_init_weights():
        model = Phi4MultimodalForCausalLM(config)
        for name, (rank, alpha) in ADAPTERS.items():
            targets = r"model\.layers\.\d+\..*\.(qkv_proj|o_proj|gate_up_proj|down_proj)"
            model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), name)
    torch.set_default_dtype(torch.float32)
    model.tie_weights()
    on_cpu: dict[torch.Tensor, FakeTensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake_tensor = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
                    tensors[name] = on_cpu.setdefault(tensor, fake_tensor)
    model.eval()
    correct(model)
    return model


def fake(mode: FakeTensorMode, *shape: int, dtype: torch.dtype = torch.bfloat16) -> FakeTensor:
    """A tensor with a shape and a size, and no memory."""
    with mode:
        return torch.empty(shape, dtype=dtype)


def measure(call: Callable[[], object]) -> int:
    """The peak of bytes that a call makes, its result included."""
    with torch.no_grad(), LiveBytes() as live:
        kept = call()
    del kept
    return live.peak


def picture(
    model: Any, mode: FakeTensorMode, width: int, height: int, most: int
) -> tuple[int, int]:
    """The image tower and its projector over one picture: crops, and the peak in bytes."""
    tiles = tile(np.zeros((height, width, 3), np.uint8), most)
    ids = torch.full((1, tiles.tokens), model.config.vision_config.image_token_id)
    embeds = fake(mode, 1, tiles.tokens, model.config.hidden_size)
    peak = measure(
        lambda: model.model.embed_tokens_extend.image_embed(
            ids,
            embeds.clone(),
            image_pixel_values=tiles.pixels[None].clone(),
            image_sizes=torch.tensor([[tiles.height, tiles.width]]),
            image_attention_mask=tiles.mask[None].clone(),
        )
    )
    return len(tiles.pixels), peak


def clip(model: Any, mode: FakeTensorMode, seconds: int) -> int:
    """The audio tower and its projector, for one clip."""
    tokens = round(seconds * 12.5)
    ids = torch.full((1, tokens), model.config.audio_config.audio_token_id)
    features = fake(mode, 1, seconds * 100, 80, dtype=torch.float32)
    embeds = fake(mode, 1, tokens, model.config.hidden_size)
    return measure(
        lambda: model.model.embed_tokens_extend.audio_embed(
            ids,
            embeds.clone(),
            audio_input_features=features.clone(),
            audio_embed_sizes=[tokens],
            audio_attention_mask=torch.ones(1, seconds * 100, dtype=torch.bool),
        )
    )


def prefill(model: Any, mode: FakeTensorMode, tokens: int, adapter: str) -> int:
    """The language model over a prompt, without what it keeps in the cache."""
    model.set_adapter(adapter)
    embeds = fake(mode, 1, tokens, model.config.hidden_size)
    return measure(
        lambda: model(
            inputs_embeds=embeds.clone(),
            attention_mask=torch.ones(1, tokens, dtype=torch.long),
            position_ids=torch.arange(tokens)[None],
            use_cache=False,
            logits_to_keep=1,
        )
    )


def main(arguments: list[str]) -> None:
    """Print the figures."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
    config = Phi4MultimodalConfig.from_json_file(arguments[0])
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = build(mode, config)
    weights = {id(p): p.numel() for p in model.parameters()}
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads
    cache *= config.hidden_size // config.num_attention_heads
    print(f"{sum(weights.values()):,} parameters; {cache:,} numbers a token in the cache")
    # not quite the grid's shape: where a crop is partly white, a mask takes its part of the memory
    for width, height, most in ((4000, 3900, 4), (4000, 2950, 12), (4000, 3900, 36)):
        crops, peak = picture(model, mode, width, height, most)
        print(f"picture of {crops:2} crops:   {peak:13,} bytes")
    print(f"clip of 30 s:          {clip(model, mode, 30):13,} bytes")
    for tokens, adapter in ((400, "speech"), (1329, "vision"), (3918, "vision"), (9585, "vision")):
        peak = prefill(model, mode, tokens, adapter)
        print(f"prompt of {tokens:5} tokens: {peak:13,} bytes, and {2 * cache * tokens:13,} cached")


if __name__ == "__main__":
    main(sys.argv[1:])
