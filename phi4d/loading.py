"""From the configuration to loaded engines: find the model, check, plan, load side by side.

What is told while it lasts: a line for each slot at its beginning and its end, and in between how
many files are read, in the service manager's status and, where it takes long, in the log.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import fields
from pathlib import Path

from phi4d import demo, events
from phi4d.config import Config
from phi4d.engine import Engine, checkpoint, devices, hub
from phi4d.engine.placement import wants_gpus
from phi4d.engine.plan import Slot, Wishes, plan
from phi4d.engine.resident import Resident
from phi4d.engine.threads import thread_count, wait_asleep
from phi4d.errors import EnvironmentFault, Stopped
from phi4d.notify import GettingOn, more_time, notify
from phi4d.signals import STOP_SIGNALS

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2  # how often a signal to stop is looked for while loading
BUSY_SECONDS = 30.0  # how often it is looked whether a full device has room
KEPT_BYTES = 1_000_000_000
"""that the context of a GPU may have grown by since the plan was made: kernels that were loaded and
their workspaces stay when the weights go"""
QUIET_SECONDS = 5.0  # files that follow each other faster are not told one by one in the log

Load = Callable[[Slot, Callable[[int, int], None]], Engine]
LoadFrom = Callable[[Path | checkpoint.Checkpoint, Slot, Callable[[int, int], None]], Engine]


def make_engines(config: Config) -> Iterator[Engine]:
    """Load the model on each device that the plan names, all at the same time.

    Raises:
        ConfigError: the model is not there, is broken, or cannot be had as configured; told before
            any device's memory is taken.
        EnvironmentFault: other programs have the memory.
        DeviceError: a device failed, or had less room than it seemed.
        Stopped: a signal to stop came.
    """
    found, name = _checked(config)
    slots = plan_slots(config, found)
    threads = thread_count(config.threads, slots, devices.cpu_count())
    rows = None if config.batch_size == "auto" else config.batch_size
    load_from = _load_from(config, name, threads=threads, rows=rows)
    engines = side_by_side(slots, functools.partial(load_from, found), name)
    if config.on_idle == "keep":
        yield from engines
        return
    for slot, engine in zip(slots, engines, strict=True):
        yield Resident(
            engine,
            functools.partial(load_again, slot, functools.partial(load_from, found.folder)),
            idle_seconds=config.idle_unload_seconds,
        )


def make_in_turn(config: Config, *, endless: bool, rows: int | None) -> Generator[Engine]:
    """Load the model on each device that the plan names, once, one after the other.

    An engine is closed before the next is loaded, or when the iterator is.

    Args:
        config: as for `make_engines`; ``on_idle`` and ``batch_size`` play no part.
        endless: see `phi4d.engine.phi4.Phi4Engine.load`.
        rows: the same.

    Raises:
        ConfigError, EnvironmentFault, DeviceError: as `make_engines` does.
    """
    found, name = _checked(config)
    slots = {slot.device: slot for slot in plan_slots(config, found)}
    threads = thread_count(config.threads, list(slots.values()), devices.cpu_count())
    load_from = _load_from(config, name, threads=threads, rows=rows, endless=endless)
    for slot in slots.values():
        with contextlib.closing(load_from(found, slot, lambda *_: None)) as engine:
            yield engine


def _checked(config: Config) -> tuple[checkpoint.Checkpoint, str]:
    """The configured model as it is on the disk, and what it is called."""
    folder, name = locate(config)
    wait_asleep()
    # a model that is missing is told at once, not after the seconds that importing torch takes
    found = checkpoint.read(folder)
    from phi4d.engine import skeleton

    if unplaced := skeleton.check(found):
        log.warning(
            "%s: %d tensors have no place in the model and are left out, %s first",
            folder,
            len(unplaced),
            unplaced[0],
        )
    return found, name


def _load_from(
    config: Config, name: str, *, threads: int, rows: int | None = None, endless: bool = False
) -> LoadFrom:
    """What loads the model, from its folder or from what was read there."""
    from phi4d.engine.phi4 import Phi4Engine

    def load_from(
        model: Path | checkpoint.Checkpoint, slot: Slot, progress: Callable[[int, int], None]
    ) -> Engine:
        return Phi4Engine.load(
            model,
            slot,
            name=name,
            user_prompt=config.user_prompt,
            assistant_prompt=config.assistant_prompt,
            prompt_suffix=config.prompt_suffix,
            rows=rows,
            threads=threads,
            endless=endless,
            progress=progress,
        )

    return load_from


def load_again(slot: Slot, load: Load, progress: Callable[[int, int], None]) -> Engine:
    """Load an engine that was unloaded, as it was before: as precise, or answers would change.

    Args:
        slot: how it was loaded.
        load: as for `side_by_side`.
        progress: told the files that are read, and all; what it raises ends the loading.

    Raises:
        EnvironmentFault: other programs have the memory.
        ConfigError, DeviceError: as `load` raises them.
    """
    progress(0, 0)
    main = devices.cpu()
    found = [main] if slot.device == main.name else devices.probe()
    free = {device.name: device.free_bytes for device in (*found, main)}
    wanted = {slot.device: slot.needs_bytes + slot.room_bytes}
    if slot.main_bytes:
        wanted[main.name] = slot.main_bytes
    for device, size in wanted.items():
        if free.get(device, 0) + KEPT_BYTES < size:
            raise EnvironmentFault(
                f"{device}: {free.get(device, 0) / 1e9:.1f} GB are free, and the model as it was "
                f"loaded before ({slot.dtype}) wants {size / 1e9:.1f}: free some of it"
                + ("" if device == main.name else " (nvidia-smi shows who has it)")
            )
    return load(slot, progress)


def make_engines_when_free(config: Config) -> Iterator[Engine]:
    """As `make_engines`, but wait while other programs have the memory of the devices."""
    told = ""
    while True:
        try:
            engines = list(make_engines(config))
        except EnvironmentFault as fault:
            if not told:
                log.warning(
                    "nothing is lost, phi4d waits until there is room: %s",
                    fault,
                    extra=events.MEMORY_WAITED_FOR(fault=fault.fault, reason=str(fault)),
                )
            told = str(fault)
            notify(f"STATUS=waiting for memory: {told.splitlines()[0]}\n{more_time()}")
        else:
            yield from engines
            return
        again = time.monotonic() + BUSY_SECONDS
        while time.monotonic() < again:
            _look_for_a_stop()
            time.sleep(LOOK_SECONDS)


def locate(config: Config) -> tuple[Path, str]:
    """The folder of the configured model, and what the model is called.

    Raises:
        ConfigError: it is not here.
    """
    if config.model_path == demo.MODEL_PATH:
        return demo.CHECKPOINT, demo.NAME
    folder = hub.resolve(config.model_path, config.revision, config.cache_dir)
    if hub.is_remote(config.model_path):
        # it lies in a folder that is named by the commit; another commit is another model
        return folder, f"{config.model_path}@{folder.name[:8]}"
    return folder, folder.resolve().name


def wishes_of(config: Config) -> Wishes:
    """What the configuration asks of the plan."""
    wishes = {field.name: getattr(config, field.name) for field in fields(Wishes)}
    if config.model_path == demo.MODEL_PATH and config.dtype == "auto":
        wishes["dtype"] = "float32"  # the toy was trained for it
    return Wishes(**wishes)


def plan_slots(config: Config, found: checkpoint.Checkpoint) -> list[Slot]:
    """What to load where, by the configuration and by what this machine has.

    Raises:
        ConfigError: it cannot be had; every fault is named.
    """
    wishes = wishes_of(config)
    gpus = devices.probe() if wants_gpus(wishes) else []
    return plan(gpus, devices.cpu(), found.size, wishes, devices.installed())


def side_by_side(slots: Sequence[Slot], load: Load, name: str) -> list[Engine]:
    """Load an engine for each slot, each in a thread of its own.

    Args:
        slots: what to load where.
        load: loads one; is given a listener to call with the files that are read, and all.
        name: of the model, for the log.

    Raises:
        Stopped: a signal to stop is pending.
        Exception: what the first that failed raised; the others are ended and closed.
    """
    progress = _Progress()
    begun = time.monotonic()
    for slot in slots:
        log.info(
            "loading %s on %s: %s",
            name,
            slot.device,
            slot.why or slot.dtype,
            extra=events.MODEL_LOADING(device=slot.device, model=name),
        )
    with ThreadPoolExecutor(len(slots), thread_name_prefix="load") as pool:
        loads = [
            pool.submit(load, slot, progress.listener(i, slot)) for i, slot in enumerate(slots)
        ]
        try:
            for done in _as_they_end(loads):
                slot = slots[loads.index(done)]
                done.result()
                seconds = time.monotonic() - begun
                log.info(
                    "%s: loaded in %.1f s%s",
                    slot.device,
                    seconds,
                    _used(slot),
                    extra=events.MODEL_LOADED(
                        device=slot.device, model=name, seconds=round(seconds, 3)
                    ),
                )
        except BaseException:
            progress.cancelled.set()
            wait(loads)
            for future in loads:
                if not future.exception():
                    future.result().close()
            raise
    return [future.result() for future in loads]


def _as_they_end(loads: Sequence[Future[Engine]]) -> Iterator[Future[Engine]]:
    pending = set(loads)
    while pending:
        done, pending = wait(pending, LOOK_SECONDS, FIRST_COMPLETED)
        yield from done
        _look_for_a_stop()


def _look_for_a_stop() -> None:
    if signal.sigpending() & STOP_SIGNALS:
        raise Stopped("told to stop while loading")


def _used(slot: Slot) -> str:
    return f", {devices.used_bytes(slot.device) / 1e9:.1f} GB"


class _Progress:
    """How far each slot is; told together."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._files: dict[int, str] = {}
        self._told = time.monotonic()
        self._words = ""
        self._getting_on = GettingOn()

    def listener(self, number: int, slot: Slot) -> Callable[[int, int], None]:
        """For one slot, to be called at every step; raises `Stopped` when loading was given up."""

        def listen(done: int, of: int) -> None:
            if self.cancelled.is_set():
                raise Stopped("loading was given up")
            now_read = f"{done}/{of} shards on {slot.device}"
            self._getting_on()
            with self._lock:
                self._files[number] = now_read
                words = "loading " + ", ".join(self._files[key] for key in sorted(self._files))
                news, self._words = words != self._words, words
                now = time.monotonic()
                aloud = news and now - self._told >= QUIET_SECONDS
                self._told = now if aloud else self._told
            if not news:  # asked before each tensor, to be told of a stop
                return
            notify(f"STATUS={words}")
            log.log(logging.INFO if aloud else logging.DEBUG, "%s", words)

        return listen
