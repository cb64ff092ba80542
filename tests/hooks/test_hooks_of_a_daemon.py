"""Hooks of a real daemon in a process of its own; only the engine is played."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from daemonkit import read_until, running
from hookkit import Receiver


@pytest.fixture
def write_config(tmp_path: Path, environment: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a configuration of one inbox and returns its path."""

    def write(**keys: object) -> Path:
        (tmp_path / "in").mkdir(exist_ok=True)
        path = tmp_path / "phi4d.toml"
        path.write_text(
            'state_dir = "state"\nsettle_seconds = 0.05\n[[inbox]]\npath = "in"\noutbox = "out"\n'
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        )
        return path

    return write


def test_the_ends_of_all_files_are_told_before_it_leaves(
    write_config: Callable[..., Path],
    tmp_path: Path,
    make_picture: Callable[..., Path],
    receiver: Receiver,
) -> None:
    # given files that can be done, with any names, and one that cannot
    names = [b"a b$(false).png", b"n\xe4me.png", b"two\nlines.png"]
    for n, name in enumerate(names):
        made = make_picture(tmp_path / "made.png", (10 + n, 5))
        (tmp_path / "in").mkdir(exist_ok=True)
        os.rename(made, os.path.join(os.fsencode(tmp_path), b"in", name))
    (tmp_path / "in/bad.jpg").write_bytes(b"this is no picture")
    (tmp_path / "secret").write_text("open sesame\n")
    # and a command for the ones, which keeps a copy of the text, and a webhook for the other
    script = tmp_path / "keep"
    script.write_text('#!/bin/sh\n[ -f "$1" ] && [ -f "$3" ] && cp "$2" "$KEPT/$PHI4D_ID"\n')
    script.chmod(0o755)
    (tmp_path / "kept").mkdir()
    config = write_config(
        on_done=["env", f"KEPT={tmp_path}/kept", str(script), "{path}", "{sidecars}"],
        on_failed=receiver.url,
        webhook_secret_file=str(tmp_path / "secret"),
    )
    # when all that is there is worked off
    with running(config, "once") as process:
        said = process.communicate()[1]
    # then each was told of
    assert process.returncode == 0, said
    kept = sorted(path.read_text() for path in (tmp_path / "kept").iterdir())
    assert kept == sorted(
        (tmp_path / "out" / os.fsdecode(name + b".txt")).read_text() for name in names
    )
    (request,) = receiver.requests
    assert request.headers["webhook-signature"] == request.signature(b"open sesame")
    told = request.message["data"]
    assert (told["name"], told["state"], told["fault"]) == ("in/bad.jpg", "failed", "file")
    assert "it holds text" in told["reason"]
    assert told["sidecars"] == [f"{tmp_path}/out/bad.jpg.error.json"]
    assert "hook" not in said


def test_what_was_under_way_when_it_was_killed_is_told_again(
    write_config: Callable[..., Path],
    tmp_path: Path,
    make_picture: Callable[..., Path],
    receiver: Receiver,
) -> None:
    # given a daemon whose receiver takes its time
    for n in range(3):
        make_picture(tmp_path / f"in/{n}.png", (10 + n, 5))
    config = write_config(on_done=receiver.url)
    receiver.gate.clear()
    with running(config) as process:
        (first,) = receiver.wait_for(1)
        # when it is killed
        process.kill()
    receiver.gate.set()
    # then the next one tells of every file, and of none under another id
    with running(config, "once") as process:
        assert process.communicate()[1]
    assert process.returncode == 0
    ids: dict[str, set[str]] = {}
    for request in receiver.requests:
        ids.setdefault(request.message["data"]["name"], set()).add(request.message["id"])
    assert sorted(ids) == ["in/0.png", "in/1.png", "in/2.png"]
    assert [len(found) for found in ids.values()] == [1, 1, 1]
    assert [r.message["id"] for r in receiver.requests].count(first.message["id"]) == 2


def test_a_receiver_that_is_down_is_what_is_left(
    write_config: Callable[..., Path], tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/?key=geheim"
    make_picture(tmp_path / "in/a.png")
    with running(write_config(on_done=url), "once") as process:
        said = process.communicate()[1]
    assert process.returncode == 75, said
    assert 'inbox "in": the hook on_done still waits (files: 1)' in said
    assert "cannot be reached: Connection refused; next try in" in said
    assert "geheim" not in said


def test_a_command_that_runs_for_long_does_not_keep_it_from_stopping(
    write_config: Callable[..., Path], tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    # given a daemon with a command under way
    make_picture(tmp_path / "in/a.png")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = tmp_path / "long"
    script.write_text(f"#!/bin/sh\necho begun > {pipe}\nsleep 1000\n")
    script.chmod(0o755)
    with running(write_config(on_done=[str(script)], hook_seconds=900)) as process:
        assert pipe.read_text() == "begun\n"
        # when it is told to stop
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    # then it ends well, and the command is done again at the next start
    assert process.returncode == 0, said
    with running(write_config(on_done=["touch", f"{tmp_path}/again"]), "once") as process:
        process.communicate()
    assert process.returncode == 0
    assert (tmp_path / "again").exists()


def test_a_reload_has_what_waits_told_to_the_new_receiver(
    write_config: Callable[..., Path],
    tmp_path: Path,
    make_picture: Callable[..., Path],
    receiver: Receiver,
) -> None:
    # given a daemon whose receiver is not there, which was noticed
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"http://127.0.0.1:{server.getsockname()[1]}/"
    make_picture(tmp_path / "in/a.png")
    with running(write_config(on_done=nobody)) as process:
        read_until(process, "the hook on_done failed")
        # when another is configured
        write_config(on_done=receiver.url)
        process.send_signal(signal.SIGHUP)
        # then it is told of what waited, and of what is done from now on
        (first,) = receiver.wait_for(1)
        assert first.message["data"]["name"] == "in/a.png"
        make_picture(tmp_path / "in/b.png", (9, 9))
        assert receiver.wait_for(2)[1].message["data"]["name"] == "in/b.png"
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 0
    assert 'reloaded: inbox "in" (on_done)' in said
