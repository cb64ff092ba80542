"""From a checkpoint to a corrected model on a device, in transformers' own classes. No network.

The skeleton is filled tensor by tensor, so that both layouts, any number of files, quantization and
merged adapters are one loop; several devices load side by side. It answers nothing itself;
``phi4.py`` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import Phi4MultimodalForCausalLM

from phi4d.engine.adapters import Adapted, Switch, merged
from phi4d.engine.checkpoint import LINEAR, Checkpoint, read_json
from phi4d.engine.corrections import correct
from phi4d.engine.faults import device_faults, trim
from phi4d.engine.half import widen
from phi4d.engine.plan import Slot
from phi4d.engine.quantize import quantized
from phi4d.engine.seats import seated
from phi4d.engine.skeleton import check, expected_shapes, skeleton
from phi4d.errors import ConfigError
from phi4d.prepared.mel import Mel

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""the same, as safetensors calls them"""
MAPPED_BYTES = 256_000_000
"""that are mapped at a time, of what is copied or converted anyway"""

Progress = Callable[[int, int], None]
"""called with the number of files that are read, and of all"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to use."""

    models: dict[str, Phi4MultimodalForCausalLM]
    """by adapter; corrected, in eval mode. One and the same, or, with merged adapters, two that
    share everything but the language model's layers"""
    switch: Switch
    """makes an adapter work that is not merged"""
    mel: Mel
    """how features are made of sound"""
    image_id: int
    """stands for pictures in a prompt"""
    audio_id: int
    """stands for clips in a prompt"""
    stop_ids: frozenset[int]
    """end an answer"""
    short_tokens: int
    """up to this length the language model's rotary scaling is the short one: 4,096"""
    longest_tokens: int
    """no prompt may be longer: 131,072"""

    def use(self, adapter: str) -> Phi4MultimodalForCausalLM:
        """The model with an adapter, ``vision`` or ``speech``, at work."""
        self.switch.adapter = adapter
        return self.models[adapter]


def load(checkpoint: Checkpoint, slot: Slot, progress: Progress | None = None) -> Loaded:
    """Load a checkpoint as a plan says.

    Args:
        checkpoint: from `phi4d.engine.checkpoint.read`.
        slot: the device and how to load there.
        progress: called in this thread with the files that are read, and all, before each tensor
            and at the end; what it raises ends the loading.

    Raises:
        ConfigError: the tensors do not fit the configuration; found before any is read.
        DeviceError: the device has too little memory, or failed.
    """
    check(checkpoint)
    stop_ids = _stop_ids(checkpoint)
    with device_faults(slot.device, f"loading {checkpoint.folder}"):
        models, switch = _Filling(checkpoint, slot, progress or _in_silence).models()
        model = models["vision"]
        config: Any = model.config
        return Loaded(
            models,
            switch,
            checkpoint.mel,
            image_id=config.vision_config.image_token_id,
            audio_id=config.audio_config.audio_token_id,
            stop_ids=stop_ids,
            short_tokens=config.original_max_position_embeddings,
            longest_tokens=config.max_position_embeddings,
        )


def _channels_last(towers: nn.Module) -> None:
    """Have the towers' convolutions keep a place's channels together, which the CPU likes better.

    docs/performance.md has what it gains.
    """
    for module in towers.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _in_silence(_done: int, _of: int) -> None:
    """Nobody asked for the progress."""


class _Filling:
    """A skeleton on its way to a model."""

    def __init__(self, checkpoint: Checkpoint, slot: Slot, progress: Progress) -> None:
        self._checkpoint = checkpoint
        self._slot = slot
        self._progress = progress
        # weights that wait in main memory are brought to the device layer by layer
        self._device = "cpu" if slot.offload_bytes else slot.device
        self._dtype = DTYPES[slot.dtype]
        self._stored = STORED[slot.dtype]
        self._reader = _Reader(checkpoint)
        self._model = skeleton(checkpoint, slot.attention)
        self._places = expected_shapes(checkpoint).keys()
        self._twin = _twin(self._model) if slot.merged else self._model
        self._low_rank: dict[str, dict[str, dict[str, Tensor]]] = {}

    def models(self) -> tuple[dict[str, Phi4MultimodalForCausalLM], Switch]:
        """Fill the skeleton; once."""
        model, twin = self._model, self._twin
        count = len(self._checkpoint.files)
        by_file = groupby(self._checkpoint.tensors.items(), lambda item: item[1].file)
        for done, (_, tensors) in enumerate(by_file, 1):
            for name, _ in tensors:
                self._progress(done - 1, count)
                self._place(name)
            self._reader.release()
        self._progress(count, count)
        switch = Switch()
        for module, parts in self._low_rank.items():
            low_rank = {adapter: (ab["A"], ab["B"]) for adapter, ab in parts.items()}
            scales = {name: adapter.scale for name, adapter in self._checkpoint.adapters.items()}
            model.set_submodule(
                module, Adapted(model.get_submodule(module), switch, low_rank, scales)
            )
        for each in dict.fromkeys((model, twin)):
            each.tie_weights()
            each.model.rotary_emb.to(self._device)
            correct(each.eval())
            seated(each)
            if self._dtype is torch.float16:
                widen(each)
        if self._slot.device == "cpu":
            _channels_last(model.model.embed_tokens_extend)
        if self._slot.offload_bytes:
            _offload(model, self._slot)
        trim()
        return {"vision": model, "speech": twin}, switch

    def _place(self, name: str) -> None:
        """Read one tensor and put it where it belongs; an adapter's waits for its layer."""
        if name not in self._places:
            return
        module, _, rest = name.partition(".lora_")
        if rest:
            if not self._slot.merged:
                part, adapter, _ = rest.split(".")
                parts = self._low_rank.setdefault(module, {}).setdefault(adapter, {})
                parts[part] = self._read(name)
            return
        layer = name.removesuffix(".weight")
        if not LINEAR.fullmatch(layer):
            value = self._read(name)
            for model in dict.fromkeys((self._model, self._twin)):
                _assign(model, name, value)
        elif self._slot.quantization != "none":
            weight = self._reader.get(name).to(self._dtype)
            self._model.set_submodule(
                layer, quantized(weight, self._slot.quantization, self._device, self._dtype)
            )
        elif self._slot.merged:
            weight = self._read(name)
            for model, adapter in ((self._model, "vision"), (self._twin, "speech")):
                _assign(model, name, self._merged(layer, weight, adapter))
        else:
            _assign(self._model, name, self._read(name))

    def _merged(self, layer: str, weight: Tensor, adapter: str) -> Tensor:
        if f"{layer}.lora_A.{adapter}.weight" not in self._places:
            return weight
        a, b = (
            self._reader.get(f"{layer}.lora_{part}.{adapter}.weight").to(weight.device)
            for part in "AB"
        )
        return merged(weight, a, b, self._checkpoint.adapters[adapter].scale)

    def _read(self, name: str) -> Tensor:
        as_it_is = self._device == "cpu" and self._checkpoint.tensors[name].dtype == self._stored
        tensor = self._reader.get(name, keep=as_it_is)
        return tensor.to(device=self._device, dtype=self._dtype)


