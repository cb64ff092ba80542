"""The Phi-4 engine: requests in, completions out, on one device.

It joins what its siblings do: a checkpoint is loaded, prompts become ids, pictures become crops and
clips features, and the loop answers. It knows no jobs or queues.

What upstream does wrong is put right in several places; the letters are those of the list in
``docs/architecture.md``. A to C: ``corrections.py``. E: ``sampling.py``. F, the processor's lost
chat template: ``tokens.py``. G and H: ``lane.py``. Here D: an answer never carries its row over
4,096 tokens, where the rotary scaling changes.
"""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import torch

from phi4d.engine import devices
from phi4d.engine.checkpoint import Checkpoint, read
from phi4d.engine.embedding import Prompt
from phi4d.engine.faults import give_back, trim
from phi4d.engine.lane import Ticket
from phi4d.engine.loader import Loaded, Progress, load
from phi4d.engine.loop import Loop
from phi4d.engine.loops import Loops, finish
from phi4d.engine.plan import Slot
from phi4d.engine.requests import Asked, Ended, Source, check_requests
from phi4d.engine.tokens import Tokens
from phi4d.errors import ConfigError, DeviceError
from phi4d.job import CROP_PX, SAMPLE_RATE_HZ, Completion, FinishReason, Kind, Request
from phi4d.meter import Memory
from phi4d.prepared.clip import Clip
from phi4d.prepared.preparation import Preparation
from phi4d.prepared.tiles import MAX_CROPS, Tiles, tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRIAL_CROPS = (12, 4)
"""of a picture, if one with all that it may have is too large for the device"""
TRIAL_S = 30
"""of the clips by which it is seen what work takes; recordings are cut into such"""
ADAPTER = {Kind.IMAGE: "vision", Kind.AUDIO: "speech"}


