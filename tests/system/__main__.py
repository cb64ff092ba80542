"""Runs the scenarios in a Debian of their own: ``make system``; ``python tests/system [NAME…]``."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import machine as machines  # noqa: E402 -- found by the path above
import scenarios  # noqa: E402

WORK = PROJECT / "build" / "system"
PYTHON = PROJECT / ".venv" / "bin" / "python"
SAMPLES = PROJECT / "phi4d" / "demo" / "samples"
FILES = 60
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
    """Put what phi4d needs of PyPI into a folder: the machine then wants no network for it."""
    mark = folder / "pyproject.toml"
    wanted = (PROJECT / "pyproject.toml").read_bytes()
    if mark.exists() and mark.read_bytes() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    # setuptools is what `make install` builds with
    subprocess.run([*pip, "download", "-d", folder, PROJECT, "setuptools>=77"], check=True)
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
    if why := machines.why_not():
        say(f"system tests skipped: {why}")
        return 0
    begun = time.monotonic()
    first, newer = packages(WORK / "packages")
    wheels(WORK / "wheels")
    machines.make_base(WORK / "base")
    load = WORK / "load"
    load.mkdir(exist_ok=True)
    pictures = [f"load-{number:03}.png" for number in range(FILES)]
    for number, name in enumerate(pictures):
        (load / name).write_bytes(picture(number))
    expected = json.loads((SAMPLES / "expected.json").read_text("utf-8"))
    source = WORK / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    tracked = subprocess.run(
        ["git", "-C", PROJECT, "ls-files", "-z"], check=True, capture_output=True
    ).stdout
    copy = ["cpio", "--quiet", "-0", "-pdm", source]
    subprocess.run(copy, cwd=PROJECT, input=tracked, check=True)
    binds = {
        "/packages": WORK / "packages",
        "/wheels": WORK / "wheels",
        "/load": load,
        "/source": source,
    }
    say(f"made ready in {time.monotonic() - begun:.0f} s")
    failed = passed = 0
    with machines.machine(WORK / "base", WORK / "root", {**binds, "/samples": SAMPLES}) as one:
        one.write("/etc/pip.conf", "[global]\nno-index = true\nfind-links = /wheels\n")
        scene = scenarios.Scene(one, expected, pictures, first, newer)
        for scenario in scenarios.ALL:
            name = scenario.__name__
            if wanted and name not in ("install", *wanted):
                continue
            at = time.monotonic()
            try:
                scenario(scene)
            except Exception as error:  # the next one may still tell something
                failed += 1
                say(f"FAILED  {name}: {error}\n{scenarios.aftermath(scene)}")
                if name == "install":
                    break
            else:
                passed += 1
                words = (inspect.getdoc(scenario) or "").partition("\n")[0]
                say(f"ok {time.monotonic() - at:4.0f} s  {name}: {words}")
    for what, figure in scene.told.items():
        say(f"{what}: {figure}")
    say(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
