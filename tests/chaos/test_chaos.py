"""The short forms of the chaos scripts, and that their instruments see what they are to see."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from chaoskit import Eyes, Source, wrong_sidecars
from disk import CALLS, RECORD, Call, Disk, Everything, File, Strict, Torn, calls

HERE = Path(__file__).parent


def needs(*reasons: str) -> pytest.MarkDecorator:
    told = [reason for reason in reasons if reason]
    return pytest.mark.skipif(bool(told), reason="; ".join(told))


STRACE = "" if shutil.which("strace") else "strace is not installed"
TRACER = Path("/proc/self/status").read_text().partition("TracerPid:")[2].split()[0]
TRACED = "" if TRACER == "0" else "somebody traces this process already"

MAY_MOUNT = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "true"]
CONFINED = (
    ""
    if subprocess.run(MAY_MOUNT, check=False, capture_output=True).returncode == 0
    else "needs root, or user namespaces"
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("kill.py"),
        pytest.param("crashpoints.py", marks=needs(STRACE, TRACED)),
        pytest.param("powercut.py", marks=needs(STRACE, TRACED)),
        pytest.param("surroundings.py", marks=needs(CONFINED)),
    ],
)
def test_the_short_form_finds_nothing_wrong(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / script), "--short"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class TestEyes:
    @pytest.fixture
    def outbox(self, tmp_path: Path) -> Path:
        return tmp_path

    def seen(self, outbox: Path, *steps: tuple[str, bytes]) -> list[str]:
        eyes = Eyes(outbox)
        eyes.start()
        for name, data in steps:
            with open(outbox / name, "ab", buffering=0) as file:
                file.write(data)
        eyes.close()
        return eyes.wrong

    def test_a_file_that_is_written_in_place_is_seen_to_be(self, outbox: Path) -> None:
        (found, *_) = self.seen(outbox, ("a.txt", b"half"), ("a.txt", b" of it\n"))
        assert found.startswith("a.txt: ")

    def test_half_a_record_is_seen(self, outbox: Path) -> None:
        (outbox / "a.txt").write_bytes(b"whole\n")
        assert any("a.json: seen before" in each for each in self.seen(outbox, ("a.json", b'{"t')))

    def test_what_is_renamed_in_is_in_order(self, outbox: Path) -> None:
        eyes = Eyes(outbox)
        eyes.start()
        for name, data in (("a.txt", b"whole\n"), ("a.json", b'{"text": "whole"}\n')):
            (outbox / ".phi4d-1-1.tmp").write_bytes(data)
            os.rename(outbox / ".phi4d-1-1.tmp", outbox / name)
        eyes.close()
        assert eyes.wrong == []
        assert eyes.seen == 2


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ('{"text": "number 1", "source_bytes": 5}', ""),
        ('{"text": "number 1", "source_bytes": 6}', "about 6 bytes"),
        ('{"text": "number 2", "source_bytes": 5}', "they disagree"),
        ('{"text": "number 1", "sour', "is cut"),
        (None, "is missing"),
    ],
)
def test_sidecars_of_another_version_are_told(
    tmp_path: Path, record: str | None, words: str
) -> None:
    (tmp_path / "a.png.txt").write_text("number 1\n")
    if record is not None:
        (tmp_path / "a.png.json").write_text(record)
    fault = wrong_sidecars(tmp_path, "a.png", Source(1, 2, 5, 3))
    assert words in fault
    assert bool(words) == bool(fault)


class TestDisk:
    def after(self, tmp_path: Path, *done: Call) -> Disk:
        disk = Disk(tmp_path, ["out"], made=True)
        for call in done:
            disk.apply(call)
        return disk

    def left(self, disk: Disk, tmp_path: Path) -> dict[str, bytes]:
        disk.cut(tmp_path / "cut", Strict())
        return {p.name: p.read_bytes() for p in (tmp_path / "cut/out").iterdir()}

    @pytest.fixture
    def life(self, tmp_path: Path) -> list[Call]:
        """Of a file: made, written, synced, renamed, its folder synced."""

        def call(name: str, *paths: str, data: bytes = b"", flags: str = "") -> Call:
            places = tuple(str(tmp_path / path) for path in paths)
            return Call(name, places, data, (), flags, len(data), injected=False)

        return [
            call("openat", "out/temp", flags="O_WRONLY|O_CREAT|O_EXCL"),
            call("write", "out/temp", data=b"whole"),
            call("fsync", "out/temp"),
            call("renameat", "out/temp", "out/name"),
            call("fsync", "out"),
        ]

    def test_a_name_without_its_folder_s_sync_is_lost(
        self, tmp_path: Path, life: list[Call]
    ) -> None:
        assert self.left(self.after(tmp_path, *life[:4]), tmp_path) == {}

    def test_data_without_a_sync_are_lost(self, tmp_path: Path, life: list[Call]) -> None:
        without = [
            call for call in life if call.paths[0] != life[2].paths[0] or call is not life[2]
        ]
        assert self.left(self.after(tmp_path, *without), tmp_path) == {"name": b""}

    def test_what_is_synced_is_kept(self, tmp_path: Path, life: list[Call]) -> None:
        assert self.left(self.after(tmp_path, *life), tmp_path) == {"name": b"whole"}

    def test_a_write_may_be_torn_at_blocks_and_nowhere_else(self) -> None:
        data = bytes(range(1, 5)) * 2048
        for seed in range(20):
            file = File(b"", [(0, data)])
            torn = file.content(Torn(random.Random(seed)).writes(file))
            blocks = [(at, torn[at : at + 512]) for at in range(0, len(torn), 512)]
            assert all(block in (data[at : at + 512], bytes(512)) for at, block in blocks)

    @needs(STRACE, TRACED)
    def test_what_strace_saw_gives_the_real_tree_again(self, tmp_path: Path) -> None:
        # given a program that changes files in each way that the daemon does

        program = (
            "import os; os.chdir('out'); f = os.open('a', os.O_RDWR | os.O_CREAT);"
            "os.write(f, b'one'); os.write(f, b'two'); os.pwrite(f, b'X', 9); os.ftruncate(f, 8);"
            "os.fsync(f); os.mkdir(os.getcwd() + '/sub'); d = os.open('.', os.O_RDONLY);"
            "os.rename('a', 'sub/b', src_dir_fd=d, dst_dir_fd=d); g = os.open('c', os.O_CREAT);"
            "os.unlink('c', dir_fd=d)"
        )
        (tmp_path / "out").mkdir()
        trace = tmp_path / "trace"
        subprocess.run(
            [*RECORD, f"-etrace={CALLS}", "-o", str(trace), sys.executable, "-c", program],
            cwd=tmp_path,
            check=True,
        )
        # when
        disk = Disk(tmp_path, ["out"], made=True)
        for call in calls(trace):
            disk.apply(call)
        disk.cut(tmp_path / "cut", Everything())
        # then
        assert [p.name for p in (tmp_path / "cut/out").iterdir()] == ["sub"]
        assert (tmp_path / "cut/out/sub/b").read_bytes() == b"onetwo\0\0"
        assert (tmp_path / "out/sub/b").read_bytes() == b"onetwo\0\0"
