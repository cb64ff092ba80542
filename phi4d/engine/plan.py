"""What to load where: a pure plan from devices, the model's size and wishes. No torch, no I/O.

A slot takes the first of its device's rungs whose weights leave room to work in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from phi4d.engine.placement import finds_its_own, place
from phi4d.engine.rungs import (
    BYTES,
    QUANTIZED,
    Rung,
    dtypes,
    flash_lacks,
    quantized_lacks,
    rungs_of,
)
from phi4d.errors import ConfigError, EnvironmentFault

LAYERS_AT_LEAST = 16
"""of a language model that is offloaded layer by layer; the published one has 32"""


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


PUBLISHED = Size(
    language=3_221_225_472,
    embedding=614_596_608,
    towers=908_166_112,
    vision_adapter=369_098_752,
    speech_adapter=461_373_440,
    cache_per_token=65_536,
)
"""Phi-4-multimodal-instruct, for who wants a plan before it is downloaded: what
`phi4d.engine.checkpoint` counts for its configuration. Language model: layers 32 x (5120 x 3072 +
3072 x 3072 + 16384 x 3072 + 3072 x 8192); embedding 200064 x 3072; adapters of rank 256 and 320."""


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
    room_bytes: int = 0
    """what is left to work in beside them: context, activations, cache"""
    main_bytes: int = 0
    """of weights that are offloaded to main memory"""
    share_bytes: int = 0
    """what it may have of the device, which others may share: its part of what was free; 0: all"""
    why: str = ""
    """the choices in words, for the log and `phi4d doctor`"""

    @property
    def precision(self) -> str:
        """The number format, quantization, adapters and attention in a few words."""
        how = [self.dtype, self.attention]
        if self.quantization != "none":
            how.insert(1, self.quantization)
        elif self.merged:
            how.insert(1, "merged adapters")
        return ", ".join([*how, "offloaded"] if self.offload_bytes else how)


def plan(
    devices: Sequence[Device], cpu: Device, size: Size, wishes: Wishes, installed: Collection[str]
) -> list[Slot]:
    """How the model is loaded, slot by slot.

    Devices that were named must all do. GPUs that ``auto`` or ``cuda`` found are left out if they
    have too little memory and another has enough. Slots on one device share its free memory.

    Args:
        devices: the GPUs, in CUDA's order; needed only if `placement.wants_gpus`.
        cpu: the CPU, with main memory.
        size: of the model.
        wishes: the configuration.
        installed: which of `PACKAGES` are there.

    Raises:
        ConfigError: with every fault: a device that is not there, a wish that cannot be had on a
            device, or no room, with what each rung would have needed.
        EnvironmentFault: nothing is wrong but that other programs have the memory: every device
            without room would have it if it were free.
    """
    names, faults = place(devices, wishes)
    faults += _contradictions(wishes)
    at_hand = {device.name: device for device in (*devices, cpu)}
    counts: dict[Device, int] = {}
    for device in [at_hand[name] for name in dict.fromkeys(names)]:
        out_of_reach = list(_out_of_reach(device, wishes, installed))
        faults += out_of_reach
        if not out_of_reach:
            counts[device] = names.count(device.name)

    rungs = {device: rungs_of(device, size, wishes, installed) for device in counts}
    slots: dict[str, Slot] = {}
    for device, count in counts.items():
        if slot := _resident(device, count, rungs[device], wishes, installed):
            slots[device.name] = slot
    crowded = [device for device in counts if device.name not in slots]
    refusals: list[str] = []
    refused: list[tuple[Device, int, Sequence[Rung]]] = []
    if not (slots and finds_its_own(wishes)):
        main = cpu.free_bytes
        if "cpu" in slots:
            main -= counts[cpu] * (slots["cpu"].needs_bytes + slots["cpu"].room_bytes)
        for device in crowded:
            count = counts[device]
            offer = _offloaded(device, count, main, size, rungs[device], wishes, installed)
            if isinstance(offer, Slot):
                slots[device.name] = offer
                main -= count * offer.main_bytes
            else:
                refusals.append(_no_room(device, count, rungs[device], offer, wishes))
                refused.append((device, count, rungs[device]))
        if not (slots and finds_its_own(wishes)):
            faults += refusals
    if refusals and faults == refusals and all(_would_do(*one) for one in refused):
        raise EnvironmentFault("\n".join(faults))
    if faults:
        raise ConfigError(*faults)
    return _told_of_the_left_out([slots[name] for name in names if name in slots], crowded)


def _would_do(device: Device, count: int, rungs: Sequence[Rung]) -> bool:
    """Whether a device would hold so many slots if all its memory were free."""
    # a GPU can be empty; of main memory the kernel and the system always have a part
    most = device.total_bytes if device.capability else int(0.9 * device.total_bytes)
    empty = replace(device, free_bytes=most)
    return any(not rung.lacks and _fits(rung, rung.tight, empty, count) for rung in rungs)


def _told_of_the_left_out(slots: list[Slot], crowded: Sequence[Device]) -> list[Slot]:
    """The slots, the first of which says which GPUs have none."""
    used = {slot.device for slot in slots}
    left_out = [
        f"{gpu.name} ({_gb(gpu.free_bytes)} GB free)" for gpu in crowded if gpu.name not in used
    ]
    if left_out:
        why = f"{slots[0].why}; without {', '.join(left_out)}, which is too little"
        slots[0] = replace(slots[0], why=why)
    return slots


def _contradictions(wishes: Wishes) -> list[str]:
    if wishes.merge_adapters == "always" and wishes.quantization in QUANTIZED:
        return [
            f"merge_adapters: 'always' does not go with quantization {wishes.quantization!r}: "
            "adapters are merged into unquantized weights alone. Set merge_adapters or "
            "quantization to 'auto'"
        ]
    return []


def _out_of_reach(device: Device, wishes: Wishes, installed: Collection[str]) -> Iterator[str]:
    """Faults of wishes that a device cannot have, whatever its memory."""
    if wishes.attention == "flash_attention_2":
        reasons = flash_lacks(device, dtypes(device, wishes)[0], installed)
        if reasons:
            yield (
                f"attention: 'flash_attention_2' cannot be had on {device.name}: "
                f"{'; '.join(reasons)}. Set attention to 'auto' or 'sdpa'"
            )
    lacks = quantized_lacks(device, wishes.quantization, installed)
    if lacks:
        yield (
            f"quantization: {wishes.quantization!r} cannot be had on {device.name}: {lacks}. "
            "Set quantization to 'auto'"
        )


def _resident(
    device: Device,
    count: int,
    rungs: Sequence[Rung],
    wishes: Wishes,
    installed: Collection[str],
) -> Slot | None:
    """A slot that holds all weights on its device, which `count` such slots share, if one fits."""
    able = [rung for rung in rungs if not rung.lacks]
    smallest = min(able, key=lambda rung: rung.weights)
    for rung, room in [*((rung, rung.comfortable) for rung in able), (smallest, smallest.tight)]:
        if _fits(rung, room, device, count):
            why = f"{rung}: {_gb(rung.weights)} of {_free(device, count)}"
            if room < rung.comfortable:
                why += "; little room to work in, so large pictures may get fewer crops"
            return _slot(device, count, rung, room, why, wishes, installed)
    return None


def _fits(rung: Rung, room: int, device: Device, count: int) -> bool:
    own = rung.weights - rung.mapped + room
    return rung.mapped + count * own <= device.free_bytes


def _offloaded(
    device: Device,
    count: int,
    main: int,
    size: Size,
    rungs: Sequence[Rung],
    wishes: Wishes,
    installed: Collection[str],
) -> Slot | str:
    """A slot that leaves weights in main memory, of which `main` bytes are free; or why not."""
    rung = next((rung for rung in rungs if rung.quantization == "none" and not rung.merged), None)
    if device.capability is None or rung is None:
        return ""
    if wishes.offload == "never":
        return "offload is 'never'"
    if "accelerate" not in installed:
        return "offloading wants accelerate, which is not installed (pip install accelerate)"
    # the language model's layers alone are offloaded, and brought in one by one
    stay = int((size.embedding + size.towers) * BYTES[rung.dtype])
    passing = (rung.weights - stay) // LAYERS_AT_LEAST
    free = device.free_bytes // count - passing
    room = rung.comfortable if free - rung.comfortable >= stay else rung.tight
    keep = free - room
    if keep < stay:
        return f"offloading wants {_gb(stay + passing + room)} GB there"
    rest = rung.weights - keep
    if count * rest > main:
        return (
            f"offloading wants {_gb(count * rest)} GB of main memory, of which {_gb(main)} are free"
        )
    why = (
        f"{rung}: at most {_gb(keep)} of {_free(device, count)}, and slowly, because "
        f"{_gb(rest)} GB of weights wait in main memory"
    )
    for other in rungs:
        if other.lacks and _fits(other, other.tight, device, count):
            why += f"; {other.quantization} would fit, but {other.lacks}"
            break
    slot = _slot(device, count, rung, room, why, wishes, installed)
    return replace(
        slot,
        needs_bytes=keep,
        room_bytes=room + passing,
        offload_bytes=keep,
        main_bytes=rest,
    )


def _slot(
    device: Device,
    count: int,
    rung: Rung,
    room: int,
    why: str,
    wishes: Wishes,
    installed: Collection[str],
) -> Slot:
    attention = wishes.attention
    if attention == "auto":
        lacks = flash_lacks(device, rung.dtype, installed)
        attention = "sdpa" if lacks else "flash_attention_2"
    return Slot(
        device.name,
        dtype=rung.dtype,
        attention=attention,
        quantization=rung.quantization,
        merged=rung.merged,
        needs_bytes=rung.weights,
        room_bytes=room,
        share_bytes=device.free_bytes // count,
        why=why,
    )


def _no_room(
    device: Device, count: int, rungs: Sequence[Rung], no_offload: str, wishes: Wishes
) -> str:
    """The refusal of a device on which no rung fits."""
    smallest = min((rung for rung in rungs if not rung.lacks), key=lambda rung: rung.weights)
    wanted = [
        f"{rung.quantization}: {rung.lacks}"
        if rung.lacks
        else f"{rung}: {_gb(rung.weights + rung.comfortable)} GB"
        for rung in rungs
    ]
    wanted.append(
        f"{smallest}, for small pictures and clips alone: "
        f"{_gb(smallest.weights + smallest.tight)} GB"
    )
    wanted += [no_offload] if no_offload else []
    narrow = [key for key in ("quantization", "offload") if getattr(wishes, key) != "auto"]
    narrow += ["merge_adapters"] if wishes.merge_adapters == "always" else []
    narrow += ["dtype"] if wishes.dtype == "float32" else []
    advice = [f"set {' and '.join(narrow)} to 'auto'"] if narrow else []
    if device.capability is None:
        advice.append("close other programs, or add memory")
    else:
        advice.append("free some of it (nvidia-smi shows who has it), or set device to 'cpu'")
    return (
        f"device: {device.name} ({device.product}) has {_free(device, count)}, too little for the "
        f"model. It wants {'; '.join(dict.fromkeys(wanted))}. What helps: {', '.join(advice)}"
    )


def _free(device: Device, count: int) -> str:
    free = f"{_gb(device.free_bytes)} GB free"
    return free if count == 1 else f"{free}, shared by {count} slots"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"
