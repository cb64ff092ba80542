"""Thousands of damaged files at once: each ends in a sidecar or fails with a reason, nothing dies.

    python tests/chaos/media.py                          # some 3,000 mutated files
    python tests/chaos/media.py --pillow pillow.tar.gz   # and Pillow's own 1,000 test images
    python tests/chaos/media.py --short                  # some 200, as the tests run it

Pillow's test images are in its source package (47 MB); an unpacked folder will do as well:

    pip download --no-binary :all: --no-deps pillow==13.0.0

The mutated files begin as small real ones of every format that the installed codecs write; bits
are flipped, ends cut off, runs put in, blocks swapped, numbers made huge, drawn from ``--seed``.
All are dropped into the inbox of a daemon whose engine is fake and everything else real. Every file
gets a name of ours, so that none is passed over.

Prints counts, reasons, and at intervals the memory of the daemon and of its decode processes. Exit
code 1 if a file has neither a sidecar nor a reason, if the daemon died, said something unexpected,
or grew: in the last quarter of the files its median may be 20 MB above the most of the first. Not
the most of the last one, because a large picture on its way is no leak.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import random
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "media")]

import mediakit  # noqa: E402

from phi4d.media.probe import kind_of  # noqa: E402

GROWTH_MB = 20.0
LOOK_S = 0.25
CONFIG = """
state_dir = "state"
settle_seconds = 0.2
settle_max = 1.0
rescan_seconds = 5.0
retry_seconds = 0.1
decode_seconds = 20.0

[[inbox]]
name = "in"
path = "in"
outbox = "out"
"""
DEATH = re.compile(r"the decode process (was killed by \w+|used more|ran out|took longer|answered)")
UNFORESEEN = re.compile(r"^Traceback|unexpected error|ended unexpectedly|it is replaced")


def main() -> int:
    """Make the files, drop them, wait until all have ended, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="some 200 files")
    parser.add_argument("--pillow", type=Path, help="Pillow's source package, or its folder")
    parser.add_argument("--mutants", type=int, help="of each seed file; 60, or 3 if it is short")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    parser.add_argument("--patience", type=float, default=1800, help="seconds until it gives up")
    options = parser.parse_args()
    mutants = options.mutants or (3 if options.short else 60)
    with tempfile.TemporaryDirectory(prefix="phi4d-media-", dir=options.folder) as folder:
        place = Path(folder)
        for name in ("in", "staged"):
            (place / name).mkdir()
        (place / "phi4d.toml").write_text(CONFIG)
        names = stage(place / "staged", mutants, random.Random(options.seed), options.pillow)
        print(f"{len(names)} files, {size_of(place / 'staged') / 1e6:.0f} MB", flush=True)
        run = Run(place, names)
        run.work(options.patience)
        return report(run)


# --- the files ----------------------------------------------------------------------------------


def stage(folder: Path, mutants: int, chance: random.Random, pillow: Path | None) -> list[str]:
    """Write all files, in a drawn order, with names of ours."""
    data: list[tuple[str, bytes]] = []
    for name, whole in seeds(folder):
        data.append((f"{name}-whole{Path(name).suffix}", whole))
        for number in range(mutants):
            data.append((f"{name}-{number}{Path(name).suffix}", mutated(whole, chance)))
    for number, (name, content) in enumerate(pillows(pillow) if pillow else ()):
        ending = "" if kind_of(name.encode()) else ".png"
        data.append((f"pillow-{number}-{name}{ending}", content))
    chance.shuffle(data)
    for name, content in data:
        (folder / name).write_bytes(content)
    return [name for name, _ in data]


