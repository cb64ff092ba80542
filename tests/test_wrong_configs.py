"""A table of wrong configurations: `run` and `config check` refuse each, with all faults at once.

The table is in wrong_configs.txt; what is no text, or no file, is here.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phi4d import cli
from phi4d.config import Config, loading

TABLE = Path(__file__).with_name("wrong_configs.txt")
MAIN, OLD = "phi4d.toml", "old.json"


@dataclass
class Case:
    """What there is, and what is to be said about it."""

    name: str
    files: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def cases() -> Iterator[Case]:
    """The table's."""
    _, *blocks = re.split(r"^== ", TABLE.read_text("utf-8"), flags=re.MULTILINE)
    for block in blocks:
        name, *lines = block.rstrip("\n").split("\n")
        case, file = Case(name), MAIN
        for line in lines:
            if line.startswith("> "):
                case.faults.append(line[2:])
            elif line.startswith("$ --"):
                case.words += shlex.split(line[2:].replace('"', r"\""))
            elif line.startswith("$ "):
                variable, _, text = line[2:].partition("=")
                case.variables[variable] = text
            elif line.startswith("--- "):
                file = line[4:]
                case.files[file] = ""
            else:
                case.files[file] = case.files.get(file, "") + f"{line}\n"
        yield case


CASES = list(cases())


@pytest.fixture(autouse=True)
def _no_files_of_this_machine(
    tmp_path: Path, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SYSTEM_FILE", tmp_path / "etc/phi4d.toml")
    monkeypatch.setattr(loading, "user_file", lambda: tmp_path / "home/phi4d.toml")
    monkeypatch.chdir(tmp_path)


def told(folder: Path, *command: str, **variables: str) -> list[str]:
    """What is said by a command that refuses, with D for the folder."""
    done = CliRunner().invoke(cli.app, command, env=variables)
    assert done.exit_code == os.EX_CONFIG, (done.stdout, done.stderr, done.exception)
    assert "Traceback" not in done.stderr
    lines = done.stderr.replace(str(folder), "D").splitlines()
    assert all(line.startswith("phi4d: ") for line in lines)
    return [line.removeprefix("phi4d: ") for line in lines]


def test_the_table_has_fifty_and_more_that_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 50
    assert len({tuple(case.faults) for case in CASES}) >= 50
    assert all(case.faults for case in CASES)


@pytest.mark.parametrize("command", [["run"], ["config", "check"]], ids=" ".join)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_and_every_fault_is_named(
    tmp_path: Path, case: Case, command: list[str]
) -> None:
    # given files, variables and words
    words = [*case.words]
    for name, text in case.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text if text.strip() else "")
        option = {MAIN: "--config", OLD: "--config-file"}.get(name)
        words += [option, str(tmp_path / name)] if option else []
    # when somebody starts it, or has it checked
    faults = told(tmp_path, *command, *words, **case.variables)
    # then there are these faults and no others
    assert len(faults) == len(case.faults), faults
    for fault, expected in zip(faults, case.faults, strict=True):
        pattern = re.escape(expected).replace(re.escape("(…)"), ".+")
        assert re.fullmatch(pattern, fault), fault


def a_folder(file: Path) -> None:
    file.mkdir()


def a_loop(file: Path) -> None:
    file.symlink_to(file)


def nothing(file: Path) -> None:
    """There is no such file."""


def in_latin_1(file: Path) -> None:
    file.write_bytes('seed = 1\nimage_prompt = "größe"\nbatchsize = 1\n'.encode("latin-1"))


def in_utf_16(file: Path) -> None:
    file.write_text("seed = 1\n", "utf-16")


def with_a_mark(file: Path) -> None:
    file.write_text("seed = 1\n", "utf-8-sig")


def a_program(file: Path) -> None:
    file.write_bytes(b"\x7fELF\2\1\1\0" * 100)


def too_large(file: Path) -> None:
    file.write_bytes(b"#" * 5_000_000)


def beside_no_folder(file: Path) -> None:
    file.write_text("seed = -1\n")
    (file.parent / "conf.d").touch()


def beside_a_folder_with_a_folder(file: Path) -> None:
    file.touch()
    (file.parent / "conf.d/a.toml").mkdir(parents=True)


def beside_a_folder_with_a_pipe(file: Path) -> None:
    file.touch()
    (file.parent / "conf.d").mkdir()
    os.mkfifo(file.parent / "conf.d/a.toml")


