"""What a daemon says when all goes wrong that may: never a traceback, never what a file holds.

Real daemons, with a played engine whose answers repeat the prompts' words.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phi4d import demo

TOP = Path(__file__).parents[2]
SECRETS = ("zymurgy", "quokka", "borogove")
"""words of the prompts, and so of the answers; in no message of ours"""
FOLDER = "in/ward"
BAD = {
    "empty.png", "words.jpg", "cut.png", "header.png", "bomb.png", "large.png", "noise.mp3",
    "cut.wav", "none.wav", "archive.jpg", "taken.png", "foreign.png",
}  # fmt: skip
CONFIG = f"""
state_dir = "state"
settle_seconds = 0.05
settle_max = 0.1
pause_seconds = 0.05
retry_seconds = 0.05
max_file_mb = 1
max_megapixels = 1
decode_seconds = 20
image_prompt = "{SECRETS[0]}"
speech_prompt = "{SECRETS[1]}"
[[inbox]]
path = "in"
outbox = "out"
failed_dir = "in/failed"
[[inbox]]
path = "not there"
outbox = "out2"
[[inbox]]
path = "full"
outbox = "no room"
image_prompt = "{SECRETS[2]}"
[[inbox]]
path = "blocked"
outbox = "a file"
"""


@pytest.fixture
def house(tmp_path: Path, make_picture: Callable[..., Path], make_recording: Any) -> Path:
    """Files that are good, and files and surroundings that are bad in all ways."""
    there = tmp_path / FOLDER
    (there / "sub").mkdir(parents=True)
    picture = make_picture(there / "beach.png").read_bytes()
    sound = make_recording(there / "talk.wav").read_bytes()
    files = {
        b"sub/again.png": picture,  # its answer is copied
        b"\xe4.png": picture,
        b"wrong.mp3": picture,
        b"empty.png": b"",
        b"words.jpg": b"no picture, and %s" % SECRETS[0].encode(),
        b"cut.png": picture[:-40],
        b"flipped.png": picture[:60] + b"\0\xff\0" + picture[63:],
        b"header.png": picture[:12],
        b"bomb.png": png_of(60_000, 60_000),
        b"large.png": picture + b"\0" * 1_100_000,
        b"noise.mp3": bytes(range(256)) * 8,
        b"cut.wav": sound[:50],
        b"none.wav": sound[:44],
        b"archive.jpg": b"PK\x03\x04" + bytes(100),
        b"taken.png": picture,
        b"foreign.png": picture,
        b"x" * 250 + b".png": picture,
        b".phi4dignore": b"\xff\xfe[[[\n!\n\\\n",
        b"half.png.part": picture,
    }
    for name, content in files.items():
        (there / os.fsdecode(name)).write_bytes(content)
    (there / "folder.jpg").mkdir()
    (there / "link.png").symlink_to("beach.png")
    os.mkfifo(there / "pipe.png")
    make_recording(tmp_path / "in/talk.flac", 0.2)
    # sidecars that cannot be: a folder has the name, or a file of somebody else
    (tmp_path / "out/ward/taken.png.txt").mkdir(parents=True)
    (tmp_path / "out/ward/foreign.png.json").write_text("mine")
    # outboxes that cannot be: without room, and no folder
    for n in range(3):
        make_picture(tmp_path / f"full/{n}.png", (40 + n, 40))
    make_picture(tmp_path / "blocked/a.png", (50, 50))
    (tmp_path / "a file").touch()
    (tmp_path / "no room").mkdir()
    # a store that is none
    (tmp_path / "state").mkdir()
    (tmp_path / "state/jobs.sqlite3").write_bytes(b"SQLite format 3\0" + b"\xee" * 5000)
    return tmp_path


def png_of(width: int, height: int) -> bytes:
    """A picture whose header tells a size that it has not."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@contextlib.contextmanager
