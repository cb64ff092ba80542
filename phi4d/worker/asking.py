"""What the engine is asked about a piece: as much as the memory of its device is enough for."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from phi4d import events
from phi4d.engine import Engine
from phi4d.job import Kind, Piece
from phi4d.ladder import Ladder, reduction, words
from phi4d.meter import Meter
from phi4d.prepared.cutting import size
from phi4d.slots import Slots
from phi4d.task import Task
from phi4d.worker.answering import Part, tasks_of
from phi4d.worker.endings import Endings

log = logging.getLogger(__name__)

DEVICE_DEATHS = 3  # devices lost over one file alone, after which it is taken for the cause


class Asking:
    """What one worker asks of its engine.

    Args:
        engine: the slot's engine.
        slots: all workers' slots.
        endings: where jobs go that the device refuses, or is lost over.
        max_new_tokens: tokens of one answer, at most.
        meter: counts what is too large.
    """

    def __init__(
        self, engine: Engine, slots: Slots, endings: Endings, *, max_new_tokens: int, meter: Meter
    ) -> None:
        self._engine = engine
        self._slots = slots
        self._ladder = Ladder(shared=slots.shared(engine.device))
        self._endings = endings
        self._max_new_tokens = max_new_tokens
        self._meter = meter

    def change(self, max_new_tokens: int) -> None:
        """From the next piece on."""
        self._max_new_tokens = max_new_tokens

    def parts(self, task: Task, piece: Piece) -> list[Part]:
        """What is to be answered about a piece, each part for itself.

        A job that was started before and not finished has the device for itself: if it is lost,
        this is why, and no other slot's job.
        """
        kind = task.job.kind
        rung = self._ladder.rung(kind)
        pieces, crops = [piece], None
        if rung.size is not None:
            if kind is Kind.AUDIO:
                pieces = task.shorter(piece, rung.size)
            else:
                crops = rung.size
        alone = rung.alone or task.job.attempts > 1
        return [
            Part(task, each, task.request(each, self._max_new_tokens, crops), alone)
            for each in pieces
        ]

    def refused(self, part: Part, error: str) -> list[Part]:
        """The device's memory was too small for a part: go a rung lower, or refuse its job.

        Returns:
            What is to be asked in its place; nothing if its job is another device's now, or failed.
        """
        task, kind = part.task, part.task.job.kind
        self._meter.too_large(self._engine.device, kind)
        asked = size(kind, part.piece.media)
        if kind is Kind.IMAGE:
            asked = min(asked, part.request.max_crops or self._engine.max_crops)
        rung = self._ladder.rung(kind)
        if (rung.size is not None and asked > rung.size) or (rung.alone and not part.alone):
            return self.parts(task, part.piece)  # others have been refused since it was asked
        below = self._ladder.down(kind, asked)
        if below is not None:
            log.warning(
                "%s; from now on %s",
                error,
                words(kind, below),
                extra=events.DEVICE_FULL(device=self._engine.device, fault="device"),
            )
            return self.parts(task, part.piece)
        if self._slots.refuse(task.job.id, self._engine.device):
            least = f" and with {reduction(kind, rung.size)}" if rung.size else ""
            self._endings.give_up(
                task,
                "device",
                "answer",
                f"needs more memory than any device has, even alone{least}: give the device more, "
                f'set quantization = "4bit", or make the file smaller ({error})',
            )
        else:
            task.log.warning("%s: waits for another device: %s", task.name, error)
            self._endings.put_back([task], count=False)
        return []

    def blame(self, parts: Sequence[Part], error: str) -> None:
        """The device was lost over these: their attempts count, and one that was alone is marked.

        Several come back one by one; then it shows which it was.
        """
        tasks = tasks_of(parts)
        alone = all(part.alone for part in parts) or not self._slots.shared(self._engine.device)
        sole = len(tasks) == 1 and alone
        for task in tasks:
            if sole and task.job.deaths + 1 >= DEVICE_DEATHS:
                self._endings.give_up(
                    task,
                    "file",
                    "answer",
                    f"the device was lost {DEVICE_DEATHS} times over it alone; look for its cause "
                    f"in the kernel's log, or leave the file out. The last time: {error}",
                )
            else:
                self._endings.put_back([task], count=True, died=sole)