@pytest.mark.parametrize("command", [["run"], ["config", "check"]], ids=" ".join)
@pytest.mark.parametrize(
    ("make", "faults"),
    [
        (a_folder, ["D/phi4d.toml: cannot be read: is a directory; expected a TOML file"]),
        (
            a_loop,
            [
                "D/phi4d.toml: cannot be read: too many levels of symbolic links; expected a TOML "
                "file"
            ],
        ),
        (
            nothing,
            ["D/phi4d.toml: cannot be read: no such file or directory; expected a TOML file"],
        ),
        (
            in_latin_1,
            [
                "D/phi4d.toml:2: found the byte 0xf6, which is no UTF-8; save the file in the "
                "encoding UTF-8",
                "D/phi4d.toml:3: batchsize: unknown key; did you mean batch_size?",
            ],
        ),
        (
            in_utf_16,
            [
                "D/phi4d.toml: is no text in UTF-8; expected a TOML file: save it in the encoding "
                "UTF-8"
            ],
        ),
        (
            with_a_mark,
            ["D/phi4d.toml:1: begins with a byte order mark; save it as UTF-8 without one (BOM)"],
        ),
        (
            a_program,
            [
                "D/phi4d.toml: is no text in UTF-8; expected a TOML file: save it in the encoding "
                "UTF-8"
            ],
        ),
        (too_large, ["D/phi4d.toml: holds more than 4 MB; expected a TOML file"]),
        (
            beside_no_folder,
            [
                "D/phi4d.toml:1: seed: found -1; expected a whole number from 0 to "
                "9223372036854775807",
                "D/conf.d: is no folder; expected one with *.toml files, or none",
            ],
        ),
        (
            beside_a_folder_with_a_folder,
            ["D/conf.d/a.toml: cannot be read: is a directory; expected a TOML file"],
        ),
        (
            beside_a_folder_with_a_pipe,
            ["D/conf.d/a.toml: cannot be read: is no regular file; expected a TOML file"],
        ),
    ],
)
def test_what_is_no_file_or_no_text_is_refused(
    tmp_path: Path, make: Callable[[Path], None], faults: list[str], command: list[str]
) -> None:
    make(tmp_path / MAIN)

    assert told(tmp_path, *command, "--config", str(tmp_path / MAIN)) == faults


def refused_at_the_start(tmp_path: Path, toml: str) -> str:
    """What a real process says that is refused only when it looks at the machine."""
    (tmp_path / "in").mkdir()
    (tmp_path / MAIN).write_text(f'state_dir = "state"\n{toml}')
    done = subprocess.run(
        [sys.executable, "-m", "phi4d", "run", "--config", tmp_path / MAIN],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TABLE.parents[1])},
    )
    assert done.returncode == os.EX_CONFIG, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.replace(str(tmp_path), "D").splitlines()
    return next(line for line in lines if line.startswith("phi4d: ")).removeprefix("phi4d: ")


INBOX = '[[inbox]]\npath = "in"\noutbox = "out"\n'


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("", "inbox: none configured; add an [[inbox]] table with path and outbox to "),
        (
            f'log_file = "none/log"\n{INBOX}',
            "D/phi4d.toml:2: log_file: D/none/log cannot be written: No such file or directory; "
            "name a file in a folder that is there",
        ),
        (
            f'runtime_dir = "r"\nmodel_path = "/not/there"\n{INBOX}',
            "D/phi4d.toml:3: model_path: /not/there: no such folder",
        ),
        (f'model_path = "in"\n{INBOX}', "D/phi4d.toml:2: model_path: in: "),
        (
            f'metrics_listen = "unix:/not/there/socket"\n{INBOX}',
            "D/phi4d.toml:2: metrics_listen: unix:/not/there/socket cannot be made: the folder "
            "/not/there is not there",
        ),
        (
            f'attention = "flash_attention_2"\nmodel_path = "demo"\ndevice = "cpu"\n{INBOX}',
            "D/phi4d.toml:2: attention: 'flash_attention_2' cannot be had on cpu",
        ),
    ],
)
def test_what_only_a_start_can_tell_is_refused_with_its_line(
    tmp_path: Path, toml: str, fault: str
) -> None:
    assert refused_at_the_start(tmp_path, toml).startswith(fault)


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        fault = refused_at_the_start(tmp_path, f'metrics_listen = "{address}"\n{INBOX}')
    assert fault.startswith(f"D/phi4d.toml:2: metrics_listen: {address} ")


def test_every_key_that_has_bounds_or_choices_is_held_to_them(tmp_path: Path) -> None:
    # given a value for each key that none of them takes
    keys = [key for key in Config.model_fields if key != "inbox"]
    (tmp_path / MAIN).write_text("".join(f"{key} = [[]]\n" for key in keys))
    # when it is checked
    faults = told(tmp_path, "config", "check", "--config", str(tmp_path / MAIN))
    # then each is named, with its line, and what it takes
    assert [fault.split(": ")[:2] for fault in faults] == [
        [f"D/phi4d.toml:{n}", key] for n, key in enumerate(keys, 1)
    ]
    assert all("found [[]]; expected " in fault for fault in faults)
