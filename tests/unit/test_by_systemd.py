"""A drop-in with all that there can be, read by systemd itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import NOBODY
from unitkit import UNIT, config_of, machine

from phi4d.unit.dropin import render, settings

ANALYZE = shutil.which("systemd-analyze") or ""
MANAGER = Path("/lib/systemd/systemd")
TEMPORARY = ("/tmp/it's done", "/tmp/a:b")  # noqa: S108  # names only
MAXIMAL = r"""
model_path = "/home/ada/models/phi 4"
state_dir = "/data/state"
runtime_dir = "/run/phi4d-two"
metrics_listen = "[::1]:9464"
log_file = "/var/log/phi4d/phi4d.log"
results_dir = "/data/results"
[[inbox]]
path = '/srv/100% of "it"\'
outbox = "/srv/a:b/ été;#"
originals = "move"
done_dir = "/tmp/it's done"
failed_dir = "/tmp/a:b"
[[inbox]]
path = "/home/ada/in box"
outbox = "beside"
name = "%n ]"
[[inbox]]
path = "/data/other"
"""
WANTED = machine(
    1000,
    rocm=True,
    gpu_groups=("render",),
    mounts=frozenset({Path("/data"), Path("/srv/a:b/ été;#")}),
)

pytestmark = pytest.mark.skipif(not ANALYZE, reason="needs systemd-analyze")


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str], Path]:
    """Puts the unit that ships into a folder, with a drop-in, and a program that is there."""

    def do(drop_in: str) -> Path:
        folder = tmp_path / "system"
        (folder / "phi4d.service.d").mkdir(parents=True)
        unit = folder / "phi4d.service"
        unit.write_text(UNIT.read_text().replace("/opt/phi4d/bin/phi4d", "/bin/true"))
        (folder / "phi4d.service.d/phi4d.conf").write_text(drop_in)
        return unit

    return do


@pytest.fixture
def maximal(tmp_path: Path) -> str:
    return render(settings(config_of(MAXIMAL, tmp_path), WANTED), source=str(tmp_path))


def test_it_finds_nothing_to_say(install: Callable[[str], Path], maximal: str):
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", install(maximal)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_little_is_exposed_where_only_folders_are_opened(
    install: Callable[[str], Path], tmp_path: Path
):
    keys = '[[inbox]]\npath = "/data/in"\noutbox = "/data/out"\noriginals = "delete"'
    drop_in = render(settings(config_of(keys, tmp_path), machine(1000)), source="x")

    done = subprocess.run(
        [ANALYZE, "security", "--offline=yes", "--no-pager", "--threshold=10", install(drop_in)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ReadWritePaths=-/data/in" in drop_in
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not MANAGER.exists(), reason="needs systemd")
def test_it_reads_what_was_meant(install: Callable[[str], Path], maximal: str, tmp_path: Path):
    # given what a manager wants to be there, and a user who may ask what it would do
    unit = install(maximal)
    for target in ("sysinit", "basic", "shutdown", "local-fs", "remote-fs"):
        (unit.parent / f"{target}.target").write_text("[Unit]\n")
    for folder in (tmp_path, *tmp_path.parents):  # a folder of tests is its maker's alone
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    (tmp_path / "run").mkdir(mode=0o777)
    (tmp_path / "run").chmod(0o777)
    # when
    done = subprocess.run(
        [MANAGER, "--test", "--system", "--log-target=console", f"--unit={unit.name}"],
        capture_output=True,
        check=False,
        user=NOBODY if os.geteuid() == 0 else None,
        env={"SYSTEMD_UNIT_PATH": str(unit.parent), "XDG_RUNTIME_DIR": str(tmp_path / "run")},
    )
    # then
    found = re.search(
        rb"-> Unit phi4d\.service:\n(.*?)(?:\n\s*-> Unit |\Z)", done.stdout, re.DOTALL
    )
    assert found, done.stderr.decode()
    told = re.findall(r"^\t+(\w+): (.*?)(?: \(origin-\S+\))?$", found[1].decode(), re.MULTILINE)
    read = {name: [value for each, value in told if each == name] for name, _ in told}
    assert set(read["ReadWritePaths"][0].split(" -")) == {
        "-/srv/phi4d",
        '/srv/100% of "it"\\',
        "/srv/a:b/ été;#",
        "/home/ada/in box",
        "/data/results",
        "/data/state",
    }
    assert read["BindPaths"] == [f"-{folder}:{folder}:rbind" for folder in TEMPORARY]
    assert read["ProtectHome"] == ["read-only"]
    assert read["PrivateNetwork"] == ["no"]
    assert set(read["IPAddressAllow"]) == {"::1/128", "127.0.0.0/8"}
    assert read["LogsDirectory"] == ["phi4d"]
    assert read["RuntimeDirectory"] == ["phi4d", "phi4d-two"]
    assert {"char-kfd rw", "char-drm rw", "char-nvidia rw"} <= set(read["DeviceAllow"])
    assert "/data/state" in read["RequiresMountsFor"]
    wanted = {"data.mount", "srv-a:b-\\x20\\xc3\\xa9t\\xc3\\xa9\\x3b\\x23.mount"}
    assert wanted <= set(read["Wants"])
    assert wanted <= set(read["After"])
