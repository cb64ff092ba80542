"""`phi4d model`, as a user calls it, with a hub on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, FakeHub, contents, running
from rich.console import Console

from phi4d import demo, model

EXPECTED: dict[str, Any] = json.loads((demo.SAMPLES / "expected.json").read_text())
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running(contents(demo.CHECKPOINT)) as hub:
        yield hub


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """A new user's machine, from which nothing but the hub of the test can be reached."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            environment.delenv(name)
    environment.setenv("HOME", str(tmp_path / "home"))
    environment.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    environment.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # where nothing listens
    environment.setenv("PHI4_CACHE_DIR", str(tmp_path / "cache"))
    environment.setenv("PHI4_MODEL_PATH", FakeHub.MODEL)


def call(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "phi4d", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_pulled_checked_and_used_without_a_network(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models--org--name" / "snapshots" / COMMIT

    pulled = call("model", "pull", HF_ENDPOINT=hub.endpoint)

    assert pulled.returncode == 0, pulled.stderr
    came, ok = pulled.stdout.splitlines()
    assert came == "downloaded 6.7 MB"
    assert ok.startswith(f"ok: {folder}")
    lines = pulled.stderr.splitlines()
    assert lines[0].startswith("config.json: 0.0 MB of 6.7 MB")
    assert lines[-1] == f"{WEIGHTS}: 6.7 MB of 6.7 MB"

    picture = demo.SAMPLES / "shapes-448x448.png"
    done = call("process", picture, "--device", "cpu")
    assert (done.stdout.strip(), done.stderr) == (EXPECTED[picture.name], "")

    again = call("model", "pull", HF_ENDPOINT=hub.endpoint)
    assert again.stdout.splitlines() == [
        "nothing to download: the model is here, and up to date",
        ok,
    ]
    offline = call("model", "pull")
    assert offline.returncode == 0
    assert "cannot be reached" in offline.stdout
    assert offline.stdout.splitlines()[-2:] == ["the copy that is here is whole", ok]


def test_ctrl_c_and_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.hold = (WEIGHTS, 1_000_000)
    stopped = subprocess.Popen(
        [sys.executable, "-m", "phi4d", "model", "pull"],
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_ENDPOINT": hub.endpoint},
    )
    try:
        assert hub.held.wait(60)
        (part,) = (tmp_path / "cache").rglob("*.incomplete")
        while part.stat().st_size < 1_000_000:
            pass  # what was sent is on its way
        stopped.send_signal(signal.SIGINT)
        _, told = stopped.communicate()
    finally:
        stopped.kill()
        hub.release.set()
    assert stopped.returncode == 130
    assert told.decode().splitlines()[-1] == "phi4d: stopped; the same command goes on from here"
    hub.hold = None
    hub.fetched.clear()

    assert call("model", "pull", HF_ENDPOINT=hub.endpoint).returncode == 0
    assert hub.fetched == [(WEIGHTS, "bytes=1000000-")]


def test_the_options_say_what_and_where(hub: FakeHub, tmp_path: Path) -> None:
    where = tmp_path / "there"
    pulled = call(
        "model", "pull", "org/name", "--revision", "refs/pr/70", "--cache-dir", where,
        HF_ENDPOINT=hub.endpoint, PHI4_MODEL_PATH="someone/else",
    )  # fmt: skip
    assert pulled.returncode == 0, pulled.stderr
    assert str(where) in pulled.stdout

    checked = call("model", "check", "--revision", "refs/pr/70", "--set", f"cache_dir={where}")
    assert (checked.returncode, checked.stdout) == (0, f"{pulled.stdout.splitlines()[1]}\n")
    absent = call("model", "check", "--cache-dir", where)
    assert absent.returncode == os.EX_CONFIG
    assert f"phi4d model pull org/name --cache-dir {where}" in absent.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], os.EX_TEMPFAIL, "the hub (http://127.0.0.1:1) cannot be reached"),
        (["demo"], os.EX_OK, "ships with phi4d: there is nothing to download"),
        ([demo.CHECKPOINT], os.EX_OK, "a folder: there is nothing to download"),
        (["nowhere"], os.EX_CONFIG, "nowhere: no such folder"),
        (["--set", "cache_dri=x"], os.EX_CONFIG, "did you mean cache_dir?"),
    ],
)
def test_what_needs_no_hub(words: list[object], code: int, told: str) -> None:
    done = call("model", "pull", *words)
    assert done.returncode == code
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_revision_ends_with_78(hub: FakeHub) -> None:
    done = call("model", "pull", "--revision", "v9", HF_ENDPOINT=hub.endpoint)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith("phi4d: org/name: the hub has no revision 'v9' of it.")
    assert len(done.stderr.splitlines()) == 1


def test_every_fault_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((demo.CHECKPOINT / "config.json").read_bytes())
    done = call("model", "check", tmp_path)
    assert done.returncode == os.EX_CONFIG
    assert len(done.stderr.splitlines()) > 2
    assert all(line.startswith(f"phi4d: {tmp_path}/") for line in done.stderr.splitlines())


def test_on_a_terminal_there_is_a_bar() -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with model._progress(console) as progress:
        progress("config.json", 1_000_000, 4_000_000)
        progress(WEIGHTS, 4_000_000, 4_000_000)
    for thread in threading.enumerate():  # rich does not wait for its own
        if "RefreshThread" in type(thread).__name__:
            thread.join()
    assert WEIGHTS in screen.getvalue()
    assert "4.0/4.0 MB" in screen.getvalue()
