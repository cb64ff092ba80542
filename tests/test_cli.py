"""The command line, as a user calls it: the real program, with the tiny checkpoint."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from clikit import call, daemon, invoke

import phi4d
from phi4d import cli, demo, trial
from phi4d.cli.options import Refusals
from phi4d.engine.fake import FakeEngine
from phi4d.errors import EXIT_DEVICE, EXIT_FAILURE, ConfigError, DeviceError, DeviceLost
from phi4d.job import Arrival, Fingerprint, Kind
from phi4d.store import Store

EXPECTED: dict[str, Any] = json.loads((demo.SAMPLES / "expected.json").read_text())


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, environment: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    monkeypatch.chdir(tmp_path)


class TestHelp:
    def test_it_names_every_command(self) -> None:
        done = call("--help")
        assert done.returncode == 0
        for command in (
            "run",
            "process",
            "status",
            "retry",
            "explain",
            "regenerate",
            "demo",
            "doctor",
            "model",
            "config",
        ):
            assert command in done.stdout

    def test_without_a_command_it_helps(self) -> None:
        assert "Usage" in invoke().output

    def test_the_version(self) -> None:
        assert call("--version").stdout == f"phi4d {phi4d.__version__}\n"


class TestRefusals:
    def test_every_fault_of_the_configuration_and_exit_code_78(self, tmp_path: Path) -> None:
        file = tmp_path / "c.toml"
        file.write_text("batchsize = 1\nmax_new_tokens = 0\n")
        done = call("run", "--config", file)
        assert done.returncode == os.EX_CONFIG
        assert done.stderr.splitlines() == [
            f"phi4d: {file}:1: batchsize: unknown key; did you mean batch_size?",
            f"phi4d: {file}:2: max_new_tokens: found 0; "
            "expected a whole number of tokens from 1 to 4096",
        ]

    @pytest.mark.parametrize("found", ["missing", "empty", "file"])
    def test_a_model_that_is_none(self, tmp_path: Path, found: str) -> None:
        model = tmp_path / "model"
        if found == "empty":
            model.mkdir()
        elif found == "file":
            model.write_text("?")
        done = call(
            "run", "--inbox", tmp_path, "--outbox", tmp_path / "o", "--model-path", model,
            "--set", f"state_dir={tmp_path / 'state'}",
        )  # fmt: skip
        assert done.returncode == os.EX_CONFIG
        assert str(model) in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_model_that_was_not_downloaded_says_how(self, tmp_path: Path) -> None:
        done = call(
            "run", "--inbox", tmp_path, "--outbox", tmp_path / "o",
            "--set", f"state_dir={tmp_path / 'state'}", "--set", f"cache_dir={tmp_path / 'cache'}",
        )  # fmt: skip
        assert done.returncode == os.EX_CONFIG
        assert f"phi4d model pull --cache-dir {tmp_path / 'cache'}" in done.stderr

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (["run", "--outbox", "o"], "--outbox goes with --inbox"),
            (["run", "--set", "debug"], "expected KEY=VALUE"),
            (["process"], "nothing to do"),
        ],
    )
    def test_a_wrong_call(self, words: list[str], complaint: str) -> None:
        done = invoke(*words)
        assert done.exit_code == 2
        assert complaint in done.stderr


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A configuration of one inbox."""
    (tmp_path / "in").mkdir()
    file = tmp_path / "phi4d.toml"
    file.write_text(
        'model_path = "demo"\ndevice = "cpu"\nstate_dir = "state"\nsettle_seconds = 0.05\n'
        '[[inbox]]\npath = "in"\noutbox = "out"\n'
    )
    return file


