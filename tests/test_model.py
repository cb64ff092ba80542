"""`phi4d model`, as a user calls it, with a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
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
from typer.testing import CliRunner

from phi4d import cli, demo, model
from phi4d.engine import checkpoint
from phi4d.engine.layout import Layout
from phi4d.engine.pull import Pulled

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


def invoke(*words: object) -> Any:
    """In this process, for what asks no hub: its address is read when the library is imported."""
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def original(folder: Path) -> dict[str, bytes]:
    """The files of the demo checkpoint as the hub's main revision would have them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    import checkpoints

    made = checkpoint.read(demo.CHECKPOINT)
    checkpoints.rewrite(made, folder, Layout.ORIGINAL, shard_bytes=1_000_000)
    return contents(folder)


@pytest.mark.parametrize("layout", ["original", "converted"])
def test_pulled_checked_and_used_without_a_network(
    hub: FakeHub, tmp_path: Path, layout: str
) -> None:
    if layout == "original":
        hub.files = original(tmp_path / "original")
        hub.files["modeling_phi4mm.py"] = b"raise SystemExit"
    folder = tmp_path / "cache" / "models--org--name" / "snapshots" / COMMIT

    pulled = call("model", "pull", HF_ENDPOINT=hub.endpoint)

    assert pulled.returncode == 0, pulled.stderr
    came, ok = pulled.stdout.splitlines()
    assert came == "downloaded 6.7 MB"
    assert ok.startswith(f"ok: {folder}: {layout} layout, ")
    assert not list(folder.glob("*.py"))
    lines = pulled.stderr.splitlines()
    assert lines[0].startswith("config.json: 0.0 MB of 6.7 MB")
    assert lines[-1].endswith(".safetensors: 6.7 MB of 6.7 MB")

    picture = demo.SAMPLES / "shapes-448x448.png"
    done = call("process", picture, "--device", "cpu")
    assert (done.stdout.strip(), done.stderr) == (EXPECTED[picture.name], "")


def test_what_came_in_words(tmp_path: Path) -> None:
    assert model._what_came(Pulled(tmp_path, 11_150_000_000)) == "downloaded 11.2 GB"
    assert model._what_came(Pulled(tmp_path)).endswith("the model is here, and up to date")
    assert model._what_came(Pulled(tmp_path, unasked="no network")).splitlines() == [
        "not compared with the hub: no network",
        "the copy that is here is whole",
    ]


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
        (["nowhere"], os.EX_CONFIG, "nowhere: no such folder"),
        (["--set", "cache_dri=x"], os.EX_CONFIG, "did you mean cache_dir?"),
    ],
)
def test_what_cannot_be_had(words: list[object], code: int, told: str) -> None:
    done = call("model", "pull", *words)
    assert done.returncode == code
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("found", ["demo", str(demo.CHECKPOINT)])
def test_there_may_be_nothing_to_download(found: str) -> None:
    done = invoke("model", "pull", found)
    assert done.exit_code == 0
    why, ok = done.stdout.splitlines()
    assert why.endswith(": there is nothing to download")
    assert ok == f"ok: {demo.CHECKPOINT}: converted layout, 3 weight files, 6.7 MB"


def test_a_wrong_revision_ends_with_78(hub: FakeHub) -> None:
    done = call("model", "pull", "--revision", "v9", HF_ENDPOINT=hub.endpoint)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith("phi4d: org/name: the hub has no revision 'v9' of it.")
    assert len(done.stderr.splitlines()) == 1


def test_every_fault_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((demo.CHECKPOINT / "config.json").read_bytes())
    done = invoke("model", "check", tmp_path)
    assert done.exit_code == os.EX_CONFIG
    assert len(done.stderr.splitlines()) > 2
    assert all(line.startswith(f"phi4d: {tmp_path}/") for line in done.stderr.splitlines())


def test_what_the_model_is(hub: FakeHub, tmp_path: Path) -> None:
    assert call("model", "pull", HF_ENDPOINT=hub.endpoint).returncode == 0
    told = json.loads(call("model", "info", "--json").stdout)
    # the figures are those of phi4d/demo/checkpoint/README.md's files
    assert told["parameters"].pop("total") == sum(told["parameters"].values()) == 1_659_808
    assert told | {"parameters": None} == {
        "model": "org/name",
        "revision": "main",
        "commit": COMMIT,
        "folder": str(tmp_path / "cache/models--org--name/snapshots" / COMMIT),
        "layout": "converted",
        "parameters": None,
        "adapters": {"vision": {"rank": 16, "scale": 2.0}, "speech": {"rank": 16, "scale": 2.0}},
        "dtypes": ["float32"],
        "files": 3,
        "bytes": 5_816_728 + 2 * 430_128,
    }

    lines = invoke("model", "info", "demo").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "model", "folder", "layout", "parameters", "adapters", "dtype", "weights",
    ]  # fmt: skip
    assert lines[3].startswith("parameters  1.66 M: language 0.59 M, embedding 0.05 M, ")
    assert lines[4].endswith("vision rank 16, scale 2; speech rank 16, scale 2")
    assert lines[-1].endswith("3 files, 6.7 MB")


def test_the_real_one_in_words() -> None:
    parameters = {"total": 5_574_000_000, "language": 3_221_000_000}
    told = {
        "model": "m", "revision": "main", "commit": COMMIT, "folder": "/f", "layout": "original",
        "parameters": parameters, "adapters": {}, "dtypes": ["bfloat16", "float32"],
        "files": 3, "bytes": 11_150_000_000,
    }  # fmt: skip
    lines = model.render(told).splitlines()
    assert "parameters  5,574 M: language 3,221 M" in lines
    assert "weights     3 files, 11.2 GB" in lines
    assert "dtype       bfloat16, float32" in lines


def test_a_shape_that_does_not_fit_is_a_fault(tmp_path: Path) -> None:
    shutil.copytree(demo.CHECKPOINT, tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 128}))
    done = invoke("model", "check", tmp_path / "model")
    assert done.exit_code == os.EX_CONFIG
    assert "has shape" in done.stderr.splitlines()[0]


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
