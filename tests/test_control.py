"""The control socket: real sockets, and clients of every kind."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kit import unprivileged

from phi4d import control
from phi4d.control import Handler, Server, ask
from phi4d.errors import EnvironmentFault

WAIT_SECONDS = 30.0  # until a test gives up


def echo(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"got": {name: value for name, value in fields.items() if name != control.UID}}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:

        def start(path: Path = tmp_path / "control", **handlers: Handler) -> Server:
            server = Server(path, {"echo": echo, **handlers})
            server.start()
            stack.callback(server.join)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def path(tmp_path: Path, serve: Callable[..., Server]) -> Path:
    """Of a server's socket."""
    serve()
    return tmp_path / "control"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(WAIT_SECONDS)
    sock.connect(str(path))
    return sock


def say(path: Path, line: bytes) -> dict[str, Any]:
    """What a client that sends just this is answered."""
    with connect(path) as sock:
        sock.sendall(line)
        return json.loads(sock.makefile("rb").read())  # type: ignore[no-any-return]


class TestOrders:
    def test_an_order_is_carried_out_and_answered(self, path: Path) -> None:
        assert ask(path, "echo", {"n": 1}) == {"got": {"n": 1}}
        assert ask(path, "echo") == {"got": {}}

    def test_a_path_of_any_bytes_survives(self, path: Path) -> None:
        name = os.fsdecode(b"caf\xe9\n\xff\xe2\x80\xae.jpg")
        assert ask(path, "echo", {"path": name}) == {"got": {"path": name}}

    def test_a_long_order_and_a_long_answer(self, path: Path) -> None:
        text = "x" * (control.LINE_BYTES - 1000)
        assert ask(path, "echo", {"text": text}) == {"got": {"text": text}}

    def test_what_cannot_be_done_is_told(
        self, serve: Callable[..., Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(_: Mapping[str, Any]) -> dict[str, Any]:
            raise EnvironmentFault("the disk is full")

        def picky(_: Mapping[str, Any]) -> dict[str, Any]:
            raise ValueError("found 7; expected a path")

        serve(full=full, picky=picky)
        with pytest.raises(EnvironmentFault, match="the daemon says: the disk is full"):
            ask(tmp_path / "control", "full")
        with pytest.raises(EnvironmentFault, match="picky: found 7; expected a path"):
            ask(tmp_path / "control", "picky")
        assert caplog.text == ""

    def test_an_order_that_fails_unexpectedly_does_not_end_the_server(
        self, serve: Callable[..., Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(_: Mapping[str, Any]) -> dict[str, Any]:
            return {"n": 1 // 0}

        serve(broken=broken, strange=lambda _: {"n": object()})
        for order in ("broken", "strange"):
            with pytest.raises(EnvironmentFault, match=f"{order}: failed unexpectedly"):
                ask(tmp_path / "control", order)
        assert "ZeroDivisionError" in caplog.text
        assert ask(tmp_path / "control", "echo") == {"got": {}}

    def test_who_gives_it_is_told_by_the_kernel_and_cannot_be_feigned(
        self, serve: Callable[..., Server], tmp_path: Path
    ) -> None:
        serve(who=lambda fields: {"uid": fields[control.UID]})
        assert ask(tmp_path / "control", "who", {"uid": 12345}) == {"uid": os.geteuid()}

    def test_others_are_answered_while_one_that_takes_long_is_carried_out(
        self, serve: Callable[..., Server], tmp_path: Path
    ) -> None:
        # given one that is being carried out, and others, of which some wait for their turn
        path, begun, go_on = tmp_path / "control", threading.Event(), threading.Event()
        done: list[str] = []

        def long(fields: Mapping[str, Any]) -> control.Long:
            def carry_out() -> dict[str, Any]:
                begun.set()
                assert go_on.wait(WAIT_SECONDS)
                done.append(fields["name"])
                return {"done": fields["name"]}

            return carry_out

        server = serve(long=long)
        names = [str(n) for n in range(control.LONG_ORDERS + 2)]
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(path)) for _ in names]
            for name, client in zip(names, clients, strict=True):
                client.sendall(b'{"order": "long", "name": "%s"}\n' % name.encode())
            clients.pop().close()
            assert begun.wait(WAIT_SECONDS)
            # when others come, however many, then each is answered at once
            for n in range(control.CLIENTS + 1):
                assert ask(path, "echo", {"n": n}) == {"got": {"n": n}}
            assert done == []
            # and those get their answers, also when it is to stop
            go_on.set()
            for name, client in zip(names, clients, strict=False):
                assert json.loads(client.makefile().read()) == {"done": name}
            server.stop()
            server.join()
        assert set(names[:-1]) <= set(done)

    def test_one_that_is_soon_done_does_not_wait_for_one_that_takes_long(
        self, serve: Callable[..., Server], tmp_path: Path
    ) -> None:
        # given orders about a million files, which are being carried out
        begun, go_on = threading.Semaphore(0), threading.Event()

        def carry_out() -> dict[str, Any]:
            begun.release()
            assert go_on.wait(WAIT_SECONDS)
            return {}

        serve(million=lambda _: carry_out, one=lambda _: lambda: {"taken": 1})
        with ExitStack() as stack:
            for _ in range(control.LONG_ORDERS - 1):
                client = stack.enter_context(connect(tmp_path / "control"))
                client.sendall(b'{"order": "million"}\n')
                assert begun.acquire(timeout=WAIT_SECONDS)
            # when one comes that is about a single file, then it is answered meanwhile
            assert ask(tmp_path / "control", "one") == {"taken": 1}
            go_on.set()

    @pytest.mark.parametrize("how", ["foreseen", "unforeseen"])
    def test_one_that_takes_long_and_cannot_be_done_is_told(
        self,
        serve: Callable[..., Server],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        how: str,
    ) -> None:
        def fail() -> dict[str, Any]:
            raise EnvironmentFault("no room") if how == "foreseen" else RuntimeError("oh")

        serve(long=lambda _: fail)
        with pytest.raises(EnvironmentFault, match=r"no room|failed unexpectedly"):
            ask(tmp_path / "control", "long")
        assert ("unexpected error" in caplog.text) == (how == "unforeseen")

    def test_who_waits_for_a_long_one_when_it_stops_is_answered(
        self, serve: Callable[..., Server], tmp_path: Path
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def long() -> dict[str, Any]:
            begun.set()
            assert go_on.wait(WAIT_SECONDS)
            return {"done": True}

        server = serve(long=lambda _: long)
        with connect(tmp_path / "control") as client:
            client.sendall(b'{"order": "long"}\n')
            assert begun.wait(WAIT_SECONDS)
            server.stop()
            go_on.set()
            assert json.loads(client.makefile().read()) == {"done": True}

    def test_an_order_that_is_none_names_those_that_are(self, path: Path) -> None:
        with pytest.raises(EnvironmentFault, match="unknown order 'dance'; this phi4d knows echo"):
            ask(path, "dance")


class TestClients:
    @pytest.mark.parametrize(
        "line", [b"\n", b"nonsense\n", b"\xff\xfe\n", b"[" * 200_000 + b"\n", b"[1]\n", b"7\n"]
    )
    def test_nonsense_is_told_so(self, path: Path, line: bytes) -> None:
        assert "expected an order" in say(path, line)["error"]
        assert ask(path, "echo") == {"got": {}}

    @pytest.mark.parametrize("name", [None, 7, ["echo"]])
    def test_a_name_that_is_none(self, path: Path, name: object) -> None:
        line = json.dumps({"order": name}).encode() + b"\n"
        assert "unknown order" in say(path, line)["error"]

    def test_one_that_never_ends_is_cut_off(self, path: Path) -> None:
        with connect(path) as sock, pytest.raises(ConnectionError):
            sock.sendall(b"x" * 1_000_000_000)
        assert ask(path, "echo") == {"got": {}}

    def test_one_that_hangs_holds_up_nobody(self, path: Path) -> None:
        with connect(path), connect(path) as half:
            half.sendall(b'{"order": "ec')
            assert ask(path, "echo") == {"got": {}}
            half.sendall(b'ho"}\n')
            assert json.loads(half.makefile("rb").read()) == {"got": {}}

    def test_one_that_does_not_take_its_answer_holds_up_nobody(self, path: Path) -> None:
        with connect(path) as sock:
            sock.sendall(json.dumps({"order": "echo", "x": "x" * 900_000}).encode() + b"\n")
            assert ask(path, "echo") == {"got": {}}

    @pytest.mark.parametrize("asked", [b"", b'{"order": "ec'])
    def test_one_that_goes_away_is_forgotten(self, path: Path, asked: bytes) -> None:
        with connect(path) as sock:
            sock.sendall(asked)
        assert ask(path, "echo") == {"got": {}}

    def test_one_that_stays_silent_is_left(
        self, serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control, "CLIENT_SECONDS", 0.01)
        serve()
        with connect(tmp_path / "control") as sock:
            assert sock.recv(1) == b""

    def test_the_oldest_of_too_many_makes_room(self, path: Path) -> None:
        with ExitStack() as stack:
            silent = [stack.enter_context(connect(path)) for _ in range(control.CLIENTS)]
            assert ask(path, "echo") == {"got": {}}
            assert silent[0].recv(1) == b""
            silent[1].sendall(b'{"order": "echo"}\n')
            assert json.loads(silent[1].makefile("rb").read()) == {"got": {}}

    def test_many_at_once_are_all_answered(self, path: Path) -> None:
        answers: list[Any] = []
        asking = [
            threading.Thread(target=lambda n=n: answers.append(ask(path, "echo", {"n": n})))
            for n in range(16)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert sorted(answer["got"]["n"] for answer in answers) == list(range(16))

    def test_a_process_without_descriptors_takes_orders_again_later(
        self, serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(control, "ACCEPT_SECONDS", 0.001)
        accept, failures = socket.socket.accept, [OSError(24, "Too many open files")] * 2

        def failing(listener: socket.socket) -> Any:
            if failures:
                raise failures.pop()
            return accept(listener)

        monkeypatch.setattr(socket.socket, "accept", failing)
        serve()
        assert ask(tmp_path / "control", "echo") == {"got": {}}
        assert caplog.text.count("clients cannot be heard") == 1


class TestNobody:
    def test_no_folder_no_socket_or_a_killed_daemon_s(self, tmp_path: Path) -> None:
        assert ask(tmp_path / "none/control", "echo") is None
        assert ask(tmp_path / "control", "echo") is None
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "control"))
        assert ask(tmp_path / "control", "echo") is None

    def test_who_may_not_ask_is_told_who_may(self, path: Path) -> None:
        with unprivileged(path.parent), pytest.raises(EnvironmentFault, match="be its user, or in"):
            ask(path, "echo")

    def test_something_else_in_its_place(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(tmp_path / "control"))
            with pytest.raises(EnvironmentFault, match="cannot be asked: Protocol wrong type"):
                ask(tmp_path / "control", "echo")

    @pytest.mark.parametrize("answer", [b"", b'{"n', b"[]\n", b"nonsense\n"])
    def test_a_daemon_that_breaks_off(self, tmp_path: Path, answer: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "control"))
            listener.listen()

            def hang_up() -> None:
                sock, _ = listener.accept()
                with sock:
                    sock.makefile("rb").readline()
                    sock.sendall(answer)

            thread = threading.Thread(target=hang_up)
            thread.start()
            with pytest.raises(EnvironmentFault, match="the daemon broke off"):
                ask(tmp_path / "control", "echo")
            thread.join()

    def test_a_daemon_that_does_not_answer(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "control"))
            listener.listen(0)
            # the first is heard and not answered, the second not even heard
            with connect(tmp_path / "control"):
                for _ in range(2):
                    with pytest.raises(EnvironmentFault, match="did not answer within"):
                        ask(tmp_path / "control", "echo", timeout_s=0.01)


class TestSocket:
    def test_its_user_and_group_may_write_to_it_and_nobody_else(self, path: Path) -> None:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660

    def test_it_goes_with_the_server(self, serve: Callable[..., Server], tmp_path: Path) -> None:
        server = serve()
        with connect(tmp_path / "control") as client:
            ask(tmp_path / "control", "echo")  # so that the one before it has been heard
            server.stop()
            server.join()
            assert client.recv(1) == b""
        assert not (tmp_path / "control").exists()
        server.stop()  # again is no fault

    def test_a_killed_daemon_s_is_replaced(
        self, serve: Callable[..., Server], tmp_path: Path
    ) -> None:
        script = (
            "import os, signal, sys; from pathlib import Path; from phi4d.control import Server\n"
            "Server(Path(sys.argv[1]), {}).start(); os.kill(os.getpid(), signal.SIGKILL)"
        )
        place = tmp_path / "control"
        subprocess.run([sys.executable, "-c", script, place], check=False)
        assert place.is_socket()
        serve()
        assert ask(place, "echo") == {"got": {}}

    def test_a_file_in_its_place_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "control").write_text("mine")
        with pytest.raises(EnvironmentFault, match="is no socket, so the daemon cannot"):
            Server(tmp_path / "control", {})
        assert (tmp_path / "control").read_text() == "mine"

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(EnvironmentFault, match="cannot be made: Not a directory"):
            Server(tmp_path / "file" / "run" / "control", {})

    def test_its_folder_is_made_for_its_user_and_group(
        self, serve: Callable[..., Server], tmp_path: Path
    ) -> None:
        before = os.umask(0o077)
        try:
            serve(tmp_path / "run" / "phi4d" / "control")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "run" / "phi4d").stat().st_mode) == 0o750
        assert ask(tmp_path / "run" / "phi4d" / "control", "echo") == {"got": {}}

    @pytest.mark.parametrize("length", [107, 108, 109, 300])
    def test_its_path_may_be_of_any_length(
        self, serve: Callable[..., Server], short_folder: Path, length: int
    ) -> None:
        folder = short_folder / ("x" * 100) if length > 200 else short_folder
        folder /= "y" * (length - len(str(folder)) - len("//control"))
        folder.mkdir(parents=True)
        assert len(str(folder / "control")) == length
        serve(folder / "control")
        assert ask(folder / "control", "echo") == {"got": {}}
