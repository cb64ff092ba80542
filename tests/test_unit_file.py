"""The units in systemd/ are valid, hardened, and agree with the code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from phi4d import notify
from phi4d.config import Config
from phi4d.daemon import TICK_SECONDS
from phi4d.errors import EXIT_CONFIG
from phi4d.worker import DEVICE_DEATHS

UNIT = Path(__file__).parents[1] / "systemd" / "phi4d.service"
USER_UNIT = UNIT.with_name("phi4d-user.service")
ANALYZE = shutil.which("systemd-analyze") or ""
SAFE = 1.0  # of systemd's 10: what it calls the exposure level
LISTS = {"DeviceAllow", "SystemCallFilter"}
"""settings that add up"""

needs_systemd = pytest.mark.skipif(not ANALYZE, reason="needs systemd-analyze")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return settings_of(UNIT)


def settings_of(unit: Path) -> dict[str, str]:
    found = defaultdict(list)
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found[name].append(value)
    twice = {name for name, values in found.items() if len(values) > 1}
    assert twice <= LISTS
    return {name: " ".join(values) for name, values in found.items()}


def analyze(*words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ANALYZE, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
    )


@pytest.fixture
def runnable(tmp_path: Path, settings: dict[str, str]) -> Path:
    """The unit with a program that is there: what the unit has need not be installed here."""
    program = settings["ExecStart"].split()[0]
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(program, "/bin/true"))
    return copy


@needs_systemd
def test_systemd_finds_nothing_to_say(runnable: Path):
    done = analyze("verify", "--man=no", runnable)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


@needs_systemd
def test_nor_of_the_unit_for_users(tmp_path: Path):
    # given a command in one of the places where the unit looks
    unit = tmp_path / "phi4d.service"
    unit.write_text(USER_UNIT.read_text().replace("=phi4d ", "=true "))
    # when
    done = analyze("--user", "verify", "--man=no", unit, XDG_RUNTIME_DIR=str(tmp_path))
    # then
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_the_unit_for_users_has_what_a_user_s_systemd_can_do(settings: dict[str, str]):
    theirs = settings_of(USER_UNIT)
    # then what both have is the same, but for where the command and the target are
    common = theirs.keys() & settings.keys()
    other = {name for name in common if theirs[name] != settings[name]}
    assert other == {"ExecStart", "ExecReload", "WantedBy"}
    assert theirs.keys() - common == {"ExecSearchPath"}
    assert theirs["ExecSearchPath"].startswith("%h/.local/bin:")
    # and none of those that want root, or namespaces that not every kernel gives to users
    denied = ("Protect", "Private", "ReadWrite", "Device", "IP", "User", "Group", "Capability")
    assert [name for name in theirs if name.startswith(denied)] == []


@needs_systemd
def test_little_is_exposed(runnable: Path):
    done = analyze("security", "--offline=yes", "--json=short", "--no-pager", runnable)
    assert done.stderr == ""
    whole = analyze("security", "--offline=yes", f"--threshold={SAFE * 10:.0f}", runnable)
    # then: what is left open costs no more than the figure, and systemd's own sum says so too
    assert whole.returncode == 0, whole.stdout
    open_ = {line["name"] for line in json.loads(done.stdout) if line["set"] is False}
    assert open_ <= {
        "RootDirectory=/RootImage=",
        "PrivateDevices=",
        "PrivateMounts=",
        "PrivateUsers=",
        "MemoryDenyWriteExecute=",
        "ProcSubset=",
        "DeviceAllow=",
        "RestrictAddressFamilies=~AF_UNIX",
        "SystemCallFilter=~@resources",
        "UMask=",
    }


def test_what_a_gpu_and_torch_need_is_left_to_them(settings: dict[str, str]):
    for name in ("PrivateDevices", "ProcSubset", "MemoryDenyWriteExecute"):
        assert name not in settings
    assert settings["DevicePolicy"] == "closed"
    nodes = settings["DeviceAllow"].split()[::2]
    assert nodes == [
        "char-nvidia",
        "char-nvidia-frontend",
        "char-nvidia-uvm",
        "char-nvidia-caps",
    ]
    assert {"mbind", "set_mempolicy", "sched_setaffinity", "setpriority", "setrlimit"} <= set(
        settings["SystemCallFilter"].split()
    )


def test_who_gives_an_order_can_be_told(settings: dict[str, str]):
    # in a user namespace the kernel calls all others by the number of nobody
    assert "PrivateUsers" not in settings


def test_systemd_waits_for_what_the_daemon_says(settings: dict[str, str]):
    assert settings["Type"] == "notify"
    assert settings["NotifyAccess"] == "main"
    assert float(settings["WatchdogSec"]) >= 10 * TICK_SECONDS
    assert settings["TimeoutStartSec"] == f"{notify.PATIENCE_SECONDS / 60:.0f}min"


def test_a_configuration_that_cannot_be_used_is_not_tried_again(settings: dict[str, str]):
    assert settings["Restart"] == "on-failure"
    assert settings["RestartPreventExitStatus"] == str(EXIT_CONFIG)


def test_a_file_that_takes_the_device_down_is_found_out_before_systemd_gives_up(
    settings: dict[str, str],
):
    once_in_a_batch = 1
    assert int(settings["StartLimitBurst"]) > once_in_a_batch + DEVICE_DEATHS


def test_hangs_are_never_given_up_on(settings: dict[str, str]):
    # a disk that hangs is found out so late that the starts of one interval are not used up
    each = Config().hang_seconds + float(settings["WatchdogSec"]) + float(settings["RestartSec"])
    interval = 60 * float(settings["StartLimitIntervalSec"].removesuffix("min"))
    assert int(settings["StartLimitBurst"]) * each > interval


def test_systemd_is_more_patient_at_a_stop_than_the_daemon(settings: dict[str, str]):
    assert float(settings["TimeoutStopSec"]) >= 2 * Config().stop_seconds
    assert settings["KillMode"] == "mixed"


@pytest.mark.parametrize("unit", [UNIT, USER_UNIT], ids=lambda unit: str(unit.name))
def test_every_setting_but_the_plain_ones_has_its_reason(unit: Path):
    plain = {
        "Description",
        "Documentation",
        "User",
        "Group",
        "WantedBy",
        "Restart",
        "StateDirectoryMode",
        "RuntimeDirectoryMode",
    }
    above = ""
    for line in unit.read_text().splitlines():
        name = line.partition("=")[0]
        if line and line[0] not in "#[" and name not in plain:
            # the lines of one thought stand together, with the reason above the first
            assert above, f"{name}: no reason above it"
        above = line if line and line[0] != "[" else ""