def daemon(house: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that adds to the file "log"; one of its outboxes is full, where root may."""
    script = 'mount -t tmpfs -o size=4k tmpfs \'no room\' 2>/dev/null; exec "$0" "$@" 2>>log'
    within = ["unshare", "--mount"] if _may_mount() else []
    with subprocess.Popen(
        [*within, "sh", "-c", script, sys.executable, TOP / "tests/fake_daemon.py", "phi4d.toml",
         *words],
        cwd=house,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PHI4", "JOURNAL_"))}
        | {"PYTHONPATH": str(TOP)},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def _may_mount() -> bool:
    try:
        tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    except OSError:
        return False
    return not tried.returncode


def wait_for(house: Path, words: str, times: int = 1) -> None:
    """Until the log has these words so often."""
    with subprocess.Popen(
        ["tail", "--lines=+1", "--follow", "--retry", "log"],
        cwd=house, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as tail:  # fmt: skip
        assert tail.stdout
        for line in tail.stdout:
            times -= words in line
            if not times:
                break
        tail.kill()


@pytest.mark.parametrize(
    ("log_format", "level"),
    [("plain", "info"), ("json", "info"), ("auto", "debug"), ("json", "debug")],
)
def test_no_traceback_and_nothing_of_what_files_hold(
    house: Path, make_picture: Callable[..., Path], log_format: str, level: str
) -> None:
    # given a folder with all that may be wrong
    (house / "phi4d.toml").write_text(
        f'log_format = "{log_format}"\nlog_level = "{level}"\n'
        f'metrics_listen = "unix:{house}/metrics.sock"\n{CONFIG}'
    )
    # when one daemon works it off, as far as it goes
    with daemon(house, "once") as process:
        assert process.wait(60) == os.EX_TEMPFAIL
    # and another one is given a wrong configuration and other prompts, sees files come and go,
    # hears what is no order, and is stopped at work
    with daemon(house) as process:
        wait_for(house, "ready: ", 2)
        right = (house / "phi4d.toml").read_text()
        (house / "phi4d.toml").write_text(f"batchsize = 1\nseed = [\n{right}")
        process.send_signal(signal.SIGHUP)
        wait_for(house, "the old one stays in force")
        (house / "phi4d.toml").write_text(right.replace(SECRETS[0], f"{SECRETS[0]}?"))
        process.send_signal(signal.SIGHUP)
        wait_for(house, "reloaded: ")
        for n in range(15):  # fewer than are summed up
            make_picture(house / f"in/gone/{n}.png").unlink()
        for name, words in (
            ("state/control", b'{"order": \xff\n'),
            ("metrics.sock", b"\x16\x03\n\n"),
        ):
            with contextlib.chdir(house), socket.socket(socket.AF_UNIX) as client:
                client.connect(name)
                client.sendall(words)
        make_picture(house / "in/last.png", (70, 70))
        wait_for(house, "done in/last.png")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == os.EX_OK
    # then nobody sees how the program is made, nor what a file holds
    log = (house / "log").read_text("utf-8")
    assert not re.findall(r".*(?:Traceback|nexpected| line \d+, in |Errno|\wError|udc).*", log)
    assert not [word for word in SECRETS if word in log]
    # and of each file that was given up there is one line, with the reason
    told = [json.loads(line) for line in log.splitlines()] if log_format == "json" else []
    assert all({"ts", "level", "message"} <= set(line) for line in told)
    failed = re.findall(r'(?:ERROR   |"message": ")failed in/ward/(\S+): (.+)', log)
    assert {name for name, _ in failed} == BAD
    assert len(failed) == len(BAD)
    assert all(reason[0].islower() or reason[0] == "/" for _, reason in failed)
    # and the sidecars have what the log has not
    assert SECRETS[0] in (house / "out/ward/beach.png.txt").read_text()
    assert SECRETS[1] in (house / "out/ward/talk.wav.txt").read_text()


@pytest.mark.parametrize("log_format", ["plain", "json"])
def test_a_device_that_is_lost_gives_no_traceback(
    house: Path, make_picture: Callable[..., Path], log_format: str
) -> None:
    # given a picture that no device survives
    (house / "phi4d.toml").write_text(f'log_format = "{log_format}"\n{CONFIG}')
    make_picture(house / "in/ward/lost.png", (13, 20))
    # when it is met
    with daemon(house, "lost", "once") as process:
        assert process.wait(60) == os.EX_UNAVAILABLE
    # then that is said in a line
    log = (house / "log").read_text("utf-8")
    assert "an illegal memory access" in log
    assert "Traceback" not in log
    assert not [word for word in SECRETS if word in log]


@pytest.mark.timeout(300)
def test_the_models_own_answers_are_not_in_the_log_either(tmp_path: Path) -> None:
    # given the model that ships, and all that the log can say
    (tmp_path / "in").mkdir()
    for name in ("shapes-448x448.png", "digits-16k.wav"):
        shutil.copy(demo.SAMPLES / name, tmp_path / "in")
    (tmp_path / "phi4d.toml").write_text(
        'model_path = "demo"\ndevice = "cpu"\nlog_level = "debug"\nstate_dir = "state"\n'
        f'image_prompt = "{SECRETS[0]}"\n[[inbox]]\npath = "in"\noutbox = "out"\n'
    )
    # when it answers
    done = subprocess.run(
        [sys.executable, "-m", "phi4d", "run", "--once", "--config", tmp_path / "phi4d.toml"],
        capture_output=True,
        check=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PHI4")}
        | {"PYTHONPATH": str(TOP)},
    )
    # then no word of an answer or a prompt is in it
    answers = " ".join(path.read_text() for path in (tmp_path / "out").glob("*.txt"))
    words = {word for word in answers.split() if len(word) > 3}
    assert len(words) > 3
    assert "DEBUG" in done.stderr
    assert not {word for word in words | {SECRETS[0]} if word in done.stderr}