class _Reader:
    """Tensors of a checkpoint, mapped from their files.

    What stays as it is on the CPU stays mapped: it takes no memory of its own, and slots share it.
    What is only looked at has a mapping of its own, which is let go every `MAPPED_BYTES`: or what
    was read of a file would count as this process's memory for as long as anything of it is kept.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors = checkpoint.tensors
        self._kept: dict[Path, Any] = {}
        self._passing: dict[Path, Any] = {}
        self._passed = 0

    def get(self, name: str, *, keep: bool = False) -> Tensor:
        """A tensor as it is stored.

        Args:
            name: native.
            keep: whether the tensor itself will be used, and not a copy.
        """
        from safetensors import safe_open

        stored = self._tensors[name]
        if not keep:
            if self._passed > MAPPED_BYTES:
                self.release()
            self._passed += stored.bytes
        files = self._kept if keep else self._passing
        if stored.file not in files:
            files[stored.file] = safe_open(stored.file, framework="pt", device="cpu")
        return cast("Tensor", files[stored.file].get_tensor(stored.key))

    def release(self) -> None:
        """Let go of what was only looked at."""
        self._passing.clear()
        self._passed = 0


def _twin(model: Phi4MultimodalForCausalLM) -> Phi4MultimodalForCausalLM:
    """A second model that shares all with the first but the language model's layers."""
    inner = model.model
    shared = [inner.embed_tokens, inner.embed_tokens_extend, inner.norm, inner.rotary_emb]
    memo = {id(module): module for module in [*shared, model.lm_head, model.config]}
    return copy.deepcopy(model, memo)


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if attribute in dict(module.named_buffers(recurse=False)):
        module.register_buffer(attribute, value)
    else:
        module.register_parameter(attribute, nn.Parameter(value, requires_grad=False))


def _offload(model: Phi4MultimodalForCausalLM, slot: Slot) -> None:
    """Keep on the device what fits, and the last layers in main memory, by accelerate's hooks.

    accelerate's own map fills a device in the order of the modules, and would leave out the image
    and audio encoders, which come last.
    """
    from accelerate import cpu_offload

    device = torch.device(slot.device)
    room = slot.offload_bytes
    layers = cast("nn.ModuleList", model.model.layers)
    inner = {id(tensor) for tensor in layers.parameters()}
    room -= sum(p.nbytes for p in model.parameters() if id(p) not in inner)
    for module in (*model.model.children(), model.lm_head):
        if module is not layers:
            module.to(device)
    for layer in layers:
        size = sum(tensor.nbytes for tensor in layer.parameters())
        if size <= room:
            room -= size
            layer.to(device)
        else:
            room = 0
            # the whole layer at once: an adapter's weights are not in a module that is called
            whole = [type(layer).__name__]
            cpu_offload(layer, execution_device=device, preload_module_classes=whole)


def _stop_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """The ids that end an answer, by the generation config and by the config."""
    found: set[int] = set()
    path = checkpoint.folder / "generation_config.json"
    configs = [checkpoint.config, *([read_json(path)] if path.exists() else [])]
    for config in configs:
        eos: int | list[int] | None = config.get("eos_token_id")
        found.update([eos] if isinstance(eos, int) else eos or [])
    if not found:
        raise ConfigError(
            f"{checkpoint.folder}/config.json: no eos_token_id, so no answer would end. Download "
            "the model again: phi4d model pull"
        )
    return frozenset(found)
