"""systemd/phi4d.service is valid, and agrees with the code."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from phi4d.config import Config
from phi4d.daemon import TICK_SECONDS
from phi4d.errors import EXIT_CONFIG
from phi4d.worker import DEVICE_DEATHS

UNIT = Path(__file__).parents[1] / "systemd" / "phi4d.service"
ANALYZE = shutil.which("systemd-analyze")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if line and line[0] not in "#["]
    pairs = [(name, value) for name, _, value in (line.partition("=") for line in lines)]
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), "a setting is given twice"
    return dict(pairs)


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_to_say(tmp_path: Path, settings: dict[str, str]):
    # given a program where the unit has one, which need not be installed here
    program = settings["ExecStart"].split()[0]
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(f"ExecStart={program}", "ExecStart=/bin/true"))
    # when
    done = subprocess.run(
        [ANALYZE or "", "verify", "--man=no", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    # then
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_systemd_waits_for_what_the_daemon_says(settings: dict[str, str]):
    assert settings["Type"] == "notify"
    assert settings["NotifyAccess"] == "main"
    assert float(settings["WatchdogSec"]) >= 10 * TICK_SECONDS


def test_a_configuration_that_cannot_be_used_is_not_tried_again(settings: dict[str, str]):
    assert settings["Restart"] == "on-failure"
    assert settings["RestartPreventExitStatus"] == str(EXIT_CONFIG)


def test_a_file_that_takes_the_device_down_is_found_out_before_systemd_gives_up(
    settings: dict[str, str],
):
    once_in_a_batch = 1
    assert int(settings["StartLimitBurst"]) > once_in_a_batch + DEVICE_DEATHS


def test_systemd_is_more_patient_at_a_stop_than_the_daemon(settings: dict[str, str]):
    assert float(settings["TimeoutStopSec"]) >= 2 * Config().stop_seconds
    assert settings["KillMode"] == "mixed"


def test_every_setting_but_the_plain_ones_has_its_reason():
    plain = {"Description", "User", "Group", "WantedBy", "Restart", "StateDirectoryMode"}
    above = ""
    for line in UNIT.read_text().splitlines():
        name = line.partition("=")[0]
        if line and line[0] not in "#[" and name not in plain:
            # the lines of one thought stand together, with the reason above the first
            assert above, f"{name}: no reason above it"
        above = line if line and line[0] != "[" else ""