class TestAgain:
    def test_a_daemon_takes_up_what_failed(self, config_file: Path, tmp_path: Path) -> None:
        with daemon(config_file) as wait_for:
            (tmp_path / "in/bad.png").write_text("no picture")
            wait_for(" failed in/bad.png: ")
            done = call("retry", "in/bad.png", "elsewhere.png", "--config", config_file)
            assert done.returncode == 0, done.stderr
            assert done.stdout == "1 file taken up\n  in/bad.png\n"
            assert done.stderr == (
                f"phi4d: {tmp_path}/elsewhere.png: is in no inbox; inboxes: {tmp_path}/in\n"
            )
            wait_for(" failed in/bad.png: ")

    def test_a_daemon_does_anew_what_is_done(
        self, config_file: Path, tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        words = ("--config", config_file)
        with daemon(config_file) as wait_for:
            make_picture(tmp_path / "in/a.png")
            wait_for(" done in/a.png: ")
            assert call("regenerate", "out/a.png.json", *words).returncode == 0
            wait_for(" done in/a.png: ")
            done = call("regenerate", "in", "--dry-run", *words)
            assert done.stdout == "1 file would be done anew\n  in/a.png\n"

    def test_without_a_daemon_the_store_waits_for_one(
        self, config_file: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "state").mkdir()
        with Store(tmp_path / "state/jobs.sqlite3") as store:
            store.add([Arrival("in", b"a.jpg", Kind.IMAGE, Fingerprint(1, 2, 3))])
            store.fail(store.claim([1], "cpu")[0], "file", "x")
        words = ("--config", config_file)
        done = invoke("retry", "--failed", "--inbox", "in", *words)
        assert done.exit_code == 0
        assert done.stdout.startswith("1 file will be taken up when phi4d runs")
        done = invoke("retry", "--failed", *words)
        assert done.exit_code == 1
        assert done.stdout == "nothing failed, or waits for its next try\n"
        done = invoke("regenerate", "--stale", *words)
        assert (done.exit_code, done.stdout) == (1, "nothing is stale\n")

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (["retry"], "name files or folders, or give --failed"),
            (["retry", "a", "--failed"], "name files or folders, or give --failed"),
            (["retry", "a", "--inbox", "in"], "--inbox goes with --failed"),
            (["retry", "--failed", "--inbox", "no"], "none of that name; there are: in"),
            (["regenerate"], "name files or folders, or give --stale"),
            (["regenerate", "a", "--inbox", "in"], "--inbox goes with --stale"),
            (["regenerate", "--stale", "--inbox", "no"], "none of that name; there are: in"),
        ],
    )
    def test_a_wrong_call(self, config_file: Path, words: list[str], complaint: str) -> None:
        done = invoke(*words, "--config", config_file)
        assert done.exit_code == 2
        assert complaint in done.stderr


class TestExplain:
    def test_with_a_daemon(
        self, config_file: Path, tmp_path: Path, make_picture: Callable[..., Path]
    ) -> None:
        words = ("--config", config_file)
        with daemon(config_file) as wait_for:
            (tmp_path / "in/bad.png").write_text("no picture")
            wait_for(" failed in/bad.png: ")
            make_picture(tmp_path / "in/a.png")
            wait_for(" done in/a.png: ")
            done = call("explain", "out/a.png.txt", *words)
            assert done.returncode == 0, done.stderr
            assert re.search(r"state +done .* on cpu after 1 attempt$", done.stdout, re.MULTILINE)
            assert re.search(r"daemon +runs, pid \d+$", done.stdout, re.MULTILINE)
            failed = call("explain", "in/bad.png", "--json", *words)
            assert failed.returncode == 1
            assert json.loads(failed.stdout)["state"] == "failed"

    def test_without_a_store(self, config_file: Path, tmp_path: Path) -> None:
        done = invoke("explain", "in/none.png", "--config", config_file)
        assert done.exit_code == 1
        assert "there" in done.stdout