def seeds(folder: Path) -> Iterator[tuple[str, bytes]]:
    """A small real file of every format that the installed codecs write."""
    samples = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    noise = Image.fromarray(np.concatenate((np.asarray(mediakit.picture(64, 48)), samples)))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    pictures: dict[str, tuple[str, dict[str, Any]]] = {
        "plain.jpg": ("JPEG", {}),
        "progressive.jpg": ("JPEG", {"progressive": True, "exif": exif}),
        "several.mpo": ("MPO", {"save_all": True, "append_images": [noise]}),
        "plain.png": ("PNG", {"exif": exif}),
        "animated.png": ("PNG", {"save_all": True, "append_images": [noise.rotate(180)]}),
        "animated.gif": ("GIF", {"save_all": True, "append_images": [noise.rotate(180)]}),
        "plain.bmp": ("BMP", {}),
        "raw.tif": ("TIFF", {"exif": exif}),
        "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
        "pages.tif": ("TIFF", {"save_all": True, "append_images": [noise], "big_tiff": True}),
        "lossy.webp": ("WEBP", {}),
        "animated.webp": ("WEBP", {"save_all": True, "append_images": [noise.rotate(180)]}),
        "plain.avif": ("AVIF", {}),
        "plain.heic": ("HEIF", {}),
        "plain.jp2": ("JPEG2000", {}),
        "plain.j2k": ("JPEG2000", {"no_jp2": True}),
        "plain.ppm": ("PPM", {}),
    }
    for name, (kind, options) in pictures.items():
        yield name, mediakit.saved(noise, kind, **options)
    tone = mediakit.tone(0.6, 48_000)
    for name, kind, subtype, rate in (
        ("pcm.wav", "WAV", "PCM_16", 48_000),
        ("float.wav", "WAV", "FLOAT", 48_000),
        ("adpcm.wav", "WAV", "IMA_ADPCM", 48_000),
        ("gsm.wav", "WAV", "GSM610", 8_000),
        ("plain.flac", "FLAC", "PCM_16", 48_000),
        ("vorbis.ogg", "OGG", "VORBIS", 48_000),
        ("plain.opus", "OGG", "OPUS", 48_000),
        ("plain.mp3", "MP3", "MPEG_LAYER_III", 48_000),
        ("plain.aiff", "AIFF", "PCM_24", 48_000),
        ("plain.au", "AU", "ULAW", 8_000),
        ("alac.caf", "CAF", "ALAC_16", 48_000),
        ("plain.w64", "W64", "PCM_16", 48_000),
        ("plain.rf64", "RF64", "PCM_16", 48_000),
        ("plain.voc", "VOC", "PCM_16", 8_000),
    ):
        file = io.BytesIO()
        soundfile.write(file, tone[:: 48_000 // rate], rate, subtype, format=kind)
        yield name, file.getvalue()
    for name, codec, container, rate, video in (
        ("plain.m4a", "aac", "ipod", 48_000, False),
        ("alac.m4a", "alac", "ipod", 48_000, False),
        ("film.mp4", "aac", "mp4", 48_000, True),
        ("film.mov", "aac", "mov", 48_000, True),
        ("film.mkv", "libopus", "matroska", 48_000, True),
        ("plain.webm", "libopus", "webm", 48_000, False),
        ("plain.aac", "aac", "adts", 48_000, False),
        ("plain.ac3", "ac3", "ac3", 48_000, False),
        ("plain.eac3", "eac3", "eac3", 48_000, False),
        ("plain.mp2", "mp2", "mp2", 48_000, False),
        ("tagged.mp3", "libmp3lame", "mp3", 48_000, False),
        ("plain.wma", "libmp3lame", "asf", 48_000, False),
        ("plain.amr", "libopencore_amrnb", "amr", 8_000, False),
        ("film.flv", "aac", "flv", 44_100, False),
        ("film.avi", "mp2", "avi", 48_000, True),
        ("film.mpg", "mp2", "mpeg", 48_000, False),
        ("film.ts", "mp2", "mpegts", 48_000, True),
    ):
        path = folder / "seed"
        mediakit.encoded(path, codec, container, mediakit.tone(0.6, rate), rate, video=video)
        yield name, path.read_bytes()
        path.unlink()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The file with one to four changes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if len(changed) > 1:
            chance.choice(MUTATIONS)(changed, chance)
    return bytes(changed)


def _place(data: bytearray, chance: random.Random) -> int:
    """Somewhere; half of the time near the beginning, where the headers are."""
    return chance.randrange(len(data) if chance.random() < 0.5 else min(len(data), 200))


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 3, 30))):
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _remove(data: bytearray, chance: random.Random) -> None:
    start = _place(data, chance)
    del data[start : start + chance.randint(1, 64)]


