"""What every stage that trains has: an optimiser's schedule, and a report of how it goes."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Schedule:
    """AdamW with a warm-up and a cosine; one call is one step."""

    def __init__(
        self,
        groups: list[tuple[list[Tensor], float]],
        steps: int,
        warm: int = 50,
        decay: float = 0.01,
    ) -> None:
        self._groups = [g for g in groups if g[0]]
        self._optimizer = torch.optim.AdamW(
            [{"params": params, "lr": rate} for params, rate in self._groups],
            weight_decay=decay,
            betas=(0.9, 0.98),
        )
        self._steps, self._warm = steps, warm
        self.done = 0

    def state(self) -> dict[str, Any]:
        """What `resume` needs."""
        return {"done": self.done, "optimizer": self._optimizer.state_dict()}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where another run of the same length was stopped."""
        self.done = state["done"]
        self._optimizer.load_state_dict(state["optimizer"])

    def __call__(self, loss: Tensor) -> None:
        """Take a step against a loss's gradient."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1, self.done / self._steps)))
        factor = min(1, (self.done + 1) / self._warm) * max(0.02, cosine)
        for group, (_, rate) in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["lr"] = rate * factor
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for params, _ in self._groups:
            nn.utils.clip_grad_norm_(params, 1.0)
        self._optimizer.step()
        self.done += 1


class Report:
    """Gathers figures, and prints their means and the time every so many steps."""

    def __init__(self, steps: int, every: int = 50) -> None:
        self._steps, self._every, self._start = steps, every, time.monotonic()
        self._figures: dict[str, list[float]] = {}

    def __call__(self, step: int, figures: dict[str, list[float]]) -> bool:
        """Add figures; whether a line was printed, which is also a time to save."""
        for name, values in figures.items():
            self._figures.setdefault(name, []).extend(values)
        if (step + 1) % self._every and step + 1 < self._steps:
            return False
        means = {name: sum(values) / len(values) for name, values in self._figures.items()}
        line = ", ".join(f"{name} {mean:.3f}" for name, mean in sorted(means.items()))
        print(f"{step + 1} {time.monotonic() - self._start:.0f} s {line}", flush=True)
        self._figures.clear()
        return True
