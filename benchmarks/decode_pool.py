"""The decode pool against pebble's, and against decoding in place.

    pip install pebble            # the rival; not among phi4d's dependencies
    python benchmarks/decode_pool.py [--rounds 15]

Decodes the same files one after the other: with the codecs in this process, through a warm
`DecodePool` of one process, and through a warm `pebble.ProcessPool` of one worker with the same
memory limit and a timeout. The ways take turns, and the fastest round of each counts, because other
work on the machine only adds. Then what it costs to have media ready for the model, by whoever
takes the pieces, or by the process that decodes them: the whole way, and, for each piece, what the
taking thread computes. Then what SHA-256 adds, and what is left of a process that hangs in a codec
when its parent is killed.

Prints milliseconds a file; the last line is JSON. Without pebble its column stays empty.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from phi4d.demo import SAMPLES  # noqa: E402
from phi4d.job import Kind, Piece  # noqa: E402
from phi4d.media.pool import DecodePool  # noqa: E402
from phi4d.prepared.preparation import Preparation  # noqa: E402

try:
    import pebble  # type: ignore[import-not-found]
except ImportError:
    pebble = None

MEMORY_BYTES = 4_000_000_000
TIMEOUT_S = 60.0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="phi4d-decode-") as folder:
        rows = compare(files(Path(folder)), rounds)
        ready = preparing(files(Path(folder), large=True), rounds)
        digests = hashing(Path(folder), rounds)
    left = {name: orphans(name) for name in ("phi4d", *(["pebble"] if pebble else []))}
    for name, count in left.items():
        print(f"{name}: of a hanging process, {count} left 3 s after its parent was killed")
    print(json.dumps({"rows": rows, "preparing": ready, "hashing": digests, "left": left}))
    return 0


def files(folder: Path, *, large: bool = False) -> dict[str, tuple[Path, Kind]]:
    """A photo-like picture of 1, of 12, and maybe of 48 megapixels, and a minute of speech."""
    found: dict[str, tuple[Path, Kind]] = {}
    sizes = {"JPEG, 1 MP": (1155, 866), "JPEG, 12 MP": (4000, 3000), "JPEG, 48 MP": (8000, 6000)}
    for name, size in sizes.items():
        if name == "JPEG, 48 MP" and not large:
            continue
        path = folder / f"{size[0]}.jpg"
        photo(size).save(path, quality=90)
        found[name] = (path, Kind.IMAGE)
    voice, rate = soundfile.read(SAMPLES / "digits-16k.wav", dtype="float32")
    path = folder / "speech.mp3"
    soundfile.write(path, np.resize(voice, 60 * rate), rate, format="MP3")
    found["MP3, 60 s"] = (path, Kind.AUDIO)
    return found


def photo(size: tuple[int, int]) -> Image.Image:
    """Coarse shapes with fine grain, as a camera's pictures have them."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
    grain = random.normal(0, 4, smooth.shape).astype(np.int16)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def in_place(path: bytes, kind: str) -> list[tuple[Any, float, float]]:
    """Decode with the codecs in this process; also what pebble's worker does."""
    from phi4d.media import audio, images, speech

    with open(path, "rb") as file:
        if kind == Kind.IMAGE:
            picture, _ = images.picture(file)
            return [(images.samples(picture), 0.0, 0.0)]
        recording = audio.Recording(file)
        found = speech.pieces(recording.blocks(), model(speech).judge())
        return [(piece.media, piece.start, piece.end) for piece in found]


MODELS: list[Any] = []


def model(speech: Any) -> Any:
    """The speech finder, loaded once in each process."""
    if not MODELS:
        MODELS.append(speech.SpeechModel())
    return MODELS[0]


