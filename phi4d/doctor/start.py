"""The model: whether it is here and whole, and how a start would load it on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from phi4d.config import Config
from phi4d.doctor.check import Check, faulty, gb, ok, warn
from phi4d.engine import checkpoint
from phi4d.engine.plan import PUBLISHED, Device, Size, Slot, Wishes, plan
from phi4d.errors import ConfigError, EnvironmentFault
from phi4d.loading import locate


def model(config: Config) -> tuple[list[Check], Size | None]:
    """Whether the model is here and whole, and its size if it is."""
    try:
        folder, _ = locate(config)
        found = checkpoint.read(folder)
        from phi4d.engine import skeleton  # importing torch takes seconds

        skeleton.check(found)
    except ConfigError as error:
        return [faulty("model", fault) for fault in error.faults], None
    weights = sum(file.stat().st_size for file in found.files)
    words = f"{config.model_path}, {found.layout} layout, {gb(weights)} in {folder}"
    return [ok("model", words)], found.size


def slots(
    gpus: Sequence[Device],
    cpu: Device,
    size: Size | None,
    wishes: Wishes,
    installed: frozenset[str],
    *,
    busy: bool,
) -> Iterator[Check]:
    """What a start would load where, and why.

    Args:
        gpus: the GPUs found.
        cpu: the CPU and main memory.
        size: of the model; None if it is not here: then the published one's.
        wishes: `phi4d.loading.wishes_of` the configuration.
        installed: the optional packages.
        busy: whether a phi4d runs already, which has taken its memory.
    """
    try:
        planned = plan(gpus, cpu, size or PUBLISHED, wishes, installed)
    except (ConfigError, EnvironmentFault) as error:
        for fault in str(error).splitlines():
            if busy:
                yield warn(
                    "plan", fault, "stop phi4d and ask again: what it holds counts as taken here"
                )
            else:
                yield faulty("plan", fault)
        return
    for slot in planned:
        yield _slot(slot, "" if size else "once the model is here: ")


def _slot(slot: Slot, when: str) -> Check:
    name = f"plan {slot.device}"
    found = f"{when}{slot.why}; attention: {slot.attention}"
    if slot.offload_bytes:
        return warn(name, found, "an answer takes minutes; a GPU with more memory helps")
    return ok(name, found)
