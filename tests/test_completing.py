"""TAB: what phi4d answers a shell, and that the shells understand it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main

from phi4d import cli
from phi4d.cli import completing
from phi4d.config import Config

SCRIPTS = Path(__file__).parents[1] / "completion"


def answers(line: str) -> list[str]:
    command = typer.main.get_command(cli.app)
    return [answer.partition("\t")[0] for answer in completing.answers(command, line)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("phi4d reg", ["regenerate"]),
        ("phi4d model ", ["pull", "check", "info"]),
        ("phi4d model p", ["pull"]),
        ("phi4d bench t", ["throughput"]),
        ("phi4d bench throughput --svg ", [":files"]),
        ("sudo /usr/bin/phi4d reg", ["regenerate"]),
        ("phi4d regenerate --st", ["--stale"]),
        ("phi4d retry --fail", ["--failed"]),
        ("phi4d retry --failed --in", ["--inbox"]),
        ("phi4d explain ", [":files"]),
        ("phi4d explain a.jpg ", []),
        ("phi4d retry a.jpg b.jpg ", [":files"]),
        ("phi4d retry -- --fail", [":files"]),
        ("phi4d run --outbox ", [":folders"]),
        ("phi4d run --config ", [":files"]),
        ("phi4d run --model-path d", ["demo", ":folders"]),
        ("phi4d run --device c", ["cpu", "cuda", "cuda:0"]),
        ("phi4d run --device=cu", ["--device=cuda", "--device=cuda:0"]),
        ("phi4d run --set batch_", ["batch_size="]),
        ("phi4d run --set offload=", ["offload=auto", "offload=never"]),
        ("phi4d run --set debug=t", ["debug=true"]),
        ("phi4d run --set no_such=", []),
        ("phi4d config explain settle", ["settle_seconds", "settle_max"]),
        ("phi4d config explain inbox.ori", ["inbox.originals"]),
        ("phi4d config explain seed ", []),
        ("phi4d nonsense ", []),
        ("phi4d explain 'my pict", [":files"]),
        ("phi4d --vers", ["--version"]),
        ("phi4d --he", ["--help"]),
    ],
)
def test_it_knows_what_could_come_next(line: str, expected: list[str]):
    assert answers(line) == expected


def test_every_command_is_offered_with_what_it_does():
    group = typer.main.get_command(cli.app)
    found = dict(answer.split("\t") for answer in completing.answers(group, "phi4d "))

    assert list(found) == [
        name
        for name, command in group.commands.items()  # type: ignore[attr-defined]
        if not command.hidden
    ]
    assert all(found.values())


def test_every_key_is_offered():
    assert answers("phi4d status --set ") == [f"{key}=" for key in Config.model_fields]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "phi4d.toml"
    file.write_text(
        'results_dir = "/srv/out"\n[[inbox]]\npath = "/srv/scans"\n'
        '[[inbox]]\npath = "/srv/in"\nname = "talks: old"\n'
    )
    return file


def test_inboxes_are_those_of_the_configuration(config: Path):
    assert answers(f"phi4d retry --config {config} --inbox ") == ["scans", "talks: old"]
    assert answers(f"phi4d retry --config {config} --inbox s") == ["scans"]
    assert answers(f"phi4d retry --config={config} --inbox s") == ["scans"]


def test_a_configuration_that_cannot_be_used_has_no_answer_and_no_complaint(tmp_path: Path):
    bad = tmp_path / "bad.toml"
    bad.write_text("nonsense")

    done = asked(f"phi4d retry --config {bad} --inbox ")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def asked(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "phi4d"],
        env={**os.environ, completing.VARIABLE: line},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_loads_nothing_heavy_to_tell_the_commands():
    line = "phi4d retry --fa"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "phi4d"],
        env={**os.environ, completing.VARIABLE: line},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}

    assert done.stdout.startswith("--failed\t")
    assert not loaded & {"torch", "numpy", "pydantic", "rich"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with phi4d on its path, and files to name."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "phi4d"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m phi4d "$@"\n')
    program.chmod(0o755)
    (tmp_path / "picture of a cat.jpg").touch()
    (tmp_path / "pictures").mkdir()
    return tmp_path


class Terminal:
    """A shell at a terminal, as somebody at the keyboard has it."""

    def __init__(self, command: list[str], home: Path) -> None:
        ours, theirs = pty.openpty()
        self._file = ours
        self._shell = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=home,
            env={
                "PATH": f"{home}/bin:{os.environ['PATH']}",
                "HOME": str(home),
                "TERM": "dumb",
                "PS1": "",
                "LC_ALL": "C.UTF-8",
            },
            start_new_session=True,
        )
        os.close(theirs)

    def says(self, keys: str, expected: str) -> str:
        """Press keys; wait until this is on the screen, and give back what was."""
        os.write(self._file, keys.encode())
        shown = ""
        while expected not in shown:
            ready, _, _ = select.select([self._file], [], [], 60)
            assert ready, f"{expected!r} was not shown, but {shown!r}"
            shown += os.read(self._file, 4096).decode(errors="replace")
        return shown

    def close(self) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._file)


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*command: str) -> Terminal:
        opened.append(Terminal(list(command), home))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


TO_THE_BEGINNING = "\x01"
LINES = [
    ("phi4d regen\t", "<phi4d> <regenerate>"),
    ("phi4d retry --fa\t", "<phi4d> <retry> <--failed>"),
    ("phi4d run --set off\tn\t", "<phi4d> <run> <--set> <offload=never>"),
    ("phi4d explain picture\\ \t", "<phi4d> <explain> <picture of a cat.jpg>"),
    ("phi4d run --outbox pic\t", "<phi4d> <run> <--outbox> <pictures"),
]


@pytest.mark.parametrize(("keys", "expected"), LINES)
def test_bash(terminal: Callable[..., Terminal], keys: str, expected: str):
    bash = terminal("bash", "--norc", "--noprofile", "-i")
    bash.says(
        f". {SCRIPTS}/phi4d.bash; shown() {{ printf '<%s> ' \"$@\"; }}; echo re''ady\n", "ready"
    )

    bash.says(f"{keys}{TO_THE_BEGINNING}shown \n", expected)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(("keys", "expected"), LINES)
def test_zsh(terminal: Callable[..., Terminal], keys: str, expected: str):
    zsh = terminal("zsh", "-f", "-i")
    zsh.says(
        f"fpath=({SCRIPTS} $fpath); autoload -U compinit; compinit -u -D; bindkey -e;"
        "shown() { printf '<%s> ' \"$@\" }; echo re''ady\n",
        "ready",
    )

    zsh.says(f"{keys}{TO_THE_BEGINNING}shown \n", expected)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("phi4d regen", ["regenerate\tAnswer anew what is done."]),
        ("phi4d run --set offload=", ["offload=auto", "offload=never"]),
        ("phi4d run --outbox pic", ["pictures/"]),
    ],
)
def test_fish(home: Path, line: str, expected: list[str]):
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {SCRIPTS}/phi4d.fish; complete -C '{line}'"],
        cwd=home,
        env={"PATH": f"{home}/bin:{os.environ['PATH']}", "HOME": str(home), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert [one.removesuffix("\tDirectory") for one in done.stdout.splitlines()] == expected