def limit(memory_bytes: int) -> None:
    """What pebble's worker runs first."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def hang() -> None:
    """A codec that never returns."""
    while True:
        pass


def compare(found: dict[str, tuple[Path, Kind]], rounds: int) -> list[dict[str, Any]]:
    """The table of milliseconds a file."""
    spawn = multiprocessing.get_context("spawn")
    theirs = pebble and pebble.ProcessPool(
        1, max_tasks=500, initializer=limit, initargs=[MEMORY_BYTES], context=spawn
    )
    rows = []
    print(
        f"{'ms a file':14} {'in place':>9} {'phi4d':>9} {'pebble':>9}  phi4d over pebble, in place"
    )
    with DecodePool(1, memory_bytes=MEMORY_BYTES, timeout_s=TIMEOUT_S) as ours:
        for name, (path, kind) in found.items():
            source = os.fsencode(path)

            def through_ours(source: bytes = source, kind: Kind = kind) -> list[Piece]:
                return list(ours.decode(source, kind))

            def through_theirs(source: bytes = source, kind: Kind = kind) -> Any:
                task = theirs.schedule(in_place, args=[source, str(kind)], timeout=TIMEOUT_S)
                return task.result()

            def without(source: bytes = source, kind: Kind = kind) -> Any:
                return in_place(source, kind)

            ways: dict[str, Callable[[], Any]] = {"in_place": without, "phi4d": through_ours}
            if theirs:
                ways["pebble"] = through_theirs
            row: dict[str, Any] = {"file": name} | alternate(ways, rounds)
            rows.append(row)
            over = f"{row['phi4d'] / row['pebble']:.2f}" if theirs else "-"
            print(
                f"{name:14} {row['in_place']:9.1f} {row['phi4d']:9.1f} "
                f"{row.get('pebble', float('nan')):9.1f}  {over}, "
                f"{row['phi4d'] / row['in_place']:.2f}",
                flush=True,
            )
    if theirs:
        theirs.stop()
        theirs.join()
    return rows


def preparing(found: dict[str, tuple[Path, Kind]], rounds: int) -> list[dict[str, Any]]:
    """The table of milliseconds until media are ready, and of the taking thread's part in it."""
    prepare = Preparation()
    rows = []
    print(f"{'ready, ms':14} {'here':>9} {'there':>9}  of the taking thread, a piece: here, there")
    with DecodePool(1, memory_bytes=MEMORY_BYTES, timeout_s=TIMEOUT_S) as pool:
        for name, (path, kind) in found.items():
            spent: dict[str, list[float]] = {"here": [], "there": []}

            def take(where: str, source: bytes, kind: Kind, spent: dict[str, list[float]]) -> int:
                begun, pieces = time.thread_time(), 0
                there = prepare if where == "there" else None
                for piece in pool.decode(source, kind, prepare=there):
                    pieces += 1
                    if not there:
                        make = prepare.picture if kind is Kind.IMAGE else prepare.sound
                        make(piece.media)
                spent[where].append((time.thread_time() - begun) * 1000 / pieces)
                return pieces

            ways = {where: partial(take, where, os.fsencode(path), kind, spent) for where in spent}
            ms = alternate(ways, rounds)
            thread = {where: round(min(times), 2) for where, times in spent.items()}
            rows.append({"file": name, "ready": ms, "thread": thread})
            print(
                f"{name:14} {ms['here']:9.1f} {ms['there']:9.1f}  "
                f"{thread['here']:.1f}, {thread['there']:.1f}",
                flush=True,
            )
    return rows


def alternate(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of the fastest round of each way; the first is for warming up."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            assert way(), f"{name} decoded nothing"
            if number:
                spent[name].append((time.perf_counter() - begun) * 1000)
    return {name: round(min(times), 1) for name, times in spent.items()}


def hashing(folder: Path, rounds: int) -> dict[str, float]:
    """What a digest costs: SHA-256 alone, and on top of decoding."""
    wav = folder / "long.wav"
    noise = np.random.default_rng(0).integers(-9000, 9000, 50_000_000, np.int16)
    soundfile.write(wav, noise, 16_000)
    found: dict[str, float] = {}
    begun = time.perf_counter()
    with wav.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    found["sha256_mb_per_s"] = round(wav.stat().st_size / 1e6 / (time.perf_counter() - begun))
    print(f"SHA-256: {found['sha256_mb_per_s']:.0f} MB/s")
    with DecodePool(1, memory_bytes=MEMORY_BYTES) as pool:
        for name, path, kind, times in (
            ("JPEG, 12 MP", folder / "4000.jpg", Kind.IMAGE, rounds),
            ("WAV, 100 MB", wav, Kind.AUDIO, 1),
        ):
            source = os.fsencode(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()

            def known(source: bytes = source, kind: Kind = kind, digest: str = digest) -> bool:
                decoding = pool.decode(source, kind, known=[digest])
                assert not list(decoding)
                return decoding.is_known

            def decoded(source: bytes = source, kind: Kind = kind) -> bool:
                return sum(1 for _ in pool.decode(source, kind)) >= 0

            ms = alternate({"known": known, "decoded": decoded}, times)
            found[f"{name}: share"] = round(ms["known"] / ms["decoded"], 3)
            print(
                f"{name} ({path.stat().st_size / 1e6:.1f} MB): a digest that is known takes "
                f"{ms['known']:.1f} ms, decoding {ms['decoded']:.1f} ms"
            )
    return found


PARENT = """
import os, sys, time
sys.path[:0] = {path}
sys.modules["__main__"].__file__ = {script!r}
import decode_pool as bench
if {name!r} == "phi4d":
    from phi4d.media.process import DecodeProcess
    import signal
    process = DecodeProcess(bench.MEMORY_BYTES, 60)
    process.channel.receive()
    os.kill(process.pid, signal.SIGSTOP)
else:
    pool = bench.pebble.ProcessPool(1)
    pool.schedule(bench.hang, timeout=60)
    time.sleep(2)
print(*open(f"/proc/self/task/{{os.getpid()}}/children").read().split(), flush=True)
time.sleep(60)
"""


def orphans(name: str) -> int:
    """How many processes that hang are left 3 s after their parent was killed; they are killed."""
    code = PARENT.format(path=[str(ROOT), str(ROOT / "benchmarks")], script=__file__, name=name)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        children = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    time.sleep(3)
    left = [pid for pid in children if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return len(left)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    sys.exit(main())
