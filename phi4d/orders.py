"""What people order: given to the daemon, or, where none runs, carried out in the store itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from phi4d import control, lock
from phi4d import reload as reloading
from phi4d.config import Config
from phi4d.desk import again, cancelling, holding
from phi4d.desk.again import Order, Outcome
from phi4d.desk.holding import Held, Hold
from phi4d.errors import ConfigError, EnvironmentFault
from phi4d.loading import locate
from phi4d.store import Store

ANSWER_SECONDS = 600.0  # a million files take some 20 s here
QUICK_SECONDS = 10.0  # for what is done at once, unless the disk is slow
PATHS = 32  # in one order: each may have 4,096 bytes, and each byte six characters of JSON


def give(order: Order, config: Config) -> tuple[Outcome, bool]:
    """Have files done again.

    Returns:
        What the order brought about, and whether a daemon runs, which does it now.

    Raises:
        ConfigError: what is stale cannot be told, or the store is from a newer phi4d.
        EnvironmentFault: it cannot be done now, or not by this user.
    """
    outcome = Outcome()
    for begin in range(0, max(len(order.paths), 1), PATHS):
        answer = control.ask(
            config.control_path,
            order.name,
            replace(order, paths=order.paths[begin : begin + PATHS]).fields(),
            timeout_s=ANSWER_SECONDS,
        )
        if answer is None:
            rest = replace(order, paths=order.paths[begin:])
            return outcome + _carry_out(rest, config), False
        with _understood():
            outcome += Outcome.of(answer)
    return outcome, True


def _carry_out(order: Order, config: Config) -> Outcome:
    with _own_store(config) as store:
        name = locate(config)[1] if order.stale else ""
        return again.carry_out(order, store, config.inboxes(), again.todays(config, name))


def hold(order: Hold, config: Config) -> tuple[Held, bool]:
    """Pause inboxes, or let them go on; over restarts of the daemon, too.

    Returns:
        What came of it, and whether a daemon runs.

    Raises:
        ValueError: an inbox is not known, and no daemon runs.
        ConfigError: the store is from a newer phi4d.
        EnvironmentFault: it cannot be done now, or not by this user; or the daemon knows no such
            inbox.
    """
    answer = control.ask(config.control_path, order.name, order.fields(), timeout_s=QUICK_SECONDS)
    if answer is not None:
        with _understood():
            return Held.of(answer), True
    known = [box.name for box in config.inboxes()]
    with _own_store(config) as store:
        return holding.carry_out(order, store, known, holding.user(os.geteuid())), False


def rescan(names: Sequence[str], config: Config) -> list[str] | None:
    """Have the daemon compare inboxes with the store.

    Args:
        names: of the inboxes; none: all.
        config: where the daemon is.

    Returns:
        The names of those that it compares now; None: no daemon runs.

    Raises:
        EnvironmentFault: it cannot be asked, or knows no such inbox.
    """
    fields = {"inboxes": list(names)}
    answer = control.ask(config.control_path, "rescan", fields, timeout_s=QUICK_SECONDS)
    with _understood():
        return None if answer is None else list(answer["inboxes"])


def reload(path: Path) -> reloading.Outcome | None:
    """Have the daemon read its configuration again.

    Args:
        path: of its control socket.

    Returns:
        What came of it; None: no daemon runs.

    Raises:
        EnvironmentFault: it cannot be asked, or cannot reload now.
    """
    answer = control.ask(path, "reload", timeout_s=ANSWER_SECONDS)
    with _understood():
        return None if answer is None else reloading.Outcome.of(answer)


def cancel(paths: Sequence[bytes], inbox: str | None, config: Config) -> Outcome:
    """Give up what waits: files, folders, or, without paths, all of an inbox or of all.

    What is being worked on stops as well, if a path names it.

    Raises:
        ConfigError: the store is from a newer phi4d.
        EnvironmentFault: it cannot be done now, or not by this user.
    """
    fields = cancelling.fields(paths, inbox)
    answer = control.ask(config.control_path, "cancel", fields, timeout_s=ANSWER_SECONDS)
    if answer is not None:
        with _understood():
            return Outcome.of(answer)
    who = holding.user(os.geteuid())
    with _own_store(config) as store:
        outcome = cancelling.carry_out(paths, inbox, store, config.inboxes(), who)
    # what a killed daemon was working on is marked, and given up at the next start
    return replace(outcome, taken=outcome.taken + outcome.stopping, stopping=0)


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """An answer has what it should have, or an upgrade left an older daemon at work.

    Raises:
        EnvironmentFault: it has not.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentFault(
            "the daemon is another version than this command: restart it"
        ) from error


@contextlib.contextmanager
def _own_store(config: Config) -> Iterator[Store]:
    """The store where no daemon runs; none can open it meanwhile.

    Raises:
        ConfigError: it is from a newer phi4d.
        EnvironmentFault: there is none, or it cannot be had now, or not by this user.
    """
    path = config.store_path
    try:
        owner = os.stat(path).st_uid
    except FileNotFoundError:
        raise EnvironmentFault(
            f"{path}: there is no store; phi4d has not run with this configuration (state_dir)"
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: cannot be read: {error.strerror}; be the daemon's user, or in its group"
        ) from error
    if not os.access(path, os.W_OK, effective_ids=True):
        raise EnvironmentFault(
            f"{path}: no daemon runs, and this user may not write its store; be its user "
            f"({holding.user(owner)}), or start the daemon"
        )
    held = config.state_dir / "lock"
    try:
        only = lock.Lock(held)
    except ConfigError as error:
        if (pid := lock.holder(held)) is None:
            raise
        raise EnvironmentFault(
            f"{config.control_path}: the daemon (pid {pid}) takes no orders; it is just starting "
            "or stopping, or its log says why: try again"
        ) from error
    try:
        with Store(path, anew=False) as store:  # a new one would know no file
            yield store
    finally:
        only.release()


def told(order: Order, outcome: Outcome, *, daemon: bool) -> Iterator[str]:
    """What an order brought about, in lines for people; what was left out is not among them."""
    files = "1 file" if outcome.taken == 1 else f"{outcome.taken:,} files"
    if order.dry_run:
        yield f"{files} would be done anew"
    elif outcome.taken and daemon:
        yield f"{files} taken up"
    elif outcome.taken:
        yield f"{files} will be taken up when phi4d runs; it does not run now"
    elif not outcome.left:
        wanted = "failed, or waits for its next try"
        if order.anew:
            wanted = "is stale" if order.stale else "is done"
        yield f"nothing {wanted}"
    yield from (f"  {name}" for name in outcome.first)
    if outcome.taken > len(outcome.first):
        yield f"  … and {outcome.taken - len(outcome.first):,} more"
