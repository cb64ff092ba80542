"""How many threads torch has on the CPU, and how they wait. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi4d.engine.plan import Slot

BESIDE_GPU = 4
"""at most, where all arithmetic is on GPUs: a few copies and conversions are left"""


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""variables by which OpenMP is told how threads wait for each other"""


def wait_asleep() -> None:
    """Have torch's threads sleep while they wait for each other, if nobody says otherwise.

    They would spin for a while, for ever where a thread that they wait for is kept from its CPU by
    another process: beside decode processes that costs more than all the rest (docs/performance.md
    has what was measured). OpenMP reads the variable once, as torch is imported.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


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