def _insert(data: bytearray, chance: random.Random) -> None:
    run = chance.choice((b"\0", b"\xff", chance.randbytes(3))) * chance.randint(1, 300)
    start = _place(data, chance)
    data[start:start] = run


def _swap(data: bytearray, chance: random.Random) -> None:
    size = chance.randint(1, 64)
    one, two = _place(data, chance), _place(data, chance)
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]


def _enlarge(data: bytearray, chance: random.Random) -> None:
    start, width = _place(data, chance), chance.choice((2, 4, 8))
    number = chance.choice((0, 1, 0x7F, 0x80, 0xFF)) << 8 * (width - 1)
    data[start : start + width] = number.to_bytes(width, chance.choice(("big", "little")))


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _cut,
    _remove,
    _insert,
    _swap,
    _enlarge,
)


def pillows(source: Path) -> Iterator[tuple[str, bytes]]:
    """Pillow's test images: from its source package, or from that unpacked."""
    if source.is_dir():
        for path in sorted(source.rglob("Tests/images/**/*")):
            if path.is_file():
                yield path.name, path.read_bytes()
        return
    with tarfile.open(source) as package:
        for member in package:
            if member.isfile() and "/Tests/images/" in member.name:
                content = package.extractfile(member)
                assert content
                yield member.name.rpartition("/")[2], content.read()


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


# --- the daemon at work -------------------------------------------------------------------------


@dataclass
class Sample:
    """The memory at one moment."""

    ended: int
    """jobs that had ended by then"""
    daemon_mb: float
    decoders_mb: float


@dataclass
class Run:
    """A daemon, its files, and what was seen."""

    place: Path
    names: list[str]
    samples: list[Sample] = field(default_factory=list)
    decoders: set[str] = field(default_factory=set)
    """process numbers of all that were seen"""
    exit_code: int | None = None
    seconds: float = 0.0

    def work(self, patience_s: float) -> None:
        """Start the daemon, drop the files, wait until all have ended, stop it."""
        with (self.place / "log").open("wb") as log:
            command = [
                sys.executable,
                str(TESTS / "fake_daemon.py"),
                str(self.place / "phi4d.toml"),
            ]
            process = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            self._wait(process, lambda: "ready:" in self.log(), 60)
            begun = time.monotonic()
            for name in self.names:
                os.rename(self.place / "staged" / name, self.place / "in" / name)
            self._wait(process, lambda: self._look(process.pid), patience_s)
            self.seconds = time.monotonic() - begun
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            self.exit_code = process.wait(60)
        finally:
            process.kill()
            process.wait()

    def _wait(
        self, process: subprocess.Popen[bytes], done: Callable[[], bool], seconds: float
    ) -> None:
        deadline = time.monotonic() + seconds
        while process.poll() is None and not done() and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    def _look(self, pid: int) -> bool:
        ended = sum(1 for _, state, _ in self.jobs() if state in ("done", "failed"))
        children = set()
        for task in Path(f"/proc/{pid}/task").iterdir():
            children |= set((task / "children").read_text().split())
        self.decoders |= children
        decoders = sum(resident_mb(int(child)) for child in children)
        self.samples.append(Sample(ended, resident_mb(pid), decoders))
        return ended >= len(self.names)

    def log(self) -> str:
        """What the daemon has said."""
        return (self.place / "log").read_text(errors="replace")

    def jobs(self) -> list[tuple[str, str, str]]:
        """Name, state and reason of the jobs in the store."""
        uri = f"{(self.place / 'state' / 'jobs.sqlite3').as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as store:
            found = store.execute("SELECT path, state, coalesce(reason, '') FROM job").fetchall()
        return [(os.fsdecode(path), state, reason) for path, state, reason in found]


