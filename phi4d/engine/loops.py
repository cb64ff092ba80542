"""The loops of an engine: one that stands as long as the engine, or one for each call.

On a GPU one stands: its caches have the memory that is left when the model is loaded, and its steps
are captured once. On the CPU a loop is there for a call, and its memory is others' afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from phi4d.engine import devices
from phi4d.engine.arena import Arena
from phi4d.engine.embedding import Prompt
from phi4d.engine.faults import device_faults, give_back
from phi4d.engine.graphs import Graphs
from phi4d.engine.loader import Loaded
from phi4d.engine.loop import PROMPT_TOKENS, Loop
from phi4d.engine.plan import Slot
from phi4d.engine.seats import token_bytes
from phi4d.engine.sizing import SPEECH_TOKENS, VISION_TOKENS, sizes
from phi4d.engine.tokens import Tokens
from phi4d.errors import DeviceError, DeviceLost

if TYPE_CHECKING:
    from transformers import Phi4MultimodalForCausalLM

log = logging.getLogger(__name__)

CACHE_SHARE = 0.6
"""of the main memory that is free, for the caches; the rest is for reading and others"""
CPU_ROWS = 32
"""answers of a stream that are written at a time on the CPU, for either kind, if nobody says how
many"""

SHARES = (1.0, 0.8, 0.6, 0.4)
"""of the memory that was free, if more of it cannot be had"""


class Loops:
    """Makes loops, and keeps the one that stands.

    Args:
        loaded: the model.
        tokens: knows what ends an answer, and what it may not have.
        rows: answers of a stream that are written at a time; None for as many as pay.
        captures: steps are captured as CUDA graphs.

    Attributes:
        rows: see there; once a loop stands, as many as it has seats for.
    """

    def __init__(self, loaded: Loaded, tokens: Tokens, *, rows: int | None, captures: bool) -> None:
        self.rows = rows or CPU_ROWS
        self._loaded: Loaded | None = loaded
        self._tokens = tokens
        self._device = str(self._model.device)
        self._graphs = Graphs(self._device) if captures else None
        self._arena: Arena | None = None
        self._standing: Loop | None = None

    def settle(
        self, slot: Slot, rows: int | None, trials: Sequence[tuple[str, Iterable[Prompt]]]
    ) -> None:
        """See what work takes, take what is left for the caches, and have steps captured.

        Args:
            slot: as the model was loaded.
            rows: answers at a time that are wanted; None: as many as pay.
            trials: for each adapter its largest request, and smaller ones if that is too large.

        Raises:
            DeviceError: the device failed, or has too little memory for anything.
        """
        began = time.monotonic()
        working = max(self._try_out(adapter, prompts) for adapter, prompts in trials)
        give_back(self._device)
        free = devices.free_bytes(self._device)
        if slot.share_bytes:
            free = min(free, slot.share_bytes - slot.needs_bytes)
        self.rows, self._arena = self._take(free, working, rows)
        self._standing = self._loop(self.rows)
        steps = self._warm(self._standing)
        token = token_bytes(self._model)
        log.info(
            "%s: %d answers at a time, %d tokens in the caches (%.1f GB), %.1f GB to work in, "
            "%d steps captured; this took %.1f s",
            self._device,
            self.rows,
            self._arena.tokens,
            self._arena.tokens * token / 1e9,
            working / 1e9,
            steps,
            time.monotonic() - began,
        )

    @contextmanager
    def one(self, rows: int, *, sheds: bool) -> Iterator[Loop]:
        """A loop to answer by; if it is left in the midst of answers, there is another next time.

        Args:
            rows: it has, if none stands.
            sheds: see `Loop`.
        """
        if self._arena is not None and self._standing is None:
            self._standing = self._loop(self.rows)
        loop = self._standing or self._loop(rows)
        loop.begin(stop=self._tokens.stop, sheds=sheds)
        try:
            yield loop
        except BaseException:
            self._standing = None
            raise
        finally:
            if loop is not self._standing:
                loop.close()

    def close(self) -> None:
        """Let the model and all memory go."""
        self._loaded = self._standing = self._arena = None

    @property
    def _model(self) -> Phi4MultimodalForCausalLM:
        return next(iter(self._ready().models.values()))

    def _ready(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError(f"the loops on {self._device} are closed")
        return self._loaded

    def _take(self, free: int, working: int, rows: int | None) -> tuple[int, Arena]:
        """Memory for the caches, less where others were quicker; and rows for so much."""
        model = self._model
        for share in SHARES:
            it = sizes(int(share * free), working, token_bytes(model), rows)
            try:
                with device_faults(self._device, f"taking room for {it.tokens} tokens"):
                    return it.rows, Arena(model, it.tokens)
            except DeviceLost:
                raise
            except DeviceError:
                if share == SHARES[-1]:
                    raise
        raise AssertionError("there are shares")

    def _warm(self, loop: Loop) -> int:
        """Have the likeliest steps captured, if there is memory; returns how many."""
        steps = 0
        for adapter, needs in (("speech", SPEECH_TOKENS), ("vision", VISION_TOKENS)):
            try:
                steps += loop.warm(adapter, needs)
            except DeviceLost:
                raise
            except DeviceError as error:
                log.debug("not captured beforehand: %s", error)
        return steps

    def _try_out(self, adapter: str, prompts: Iterable[Prompt]) -> int:
        """Bytes that the first of these takes which is not too large, beside weights and caches."""
        for prompt in prompts:
            try:
                return self._tried(adapter, prompt)
            except DeviceLost:
                raise
            except DeviceError as error:
                log.debug("tried: %s", error)
        return 0

    def _tried(self, adapter: str, prompt: Prompt) -> int:
        """Bytes that so many such requests take as are read together."""
        count = max(1, PROMPT_TOKENS["cuda"] // 2 // prompt.work)
        before = devices.used_bytes(self._device)
        devices.forget_peak(self._device)
        loop = self._loop(count, captures=False)
        for _ in range(count):
            loop.submit(prompt, adapter)
        try:
            finish(loop, lambda: None)
            cache = loop.tokens * token_bytes(self._model)
        finally:
            loop.close()
        return max(0, devices.peak_bytes(self._device) - before - cache)

    def _loop(self, rows: int, *, captures: bool = True) -> Loop:
        room = 0.0 if self._arena else CACHE_SHARE * devices.free_bytes(self._device)
        return Loop(
            self._ready(),
            stop=self._tokens.stop,
            never=self._tokens.media,
            rows=rows,
            cache_tokens=int(room / token_bytes(self._model)),
            graphs=self._graphs if captures else None,
            arena=self._arena,
        )


def finish(loop: Loop, beat: Callable[[], None]) -> None:
    """Answer all that was submitted, or raise why one cannot be."""
    while loop.busy:
        for ticket in loop.step(beat):
            if ticket.error is not None:
                raise ticket.error
