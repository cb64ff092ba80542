"""How much main memory phi4d may want at most: for a limit that ends a leak and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from phi4d.config import Config
from phi4d.engine import checkpoint, hub
from phi4d.engine.devices import installed
from phi4d.engine.placement import finds_its_own, wants_gpus
from phi4d.engine.plan import PUBLISHED, Size
from phi4d.engine.rungs import BYTES, rungs_of
from phi4d.errors import ConfigError
from phi4d.loading import locate, wishes_of
from phi4d.unit.host import Host

PROCESS_BYTES = 4_000_000_000
"""for Python, torch and the store, and what is read and written and cannot be dropped at once. An
allowance, not a measurement"""
GPU_BYTES = 8_000_000_000
"""for each GPU: the driver's and CUDA's own part of main memory, and a shard of the model on its
way to the GPU. An allowance, not a measurement"""
MOST_PART = 0.9
"""of main memory; a limit above that would come no sooner than the kernel's own"""


@dataclass(frozen=True, slots=True)
class Bound:
    """What is wanted at most."""

    size: int
    """bytes; 0: it cannot be told"""
    why: str
    """the sum in words, or why there is none"""


def bound(config: Config, host: Host) -> Bound:
    """What phi4d may want on a machine at most; files that the kernel may drop do not count.

    The model's part is what the most spacious way to hold it takes, on each device that gets a
    slot: a limit that is too high does no harm, one that is too low ends the service.
    """
    size = _size(config)
    if size is None:
        return Bound(0, "it is left out: how large the model is cannot be told before it is here")
    wishes = wishes_of(config)
    on_gpus, on_cpu = slots(config, host)
    model = on_cpu * max(
        rung.weights + rung.comfortable for rung in rungs_of(host.cpu, size, wishes, installed())
    )
    if config.offload == "auto":  # the language model may wait in main memory
        number = BYTES["float32" if wishes.dtype == "float32" else "bfloat16"]
        model += on_gpus * int(size.language * number)
    gpus = on_gpus * GPU_BYTES
    decoding = int((on_gpus + on_cpu) * config.decode_processes * config.decode_memory_gb * 1e9)
    whole = PROCESS_BYTES + model + gpus + decoding
    parts = [
        f"{_gb(model)} GB of the model",
        f"{_gb(decoding)} GB for decode_processes with decode_memory_gb each",
        *([f"{_gb(gpus)} GB beside {on_gpus} GPU{'s' if on_gpus > 1 else ''}"] if gpus else []),
        f"{_gb(PROCESS_BYTES)} GB for phi4d itself",
    ]
    if whole > MOST_PART * host.cpu.total_bytes:
        return Bound(
            0,
            f"it is left out: {_gb(whole)} GB may be wanted, and this machine has "
            f"{_gb(host.cpu.total_bytes)}",
        )
    return Bound(whole, f"at most {', '.join(parts)}")


def slots(config: Config, host: Host) -> tuple[int, int]:
    """How many slots there are on GPUs, and how many on the CPU, as far as it can be told."""
    wishes = wishes_of(config)
    names = [name.strip().lower() for name in config.device.split(",")]
    if not wants_gpus(wishes):
        on_gpus, on_cpu = 0, max(1, names.count("cpu"))
    elif finds_its_own(wishes):
        on_gpus = max(host.gpus, 1 if host.rocm or names == ["cuda"] else 0)
        on_cpu = 0 if on_gpus else 1
    else:
        on_cpu = names.count("cpu")
        on_gpus = len(names) - on_cpu
    if config.disable_parallel:
        return (1, 0) if on_gpus else (0, 1)
    return on_gpus, on_cpu


def _size(config: Config) -> Size | None:
    if config.model_path == hub.HUB_ID:
        return PUBLISHED
    try:
        return checkpoint.read(locate(config)[0]).size
    except (ConfigError, OSError):
        return None


def _gb(size: float) -> str:
    return f"{size / 1e9:.0f}"
