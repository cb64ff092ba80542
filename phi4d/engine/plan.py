"""What to load where: a pure plan from devices, the model's size and wishes. No torch, no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A device as it was found; `phi4d.engine.devices` finds them."""

    name: str
    """``cuda:0`` or ``cpu``"""
    product: str
    """what its maker calls it: ``NVIDIA H200``"""
    total_bytes: int
    free_bytes: int
    """of a GPU as its driver says; of the CPU what the kernel calls available"""
    capability: tuple[int, int] | None = None
    """CUDA's compute capability, (9, 0) for Hopper; None for the CPU"""
    bfloat16: bool = False
    """it multiplies bfloat16 matrices by instructions of its own"""
    driver: str = ""
    """version of the driver; empty for the CPU"""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a model is, in parameters; `phi4d.engine.checkpoint` counts them."""

    language: int
    """weights of the language model's linear layers: what can be quantized and merged"""
    embedding: int
    """the token embedding, which is the output layer too"""
    towers: int
    """image and audio encoders with their projectors, and the norms"""
    vision_adapter: int
    speech_adapter: int
    cache_per_token: int
    """numbers in the key and value cache for each token: 2 x layers x KV heads x head size"""


@dataclass(frozen=True, slots=True)
class Wishes:
    """The configuration's keys that the plan asks; each as in `phi4d.config.Config`."""

    device: str = "auto"
    force_cpu: bool = False
    disable_parallel: bool = False
    multi_gpu_threshold_gb: float = 8.0
    dtype: str = "auto"
    attention: str = "auto"
    quantization: str = "auto"
    merge_adapters: str = "auto"
    offload: str = "auto"


@dataclass(frozen=True, slots=True)
class Slot:
    """How the model is loaded on one device."""

    device: str
    dtype: str = "float32"
    """``float32``, ``bfloat16`` or ``float16``"""
    attention: str = "sdpa"
    """of the language model: ``flash_attention_2``, ``sdpa`` or ``eager``"""
    quantization: str = "none"
    """of the language model's linear layers: ``none``, ``8bit`` or ``4bit``"""
    merged: bool = False
    """the language model is there twice, with either adapter merged into it"""
    offload_bytes: int = 0
    """0, or: at most so many bytes of weights stay on the device, the rest in main memory"""
    needs_bytes: int = 0
    """what the weights will take on the device"""
    why: str = ""
    """the choices in words, for the log and `phi4d doctor`"""