class Phi4Engine:
    """Phi-4-multimodal on one device; see `phi4d.engine.Engine`.

    A lock makes calls wait for each other; engines on different devices run side by side.
    """

    def __init__(
        self,
        loaded: Loaded,
        tokens: Tokens,
        *,
        name: str,
        device: str,
        precision: str = "",
        max_crops: int = MAX_CROPS,
        rows: int | None = None,
        captures: bool = False,
    ) -> None:
        self._loaded: Loaded | None = loaded
        self._tokens = tokens
        self._name = name
        self._device = device
        self._precision = precision
        self._preparation = Preparation(max_crops, loaded.mel)
        self._loops = Loops(loaded, tokens, rows=rows, captures=captures)
        self._turn = threading.Lock()

    @classmethod
    def load(
        cls,
        model: str | Path | Checkpoint,
        slot: Slot | None = None,
        *,
        user_prompt: str = "<|user|>",
        assistant_prompt: str = "<|assistant|>",
        prompt_suffix: str = "<|end|>",
        max_crops: int | None = None,
        rows: int | None = None,
        threads: int | None = None,
        endless: bool = False,
        name: str | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Read, check and load a model.

        Args:
            model: its folder, in either layout, or what was read there before.
            slot: the device and how to load there (`phi4d.engine.plan`); None for the CPU, float32.
            user_prompt: opens the user's turn; may hold special tokens, as may the next two.
            assistant_prompt: opens the answer.
            prompt_suffix: ends the user's turn.
            max_crops: the most crops a picture is cut into, 1 or more; None for the model's own.
            rows: answers that are written at a time; None for as many as pay. On a GPU their memory
                is taken now, and less are possible where there is too little.
            threads: CPU threads for torch, of the whole process; None leaves them.
            endless: go on with each answer to its limit, wherever the model would end it: for
                measuring.
            name: what to call the model; None for the folder's name.
            progress: called with the files that are read, and all; what it raises ends the loading.

        Raises:
            ConfigError: the folder or an argument cannot be used; every fault found is named.
            DeviceError: the device has too little memory, or failed.
        """
        if max_crops is not None and max_crops < 1:
            raise ConfigError(f"max_crops: {max_crops} is too few; give 1 or more")
        slot = slot or Slot("cpu")
        checkpoint = model if isinstance(model, Checkpoint) else read(Path(model))
        if threads is not None:
            torch.set_num_threads(threads)
        loaded = load(checkpoint, slot, progress)
        tokens = Tokens(
            checkpoint.folder / "tokenizer.json",
            media=(loaded.image_id, loaded.audio_id),
            stop=loaded.stop_ids,
            user_prompt=user_prompt,
            assistant_prompt=assistant_prompt,
            prompt_suffix=prompt_suffix,
        )
        if endless:
            tokens.stop = frozenset()
        engine = cls(
            loaded,
            tokens,
            name=name or checkpoint.folder.resolve().name,
            device=slot.device,
            precision=slot.precision,
            max_crops=max_crops or checkpoint.max_crops or MAX_CROPS,
            rows=rows,
            # weights that are brought in layer by layer come by copies that cannot be captured
            captures=slot.device != "cpu" and not slot.offload_bytes,
        )
        if slot.device != "cpu":
            engine.settle(slot, rows)
        return engine

    @property
    def model(self) -> str:
        """What the model is called: its folder's name or hub id, if nothing else was said."""
        return self._name

    @property
    def device(self) -> str:
        """The device, such as ``cuda:0`` or ``cpu``."""
        return self._device

    @property
    def precision(self) -> str:
        """How the model is held there: ``bfloat16, merged adapters, sdpa``."""
        return self._precision

    @property
    def max_crops(self) -> int:
        """The most crops that a picture is cut into, if a request does not say fewer."""
        return self._preparation.max_crops

    @property
    def preparation(self) -> Preparation:
        """How media are prepared for it."""
        return self._preparation

    @property
    def rows(self) -> int:
        """How many answers of a stream are written at a time, at most."""
        return self._loops.rows

    def memory(self) -> Memory | None:
        """What the device's memory holds; None: it cannot be told."""
        return devices.memory(self._device)

    def generate(
        self, requests: Sequence[Request], *, on_step: Callable[[], None] | None = None
    ) -> list[Completion]:
        """Answer requests of one kind; see `phi4d.engine.Engine.generate`.

        ``on_step`` is also called after each tower's work. The engine is usable after any error
        but that of a lost device.

        Raises:
            DeviceError: out of memory; fewer or smaller requests may do.
            DeviceLost: the device failed.
            ValueError: no requests, requests of different kinds, media of the wrong shape, a limit
                below 1, a sampling that is none, or a prompt longer than the model takes (131,072
                tokens).
            RuntimeError: the engine is closed.
        """
        kind = check_requests(requests)
        beat = on_step or (lambda: None)
        with self._turn, torch.inference_mode():
            loaded = self._ready()
            prompts = [self._prompt(loaded, request) for request in requests]
            with self._loops.one(len(prompts), sheds=False) as loop:
                tickets = [loop.submit(prompt, ADAPTER[kind]) for prompt in prompts]
                finish(loop, beat)
        return [self._completion(ticket) for ticket in tickets]

    def serve(
        self,
        source: Source,
        on_result: Callable[[Asked, Ended], None],
        *,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        """Answer a stream of requests of any kind; see `phi4d.engine.Engine.serve`.

        Raises:
            DeviceLost: the device failed.
            RuntimeError: the engine is closed.
        """
        beat = on_step or (lambda: None)
        with self._turn, torch.inference_mode():
            loaded = self._ready()
            with self._loops.one(self._loops.rows, sheds=True) as loop:
                self._serve(loaded, loop, source, on_result, beat)

    def _serve(
        self,
        loaded: Loaded,
        loop: Loop,
        source: Source,
        on_result: Callable[[Asked, Ended], None],
        beat: Callable[[], None],
    ) -> None:
        going: dict[Ticket, Asked] = {}
        while True:
            taken = source(loop.room) if loop.room else ()
            for asked in taken:
                try:
                    kind = check_requests([asked.request])
                    prompt = self._prompt(loaded, asked.request)
                except ValueError as error:
                    on_result(asked, error)
                else:
                    going[loop.submit(prompt, ADAPTER[kind])] = asked
            for ticket, asked in going.items():
                if asked.cancelled:
                    loop.cancel(ticket)
            if not (taken or loop.busy):
                return
            for ticket in loop.step(beat):
                self._tell(ticket, going.pop(ticket), on_result)

    def _tell(
        self, ticket: Ticket, asked: Asked, on_result: Callable[[Asked, Ended], None]
    ) -> None:
        if ticket.cancelled or asked.cancelled:
            return
        if ticket.error is None:
            on_result(asked, self._completion(ticket))
        elif isinstance(ticket.error, DeviceError):
            on_result(asked, ticket.error)
        else:  # a bug of ours is not the request's
            raise ticket.error

    def close(self) -> None:
        """Give the device's memory back. Idempotent; waits for a call that is running."""
        with self._turn:
            self._loaded = None
            self._loops.close()
        gc.collect()  # modules refer to each other in circles
        give_back(self._device)
        trim()

    def _ready(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError(f"the engine on {self._device} is closed")
        return self._loaded

    def _prompt(self, loaded: Loaded, request: Request) -> Prompt:
        media = self._prepared(request)
        media_id = loaded.image_id if request.kind is Kind.IMAGE else loaded.audio_id
        ids = self._tokens.prompt(request.prompt, media_id, media.tokens)
        bound = loaded.short_tokens if len(ids) <= loaded.short_tokens else loaded.longest_tokens
        # The last token of an answer is not fed back, so it may stand one past the bound.
        room = bound + 1 - len(ids)
        if room < 1:
            raise ValueError(f"a prompt of {len(ids)} tokens; the model takes {bound}")
        return Prompt(ids, min(request.max_new_tokens, room), media, request.sampling)

    def _prepared(self, request: Request) -> Tiles | Clip:
        """A request's media as the model takes them; prepared here, if they are not yet."""
        media = request.media
        if isinstance(media, Clip):
            return media
        most = min(self._preparation.max_crops, request.max_crops or self._preparation.max_crops)
        if isinstance(media, Tiles):
            return media.within(most)
        if request.kind is Kind.IMAGE:
            return tile(cast("NDArray[np.uint8]", media), most)
        return self._preparation.sound(cast("NDArray[np.float32]", media))

    def settle(self, slot: Slot, rows: int | None = None) -> None:
        """Size the caches by what work takes, and have the loop stand from now on: for GPUs.

        Args:
            slot: as it was loaded.
            rows: see `load`.

        Raises:
            DeviceError: the device failed, or has too little memory for anything.
        """
        with self._turn, torch.inference_mode():
            loaded = self._ready()
            side = CROP_PX * math.isqrt(self.max_crops)
            picture = Request(Kind.IMAGE, "", np.zeros((side, side, 3), np.uint8), 2)
            clip = Request(Kind.AUDIO, "", np.zeros(TRIAL_S * SAMPLE_RATE_HZ, np.float32), 2)
            smaller = (replace(picture, max_crops=n) for n in TRIAL_CROPS if n < self.max_crops)
            self._loops.settle(
                slot,
                rows,
                [
                    ("vision", (self._prompt(loaded, one) for one in (picture, *smaller))),
                    ("speech", [self._prompt(loaded, clip)]),
                ],
            )

    def _completion(self, ticket: Ticket) -> Completion:
        prompt, answer = ticket.prompt, ticket.answer
        ended = answer[-1] in self._tokens.stop
        return Completion(
            text=self._tokens.text(answer),
            prompt_tokens=len(prompt.ids),
            new_tokens=len(answer),
            finish_reason=FinishReason.STOP if ended else FinishReason.LENGTH,
        )
