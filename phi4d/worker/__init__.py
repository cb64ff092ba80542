"""The worker room: the thread that takes jobs from claim to finish on one slot.

`thread` has files decoded and sees them to their end: `claiming` says which come next, `reuse`
which answers are known. `answering` is the thread that drives the engine, which wakes the other by
a `bell`; `asking` says what is asked, within the device's memory. `endings` decides, by whose fault
something is, what becomes of a job; `originals` does with source files what their inbox wants.
It knows the engine's protocol, the store, the decode pool and the outputs; it never looks into an
inbox and never reads a source file.
"""

from __future__ import annotations

from phi4d.worker.asking import DEVICE_DEATHS
from phi4d.worker.endings import DECODER_TRIES, Surroundings
from phi4d.worker.originals import Originals
from phi4d.worker.thread import Worker

__all__ = [
    "DECODER_TRIES",
    "DEVICE_DEATHS",
    "Originals",
    "Surroundings",
    "Worker",
]
