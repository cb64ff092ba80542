"""Steps as CUDA graphs: hundreds of kernels that are launched by one call.

A step that is captured must make the same calls on the same memory each time, so it comes in few
shapes: so many of the lowest seats, and so far into them. A shape is run as it is when it is met
for the first time, and then captured for the next. On the CPU, where there is nothing to capture,
every shape is always run as it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable

import torch

log = logging.getLogger(__name__)

FEW = 8
"""up to so many seats, shapes are powers of two; above, multiples of twice as many"""
SHORT = 128
"""tokens of the shortest shape"""

_capturing = threading.Lock()
"""one at a time in the whole process: capturing begins by waiting for all that a device does"""

Captured = dict[Hashable, torch.cuda.CUDAGraph]
"""by shape; they hold on to the memory that they work on, and are dropped together with it"""


class Graphs:
    """Captures and replays the steps of one device, whose working memory they have in common.

    Args:
        device: such as ``cuda:0``.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._captures = device.startswith("cuda")
        self._first: torch.cuda.CUDAGraph | None = None
        """kept, for a pool that lost all its graphs could not be captured into again"""
        if self._captures:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, captured: Captured, shape: Hashable, step: Callable[[], None]) -> None:
        """Do a step.

        Args:
            captured: what was captured of such steps before.
            shape: what all steps have in common that make the same calls.
            step: makes them. What it works on and changes must stay where it is.
        """
        if graph := captured.get(shape):
            graph.replay()
            return
        step()
        if self._captures:
            self._capture(captured, shape, step)

    def _capture(self, captured: Captured, shape: Hashable, step: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        # while other threads may allocate, on other devices too
        capturing = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with _capturing, torch.cuda.device(self._device), capturing:
                step()
        except RuntimeError as error:
            # nothing is lost: the step was done, and what is captured by now can be replayed
            self._captures = False
            log.warning(
                "%s: a step cannot be captured as a CUDA graph, so answers take longer (%s)",
                self._device,
                (str(error).strip() or type(error).__name__).splitlines()[0],
            )
        else:
            captured[shape] = graph
            self._first = self._first or graph


def rows_shape(rows: int, most: int) -> int:
    """So many of the lowest seats a step has, if the last that is taken is the ``rows``-th."""
    if rows <= FEW:
        return min(most, 1 << (rows - 1).bit_length())
    return min(most, -(-rows // (2 * FEW)) * 2 * FEW)


def span_shape(tokens: int, most: int) -> int:
    """So far a step looks into seats, if the longest row has so many ``tokens``.

    At most half as far again, rather a quarter: 2^n or 3 x 2^n.
    """
    power = 1 << (max(tokens, SHORT) - 1).bit_length()
    return min(most, power * 3 // 4 if tokens <= power * 3 // 4 and power > SHORT else power)


def shapes(rows: int, length: int, shortest: int) -> Iterable[tuple[int, int]]:
    """All shapes of a cache, the largest first, so that the smaller ones need no more memory.

    Args:
        rows: seats of it.
        length: of each.
        shortest: tokens that rows have at least.
    """
    counts = {rows_shape(n, rows) for n in range(1, rows + 1)}
    spans = {span_shape(n, length) for n in range(shortest, length + 1)}
    return [(n, span) for n in sorted(counts, reverse=True) for span in sorted(spans, reverse=True)]
