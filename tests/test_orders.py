"""Orders with a daemon's socket and without one; real sockets, stores and locks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kit import unprivileged

from phi4d import config as configuration
from phi4d import demo, orders
from phi4d.config import Config
from phi4d.control import Server
from phi4d.desk import holding
from phi4d.desk.again import Order, Outcome, todays
from phi4d.errors import ConfigError, EnvironmentFault
from phi4d.job import Arrival, Fingerprint, Kind
from phi4d.lock import Lock
from phi4d.orders import give, told
from phi4d.store import Store


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "phi4d.toml"
    file.write_text(
        'model_path = "demo"\nstate_dir = "."\n[[inbox]]\npath = "in"\noutbox = "out"\n'
    )
    return configuration.load(config=file, environ={})


@pytest.fixture
def fill(config: Config) -> Callable[..., None]:
    """Makes a store, with files that failed, and files that are done."""

    def make(failed: int = 0, done: int = 0, asked: bytes = b"") -> None:
        with Store(config.store_path) as store:
            store.add(
                Arrival("in", b"%03d.jpg" % n, Kind.IMAGE, Fingerprint(n, 1, 1))
                for n in range(failed + done)
            )
            for job in store.claim(range(1, failed + done + 1), "cpu"):
                if job.id <= failed:
                    store.fail(job, "file", "x")
                else:
                    store.finish(job, question=asked)

    return make


@contextlib.contextmanager
def daemon(config: Config, handler: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Iterator[Any]:
    """What listens where a daemon would, and holds its lock."""
    lock = Lock(config.state_dir / "lock")
    server = Server(config.control_path, {"retry": handler, "regenerate": handler})
    server.start()
    try:
        yield server
    finally:
        server.stop()
        server.join()
        lock.release()


class TestWithADaemon:
    def test_it_is_asked(self, config: Config) -> None:
        asked: list[Order] = []

        def handler(fields: Mapping[str, Any]) -> dict[str, Any]:
            asked.append(Order.of(fields, anew=True))
            return Outcome(2, ("in/a", "in/b")).fields()

        order = Order((), "in", anew=True, stale=True)
        with daemon(config, handler):
            assert give(order, config) == (Outcome(2, ("in/a", "in/b")), True)
        assert asked == [order]

    def test_many_paths_are_many_orders(self, config: Config) -> None:
        def handler(fields: Mapping[str, Any]) -> dict[str, Any]:
            order = Order.of(fields, anew=False)
            left = tuple((os.fsdecode(path), "why") for path in order.paths[1:])
            return Outcome(1, (os.fsdecode(order.paths[0]),), left).fields()

        # the longest that there are, each byte of which takes most room in JSON
        paths = tuple(b"/" + b"\xff" * 4090 + b"%04d" % n for n in range(3 * orders.PATHS + 1))
        with daemon(config, handler):
            outcome, _ = give(Order(paths), config)
        assert outcome.taken == 4
        assert len(outcome.left) == len(paths) - 4
        assert set(outcome.first) | {path for path, _ in outcome.left} == set(
            map(os.fsdecode, paths)
        )

    def test_one_that_ends_meanwhile_leaves_the_rest_to_us(
        self, config: Config, fill: Callable[..., None]
    ) -> None:
        fill(failed=orders.PATHS + 1)
        files = tuple(os.fsencode(config.inbox[0].path / f"{n:03}.jpg") for n in range(33))
        with contextlib.ExitStack() as stack:

            def handler(fields: Mapping[str, Any]) -> dict[str, Any]:
                os.unlink(config.control_path)
                lock.release()
                return Outcome(orders.PATHS, ("in/000.jpg",)).fields()

            server = Server(config.control_path, {"retry": handler})
            lock = Lock(config.state_dir / "lock")
            server.start()
            stack.callback(server.join)
            stack.callback(server.stop)
            outcome, runs = give(Order(files), config)
        assert outcome == Outcome(33, ("in/000.jpg", "in/032.jpg"))
        assert not runs

    @pytest.mark.parametrize(
        "ask",
        [
            lambda config: give(Order((b"/a",)), config),
            lambda config: orders.hold(holding.Hold((), pause=True), config),
            lambda config: orders.rescan((), config),
            lambda config: orders.cancel((), None, config),
            lambda config: orders.reload(config.control_path),
        ],
        ids=["retry", "pause", "rescan", "cancel", "reload"],
    )
    def test_one_of_another_version_is_told_from_a_fault_of_ours(
        self, config: Config, ask: Callable[[Config], object]
    ) -> None:
        def handler(fields: Mapping[str, Any]) -> dict[str, Any]:
            return {"changed": None, "first": 3}

        names = ("retry", "pause", "rescan", "cancel", "reload")
        server = Server(config.control_path, dict.fromkeys(names, handler))
        server.start()
        try:
            with pytest.raises(EnvironmentFault, match="another version than this command"):
                ask(config)
        finally:
            server.stop()
            server.join()


class TestWithoutADaemon:
    def test_the_store_is_changed(self, config: Config, fill: Callable[..., None]) -> None:
        fill(failed=2)
        assert give(Order(), config) == (Outcome(2, ("in/000.jpg", "in/001.jpg")), False)
        assert give(Order(), config) == (Outcome(), False)
        with Store(config.store_path) as store:
            assert len(store.waiting(9, ["in"])) == 2

    def test_what_is_stale_follows_from_the_configuration(
        self, config: Config, fill: Callable[..., None]
    ) -> None:
        (box,) = config.inboxes()
        fill(done=2, asked=todays(config, demo.NAME)(box, Kind.IMAGE))
        order = Order(anew=True, stale=True)
        assert give(order, config)[0].taken == 0
        other = configuration.load(
            config=config.state_dir / "phi4d.toml", environ={}, options={"image_prompt": "What?"}
        )
        assert give(order, other)[0].taken == 2

    def test_no_store_is_made(self, config: Config) -> None:
        with pytest.raises(EnvironmentFault, match="there is no store"):
            give(Order(), config)
        assert not config.store_path.exists()

    def test_a_daemon_that_takes_no_orders_is_left_its_store(
        self, config: Config, fill: Callable[..., None]
    ) -> None:
        fill()
        script = (
            "import sys; from pathlib import Path; from phi4d.lock import Lock\n"
            "lock = Lock(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
        )
        holder = [sys.executable, "-c", script, str(config.state_dir / "lock")]
        pipe = subprocess.PIPE
        with subprocess.Popen(holder, stdin=pipe, stdout=pipe) as process:
            assert process.stdout
            process.stdout.readline()
            with pytest.raises(EnvironmentFault, match=rf"\(pid {process.pid}\) takes no orders"):
                give(Order(), config)

    def test_a_lock_that_cannot_be_had_for_another_reason(
        self, config: Config, fill: Callable[..., None]
    ) -> None:
        fill()
        (config.state_dir / "lock").mkdir()
        with pytest.raises(ConfigError, match="lock: cannot be written"):
            give(Order(), config)

    @pytest.mark.parametrize("order", [Order(), Order(anew=True, dry_run=True)])
    def test_a_damaged_store_is_left_to_the_daemon(
        self, config: Config, fill: Callable[..., None], order: Order
    ) -> None:
        fill()
        torn = b"not a database, but long enough to be looked at" * 100
        config.store_path.write_bytes(torn)
        with pytest.raises(EnvironmentFault, match="start phi4d anew, which sets it aside"):
            give(order, config)
        assert config.store_path.read_bytes() == torn
        assert not list(config.state_dir.glob("*.broken-*"))

    def test_who_may_not_read_the_store(self, config: Config, fill: Callable[..., None]) -> None:
        fill()
        with unprivileged(config.state_dir), pytest.raises(EnvironmentFault, match="in its group"):
            give(Order(), config)

    def test_who_may_not_write_the_store_is_told_who_may(self) -> None:
        with tempfile.TemporaryDirectory() as name:  # pytest's are root's alone
            config = Config(state_dir=Path(name))
            Store(config.store_path).close()
            config.store_path.chmod(0o444)
            with (
                unprivileged(config.state_dir, 0o555),
                pytest.raises(EnvironmentFault, match=r"may not write its store; be its user \(\w"),
            ):
                give(Order(), config)


class TestWords:
    @pytest.mark.parametrize(
        ("order", "outcome", "runs", "lines"),
        [
            (Order(), Outcome(1, ("in/a",)), True, ["1 file taken up", "  in/a"]),
            (
                Order(),
                Outcome(12_345, ("in/a", "in/b")),
                True,
                ["12,345 files taken up", "  in/a", "  in/b", "  … and 12,343 more"],
            ),
            (
                Order(),
                Outcome(2, ("in/a", "in/b")),
                False,
                [
                    "2 files will be taken up when phi4d runs; it does not run now",
                    "  in/a",
                    "  in/b",
                ],
            ),
            (Order(), Outcome(), True, ["nothing failed, or waits for its next try"]),
            (Order(anew=True, stale=True), Outcome(), True, ["nothing is stale"]),
            (
                Order(anew=True, dry_run=True),
                Outcome(1, ("in/a",)),
                False,
                ["1 file would be done anew", "  in/a"],
            ),
            (Order((b"/a",)), Outcome(left=(("/a", "why"),)), True, []),
        ],
    )
    def test_what_came_of_it(
        self, order: Order, outcome: Outcome, runs: bool, lines: list[str]
    ) -> None:
        assert list(told(order, outcome, daemon=runs)) == lines


def test_a_user_without_a_name() -> None:
    assert holding.user(0) == "root"
    assert holding.user(4_000_000_000) == "4000000000"


def test_a_leftover_socket_is_nobody(config: Config, fill: Callable[..., None]) -> None:
    fill(failed=1)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(config.control_path))
    assert give(Order(), config)[0].taken == 1
