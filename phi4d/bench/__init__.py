"""`phi4d bench`: how fast this machine answers, and what to configure for it.

It measures the engine alone: no files are watched, nothing is written but a plot that is asked for.
It loads the model by itself, and so wants the devices for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from phi4d import lock
from phi4d.bench import work
from phi4d.bench.plot import draw
from phi4d.bench.sweep import Choice, Sweep, choose, sweep, sweep_threads
from phi4d.bench.telling import as_json, render
from phi4d.config import Config
from phi4d.engine import Engine, devices
from phi4d.errors import EnvironmentFault
from phi4d.loading import make_in_turn

__all__ = ["Choice", "Sweep", "as_json", "choose", "draw", "render", "throughput"]


class Engines(Protocol):
    """Loads engines, as `phi4d.loading.make_in_turn` does."""

    def __call__(self, config: Config, *, endless: bool, rows: int | None) -> Generator[Engine]:
        """One after the other, which answer to the limit and write so many answers at a time."""


def throughput(
    config: Config,
    say: Callable[[str], None],
    *,
    files: Sequence[str] = (),
    sizes: Sequence[int] = (),
    threads: Sequence[int] = (),
    seconds: float = 5.0,
    beside: bool = False,
    engines: Engines = make_in_turn,
    set_threads: Callable[[int], None] = devices.set_threads,
    clock: Callable[[], float] = time.monotonic,
) -> list[Sweep]:
    """Measure each device of the configuration, one after the other.

    Args:
        config: the model, the devices, the prompts; of files the limits as well.
        say: told how far it is.
        files: what is answered; none: generated clips and pictures.
        sizes: values of ``batch_size`` to try; none: from 1 on, until more gains nothing.
        threads: values of ``threads`` to try on the CPU; none: from all cores on, half as many
            each time, until that is slower.
        seconds: how long each is measured at least.
        beside: also while a daemon is at work.
        engines: loads the model; tests give fake ones.
        set_threads: has this process compute with so many threads.
        clock: monotonic seconds.

    Returns:
        One a device.

    Raises:
        ConfigError: the model cannot be loaded.
        EnvironmentFault: a daemon is at work, or other programs have the memory.
        FileError: a file cannot be answered.
        DeviceError: not even one answer at a time fits, or the device was lost.
    """
    pid = lock.holder(config.state_dir / "lock")
    if pid is not None and not beside:
        raise EnvironmentFault(
            f"a daemon is at work (pid {pid}, in {config.state_dir}), and either would slow the "
            "other down: stop it first, such as by systemctl stop phi4d, or measure beside it "
            "with --beside"
        )
    asked = work.of_files(config, files) if files else None
    most = max(sizes, default=None)
    sweeps = []
    with contextlib.closing(engines(config, endless=not files, rows=most)) as loaded:
        say("loading the model")
        for engine in loaded:
            requests = work.prepared(
                asked or work.generated(config, engine.device), engine.preparation
            )
            one = sweep(engine, requests, sizes, seconds=seconds, say=say, clock=clock)
            if engine.device == "cpu":
                tried = sweep_threads(
                    engine,
                    requests,
                    choose([one]).size,
                    threads,
                    set_threads=set_threads,
                    seconds=seconds,
                    say=say,
                    clock=clock,
                )
                one = dataclasses.replace(one, threads=tried)
            sweeps.append(one)
    return sweeps
