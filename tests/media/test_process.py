"""The decode process from without: what it may do, and when it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phi4d.errors import EnvironmentFault
from phi4d.media import process as process_module
from phi4d.media.process import DecodeProcess

GIB = 1 << 30


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodeProcess]:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    found = DecodeProcess(3 * GIB, 60)
    header, _ = found.channel.receive()
    assert header == {"is": "ready"}
    yield found
    found.kill()
    found.channel.close()


def proc(process: DecodeProcess, name: str) -> str:
    return Path(f"/proc/{process.pid}/{name}").read_text()


def status(process: DecodeProcess) -> dict[str, str]:
    lines = proc(process, "status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_it_has_given_up_what_it_does_not_need(process: DecodeProcess) -> None:
    assert status(process)["NoNewPrivs"] == "1"
    ignored = int(status(process)["SigIgn"], 16)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert ignored >> (number - 1) & 1
    limits = {
        line[:26].strip(): line[26:].split()[:2] for line in proc(process, "limits").splitlines()
    }
    assert limits["Max address space"] == [str(3 * GIB)] * 2
    assert limits["Max core file size"] == ["0", "0"]
    assert proc(process, "oom_score_adj") == "500\n"


def test_it_knows_no_secrets_and_no_service_manager(process: DecodeProcess) -> None:
    names = {line.partition("=")[0] for line in proc(process, "environ").split("\0")}
    assert "PATH" in names
    assert not names & {"HF_TOKEN", "NOTIFY_SOCKET"}


def test_it_writes_to_nobodys_terminal(process: DecodeProcess) -> None:
    for number in (1, 2):
        assert os.readlink(f"/proc/{process.pid}/fd/{number}") == "/dev/null"


def test_it_loads_neither_torch_nor_the_models_package(process: DecodeProcess) -> None:
    maps = proc(process, "maps")
    assert "onnxruntime" in maps
    assert "torch" not in maps


def test_it_is_out_of_reach_of_the_terminals_keys(process: DecodeProcess) -> None:
    assert os.getpgid(process.pid) != os.getpgid(0)


def test_it_outlives_what_systemd_sends_to_all(process: DecodeProcess) -> None:
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    request = {"is": "file", "path": "/nothing", "kind": "image", "fingerprint": None}
    process.ask(request | {"max_file_bytes": 1})
    answer, _ = process.channel.receive()
    assert answer["class"] == "FileChanged"
    assert process.alive()


def test_it_is_said_that_it_used_up_its_cpu_time(process: DecodeProcess) -> None:
    os.kill(process.pid, signal.SIGXCPU)
    assert process.ended() == "used more than 60 s of CPU time (decode_seconds)"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_it_is_said_how_it_was_killed(process: DecodeProcess, number: signal.Signals) -> None:
    os.kill(process.pid, number)
    assert process.ended() == f"was killed by {number.name}"
    with pytest.raises(EOFError):
        process.channel.receive()
    process.ask({"is": "heard by nobody"})


def test_it_ends_when_nobody_can_ask_any_more(process: DecodeProcess) -> None:
    process.channel.close()
    assert process.ended() == "ended with status 0"


def test_killing_twice_is_killing_once(process: DecodeProcess) -> None:
    process.kill()
    process.kill()
    assert not process.alive()


@pytest.mark.parametrize("stopped", [False, True])
def test_it_dies_with_its_parent_even_if_it_hangs(stopped: bool) -> None:
    # given a parent with a decode process, which perhaps does not react to anything
    code = (
        "import sys; from phi4d.media.process import DecodeProcess;"
        "p = DecodeProcess(1 << 32, 60); p.channel.receive(); print(p.pid, flush=True);"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    if stopped:
        signal.pidfd_send_signal(child, signal.SIGSTOP)

    # when the parent is killed
    with parent:
        parent.kill()

    # then so is the child
    assert select.select([child], [], [], 10)[0]
    os.close(child)


def test_the_end_of_the_thread_that_started_it_does_not_end_it() -> None:
    import threading

    found: list[DecodeProcess] = []
    thread = threading.Thread(target=lambda: found.append(DecodeProcess(3 * GIB, 60)))
    thread.start()
    thread.join()
    (process,) = found
    assert process.channel.receive()[0] == {"is": "ready"}
    process.kill()
    process.channel.close()


def test_one_that_cannot_be_started_is_the_environments_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_module.sys, "executable", "/nothing/python")
    with pytest.raises(EnvironmentFault, match="cannot be started"):
        DecodeProcess(GIB, 60)
