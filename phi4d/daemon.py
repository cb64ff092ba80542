"""The composition root: builds the house, keeps it running, and stops it in order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from phi4d import control, events, settings, signals, status
from phi4d import log as logs
from phi4d.changes import Changes
from phi4d.config import Config, Inbox
from phi4d.desk.desk import Desk
from phi4d.engine import Engine, resident
from phi4d.errors import (
    EXIT_DEVICE,
    EXIT_FAILURE,
    EXIT_LATER,
    EXIT_OK,
    ConfigError,
    DeviceLost,
    EnvironmentFault,
    Phi4dError,
    Stopped,
    refusal,
)
from phi4d.hooks import Hooks
from phi4d.inbox import Watcher, roots
from phi4d.job import Arrival, Job, Kind, Result, State, display_name
from phi4d.loading import locate, make_engines_when_free
from phi4d.lock import Lock
from phi4d.media.pool import DecodePool
from phi4d.media.probe import inspect, kind_of
from phi4d.meter import Meter
from phi4d.notices import Notices
from phi4d.notify import more_time, notify
from phi4d.outputs import atomic, told
from phi4d.reload import Read, Reloader
from phi4d.scheduler import Pauses
from phi4d.signals import RELOAD_SIGNAL, STOP_SIGNALS
from phi4d.slots import Slots
from phi4d.store import Store
from phi4d.task import Rule, RuleBook
from phi4d.vigil import Vigil
from phi4d.worker import Originals, Surroundings, Worker

if TYPE_CHECKING:
    from phi4d import metrics

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
STATUS_SECONDS = 5.0
WATCHER_SECONDS = 10.0  # at a stop; where a file system does not answer, it cannot end
HOOK_SECONDS = 5.0  # at a stop, for hooks that run to end
LOOK_SECONDS = 0.2
RELOAD_SECONDS = 10.0  # until new inboxes are watched; after that they are waited for in silence
STOP_SECONDS = 60.0  # beside stop_seconds: to put files back, and to let the devices go


def make_pool(config: Config, meter: Meter | None = None) -> DecodePool:
    """Start the decode processes of one worker: before torch is imported, to be grown later."""
    return DecodePool(config.decode_processes, **settings.of_decoding(config), meter=meter)


def make_workers(
    config: Config,
    engines: Sequence[Engine],
    store: Store,
    pool: DecodePool,
    rules: Mapping[str, Rule],
    pauses: Pauses,
    on_result: Callable[[Job, Result | None, str], None] | None,
    originals: Originals | None = None,
    surroundings: Surroundings | None = None,
    meter: Meter | None = None,
) -> list[Worker]:
    """A worker for each engine, as the configuration has it; none is started."""
    slots = Slots([engine.device for engine in engines])
    originals = originals or Originals(store, rules)
    meter = meter or Meter()
    return [
        Worker(
            engine,
            store,
            pool,
            rules,
            pauses,
            slots,
            originals,
            surroundings or Surroundings(),
            **settings.of_work(config),
            on_result=on_result,
            meter=meter,
        )
        for engine in engines
    ]


class Daemon:
    """The whole daemon. Call `start`, then `tick` about every second, then `stop`.

    Args:
        config: a checked configuration.
        engines: loads the engines; tests give fake ones.
        on_result: called when a job has ended, with its result, or None and the reason.
        read: puts the configuration together again, to be reloaded; None: it cannot be.
    """

    def __init__(
        self,
        config: Config,
        *,
        engines: Callable[[Config], Iterator[Engine]] = make_engines_when_free,
        on_result: Callable[[Job, Result | None, str], None] | None = None,
        read: Read | None = None,
    ) -> None:
        self._config = config
        self.reload = Reloader(config, read or (lambda: config), self._take_up)
        self._make_engines = engines
        self._on_result = on_result
        self._boxes = config.inboxes()
        self._pauses = Pauses(config.pause_seconds)
        self._notices = Notices()
        self._meter = Meter()
        self._engines: list[Engine] = []
        self._workers: list[Worker] = []
        self._watcher: Watcher | None = None
        self._originals: Originals | None = None
        self._hooks: Hooks | None = None
        self._control: control.Server | None = None
        self._desk: Desk | None = None
        self._pool: DecodePool | None = None
        self._metrics: metrics.Server | None = None
        self._cleanup = contextlib.ExitStack()
        self._vigil = Vigil(self._notices, lambda: self._config.hang_seconds)
        self._said = ""
        self._rules = RuleBook(settings.rules(config))
        self._next_status = 0.0

    def start(self) -> None:
        """Build everything and begin; when this returns, the service is ready.

        Raises:
            ConfigError: something that was configured cannot be used.
            Stopped: a signal to stop came while the model was loaded.
        """
        if not self._boxes:
            raise ConfigError(
                "inbox: none configured; add an [[inbox]] table with path and outbox to "
                "/etc/phi4d/phi4d.toml, or give --inbox and --outbox"
            )
        config = self._config
        self._roots = roots(config)
        try:
            atomic.make_root(os.fsencode(config.state_dir))
        except OSError as error:
            raise refusal(
                error,
                f"state_dir: {config.state_dir} cannot be made: {error.strerror}; name a folder "
                "that the daemon's user can write",
            ) from error
        lock = Lock(config.state_dir / "lock")
        self._cleanup.callback(lock.release)
        store = Store(config.store_path)
        self._cleanup.callback(store.close)
        self._store = store
        store.forget_notices()
        self._make_folders(self._boxes)
        self._recover()
        self._cleanup.callback(self._serve_metrics, None)
        self._serve_metrics(self._metrics_server(config))
        self._take_orders()
        self._pool = pool = make_pool(config, self._meter)
        self._cleanup.callback(pool.close)
        for engine in self._make_engines(config):
            self._engines.append(engine)
            self._cleanup.callback(engine.close)
            if signal.sigpending() & STOP_SIGNALS:
                raise Stopped("told to stop while loading")
        pool.grow(config.decode_processes * len(self._engines))
        self._start_workers(pool, self._start_watcher())
        notify(f"READY=1\nSTATUS={status.line(store.counts())}")
        log.info(
            "ready: watching %s; %s",
            ", ".join(f"{box.path} → {box.outbox_root()}" for box in self._boxes),
            " and ".join(f"{engine.model} on {engine.device}" for engine in self._engines),
            extra=events.READY(),
        )

    def _make_folders(self, boxes: Sequence[Inbox]) -> None:
        for box in boxes:
            for folder in (box.done_dir, box.failed_dir):
                if folder is not None:
                    with contextlib.suppress(OSError):  # told when it is wanted
                        atomic.make_root(os.fsencode(folder))
            root = box.outbox_root()
            try:
                if root != box.path:
                    atomic.make_root(os.fsencode(root))
                atomic.sweep(os.fsencode(root))  # what a killed daemon tried it with
                atomic.probe(os.fsencode(root))
            except (FileExistsError, NotADirectoryError):
                fault: EnvironmentFault | None = EnvironmentFault(
                    f"{root}: cannot be made: a file is there, or where a folder above it should "
                    "be: move it away, or name another outbox"
                )
            except OSError as error:
                fault = EnvironmentFault(
                    f"{root}: cannot be made: {error.strerror}; make it, or give the daemon's "
                    "user access"
                )
            except EnvironmentFault as error:
                fault = error
            else:
                fault = None
            if fault:
                log.warning(
                    'inbox "%s" pauses, nothing is lost: %s',
                    box.name,
                    fault,
                    extra=events.INBOX_PAUSED(inbox=box.name, fault=fault.fault, reason=str(fault)),
                )
                self._pauses.pause(box.name, str(fault), time.monotonic())

    def _recover(self) -> None:
        """Go on from where a killed daemon was."""
        # swept first: whoever is killed in between finds the same jobs again, and what they left
        for folder in {
            os.path.dirname(os.path.join(self._rules[job.inbox].outbox, job.path))
            for job in self._store.interrupted()
            if job.inbox in self._rules
        }:
            atomic.sweep(folder)
        self._store.end_cancelled()
        jobs = self._store.recover()
        if jobs:
            log.warning(
                "%d files were being worked on when phi4d ended; begun again",
                len(jobs),
                extra=events.WORK_RECOVERED(),
            )

    def _take_orders(self) -> None:
        self._desk = Desk(
            self._config,
            self._store,
            self._pauses,
            self._meter,
            model=self._model,
            reload=self.reload,
        )
        try:
            self._control = control.Server(self._config.control_path, self._desk.handlers)
        except EnvironmentFault as fault:
            log.warning("no orders can be taken, phi4d goes on without: %s", fault)
        else:
            self._control.start()

    def _metrics_server(self, config: Config) -> metrics.Server | None:
        place = config.metrics_at
        if place is None:
            return None
        from phi4d import metrics  # its library is for those who want it

        live = metrics.Live(
            self._config.store_path,
            self._meter,
            self._pauses,
            inboxes=lambda: {box.name: tuple(map(Kind, box.kinds)) for box in self._boxes},
            engines=lambda: self._engines,
            workers=lambda: self._workers,
            watcher=lambda: self._watcher,
        )
        return metrics.Server(place, metrics.registry(live))

    def _serve_metrics(self, server: metrics.Server | None) -> None:
        """From now on by this server alone; None: no more."""
        if self._metrics is not None:
            self._metrics.stop()
        self._metrics = server
        if server is not None:
            server.start()

    def _model(self) -> str:
        return self._engines[0].model if self._engines else locate(self._config)[1]

    def _start_watcher(self) -> Watcher:
        config = self._config
        self._watcher = Watcher(
            self._roots,
            self._take_in,
            known=self._store.known,
            inspect=inspect,
            by_name=kind_of,
            notice=lambda inbox, text: self._notices.say(inbox, "watch", text),
            **settings.of_watching(config),
            meter=self._meter,
        )
        self._watcher.start()
        if self._desk is not None:
            self._desk.watcher = self._watcher
        while not self._watcher.armed.wait(TICK_SECONDS):
            if not self._watcher.is_alive():
                raise ConfigError("the inboxes cannot be watched; the log says why")
            if signal.sigpending() & STOP_SIGNALS:
                raise Stopped("told to stop while the inboxes were looked through")
            silent = self._vigil.listen_to(self._watcher, time.monotonic())
            doing = f"waiting for inbox {silent}" if silent else "looking through the inboxes"
            notify(f"STATUS={doing}\n{more_time()}")
        return self._watcher

    def _start_workers(self, pool: DecodePool, watcher: Watcher) -> None:
        self._originals = Originals(self._store, self._rules, self._notices, watcher.root_fault)
        self._hooks = Hooks(self._store, self._rules, self._notices, self._meter)
        self._hooks.begin()
        self._workers = make_workers(
            self._config,
            self._engines,
            self._store,
            pool,
            self._rules,
            self._pauses,
            self._on_result,
            self._originals,
            Surroundings(watcher.root_fault, watcher.look, self._hooks.wake),
            self._meter,
        )
        if self._desk is not None:
            self._desk.workers = self._workers
        for worker in self._workers:
            worker.start()

    def _take_in(self, found: list[Arrival]) -> None:
        """Files that are complete become jobs; those that have their sidecars already are done."""
        done: dict[bool, list[tuple[Arrival, bytes | None, bytes | None]]] = {}
        new = []
        for file in found:
            rule = self._rules[file.inbox]
            known = told.read(rule.outbox, file.path)
            # size and time are enough to save the work again, but not to delete a file for
            sure = rule.originals != "delete"
            if sure and known is not None and known.is_about(file.fingerprint):
                content = bytes.fromhex(known.content) if known.reusable else None
                due = rule.originals == "move"
                done.setdefault(due, []).append((file, content, known.question))
            else:
                new.append(file)
        if n := sum(self._store.adopt(some, original=due) for due, some in done.items()):
            log.info("%d files have their sidecars already", n)
            if self._originals is not None:
                self._originals.hurry()
        if self._store.add(new):
            names = [display_name(f.inbox, f.path) for f in new]
            log.debug("queued %d: %s", len(names), ", ".join(names[:5]))
            for worker in self._workers:
                worker.wake()

    def tick(self, *, once: bool = False) -> int | None:
        """Look after the house: signs of life, status, whether it is time to leave.

        Args:
            once: leave when everything that is there has been worked off.

        Returns:
            An exit code when the daemon must stop, else None.
        """
        try:
            return self._tick(time.monotonic(), once=once)
        except EnvironmentFault as fault:
            self._say_once(str(fault))
            return None

    def _say_once(self, words: str) -> None:
        if self._said != words:
            self._said = words
            log.warning("%s", words)

    def _tick(self, now: float, *, once: bool) -> int | None:
        watcher = self._watcher
        threads = (*self._workers, watcher, self._control)
        dead = [thread for thread in threads if thread and not thread.is_alive()]
        if dead or watcher is None:
            log.error(
                "%s ended; phi4d stops",
                dead[0].name if dead else "the watcher",
                extra=events.ENDED_BADLY(),
            )
            lost = any(isinstance(worker.error, DeviceLost) for worker in self._workers)
            return EXIT_DEVICE if lost else EXIT_FAILURE
        self._vigil.look(now, self._workers, watcher)
        self._notices.say_all("outbox", self._pauses.reasons())
        self._notices.flush(self._store.notice)
        logs.tick(self._waiting)
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            models = [words for engine in self._engines if (words := resident.words(engine))]
            paused = sorted({*self._pauses.reasons(), *self._pauses.held()})
            rate = f"{self._meter.rates().total_per_minute:.0f} files/min"
            notify("STATUS=" + status.line(self._store.counts(), paused, models, rate))
        if once and watcher.caught_up.is_set():
            return self._leave(watcher, now)
        return None

    def _waiting(self) -> int:
        return sum(states.get(State.QUEUED, 0) for states in self._store.counts().values())

    def _leave(self, watcher: Watcher, now: float) -> int | None:
        """The exit code if everything that is there has been worked off; what must wait is said."""
        names = [box.name for box in self._boxes]
        paused = self._pauses.paused(now)
        if self._store.busy([name for name in names if name not in paused]):
            return None
        held = {n: why for n, why in self._pauses.held().items() if self._store.busy([n])}
        counts = self._store.counts()
        if any(counts[name][State.RUNNING] for name in held if name in counts):
            return None  # what was begun before the pause is finished
        left = [
            f"{display_name(job.inbox, job.path)} still waits: {reason}"
            for job, reason in self._store.blocked(names)
        ]
        held_up = {name: fault for name in names if (fault := watcher.root_fault(name))}
        if self._store.busy(names):
            reasons = self._pauses.reasons() | held
            if not reasons:
                return None  # it works again
            held_up |= reasons
        else:
            stuck = self._notices.about("originals")
            if self._store.originals([name for name in names if name not in stuck], 1):
                return None  # a worker is at it
            left += [
                f'inbox "{name}": originals stay: {why}'
                for name, why in stuck.items()
                if self._store.originals([name], 1)
            ]
        if self._hooks is not None:
            if not self._hooks.is_idle():
                return None
            left += self._hooks.left()
        left += [f'inbox "{name}" still waits: {why}' for name, why in held_up.items()]
        for words in left:
            log.error("%s", words)
        return EXIT_LATER if left else EXIT_OK

    def _take_up(self, changes: Changes) -> None:
        """Make another configuration the one in force; see `phi4d.reload`."""
        watcher, pool, originals = self._watcher, self._pool, self._originals
        if watcher is None or pool is None or originals is None:
            raise EnvironmentFault("it is still loading the model: reload when it is ready")
        config, rules = changes.config, settings.rules(changes.config)
        if not rules:
            raise ConfigError("inbox: none configured; stop phi4d if it is to do nothing")
        watched = roots(config)
        self._tell_elsewhere(config)
        # from here on nothing is refused
        self._config, self._boxes = config, config.inboxes()
        if self._desk is not None:
            self._desk.config = config
        self._pauses.change(config.pause_seconds)
        pool.change(**settings.of_decoding(config))
        try:
            pool.resize(config.decode_processes * len(self._engines))
        except EnvironmentFault as fault:
            log.warning("decode_processes: fewer than configured, phi4d goes on: %s", fault)
        for worker in self._workers:
            worker.change(**settings.of_work(config))
        old = dict(self._rules)
        # files of an inbox that is left out may be handed on until the watcher has left it
        self._rules.replace({**old, **rules})
        for name in [name for name, rule in old.items() if rule != rules.get(name)]:
            # what kept it from working is tried anew, or is nobody's affair any more
            self._pauses.resume(name)
            self._notices.forget(name)
            originals.forget(name)
        self._make_folders([box for box in self._boxes if rules[box.name] != old.get(box.name)])
        self._wait_for(watcher, watcher.change(watched, **settings.of_watching(config)))
        self._rules.replace(rules)
        if self._hooks is not None:
            try:
                self._hooks.begin()
            except EnvironmentFault as fault:
                log.warning("hooks that are due go on at the next start: %s", fault)
        for worker in self._workers:
            worker.wake()
        self._next_status = 0.0

    def _tell_elsewhere(self, config: Config) -> None:
        """Log, and serve metrics, where another configuration wants it, or change nothing.

        Raises:
            ConfigError, EnvironmentFault: it cannot be done.
        """
        moved = config.metrics_at != self._config.metrics_at
        server = self._metrics_server(config) if moved else None
        try:
            logs.configure(**config.log_settings())  # a file that was moved away is made anew
        except Phi4dError:
            if server is not None:
                server.stop()
            raise
        if moved:
            self._serve_metrics(server)

    def _wait_for(self, watcher: Watcher, made: threading.Event) -> None:
        """Wait until the watcher has made a change; not for ever, for a file system may hang."""
        latest = time.monotonic() + RELOAD_SECONDS
        while not made.wait(LOOK_SECONDS) and not self.reload.closed:
            if time.monotonic() > latest:
                log.warning(
                    'inbox "%s" does not answer: the inboxes are watched as configured as soon as '
                    "it does",
                    watcher.looks_at,
                )
                return

    def stop(self) -> None:
        """Stop in order, as docs/architecture.md has it. Idempotent."""
        self.reload.close()
        notify(f"STOPPING=1\n{more_time(self._config.stop_seconds + STOP_SECONDS)}")
        if self._desk is not None:
            self._desk.stopping = True
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.join(WATCHER_SECONDS)
            if self._watcher.is_alive():
                log.warning("the watcher does not end, it waits for a file system; phi4d stops")
            self._watcher = None
        if self._hooks is not None:
            self._hooks.take_no_more()
        for worker in self._workers:
            worker.stop()
        deadline = time.monotonic() + self._config.stop_seconds
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            worker.abort()
        for worker in self._workers:
            worker.join()
        self._workers = []
        if self._hooks is not None:
            self._hooks.stop(time.monotonic() + HOOK_SECONDS)
        if self._control is not None:  # till then it tells how far it is
            self._control.stop()
            self._control.join()
            self._control = None
        self._cleanup.close()


def run(
    config: Config, *, once: bool = False, daemon: Daemon | None = None, read: Read | None = None
) -> int:
    """Run the daemon until a signal, or until the work is done. To be called in the main thread.

    Args:
        config: a checked configuration.
        once: leave when the work is done.
        daemon: made already; None: it is made.
        read: see `Daemon`.

    Returns:
        The exit code.

    Raises:
        ConfigError: something that was configured cannot be used.
    """
    before = signals.block()
    daemon = daemon or Daemon(config, read=read)
    terminal = signals.on_terminal()
    try:
        daemon.start()
        while (code := daemon.tick(once=once)) is None:
            got = signals.wait(TICK_SECONDS if not once else 0.1)
            # where a terminal was closed, SIGHUP means what it always did
            if got == RELOAD_SIGNAL and terminal == signals.on_terminal():
                daemon.reload()
            elif got is not None:
                log.info("%s: stopping", got.name, extra=events.STOPPING())
                code = EXIT_OK
                break
    except Stopped as stopped:
        log.info("%s", stopped)
        code = EXIT_OK
    finally:
        daemon.stop()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        logs.settle()
    log.info("stopped", extra=events.STOPPED())
    return code