class TestProcess:
    def test_answers_go_to_stdout_and_nothing_else_does(self) -> None:
        picture = demo.SAMPLES / "shapes-448x448.png"
        done = call("process", picture, "--model-path", "demo", "--device", "cpu")
        assert done.returncode == 0
        assert done.stderr == ""
        assert done.stdout.strip() == EXPECTED[picture.name]

    def test_several_are_told_apart_and_a_bad_one_fails(self, tmp_path: Path) -> None:
        picture, bad = demo.SAMPLES / "shapes-448x448.png", tmp_path / "bad.jpg"
        bad.write_bytes(b"no picture")
        done = call("process", picture, bad, "--model-path", "demo", "--output-dir", "out")
        assert done.returncode == 1
        assert done.stdout.startswith(f"{picture}: ")
        assert done.stderr.startswith(f"phi4d: {bad}: ")
        assert "failed" not in done.stderr
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
            "bad.jpg.error.json",
            f"{picture.name}.json",
            f"{picture.name}.txt",
        ]

    def test_the_old_scripts_users_can_move(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_picture: Callable[..., Path]
    ) -> None:
        picture = make_picture(tmp_path / "a.png")
        old = tmp_path / "config.json"
        values = {
            "image_url": str(picture),
            "image_prompt": "What is this?",
            "results_dir": str(tmp_path / "results"),
            "force_cpu": True,
        }
        old.write_text(json.dumps(values))
        monkeypatch.setattr("phi4d.oneshot.process.__kwdefaults__", {
            "prompt": None, "output_dir": None, "engines": lambda config: iter([FakeEngine()]),
        })  # fmt: skip
        done = invoke("process", "--config-file", old)
        assert done.exit_code == 0
        assert done.stdout == "picture 64x48: What is this?\n"
        assert (tmp_path / "results/a.png.txt").exists()


class TestRun:
    def test_once_with_the_tiny_checkpoint(self, tmp_path: Path) -> None:
        done = call(
            "run", "--once", "--inbox", demo.SAMPLES, "--outbox", "out", "--model-path", "demo",
            "--device", "cpu", "--set", "state_dir=state", "--debug",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for name in EXPECTED:
            record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
            assert record["text"]
            assert "toy" in record["model"]
        assert "queued" in done.stderr

    def test_an_inbox_on_the_command_line_is_made(self, tmp_path: Path) -> None:
        invoke("run", "--inbox", tmp_path / "new", "--outbox", tmp_path / "o", "--set", "x=1")
        assert (tmp_path / "new").is_dir()

    def test_but_not_to_work_off_what_is_in_it(self, tmp_path: Path) -> None:
        folders = ("--inbox", tmp_path / "new", "--outbox", tmp_path / "o")
        invoke("run", "--once", *folders, "--set", "x=1")
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("error", "code"), [(DeviceLost("x"), EXIT_DEVICE), (DeviceError("x"), EXIT_FAILURE)]
    )
    def test_a_lost_device_has_its_exit_code(self, error: Exception, code: int) -> None:
        with pytest.raises(typer.Exit) as ended, Refusals():
            raise error
        assert ended.value.exit_code == code

    def test_unforeseen_faults_are_no_refusals(self) -> None:
        with pytest.raises(ZeroDivisionError), Refusals():
            raise ZeroDivisionError


class TestDemo:
    def test_it_shows_the_daemon_at_work(self, tmp_path: Path) -> None:
        done = call("demo", tmp_path / "demo")
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(tmp_path / "demo") in done.stdout
        assert "toy" in done.stdout
        for name in EXPECTED:
            assert re.search(rf"^{re.escape(name)} +\w", done.stdout, re.MULTILINE), done.stdout
            assert (tmp_path / "demo/outbox" / f"{name}.txt").exists()
        assert "phi4d model pull" in done.stdout

    def test_its_commands_can_be_copied(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        programs = tmp_path / ".venv/bin"
        monkeypatch.setattr(sys, "executable", str(programs / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        assert trial._programs() == ".venv/bin/"
        monkeypatch.chdir("/")
        assert trial._programs() in (f"{programs}/", f"{programs}/".removeprefix("/"))
        (tmp_path / "phi4d").write_text("#!/bin/sh\n")
        (tmp_path / "phi4d").chmod(0o755)
        assert trial._programs() == ""

    def test_nobodys_files_are_touched(self, tmp_path: Path) -> None:
        taken = tmp_path / "demo"
        taken.mkdir()
        assert trial._fresh(taken) == taken
        (taken / "mine").write_text("x")
        assert trial._fresh(taken) == tmp_path / "demo-2"

    def test_a_daemon_that_does_not_start_is_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(demo, "MODEL_PATH", "/none")
        assert trial.run(tmp_path / "demo") == 1
        assert "did not start" in capsys.readouterr().out


def test_ctrl_c_leaves_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130


def test_a_refusal_names_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), Refusals():
        raise ConfigError("one", "two")
    assert capsys.readouterr().err == "phi4d: one\nphi4d: two\n"
