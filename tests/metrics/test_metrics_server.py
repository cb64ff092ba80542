"""The server of metrics: real sockets, clients that behave and others."""

from __future__ import annotations

import contextlib
import errno
import gzip
import http.client
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.registry import Collector

from phi4d.config import Listen
from phi4d.errors import ConfigError, EnvironmentFault
from phi4d.metrics import Server
from phi4d.metrics import server as room

WAIT_SECONDS = 30.0  # until a test gives up
Open = Callable[..., Server]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=WAIT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    Gauge("answer", "Of all questions.", registry=found).set(42)
    return found


@pytest.fixture
def serve() -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def start(place: Listen, what: CollectorRegistry | None = None) -> Server:
            server = Server(place, what or registry())
            stack.callback(server.stop)
            server.start()
            return server

        yield start


LOCAL = Listen("127.0.0.1", 0)


def get(server: Server, path: str = "/metrics", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS)
    connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    connection.close()  # the answer still has its own end
    return answer


class TestAnswers:
    def test_the_metrics(self, serve: Open) -> None:
        answer = get(serve(LOCAL))
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert b"\nanswer 42.0\n" in answer.read()

    def test_in_openmetrics_and_packed_if_asked(self, serve: Open) -> None:
        answer = get(
            serve(LOCAL),
            Accept="application/openmetrics-text; version=1.0.0",
            Accept_Encoding="gzip",
        )
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert gzip.decompress(answer.read()).endswith(b"# EOF\n")

    def test_one_by_its_name(self, serve: Open) -> None:
        what = registry()
        Gauge("other", "Something else.", registry=what)
        body = get(serve(LOCAL, what), "/metrics?name[]=other").read()
        assert b"other 0.0" in body
        assert b"answer" not in body

    def test_where_they_are(self, serve: Open) -> None:
        server = serve(LOCAL)
        assert get(server, "/").read().endswith(b": the metrics are at /metrics\n")
        assert get(server, "/etc/passwd").status == 404

    def test_on_ipv6(self, serve: Open) -> None:
        if not _has_ipv6():
            pytest.skip("this machine has no IPv6")
        server = serve(Listen("::1", 0))
        connection = http.client.HTTPConnection("::1", server.port, timeout=WAIT_SECONDS)
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 200
        connection.close()

    def test_on_a_socket_that_the_group_may_use(self, serve: Open, tmp_path: Path) -> None:
        path = tmp_path / "metrics.sock"
        server = serve(Listen(path=path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        connection = UnixConnection(path)
        connection.request("GET", "/metrics")
        assert b"answer 42.0" in connection.getresponse().read()
        connection.close()
        server.stop()
        assert not path.exists()

    def test_a_scrape_that_fails_is_told_and_logged_and_the_next_may_do(
        self, serve: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(Collector):
            broken = True

            def collect(self) -> Iterator[Any]:
                if self.broken:
                    raise ZeroDivisionError("a bug")
                return iter(())

            def describe(self) -> list[Any]:
                return []

        what, broken = registry(), Broken()
        what.register(broken)
        server = serve(LOCAL, what)
        assert get(server).status == 500
        assert "a scrape failed" in caplog.text
        broken.broken = False
        assert get(server).status == 200


class TestClients:
    def test_many_at_once(self, serve: Open) -> None:
        server = serve(LOCAL)
        found: list[int] = []

        def ask() -> None:
            found.extend(get(server).status for _ in range(5))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [200] * 40

    def test_silent_ones_make_room_for_others(self, serve: Open) -> None:
        server = serve(LOCAL)
        silent = [
            socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS)
            for _ in range(room.CLIENTS + 3)
        ]
        assert get(server).status == 200
        assert silent[0].recv(1) == b""  # the first was left
        for sock in silent:
            sock.close()

    def test_one_that_dawdles_is_left(self, serve: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(room, "CLIENT_SECONDS", 0.0)
        server = serve(LOCAL)
        with socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as sock:
            sock.sendall(b"GET /metr")
            assert sock.recv(1) == b""

    @pytest.mark.parametrize(
        "words", [b"", b"\0\xff\n\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 70_000]
    )
    def test_nonsense_harms_nobody(self, serve: Open, words: bytes) -> None:
        server = serve(LOCAL)
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as sock,
        ):
            sock.sendall(words)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
        assert get(server).status == 200

    def test_one_that_is_gone_before_its_answer(self, serve: Open) -> None:
        server = serve(LOCAL)
        for _ in range(20):
            sock = socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS)
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            # no polite end: the kernel resets the connection
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
        assert get(server).status == 200

    def test_a_stop_waits_for_nobody(self, serve: Open) -> None:
        before = threading.active_count()
        server = serve(LOCAL)
        with socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as sock:
            sock.sendall(b"GET /metrics HTTP/1.0\r\n")
            assert get(server).status == 200  # so it has been accepted as well
            server.stop()
            assert threading.active_count() == before
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        server.stop()

    def test_one_that_was_never_started_can_be_stopped(self) -> None:
        Server(LOCAL, registry()).stop()

    def test_without_descriptors_it_does_not_spin(
        self, serve: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[float] = []

        def accept(self: Any) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        listener = room._Listener(LOCAL, lambda *_: [])
        monkeypatch.setattr(listener.stopping, "wait", waits.append)
        monkeypatch.setattr("socketserver.TCPServer.get_request", accept)
        with pytest.raises(OSError, match="Too many"):
            listener.get_request()
        listener.server_close()
        assert waits == [room.ACCEPT_SECONDS]


class TestPlacesThatCannotBeUsed:
    def test_a_port_that_is_taken(self, serve: Open) -> None:
        server = serve(LOCAL)
        with pytest.raises(ConfigError) as caught:
            Server(Listen("127.0.0.1", server.port), registry())
        assert str(caught.value) == (
            f"metrics_listen: 127.0.0.1:{server.port} is taken: another program listens there; "
            "name another port, or end it"
        )

    def test_an_address_of_another_machine(self) -> None:
        with pytest.raises(ConfigError, match="this machine has no such address"):
            Server(Listen("192.0.2.1", 9464), registry())

    def test_a_socket_that_was_left_is_replaced(self, serve: Open, tmp_path: Path) -> None:
        path = tmp_path / "metrics.sock"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        serve(Listen(path=path))
        connection = UnixConnection(path)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()

    def test_a_socket_at_which_somebody_listens_is_not(self, serve: Open, tmp_path: Path) -> None:
        path = tmp_path / "metrics.sock"
        serve(Listen(path=path))
        with pytest.raises(ConfigError, match="is taken: another program listens there"):
            Server(Listen(path=path), registry())
        assert path.exists()

    def test_nor_anything_that_is_no_socket(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("mine")
        with pytest.raises(ConfigError, match="is there and no socket: move it away"):
            Server(Listen(path=path), registry())
        assert path.read_text() == "mine"

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="none is not there; make it"):
            Server(Listen(path=tmp_path / "none/metrics.sock"), registry())

    @pytest.mark.parametrize(
        ("code", "place", "words"),
        [
            (errno.EAFNOSUPPORT, LOCAL, "this process may use no network"),
            (errno.EACCES, Listen("127.0.0.1", 80), "ports below 1024 are the system's"),
            (errno.ENOTSUP, LOCAL, "expected an address of this machine"),
            (errno.EACCES, Listen(path=Path("/x/m")), "/x may not be written"),
            (errno.EROFS, Listen(path=Path("/x/m")), "in a folder on a local disk"),
        ],
    )
    def test_what_the_system_refuses_is_the_configuration_s(
        self, monkeypatch: pytest.MonkeyPatch, code: int, place: Listen, words: str
    ) -> None:
        def refuse(*_: Any) -> Any:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(room, "_Listener", refuse)
        with pytest.raises(ConfigError, match="metrics_listen: ") as caught:
            Server(place, registry())
        assert words in str(caught.value)

    def test_but_not_that_it_has_no_room_now(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(room, "_Listener", refuse)
        with pytest.raises(EnvironmentFault, match="Too many open files"):
            Server(LOCAL, registry())


class TestWarnings:
    def test_where_others_can_read_it(self, serve: Open, caplog: pytest.LogCaptureFixture) -> None:
        serve(Listen("0.0.0.0", 0))  # noqa: S104 -- said on purpose
        assert "whoever reaches 0.0.0.0:0 can read the metrics" in caplog.text

    def test_where_nobody_can(
        self, serve: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("INVOCATION_ID", "a service")
        monkeypatch.setattr(room, "_is_alone", lambda: True)
        serve(LOCAL)
        assert "nobody can reach 127.0.0.1:0" in caplog.text

    def test_nothing_else(self, serve: Open, caplog: pytest.LogCaptureFixture) -> None:
        serve(LOCAL)
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []

    def test_the_interfaces_are_counted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        table = tmp_path / "dev"
        monkeypatch.setattr(room, "_INTERFACES", table)
        assert not room._is_alone()  # it cannot be told
        head = "Inter-|   Receive\n face |bytes\n"
        table.write_text(f"{head}    lo: 1 2\n")
        assert room._is_alone()
        table.write_text(f"{head}    lo: 1 2\n  eth0: 1 2\n")
        assert not room._is_alone()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True
