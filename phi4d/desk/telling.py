"""What the daemon tells of itself: the answer to the order `status`.

From memory, and from the store by a connection of its own: it waits for no worker, no device, and
nobody who writes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi4d import __version__
from phi4d.config import Config
from phi4d.engine.resident import Resident
from phi4d.errors import EnvironmentFault
from phi4d.job import Kind, State, display_name
from phi4d.meter import Meter, Rates
from phi4d.scheduler import Pauses
from phi4d.store import Reader

if TYPE_CHECKING:
    from phi4d.inbox import Watcher
    from phi4d.worker import Worker

FEW = 10
"""of the last failures, and of what waits for its next try, so many are told"""


def answer(
    state: str,
    config: Config,
    meter: Meter,
    pauses: Pauses,
    workers: Sequence[Worker],
    watcher: Watcher | None,
) -> dict[str, Any]:
    """Everything that `phi4d status` shows; docs/status.md says what each field means.

    Args:
        state: what the daemon does: loading, ready, reloading, stopping.
        config: the configuration in force.
        meter: what was counted.
        pauses: the inboxes that wait.
        workers: none until the model is loaded.
        watcher: None until the inboxes are watched.
    """
    rates = meter.rates()
    boxes = config.inboxes()
    held, faults = pauses.held(), pauses.faults()
    if state == "ready" and boxes and all(box.name in held for box in boxes):
        state = "paused"
    stored, waiting = _from_store(config.store_path, {box.name for box in boxes} - {*held, *faults})
    modes = watcher.modes() if watcher is not None else {}
    now = time.monotonic()
    threads = [*workers, watcher] if watcher is not None else workers
    return {
        "state": state,
        "pid": os.getpid(),
        "version": __version__,
        "uptime_seconds": meter.clock() - meter.began,
        "files_per_minute": rates.total_per_minute,
        "times_real_time": rates.times_real_time,
        "eta_seconds": None if waiting is None else rates.eta(waiting, len(workers)),
        "slots": [_slot(worker, rates, meter, now) for worker in workers],
        "inboxes": {
            box.name: {
                "mode": modes.get(box.name),
                "kinds": list(box.kinds),
                "priority": box.priority,
                "paused": held.get(box.name),
                "next_try": time.time() + faults[box.name] - now if box.name in faults else None,
            }
            for box in boxes
        },
        "hung": [w.name for w in workers if now - w.last_beat > config.hang_seconds],
        "dead": [
            thread.name for thread in threads if not thread.is_alive() and state != "stopping"
        ],
        "stored": stored,
    }


def _slot(worker: Worker, rates: Rates, meter: Meter, now: float) -> dict[str, Any]:
    engine = worker.engine
    memory = meter.memory(engine.device)
    wait = worker.next_try_seconds
    rate = rates.devices.get(engine.device)
    return {
        "device": engine.device,
        "model": engine.model,
        "precision": engine.precision,
        "state": engine.state if isinstance(engine, Resident) else "loaded",
        "next_try": time.time() + wait if wait else None,
        "memory": None if memory is None else {
            "size_bytes": memory.size_bytes,
            "used_bytes": memory.used_bytes,
            "own_bytes": memory.own_bytes,
        },
        "files": [{"file": name, "seconds": round(s, 3)} for name, s in worker.at_work()],
        "tokens_per_second": rate.tokens_per_second if rate else 0.0,
        "batch": rate.batch if rate else 0.0,
        "times_real_time": rate.times_real_time if rate else 0.0,
        "silent_seconds": round(max(0.0, now - worker.last_beat), 3),
    }  # fmt: skip


def _from_store(
    path: Path, going: set[str]
) -> tuple[dict[str, Any] | None, dict[Kind, int] | None]:
    """What the store tells, and what waits by kind in inboxes that go on; None: it cannot be read.

    What runs in the others is finished, and so counts too.
    """
    try:
        with contextlib.closing(Reader(path)) as reader:
            waiting: dict[Kind, int] = {}
            for (inbox, kind, state), n in reader.tally().items():
                if state is State.RUNNING or (state is State.QUEUED and inbox in going):
                    waiting[kind] = waiting.get(kind, 0) + n
            return _stored(reader), waiting
    except (EnvironmentFault, FileNotFoundError):
        return None, None


def read(path: Path) -> dict[str, Any]:
    """What a store tells of the daemon, as JSON has it; times are seconds since the epoch.

    Raises:
        FileNotFoundError: there is none.
        EnvironmentFault: it cannot be read.
    """
    with contextlib.closing(Reader(path)) as reader:
        return _stored(reader)


def _stored(reader: Reader) -> dict[str, Any]:
    cancelled: dict[str, int] = {}
    for (inbox, _), n in reader.cancelled().items():
        cancelled[inbox] = cancelled.get(inbox, 0) + n
    return {
        "counts": reader.counts(),
        "cancelled": cancelled,
        "oldest": reader.oldest(),
        "running": [(job.display_name, device, since) for job, device, since in reader.running()],
        "paused": [(each.inbox, each.words, each.since) for each in reader.paused().values()],
        "notices": [(notice.inbox, notice.text, notice.since) for notice in reader.notices()],
        "put_off": [
            (row.job.display_name, row.reason or "is tried again", row.next_try)
            for row in reader.put_off(FEW)
        ],
        "failures": [
            (display_name(each.inbox, each.path), each.reason, each.when)
            for each in reader.failures(FEW)
        ],
    }


def nothing() -> dict[str, Any]:
    """As `read`, where there is no store."""
    lists = ("running", "paused", "notices", "put_off", "failures")
    return {"counts": {}, "cancelled": {}, "oldest": {}} | {name: [] for name in lists}
