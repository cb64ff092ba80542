"""A worker with everything around it: real files, store and decode processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phi4d.engine import Engine
from phi4d.job import Arrival, Fingerprint, Job, Kind, Result
from phi4d.media.pool import DecodePool
from phi4d.media.probe import kind_of
from phi4d.scheduler import Pauses
from phi4d.slots import Slots
from phi4d.store import Store
from phi4d.task import Rule
from phi4d.worker import Worker

WAIT_SECONDS = 30.0  # until a test gives up


class Desk:
    """One worker, or several that share everything but their engines."""

    def __init__(self, folder: Path, pool: DecodePool) -> None:
        self.inbox, self.outbox = folder / "in", folder / "out"
        self.inbox.mkdir()
        self.outbox.mkdir()
        self.pool = pool
        self.store = Store(folder / "jobs.sqlite3")
        self.pauses = Pauses(0.01)
        self.rule: dict[str, Any] = {}
        """more of the inbox's rule, such as what becomes of originals"""
        self.more: dict[str, Path] = {}
        """more inboxes, by name; they have the same outbox"""
        self.prompts = {Kind.IMAGE: "Describe.", Kind.AUDIO: "Transcribe."}
        self.ended: list[tuple[Job, Result | None, str]] = []
        self.workers: list[Worker] = []
        self._changed = threading.Condition()

    def add(self, *paths: Path, inbox: str = "in") -> None:
        folder = self.more.get(inbox, self.inbox)
        self.store.add(
            Arrival(
                inbox,
                os.fsencode(path.relative_to(folder)),
                kind_of(os.fsencode(path.name)) or Kind.IMAGE,
                Fingerprint.of(path.stat()),
            )
            for path in paths
        )
        for worker in self.workers:
            worker.wake()

    def start(self, engine: Engine, **options: Any) -> Worker:
        (worker,) = self.start_all([engine], **options)
        return worker

    def start_all(self, engines: Sequence[Engine], **options: Any) -> list[Worker]:
        """A worker for each engine; they are in `workers` before the first begins."""
        rules = {
            name: Rule(os.fsencode(folder), os.fsencode(self.outbox), self.prompts, **self.rule)
            for name, folder in {"in": self.inbox, **self.more}.items()
        }
        options.setdefault("retry_seconds", 0.001)
        options.setdefault("reuse", False)  # many tests' files are the same
        slots = Slots([engine.device for engine in engines])
        shared = (self.store, self.pool, rules, self.pauses, slots)
        self.workers = [
            Worker(engine, *shared, on_result=self._on_result, **options) for engine in engines
        ]
        for worker in self.workers:
            worker.start()
        return self.workers

    def _on_result(self, job: Job, result: Result | None, words: str) -> None:
        with self._changed:
            self.ended.append((job, result, words))
            self._changed.notify_all()

    def wait_for(self, n: int) -> list[tuple[Job, Result | None, str]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ended) >= n, WAIT_SECONDS), self.ended
        return self.ended

    def counts(self) -> dict[str, int]:
        return {str(s): n for s, n in self.store.counts().get("in", {}).items() if n}

    def close(self) -> None:
        for worker in self.workers:
            worker.abort()
        for worker in self.workers:
            worker.join()
        self.store.close()

    def results(self, n: int) -> dict[str, Result]:
        """The results of the first n jobs that ended, by their names."""
        return {job.name: result for job, result, _ in self.wait_for(n) if result}
