"""The command line where its standard streams are not as usual: full, closed, or ASCII."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import phi4d

TOP = Path(phi4d.__file__).parents[1]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    monkeypatch.setenv("PYTHONPATH", str(TOP))
    (tmp_path / "phi4d.toml").write_text(
        'state_dir = "state"\n[[inbox]]\npath = "in→"\noutbox = "out"\n'
    )
    monkeypatch.chdir(tmp_path)


def shell(script: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run words in a shell's redirections; "$@" stands for them."""
    return subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, *words],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, **environ},
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["config", "default"],
        ["config", "show", "--config", "phi4d.toml"],
        ["status", "--json", "--config", "phi4d.toml"],
        ["status", "--watch", "--config", "phi4d.toml"],
    ],
    ids=" ".join,
)
def test_output_on_a_full_disk_is_a_line_and_no_traceback(words: list[str]) -> None:
    done = shell('exec "$@" >/dev/full', "-m", "phi4d", *words)

    assert done.stderr.splitlines()[-1:] == [
        "phi4d: standard output cannot be written: No space left on device"
    ]
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_change_nothing_else(closed: str) -> None:
    done = shell(f'exec "$@" {closed}', "-m", "phi4d", "status", "--config", "phi4d.toml")

    assert done.returncode == 3  # no daemon runs
    assert "Traceback" not in done.stderr


def test_no_file_takes_the_place_of_a_stream_that_is_closed() -> None:
    script = (
        "import os, subprocess, sys; from phi4d.cli import streams; streams.mend()\n"
        "with open('x', 'wb') as file: print(file.fileno())\n"
        "print('into nothing', file=sys.stderr)\n"
        "subprocess.run(['sh', '-c', 'echo nor a codec >&2'], check=True)"
    )
    done = shell('exec "$@" <&- 2>&-', "-c", script)

    assert done.returncode == 0
    assert int(done.stdout) > 2
    assert Path("x").read_bytes() == b""


def test_the_doctor_speaks_ascii_as_well() -> None:
    words = ["-m", "phi4d", "doctor", "--device", "cpu", "--config", "phi4d.toml"]
    done = shell('exec "$@"', *words, PYTHONIOENCODING="ascii")

    assert done.returncode == 1  # the model is not there
    assert r"\u2192" in done.stdout
    assert "Traceback" not in done.stderr
