from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from phi4d import lock
from phi4d.doctor import machine
from phi4d.doctor.check import Status
from phi4d.doctor.machine import Gpus
from phi4d.engine.plan import Device

GB = 10**9
CPU = Device("cpu", "Xeon", 64 * GB, 60 * GB, None, True)
L4 = Device("cuda:0", "NVIDIA L4", 24 * GB, 23 * GB, (8, 9), True, "550.54.15")


def test_python_and_as_whom():
    check = machine.python()

    assert check.status is Status.OK
    assert ", as user" in check.found


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ((3, 40, 1), "3.40.1 (phi4d keeps to one writer"),
        ((3, 51, 3), "3.51.3"),
        ((4, 0, 0), "4.0.0"),
    ],
)
def test_sqlite(version, words):
    check = machine.sqlite(version)

    assert check.status is Status.OK
    assert check.found.startswith(words)
    assert ("one writer" in check.found) is (version < (3, 51, 3))


def test_a_daemon_that_runs_is_told(tmp_path: Path):
    assert machine.daemon(tmp_path).found == "does not run"
    code = (
        "import sys; from pathlib import Path; from phi4d.lock import Lock\n"
        "held = Lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        other.stdout.readline()

        assert machine.daemon(tmp_path).found == f"runs, pid {other.pid}"
        assert lock.holder(tmp_path / "lock") == other.pid


class TestGpus:
    def test_those_that_are_found(self) -> None:
        assert machine.gpus(lambda: [L4]) == Gpus([L4])

    def test_torch_that_fails_is_a_finding(self) -> None:
        def probe() -> list[Device]:
            raise RuntimeError("CUDA error: unknown error\nsome advice")

        assert machine.gpus(probe) == Gpus(trouble="CUDA error: unknown error some advice")

    def test_torch_that_warns_and_finds_none_is_a_finding(self) -> None:
        def probe() -> list[Device]:
            warnings.warn("the NVIDIA driver on your system is too old", stacklevel=1)
            return []

        assert machine.gpus(probe).trouble == "the NVIDIA driver on your system is too old"

    def test_a_line_for_each_device(self) -> None:
        gpu, cpu = machine.hardware(Gpus([L4]), CPU)

        assert (gpu.check, gpu.status) == ("cuda:0", Status.OK)
        assert gpu.found == (
            "NVIDIA L4, compute capability 8.9, 23.0 GB of 24.0 GB free, driver 550.54.15"
        )
        assert (cpu.check, cpu.found) == ("cpu", "Xeon, bfloat16, 60.0 GB of 64.0 GB free")

    @pytest.mark.parametrize(
        ("found", "driver", "status", "words"),
        [
            (Gpus(), False, Status.OK, "none"),
            (Gpus(), True, Status.WARN, "though NVIDIA's driver is there"),
            (Gpus(trouble="driver too old"), True, Status.WARN, "finds none: driver too old"),
        ],
    )
    def test_none(self, found, driver, status, words) -> None:
        gpu, _ = machine.hardware(found, CPU, driver=driver)

        assert (gpu.check, gpu.status) == ("gpu", status)
        assert words in gpu.found

    def test_none_that_was_wanted(self) -> None:
        assert [check.check for check in machine.hardware(None, CPU)] == ["cpu"]


class TestPackages:
    @pytest.fixture(autouse=True)
    def _packages(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A flash-attn whose kernels were built for another torch, a bitsandbytes that is well."""
        (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c104')")
        (tmp_path / "bitsandbytes.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def test_one_that_cannot_be_imported_is_found_out(self) -> None:
        checks = {check.check: check for check in machine.packages()}

        assert checks["flash-attn"].status is Status.FAIL
        assert "ImportError: undefined symbol: _ZN3c104" in checks["flash-attn"].found
        assert "pip uninstall flash-attn" in checks["flash-attn"].advice
        assert checks["bitsandbytes"].status is Status.OK
        for name in ("torch", "transformers", "accelerate"):
            assert checks[name].status is Status.OK
            assert checks[name].found[0].isdigit()

    def test_those_that_are_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

        checks = {check.check: check for check in machine.packages()}

        assert checks["torch"].status is Status.FAIL
        assert checks["torch"].advice == "pip install torch"
        for name in ("flash-attn", "bitsandbytes", "systemd-python"):
            assert checks[name].status is Status.OK
            assert checks[name].found.startswith("not installed: ")
        assert checks["bitsandbytes"].found == "not installed: there is no 4bit"


@pytest.mark.parametrize(
    ("journal", "words"),
    [("", "Debian's"), ("import not_there", "cannot be used (No module named 'not_there'): log")],
)
def test_the_journals_library_by_whether_it_can_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str, words: str
):
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd/__init__.py").touch()
    (tmp_path / "systemd/journal.py").write_text(journal)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("systemd", "systemd.journal"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def version(name: str) -> str:
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", version)

    assert machine._journal_library().startswith(words)
    for name in ("systemd", "systemd.journal"):  # ours, which are to be forgotten
        sys.modules.pop(name, None)
