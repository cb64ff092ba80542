"""Pauses: where a recording is cut, so that each piece is short enough and no word is cut in two.

Silero's model says for each window of 32 ms how likely it is speech; `Stretches` decides from
that alone where pieces begin and end, and `pieces` cuts the samples there. Nothing here knows
files. The package silero_vad must not be imported, only its model file used: importing it loads
torch and sets it to one thread.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from phi4d.errors import EnvironmentFault
from phi4d.job import SAMPLE_RATE_HZ, Piece

# From 1.29 on it would tell its maker what it is used for, and phi4d opens no connection. The
# variable is in its Privacy.md, and counts only before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime  # type: ignore[import-untyped]

Samples: TypeAlias = NDArray[np.float32]
Probabilities: TypeAlias = NDArray[np.float32]

WINDOW = 512
"""samples that silero judges at once at 16 kHz: 32 ms"""
CONTEXT = 64
"""samples of the window before that it wants to see again"""
BATCH = 128
"""windows in one call: 4 s of sound. The model runs 650 times faster than the recording so, 280
times window by window."""
PIECE_S = 30.0
"""the longest piece, in seconds; recordings up to here are not cut at all"""
SILENCE = 10 ** (-70 / 20)
"""-70 dBFS: below it everywhere, a recording is silent (16-bit noise floor is at -96)"""

MAX_WINDOWS = int(PIECE_S * SAMPLE_RATE_HZ) // WINDOW
_PER_S = SAMPLE_RATE_HZ / WINDOW
ONSET, OFFSET = 0.5, 0.35
"""speech begins at this probability and goes on down to that one (silero's own defaults)"""
PAD = round(0.25 * _PER_S)
"""windows kept before and after speech: soft beginnings and ends are found late"""
LONG_PAUSE = round(3.0 * _PER_S)
"""windows; so long a pause ends a piece, however short it is"""
SHORT_PAUSE = 3
"""windows, 0.1 s; less is a stop consonant rather than a pause"""
FIRST_CUT = (round(15.0 * _PER_S), round(5.0 * _PER_S))
"""windows from a piece's beginning where a pause is looked for: from here if there is one, else
from there"""
LAST_RESORT = round(10.0 * _PER_S)
"""windows before the limit in which speech without a pause is cut, at its quietest"""
MIN_SPEECH = 3
"""windows; less speech than 0.1 s in a piece of its own is a click"""


class SpeechModel:
    """Silero's voice activity model: how likely each window of 32 ms holds speech.

    One thread, no torch. An instance may be used for any number of recordings, one after another.

    Raises:
        EnvironmentFault: the model file is not where the package silero-vad puts it.
    """

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its graph optimiser warns of initialisers it drops
        self._session = onnxruntime.InferenceSession(
            str(_model_file()), options, providers=["CPUExecutionProvider"]
        )

    def judge(self) -> Callable[[Samples], Probabilities]:
        """A judge for one recording.

        It is called with the samples in order, a whole number of windows each time, and returns
        (windows,) float32 probabilities.
        """
        hidden = cell = np.zeros((1, 1, 128), np.float32)
        context = np.zeros(CONTEXT, np.float32)

        def probabilities(samples: Samples) -> Probabilities:
            nonlocal hidden, cell, context
            seen = np.concatenate((context, samples))
            windows = np.lib.stride_tricks.sliding_window_view(seen, CONTEXT + WINDOW)[::WINDOW]
            result, hidden, cell = self._session.run(
                ["speech_probs", "hn", "cn"],
                {"input": np.ascontiguousarray(windows), "h": hidden, "c": cell},
            )
            context = samples[-CONTEXT:]
            return np.asarray(result, np.float32)

        return probabilities


def _model_file() -> Path:
    spec = importlib.util.find_spec("silero_vad")  # finds the package without running it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        # The variant that takes many windows in one call; bit for bit the same answers.
        if (path := Path(folder, "data", "silero_vad_16k_sequence.onnx")).is_file():
            return path
    raise EnvironmentFault(
        "silero_vad_16k_sequence.onnx was not found: install silero-vad 6.2.3 or later"
    )


class Stretches:
    """Where to cut: speech probabilities in, stretches of windows out, as soon as they are sure.

    A stretch is (first window, window after the last), at most `MAX_WINDOWS` long. Stretches are
    in order and do not overlap, and every window of speech is in one (clicks excepted).
    """

    def __init__(self) -> None:
        self._base = 0  # number of the first window that is still remembered
        self._speech: list[bool] = []
        self._noise: list[tuple[float, float]] = []
        self._in_speech = False
        self._free = 0  # windows before this one are given out

    @property
    def needed_from(self) -> int:
        """No stretch to come begins before this window."""
        return max(self._free, self._base)

    def push(self, probabilities: Iterable[float], levels: Iterable[float]) -> None:
        """Add windows: how likely each is speech, and how loud it is (any scale)."""
        for probability, level in zip(probabilities, levels, strict=True):
            self._in_speech = probability >= (OFFSET if self._in_speech else ONSET)
            self._speech.append(self._in_speech)
            self._noise.append((round(probability, 1), level))

    def take(self, *, final: bool = False) -> Iterator[tuple[int, int]]:
        """The stretches that what was pushed so far settles; with ``final`` all the rest."""
        while (stretch := self._next(final)) is not None:
            first, end = stretch
            apart = first > self._free
            spoken = sum(self._speech[first - self._base : end - self._base])
            self._free = end
            if not (apart and spoken < MIN_SPEECH):
                yield stretch

    def _next(self, final: bool) -> tuple[int, int] | None:
        known = self._base + len(self._speech)
        begin = next((i for i in range(self.needed_from, known) if self._is_speech(i)), None)
        first = max(self._free, (known if begin is None else begin) - PAD)
        self._forget(first)
        if begin is None:
            return None
        limit = first + MAX_WINDOWS
        last = begin
        for i in range(begin, min(limit, known)):
            if self._is_speech(i):
                last = i
            elif i - last >= LONG_PAUSE:
                return first, last + 1 + PAD
        if limit < known:
            return first, self._cut(first, limit)
        if final:
            return first, min(last + 1 + PAD, known)
        return None

    def _cut(self, first: int, limit: int) -> int:
        """The best place to end a piece that is full: the longest pause, else the quietest spot."""
        for earliest in FIRST_CUT:
            pauses = self._pauses(first + earliest, limit)
            if pauses:
                begin, end = max(pauses, key=lambda pause: (pause[1] - pause[0], pause))
                if end - begin > 2 * PAD:
                    return begin + PAD
                return self._quietest(begin + 1, end)
        return self._quietest(limit - LAST_RESORT, limit)

    def _pauses(self, begin: int, end: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        silent_from = begin
        for i in range(begin, end + 1):
            if i == end or self._is_speech(i):
                if i - silent_from >= SHORT_PAUSE:
                    found.append((silent_from, i))
                silent_from = i + 1
        return found

    def _quietest(self, begin: int, end: int) -> int:
        return min(range(begin, end), key=lambda i: (self._noise[i - self._base], -i))

    def _is_speech(self, window: int) -> bool:
        return self._speech[window - self._base]

    def _forget(self, before: int) -> None:
        if before > self._base:
            del self._speech[: before - self._base]
            del self._noise[: before - self._base]
            self._base = before


def pieces(blocks: Iterable[Samples], judge: Callable[[Samples], Probabilities]) -> Iterator[Piece]:
    """Cut a recording into pieces of at most `PIECE_S`.

    A recording that short is one piece, whole, speech or not, unless it is silent (below
    `SILENCE` everywhere): the speech finder may miss a voice, and the model need not be spared.
    A longer one is cut at pauses, and where nobody speaks there is no piece. So a silent
    recording, or a long one without speech, yields nothing: its transcript is empty.

    Args:
        blocks: the recording in order, (n,) float32 at 16 kHz.
        judge: as `SpeechModel.judge` gives it.

    Yields:
        Pieces in order of time that do not overlap, cut on the sample: ``start`` and ``end`` are
        multiples of 1/16000 s.
    """
    blocks = iter(blocks)
    start: list[Samples] = []
    size = 0
    while size <= PIECE_S * SAMPLE_RATE_HZ:
        block = next(blocks, None)
        if block is None:
            if size and max(float(np.abs(b).max(initial=0.0)) for b in start) >= SILENCE:
                yield Piece(np.concatenate(start), 0.0, size / SAMPLE_RATE_HZ)
            return
        start.append(block)
        size += len(block)
    yield from _cut(chain(start, blocks), judge)


def _cut(blocks: Iterable[Samples], judge: Callable[[Samples], Probabilities]) -> Iterator[Piece]:
    plan = Stretches()
    held = np.empty(0, np.float32)
    offset = 0  # number of the first sample in `held`
    for batch, final in _batches(blocks):
        held = np.concatenate((held, batch))
        windows = np.pad(batch, (0, -len(batch) % WINDOW))  # the last one is filled with silence
        levels = np.sqrt(np.mean(windows.reshape(-1, WINDOW) ** 2, axis=1))
        plan.push(judge(windows).tolist(), levels.tolist())
        for first, end in plan.take(final=final):
            begin, stop = first * WINDOW, min(end * WINDOW, offset + len(held))
            media = held[begin - offset : stop - offset].copy()
            yield Piece(media, begin / SAMPLE_RATE_HZ, stop / SAMPLE_RATE_HZ)
        drop = plan.needed_from * WINDOW - offset
        held, offset = held[drop:], offset + drop


def _batches(blocks: Iterable[Samples]) -> Iterator[tuple[Samples, bool]]:
    """The same samples, `BATCH` windows at a time, and whether it is the last and shorter one."""
    waiting: list[Samples] = []
    size = 0
    for block in blocks:
        waiting.append(block)
        size += len(block)
        while size > BATCH * WINDOW:
            joined = np.concatenate(waiting)
            yield joined[: BATCH * WINDOW], False
            waiting = [joined[BATCH * WINDOW :]]
            size -= BATCH * WINDOW
    if size:
        yield np.concatenate(waiting), True
