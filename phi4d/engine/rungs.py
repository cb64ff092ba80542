"""The rungs on which a model can be held: what each takes, and what it asks of a device.

The further down, the less memory, and the less precise. Pure arithmetic: no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi4d.engine.plan import Device, Size, Wishes

PACKAGES = ("flash_attn", "bitsandbytes", "accelerate")
"""that a plan asks for"""
BFLOAT16_CAPABILITY = (8, 0)
"""compute capability of the first GPUs that multiply bfloat16 matrices; before, it is emulated"""
FLASH_CAPABILITY = (8, 0)
"""of FlashAttention 2's README: Ampere, Ada, Hopper"""
QUANTIZED = ("8bit", "4bit")
"""the most precise first"""
NF4_CAPABILITY = (6, 0)
"""of bitsandbytes' table of CUDA hardware: Pascal"""

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.5 + 4 / 64}
"""bytes a weight. NF4 keeps a float32 scale for each 64 weights beside their 4 bits; in 8 bits
there is one for each row of thousands, which does not count"""


@dataclass(frozen=True, slots=True)
class Room:
    """What a slot needs beside the weights for its largest request."""

    activations: int
    """bytes of live tensors, in bfloat16"""
    float16: int
    """the same in float16, of which `phi4d.engine.half` keeps a part in float32"""
    tokens: int
    """of prompt and answer, which the key and value cache holds"""


COMFORTABLE = Room(activations=1_142_620_536, float16=1_358_309_520, tokens=9_585 + 512)
"""A picture in 36 crops, and an answer of 512 tokens. The figures are the larger of two peaks, the
image tower's and that of the prompt's way through the language model with adapters beside its
layers, since the cache is there during both. They are of transformers 5.24, and of a picture that
is read whole. In turns, as it is read by now, it wants half:

    python benchmarks/working_memory.py
    picture of 37 crops: 570,277,160 bytes
    bfloat16, 8bit: prompt of 9585 tokens: 407,283,446 bytes
    float16, 8bit:  prompt of 9585 tokens: 553,252,598 bytes

The rest is room for several small requests that are read together."""
TIGHT = Room(activations=250_139_633, float16=250_139_633, tokens=1_329 + 512)
"""A picture in 4 crops, or a clip of 30 s, read whole: the clip's tower, 250,139,633 bytes; prompt
of 1329 tokens in 8bit, 177,405,072 bytes, in float16 210,066,576, of which 100,663,296 are a
layer's weight, which is made anew for each use."""
PARAMETERS = 5_574_460_384
"""of the model that these figures are for: the sum of `phi4d.engine.plan.PUBLISHED`. A smaller one,
such as the demo's toy, is given room in proportion."""
CONTEXT_BYTES = 500_000_000
"""for the CUDA context, the libraries' workspaces and what the allocator loses between blocks. An
allowance, not a measurement; on the CPU for the process itself."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A way to hold the model on a device, and the bytes that it takes for each slot."""

    dtype: str
    quantization: str
    merged: bool
    weights: int
    mapped: int
    """of the weights: files mapped into memory, which all slots of the device have in common"""
    comfortable: int
    """to work in, beside the weights: see `COMFORTABLE`"""
    tight: int
    lacks: str
    """why the device cannot have it, or nothing"""

    def __str__(self) -> str:
        if self.quantization != "none":
            return f"{self.dtype}, {self.quantization}"
        return f"{self.dtype}, {'merged' if self.merged else 'unmerged'} adapters"


def flash_lacks(device: Device, dtype: str, installed: Collection[str]) -> list[str]:
    """Why FlashAttention 2 cannot be had; nothing if it can."""
    if device.capability is None:
        return ["it is for GPUs"]
    reasons = []
    if device.capability < FLASH_CAPABILITY:
        reasons.append(
            f"it wants compute capability {_dotted(FLASH_CAPABILITY)}, and {device.product} has "
            f"{_dotted(device.capability)}"
        )
    if BYTES[dtype] != 2:
        reasons.append(f"it wants dtype bfloat16 or float16, not {dtype}")
    if "flash_attn" not in installed:
        reasons.append("flash-attn is not installed (the extra 'flash': pip install flash-attn)")
    return reasons


def quantized_lacks(device: Device, quantization: str, installed: Collection[str]) -> str:
    """Why a quantization cannot be had; nothing if it can, or is none."""
    if quantization != "4bit":
        return ""
    if device.capability is not None and device.capability < NF4_CAPABILITY:
        return (
            f"it wants compute capability {_dotted(NF4_CAPABILITY)}, and {device.product} has "
            f"{_dotted(device.capability)}"
        )
    if "bitsandbytes" not in installed:
        return "bitsandbytes is not installed (pip install bitsandbytes)"
    return ""


def dtypes(device: Device, wishes: Wishes) -> list[str]:
    """The number formats that a device is to have, the best first."""
    if wishes.dtype != "auto":
        return [wishes.dtype]
    if device.capability is not None:
        return ["bfloat16" if device.capability >= BFLOAT16_CAPABILITY else "float16"]
    return ["bfloat16"] if device.bfloat16 else ["float32", "bfloat16"]


def rungs_of(device: Device, size: Size, wishes: Wishes, installed: Collection[str]) -> list[Rung]:
    """The ways to hold the whole model on a device, the most wanted first."""
    quantizations: Sequence[str] = [wishes.quantization]
    if wishes.merge_adapters == "always":
        quantizations = ["none"]
    elif wishes.quantization == "auto":
        quantizations = ["none", *QUANTIZED]
    return [
        _rung(device, size, dtype, quantization, merged, installed)
        for quantization in quantizations
        for dtype in dtypes(device, wishes)
        for merged in _merges(device, quantization, wishes)
    ]


def _merges(device: Device, quantization: str, wishes: Wishes) -> list[bool]:
    """Whether the adapters are to be merged: surely, rather, or not at all."""
    if wishes.merge_adapters == "always":
        return [True]
    # on the CPU unmerged weights are files mapped into memory, and merged ones would be copies
    rather = wishes.merge_adapters == "auto" and device.capability is not None
    return [True, False] if rather and quantization == "none" else [False]


def _rung(
    device: Device,
    size: Size,
    dtype: str,
    quantization: str,
    merged: bool,
    installed: Collection[str],
) -> Rung:
    """A rung with its sizes; `merged` has the language model twice, and no adapters."""
    number = BYTES[dtype]
    base = size.embedding + size.towers
    adapters = size.vision_adapter + size.speech_adapter
    if merged:
        weights = (2 * size.language + base) * number
    else:
        language = size.language * (number if quantization == "none" else BYTES[quantization])
        weights = language + (base + adapters) * number
    part = min(1.0, (size.language + base + adapters) / PARAMETERS)

    def to_work_in(room: Room) -> int:
        activations = room.float16 if dtype == "float16" else room.activations * number / 2
        return int(CONTEXT_BYTES + part * activations + size.cache_per_token * room.tokens * number)

    # the published weights are bfloat16 files: anything else is a copy of them
    as_published = dtype == "bfloat16" and quantization == "none" and not merged
    is_mapped = as_published and device.capability is None
    return Rung(
        dtype,
        quantization,
        merged,
        weights=int(weights),
        mapped=int((size.language + base) * number) if is_mapped else 0,
        comfortable=to_work_in(COMFORTABLE),
        tight=to_work_in(TIGHT),
        lacks=quantized_lacks(device, quantization, installed),
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
