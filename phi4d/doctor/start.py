"""The model: whether it is here and whole, and how a start would load it on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from phi4d import demo
from phi4d.config import Config
from phi4d.doctor.check import Check, faulty, gb, ok, warn
from phi4d.engine import folder, hub
from phi4d.engine.plan import PUBLISHED, Device, Size, Slot, Wishes, plan
from phi4d.errors import ConfigError


def wishes_of(config: Config) -> Wishes:
    """What the configuration asks of the plan."""
    wishes = {field.name: getattr(config, field.name) for field in fields(Wishes)}
    if config.model_path == demo.MODEL_PATH and config.dtype == "auto":
        wishes["dtype"] = "float32"  # the toy was trained for it
    return Wishes(**wishes)


def model(config: Config) -> tuple[list[Check], Size | None]:
    """Whether the model is here and whole, and its size if it is."""
    is_toy = config.model_path == demo.MODEL_PATH
    try:
        if is_toy:
            where = demo.CHECKPOINT
        else:
            where = hub.resolve(config.model_path, config.revision, config.cache_dir)
        folder.check(where)
    except ConfigError as error:
        return [faulty("model", fault) for fault in error.faults], None
    weights = sum(file.stat().st_size for file in where.rglob("*.safetensors"))
    found = f"{config.model_path}, {gb(weights)} in {where}"
    # of this kind there is one size, and the toy, whose weights take four bytes each
    size = Size(weights // 4, 0, 0, 0, 0, cache_per_token=512) if is_toy else PUBLISHED
    return [ok("model", found)], size


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
        wishes: `wishes_of` the configuration.
        installed: the optional packages.
        busy: whether a phi4d runs already, which has taken its memory.
    """
    try:
        planned = plan(gpus, cpu, size or PUBLISHED, wishes, installed)
    except ConfigError as error:
        for fault in error.faults:
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
