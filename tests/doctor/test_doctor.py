"""`phi4d doctor` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phi4d import doctor
from phi4d.config import Config, load
from phi4d.doctor.check import Check, Status


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HOME", str(tmp_path / "home"))
    environment.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with which all is well, on the CPU with the toy."""
    (tmp_path / "in").mkdir()
    file = tmp_path / "phi4d.toml"
    file.write_text(
        'model_path = "demo"\ndevice = "cpu"\nstate_dir = "state"\ncache_dir = "cache"\n'
        '[[inbox]]\npath = "in"\noutbox = "out"\n'
    )
    return file


def call(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "phi4d", "doctor", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )


def statuses(checks: list[dict[str, str]]) -> dict[str, str]:
    return {check["check"]: check["status"] for check in checks}


def test_where_all_is_well_nothing_is_changed(config: Path, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))

    done = call("--config", config)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("all is well")
    for line in done.stdout.splitlines()[:-2]:
        assert line.startswith("ok  ")
    assert "plan cpu          float32, unmerged adapters" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_as_json(config: Path):
    done = call("--config", config, "--json")

    checks = json.loads(done.stdout)
    assert done.returncode == 0
    assert {tuple(check) for check in checks} == {("check", "status", "found", "advice")}
    assert set(statuses(checks).values()) == {"ok"}
    assert set(statuses(checks)) >= {
        "python", "configuration", "daemon", "cpu", "model", "plan cpu", "torch", "flash-attn",
        "bitsandbytes", "systemd-python", "Pillow", "decoding image", "decoding audio", "sqlite",
        "inbox in", "outbox in", "inotify", "state_dir", "disk",
    }  # fmt: skip


def test_what_fails_is_told_with_what_to_do_and_exit_code_1(config: Path, tmp_path: Path):
    (tmp_path / "in").rmdir()
    (tmp_path / "out").touch()

    done = call("--config", config)

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"warn  inbox in          {tmp_path}/in is not there" in lines
    failed = lines.index(f"fail  outbox in         {tmp_path}/out is not a folder")
    assert lines[failed + 1] == "      → move it away, or name a folder in outbox"
    assert lines[-1] == "1 to mend, 1 to look at"


def test_with_a_broken_configuration_every_fault_is_told_and_the_rest_looked_at(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("phi4d.engine.devices.probe", lambda: [])

    def broken() -> Config:
        return load(environ={}, options={"batchsize": "4", "max_new_tokens": "0"})

    checks = list(doctor.examine(broken))

    faults = [check for check in checks if check.status is Status.FAIL]
    assert [fault.check for fault in faults] == ["configuration", "configuration"]
    assert "batchsize: unknown key" in "".join(fault.found for fault in faults)
    names = {check.check for check in checks}
    assert {"python", "cpu", "Pillow", "decoding audio", "sqlite"} <= names
    assert names.isdisjoint({"model", "inotify", "state_dir"})


def test_it_loads_no_model():
    code = (
        "import sys\n"
        "from phi4d import doctor\n"
        "from phi4d.config import load\n"
        "options = {'model_path': 'demo', 'device': 'cpu'}\n"
        "doctor.run(lambda: load(environ={}, options=options), as_json=True)\n"
        "heavy = {'phi4d.engine.loader', 'bitsandbytes', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ([Status.OK], "all is well"),
        ([Status.OK, Status.WARN], "phi4d can run; 1 to look at"),
        ([Status.FAIL, Status.FAIL], "2 to mend"),
        ([Status.FAIL, Status.WARN], "1 to mend, 1 to look at"),
    ],
)
def test_the_sum_of_it(statuses, words):
    checks = [Check("a", status, "b") for status in statuses]

    assert str(doctor.summary(checks)).strip() == words
