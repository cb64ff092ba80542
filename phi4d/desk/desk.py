"""The handlers of the orders that come through the control socket."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from phi4d import events
from phi4d.config import Config
from phi4d.control import UID, Handler, Long
from phi4d.desk import again, cancelling, holding, telling
from phi4d.errors import EnvironmentFault
from phi4d.meter import Meter
from phi4d.paths import inbox_of
from phi4d.reload import Reloader
from phi4d.scheduler import Pauses
from phi4d.store import Store

if TYPE_CHECKING:
    from phi4d.inbox import Watcher
    from phi4d.worker import Worker

log = logging.getLogger(__name__)


class Desk:
    """Carries orders out for one daemon, which tells it what there is by and by.

    Args:
        config: the configuration that is in force.
        store: the daemon's store.
        pauses: the inboxes that wait; those that somebody paused are told to it.
        meter: what the status tells of rates.
        model: the model's name, by which is told what is stale.
        reload: reads the configuration again.

    Attributes:
        config: the daemon sets another one when it has reloaded.
        handlers: what carries out each order, by its name.
        watcher: None until the inboxes are watched.
        workers: none until the model is loaded.
        stopping: set by the daemon at its stop; nothing is changed any more.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        pauses: Pauses,
        meter: Meter,
        *,
        model: Callable[[], str],
        reload: Reloader,
    ) -> None:
        self._reloader = reload
        self._meter = meter
        self.config = config
        self._store = store
        self._pauses = pauses
        self._model = model
        self.watcher: Watcher | None = None
        self.workers: Sequence[Worker] = ()
        self.stopping = False
        self.handlers: dict[str, Handler] = {
            "status": self._status,
            "rescan": self._changing(self._rescan),
            "reload": self._changing(self._reload),
            "retry": self._changing(self._retry),
            "regenerate": self._changing(self._regenerate),
            "cancel": self._changing(self._cancel),
            "pause": self._changing(lambda fields: self._hold(fields, pause=True)),
            "resume": self._changing(lambda fields: self._hold(fields, pause=False)),
        }
        self._heed_pauses()

    def _changing(self, handler: Handler) -> Handler:
        """A handler that changes something, and so has no place in a daemon that is stopping."""

        def carry_out(fields: Mapping[str, Any]) -> dict[str, Any] | Long:
            if self.stopping:
                raise EnvironmentFault("it is stopping; try again when it has stopped")
            return handler(fields)

        return carry_out

    def _status(self, fields: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 -- a handler
        state = "ready" if self.workers else "loading"
        if self.stopping:
            state = "stopping"
        elif self._reloader.busy:
            state = "reloading"
        return telling.answer(
            state, self.config, self._meter, self._pauses, self.workers, self.watcher
        )

    def _reload(self, fields: Mapping[str, Any]) -> Long:  # noqa: ARG002 -- a handler
        return lambda: self._reloader().fields()

    def _rescan(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        names = self._names(fields)
        if self.watcher is not None:  # else the first scan is still to come
            for name in names:
                self.watcher.rescan(name)
        return {"inboxes": names}

    def _names(self, fields: Mapping[str, Any]) -> list[str]:
        """The inboxes that an order names; all, if it names none.

        Raises:
            ValueError: there is none of that name.
        """
        known = [box.name for box in self.config.inboxes()]
        wanted = fields.get("inboxes") or known
        if not isinstance(wanted, list):
            raise ValueError("inboxes: expected a list of names")  # noqa: TRY004 -- as all wrong here
        for name in wanted:
            if name not in known:
                raise ValueError(f"no inbox is named {name!r:.80}; there are: {', '.join(known)}")
        return wanted

    def _hold(self, fields: Mapping[str, Any], *, pause: bool) -> dict[str, Any]:
        order = holding.Hold.of(fields, pause=pause)
        known = [box.name for box in self.config.inboxes()]
        who = holding.user(fields[UID])
        held = holding.carry_out(order, self._store, known, who)
        self._heed_pauses()
        for name in held.changed:
            if pause:
                words = self._pauses.held()[name]
                log.warning(
                    'inbox "%s": %s; phi4d resume lets it go on',
                    name,
                    words,
                    extra=events.INBOX_PAUSED(inbox=name, reason=words),
                )
            else:
                log.warning(
                    'inbox "%s": resumed by %s', name, who, extra=events.INBOX_RESUMED(inbox=name)
                )
        self.wake()
        return held.fields()

    def _heed_pauses(self) -> None:
        paused = self._store.paused()
        self._pauses.hold({name: pause.words for name, pause in paused.items()})

    def _retry(self, fields: Mapping[str, Any]) -> Long:
        order = again.Order.of(fields, anew=False)

        def carry_out() -> dict[str, Any]:
            outcome = self._again(order)
            if outcome.left and self.watcher is not None:
                # a file that was not noticed may be now
                found = [inbox_of(path, self.config.inboxes()) for path in order.paths]
                for name in {place[0].name for place in found if place is not None}:
                    self.watcher.rescan(name)
            return outcome.fields()

        return carry_out

    def _cancel(self, fields: Mapping[str, Any]) -> Long:
        paths, inbox = cancelling.of(fields)
        who = holding.user(fields[UID])

        def carry_out() -> dict[str, Any]:
            boxes = self.config.inboxes()
            outcome = cancelling.carry_out(paths, inbox, self._store, boxes, who)
            if outcome.stopping:
                for worker in self.workers:
                    worker.heed_cancels()
            if outcome.taken:
                log.warning("cancelled by %s: %d", who, outcome.taken)
            return outcome.fields()

        return carry_out

    def _regenerate(self, fields: Mapping[str, Any]) -> Long:
        order = again.Order.of(fields, anew=True)
        return lambda: self._again(order).fields()

    def _again(self, order: again.Order) -> again.Outcome:
        # what is stale is told by the model's name alone
        asked = again.todays(self.config, self._model() if order.stale else "")
        outcome = again.carry_out(order, self._store, self.config.inboxes(), asked)
        if outcome.taken and not order.dry_run:
            log.info("%s: taken up: %d", order.name, outcome.taken)
            self.wake()
        return outcome

    def wake(self) -> None:
        """Let the workers look for work."""
        for worker in self.workers:
            worker.wake()
