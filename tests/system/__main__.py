"""Runs the scenarios in a Debian of their own: ``make system``; ``python tests/system [NAME…]``."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import machine as machines  # noqa: E402 -- found by the path above
import scenarios  # noqa: E402

WORK = PROJECT / "build" / "system"
PYTHON = PROJECT / ".venv" / "bin" / "python"
SAMPLES = PROJECT / "phi4d" / "demo" / "samples"
FILES = 40
"""that are dropped at once: the toy model takes some seconds for them"""


def say(words: str) -> None:
    """Print at once."""
    print(words, flush=True)


def packages(folder: Path) -> tuple[str, str]:
    """Build the package as it is, and as a newer version.

    Returns:
        Their file names.
    """
    shutil.rmtree(folder, ignore_errors=True)
    names = []
    for number, suffix in enumerate(("", "+test1")):
        into = folder / str(number)
        build = [PROJECT / "packaging" / "deb.sh", into]
        environment = {**os.environ, "REVISION": suffix, "PYTHON": str(PYTHON)}
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL, env=environment)
        (built,) = into.glob("*.deb")
        names.append(built.rename(folder / built.name).name)
    return names[0], names[1]


def wheels(folder: Path) -> None:
    """Put what phi4d needs of PyPI into a folder: the machine then wants no network for it.

    Raises:
        NoMachine: PyPI does not have it.
    """
    mark = folder / "pyproject.toml"
    wanted = (PROJECT / "pyproject.toml").read_bytes()
    if mark.exists() and mark.read_bytes() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    # setuptools is what `make install` builds with
    wants = [*pip, "download", "-d", folder, PROJECT, "setuptools>=77"]
    done = subprocess.run(wants, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise machines.NoMachine(f"what phi4d needs cannot be had from PyPI: {last}")
    for name in ("phi4d*.zip", "phi4d*.tar.gz", "phi4d*.whl"):
        for own in folder.glob(name):
            own.unlink()
    mark.write_bytes(wanted)


def picture(number: int) -> bytes:
    """A PNG of 64x64 pixels unlike any other: a seeded colour for each 8x8 square."""
    draw = random.Random(number)
    squares = [[draw.randbytes(3) for _ in range(8)] for _ in range(8)]
    rows = b"".join(b"\0" + b"".join(squares[y // 8][x // 8] for x in range(64)) for y in range(64))

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    header = (64).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def source(folder: Path) -> None:
    """Put a copy of what git tracks into a folder, as a clone would have it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tracked = subprocess.run(
        ["git", "-C", PROJECT, "ls-files", "-z"], check=True, capture_output=True
    ).stdout
    copy = ["cpio", "--quiet", "-0", "-pdm", folder]
    subprocess.run(copy, cwd=PROJECT, input=tracked, check=True)


def load(folder: Path) -> list[str]:
    """Put pictures that all differ into a folder.

    Returns:
        Their names.
    """
    folder.mkdir(exist_ok=True)
    names = [f"load-{number:03}.png" for number in range(FILES)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))
    return names


def run(scene: scenarios.Scene, names: list[str]) -> int:
    """Run scenarios, those of them that are named, or all.

    Returns:
        How many failed.
    """
    passed = failed = 0
    for scenario in scenarios.ALL:
        name = scenario.__name__
        if names and name not in ("install", *names):
            continue
        at = time.monotonic()
        try:
            if scenario not in scenarios.BARE:
                scene.at_rest()
            scenario(scene)
        except Exception as error:  # the next one may still tell something
            failed += 1
            what = str(error) if isinstance(error, machines.Failed) else repr(error)
            say(f"FAILED  {name}: {what}\n{scenarios.aftermath(scene)}")
            if name == "install":
                break
        else:
            passed += 1
            words = (inspect.getdoc(scenario) or "").partition("\n")[0]
            say(f"ok {time.monotonic() - at:4.0f} s  {name}: {words}")
    for what, figure in scene.told.items():
        say(f"{what}: {figure}")
    say(f"{passed} passed, {failed} failed")
    return failed


def main() -> int:
    """Run all scenarios, or those that are named after `install`.

    Returns:
        The exit code.
    """
    names = [scenario.__name__ for scenario in scenarios.ALL]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    wanted = parser.parse_args().names
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no {', '.join(unknown)}")
    # the machine is to be put away also when this is ended
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if why := machines.why_not():
            raise machines.NoMachine(why)
        begun = time.monotonic()
        WORK.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            base = pool.submit(machines.make_base, WORK / "base")
            built = pool.submit(packages, WORK / "packages")
            wheels(WORK / "wheels")
            first, newer = built.result()
            base.result()
        source(WORK / "source")
        pictures = load(WORK / "load")
        say(f"made ready in {time.monotonic() - begun:.0f} s")
        shared = ("packages", "wheels", "load", "source")
        binds = {f"/{name}": WORK / name for name in shared} | {"/samples": SAMPLES}
        with machines.machine(WORK / "base", WORK / "root", binds) as one:
            one.write("/etc/pip.conf", "[global]\nno-index = true\nfind-links = /wheels\n")
            expected = json.loads((SAMPLES / "expected.json").read_text("utf-8"))
            failed = run(scenarios.Scene(one, expected, pictures, first, newer), wanted)
    except machines.NoMachine as why:
        say(f"system tests skipped: {why}")
        return 0
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
