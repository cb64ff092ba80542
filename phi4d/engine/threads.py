"""How many threads torch has on the CPU. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi4d.engine.plan import Slot

BESIDE_GPU = 4
"""at most, where all arithmetic is on GPUs: a few copies and conversions are left"""


def thread_count(wanted: int | str, slots: Sequence[Slot], cpus: int) -> int:
    """The threads of each slot's arithmetic; the number is one for the whole process.

    Decode processes get none of their own: they have a lower priority, and what they need is
    little beside a model on the same CPUs.

    Args:
        wanted: the configuration's `threads`.
        slots: that are loaded.
        cpus: that may be used.
    """
    if not isinstance(wanted, str):
        return wanted
    on_cpu = sum(slot.device == "cpu" for slot in slots)
    return max(1, cpus // on_cpu) if on_cpu else min(BESIDE_GPU, cpus)