def resident_mb(pid: int) -> float:
    """Resident memory of a process, or 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s*(\d+) kB", status)
    return int(found[1]) / 1e3 if found else 0.0


# --- the judgement ------------------------------------------------------------------------------


def report(run: Run) -> int:
    """Print what was seen; 1 if something must not be."""
    last = {name: (state, reason) for name, state, reason in run.jobs()}
    states = collections.Counter(last.get(name, ("missed", ""))[0] for name in run.names)
    print(f"in {run.seconds:.0f} s:", ", ".join(f"{n} {state}" for state, n in states.items()))
    reasons = collections.Counter(
        plain(reason) for state, reason in last.values() if state == "failed"
    )
    for reason, count in reasons.most_common(30):
        print(f"{count:6}  {reason}")
    deaths = collections.Counter(DEATH.findall(run.log()))
    print("decode processes that died:", ", ".join(f"{n} {how}" for how, n in deaths.items()) or 0)
    for name, (state, reason) in last.items():
        if state == "failed" and DEATH.search(reason):
            print(f"    {name}: {reason}")
    print(
        f"decode processes that were seen, with those replaced after 500 files: {len(run.decoders)}"
    )

    faults = [*judge_files(run, last), *judge_memory(run.samples)]
    if run.exit_code != 0:
        faults.append(f"the daemon ended with {run.exit_code}, not with 0 after SIGTERM")
    faults += [line for line in run.log().splitlines() if UNFORESEEN.search(line)]
    for fault in faults[:30]:
        print("VIOLATION:", fault)
    print(f"{len(faults)} violations")
    return 1 if faults else 0


def judge_files(run: Run, last: dict[str, tuple[str, str]]) -> Iterator[str]:
    """Files that ended neither with sidecars nor with a reason."""
    for name in run.names:
        state, reason = last.get(name, ("missed", ""))
        if state == "done":
            for ending in ("txt", "json"):
                path = run.place / "out" / f"{name}.{ending}"
                if not path.is_file():
                    yield f"{name} is done and has no {path.name}"
                elif ending == "json" and not isinstance(json.loads(path.read_bytes()), dict):
                    yield f"{path.name} holds no object"
        elif state != "failed" or not reason.strip():
            yield f"{name} is {state} with the reason {reason!r}"


def judge_memory(samples: list[Sample]) -> Iterator[str]:
    """Print the memory at twelve moments; complain if the daemon's grew."""
    busy = [sample for sample in samples if sample.ended]
    for sample in busy[:: max(1, len(busy) // 12)]:
        print(
            f"{sample.ended:6} ended: daemon {sample.daemon_mb:6.1f} MB, "
            f"decode processes {sample.decoders_mb:7.1f} MB"
        )
    total = busy[-1].ended if busy else 0
    first = [sample.daemon_mb for sample in busy if sample.ended <= total / 4]
    final = [sample.daemon_mb for sample in busy if sample.ended > total * 3 / 4]
    if not first or not final:
        yield "too few moments were seen to tell whether the memory grows"
        return
    most, usual = max(first), statistics.median(final)
    print(
        f"daemon: most in the first quarter {most:.1f} MB, "
        f"median in the last {usual:.1f} MB, most {max(final):.1f} MB"
    )
    if usual > most + GROWTH_MB:
        yield f"the daemon grew by {usual - most:.1f} MB, more than {GROWTH_MB:.0f}"


def plain(reason: str) -> str:
    """A reason without its numbers and quotations, so that like ones are counted together."""
    return re.sub(r"\d[\d.,]*", "N", re.sub(r"\(.*?\)+", "(…)", reason))[:150]


if __name__ == "__main__":
    sys.exit(main())
