"""The daemon against the engine alone, on the same files; and how long a small file takes.

    python benchmarks/daemon.py [--device cpu] [--size mid|full|small] [--minutes 180]

- throughput: so many clips (5 to 30 s, WAV) and pictures (JPEG) are dropped at once, and the time
  from there to the last sidecar is compared with that of `Engine.serve` in a process of its own,
  which is given the same media, decoded and prepared before. Of the daemon's time, the share in
  which the engine had nothing to do, by the metrics;
- a small file (5 s of sound) dropped alone, again and again: from its arrival to its sidecars,
  while nothing else is to do, and while a recording of three hours is transcribed; beside it, the
  time that the engine takes for it alone.

Weights are random, and so hardly an answer ends by itself: each has `--tokens` tokens. `mid` has
300 million parameters, `full` those of the published model. Rounds are run alternately, and the
best of each counts. The last line is JSON. The files are on the disk of ``--folder``, and are
removed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

SMALL_S = 5.0
WAIT_S = 1800.0
"""until it gives up on what must happen"""
POLL_S = 0.01
SAME = 0.02
"""of all tokens, by which the answers of both may differ: in bfloat16 a near tie decides"""
WANTED = 0.95
"""of the engine's throughput"""
RATE_HZ = 16_000


# ---- files


def clip(path: Path, seconds: float, rng: np.random.Generator) -> None:
    """A WAV of noise."""
    import soundfile

    soundfile.write(path, rng.normal(0, 0.1, round(seconds * RATE_HZ)), RATE_HZ, "PCM_16")


def picture(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """A JPEG as large as a photo's."""
    from PIL import Image

    width, height = size
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def speech(path: Path, minutes: float) -> None:
    """Spoken digits, over and over, for so long."""
    import soundfile

    said, rate = soundfile.read(ROOT / "phi4d/demo/samples/digits-long.mp3", dtype="int16")
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for begin in range(0, round(minutes * 60 * rate), len(said)):
            file.write(said[: round(minutes * 60 * rate) - begin])


def make_files(folder: Path, options: argparse.Namespace) -> list[str]:
    """The clips and pictures, each kind spread evenly among the other; their names, in order."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    places = []
    for i, seconds in enumerate(rng.uniform(5, 30, options.clips)):
        clip(folder / f"{i}.wav", seconds, rng)
        places.append(((i + 0.5) / options.clips, f"{i}.wav"))
    for i in range(options.pictures):
        picture(folder / f"{i}.jpg", options.picture, rng)
        places.append(((i + 0.5) / options.pictures, f"{i}.jpg"))
    return [name for _, name in sorted(places)]


# ---- the engine alone


def alone(config_file: Path, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Answer the files' media by one engine's stream, in this process."""
    from phi4d import config as configuration
    from phi4d import settings
    from phi4d.engine.requests import Asked
    from phi4d.job import Completion, Kind, Request
    from phi4d.loading import make_engines
    from phi4d.media.pool import DecodePool
    from phi4d.media.probe import look

    config = configuration.load(config=config_file, environ={})
    prompts = {Kind.IMAGE: config.image_prompt, Kind.AUDIO: config.speech_prompt}
    requests = {}
    with DecodePool(1, **settings.of_decoding(config)) as pool:
        (engine,) = make_engines(config)
        for name in names:
            kind, _ = look(folder / name)
            with pool.decode(os.fsencode(folder / name), kind) as pieces:
                (piece,) = pieces
            picture = kind is Kind.IMAGE
            prepare = engine.preparation.picture if picture else engine.preparation.sound
            media = prepare(piece.media)
            requests[name] = Request(kind, prompts[kind], media, config.max_new_tokens)
    rows = engine.rows
    if isinstance(config.batch_size, int):
        rows = min(rows, config.batch_size)

    def answer(asked: Sequence[Request]) -> tuple[float, int]:
        waiting = [Asked(request) for request in asked]
        under_way = 0
        tokens = 0

        def source(room: int) -> Sequence[Asked]:
            nonlocal under_way
            count = min(room, rows - under_way)
            taken, waiting[:] = waiting[:count], waiting[count:]
            under_way += len(taken)
            return taken

        def told(_: Asked, ended: object) -> None:
            nonlocal under_way, tokens
            assert isinstance(ended, Completion), ended
            under_way -= 1
            tokens += ended.new_tokens

        begun = time.perf_counter()
        engine.serve(source, told)
        seconds = time.perf_counter() - begun
        return seconds, tokens

    small, *others = requests.values()
    answer([small, *others[:2]])
    used = time.process_time()
    seconds, tokens = answer(others)
    used = time.process_time() - used
    result = {
        "seconds": seconds,
        "cpu": used,
        "tokens": tokens,
        "small": statistics.median(answer([small])[0] for _ in range(5)),
        "rows": rows,
    }
    engine.close()
    return result


# ---- the daemon


class Daemon:
    """phi4d itself, from outside: a configuration, folders, metrics."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.inbox, self.outbox = folder / "in", folder / "out"
        self._folder = folder
        self._process = process

    def until(
        self,
        done: Callable[[], bool],
        what: str,
        seconds: float = WAIT_S,
        every: float = POLL_S,
    ) -> None:
        """Wait for something, looking so often.

        Raises:
            TimeoutError: it did not come.
        """
        latest = time.monotonic() + seconds
        while not done():
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon ended before {what}:\n{self.log()}")
            if time.monotonic() > latest:
                raise TimeoutError(f"{what} did not come in {seconds:.0f} s")
            time.sleep(every)

    def log(self) -> str:
        """What it said."""
        return (self._folder / "log").read_text(errors="replace")

    def cpu(self) -> tuple[float, float]:
        """Seconds of processor time so far: its own, and that of its decode processes."""
        pid = self._process.pid
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = {int(one) for task in tasks for one in (task / "children").read_text().split()}
        return cpu_s(pid), sum(map(cpu_s, children))

    def metric(self, name: str) -> float | None:
        """A metric, summed over its labels; None: there is none of that name."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._folder / "metrics"))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65_536), b"")).decode()
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", answer, re.MULTILINE)
        return sum(map(float, found)) if found else None

    def drop(self, files: Sequence[Path], seconds: float = WAIT_S) -> float:
        """Move files in, whole as they are; the seconds until the last has its sidecars."""
        sidecars = [self.outbox / f"{file.name}.json" for file in files]
        begun = time.time()
        for file in files:
            os.rename(file, self.inbox / file.name)
        # the JSON comes last of a file's, and is there whole
        self.until(lambda: all(path.exists() for path in sidecars), "the sidecars", seconds)
        return max(path.stat().st_mtime for path in sidecars) - begun

    def tokens(self, names: Sequence[str]) -> int:
        """How long all answers are together, by the sidecars."""
        records = (self.outbox / f"{name}.json" for name in names)
        return sum(json.loads(record.read_text())["new_tokens"] for record in records)


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def daemon(folder: Path, config_file: Path) -> Iterator[Daemon]:
    """One that is ready; it is stopped."""
    for name in ("in", "out"):
        (folder / name).mkdir(exist_ok=True)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "phi4d", "run", "--config", str(config_file)],
            stderr=log,
            cwd=ROOT,
            env=environment(),
        )
    try:
        found = Daemon(folder, process)
        found.until(lambda: " ready: " in found.log(), "readiness")
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def environment() -> dict[str, str]:
    """Without settings of whoever runs this."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PHI4_")}


def configure(folder: Path, model: Path, options: argparse.Namespace) -> Path:
    """A configuration of one inbox."""
    keys = {
        "model_path": str(model),
        "device": options.device,
        "dtype": options.dtype,
        "state_dir": str(folder / "state"),
        "max_new_tokens": options.tokens,
        "metrics_listen": f"unix:{folder / 'metrics'}",
        "stop_seconds": 1,
    }
    if options.batch_size:
        keys["batch_size"] = options.batch_size
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    box = ["[[inbox]]", f'path = "{folder / "in"}"', f'outbox = "{folder / "out"}"']
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "phi4d.toml"
    file.write_text("\n".join([*lines, *box, ""]))
    return file


# ---- what is measured


def round_of(folder: Path, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All files by the engine alone, then all by the daemon."""
    config_file = configure(folder, model, options)
    there = folder / "files"
    names = make_files(there, options)
    rng = np.random.default_rng(1)
    clip(there / "small.wav", SMALL_S, rng)
    command = [sys.executable, __file__, "--alone", str(config_file), str(there), "small.wav"]
    done = subprocess.run(
        [*command, *names], stdout=subprocess.PIPE, check=True, env=environment(), text=True
    )
    engine: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    clip(there / "warm.wav", SMALL_S, rng)
    picture(there / "warm.jpg", options.picture, rng)
    with daemon(folder, config_file) as running:
        running.drop([there / "warm.wav", there / "warm.jpg"])
        before = {name: running.metric(name) or 0.0 for name in (BUSY, STARVED)}
        used = running.cpu()
        seconds = running.drop([there / name for name in names])
        own, decoding = (after - one for after, one in zip(running.cpu(), used, strict=True))
        busy = (running.metric(BUSY) or 0.0) - before[BUSY]
        starved = running.metric(STARVED)
        tokens = running.tokens(names)
    assert abs(tokens - engine["tokens"]) <= SAME * tokens, (tokens, engine["tokens"])
    return {
        "engine_s": engine["seconds"],
        "rows": engine["rows"],
        "small_s": engine["small"],
        "engine_tokens": engine["tokens"],
        "daemon_s": seconds,
        "daemon_tokens": tokens,
        "engine_cpu_s": engine["cpu"],
        "daemon_cpu_s": own,
        "decode_cpu_s": decoding,
        "waited": max(0.0, 1 - busy / seconds),
        "starved": None if starved is None else (starved - before[STARVED]) / seconds,
    }


BUSY, STARVED = "phi4d_answer_seconds_total", "phi4d_starved_seconds_total"


def small_files(folder: Path, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Small files while nothing else is to do, and behind a long recording."""
    config_file = configure(folder, model, options)
    there = folder / "files"
    there.mkdir()
    rng = np.random.default_rng(2)
    chance = random.Random(0)
    numbers = iter(range(10_000))

    def dropped(running: Daemon) -> float | None:
        file = there / f"{next(numbers)}.wav"
        clip(file, SMALL_S, rng)  # each another: an answer that is known would be copied
        time.sleep(chance.uniform(0.1, 0.6))
        try:
            return running.drop([file], options.patience)
        except TimeoutError:
            return None

    def several(running: Daemon) -> list[float] | None:
        taken = []
        for _ in range(options.drops):
            if (seconds := dropped(running)) is None:
                return None
            taken.append(seconds)
        return sorted(taken)

    with daemon(folder, config_file) as running:
        dropped(running)  # the first one warms it up
        empty = several(running)
        long = there / "long.wav"
        speech(long, options.minutes)
        before = running.metric("phi4d_generated_tokens_total") or 0.0
        os.rename(long, running.inbox / long.name)
        running.until(
            lambda: (running.metric("phi4d_generated_tokens_total") or 0.0) > before,
            "the long recording's first answer",
            every=0.5,
        )
        behind = several(running)
        outlasted = not (running.outbox / "long.wav.json").exists()
    return {"empty": empty, "behind": behind, "long_outlasted_them": outlasted}


def spread(seconds: list[float] | None) -> dict[str, float] | None:
    """Middle, 99th of a hundred (of fewer than that, the last), number."""
    if seconds is None:
        return None
    p99 = seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)]
    return {"p50": statistics.median(seconds), "p99": p99, "files": len(seconds)}


def measure(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    with tempfile.TemporaryDirectory(prefix="phi4d-daemon-", dir=options.folder) as name:
        folder = Path(name)
        rounds = []
        for n in range(options.rounds):
            rounds.append(round_of(folder / str(n), model, options))
            print(f"round {n + 1}: " + told(rounds[-1]), flush=True)
        small = small_files(folder / "small", model, options) if options.drops else {}
    best = min(rounds, key=lambda one: one["daemon_s"])
    engine_s = min(one["engine_s"] for one in rounds)
    return {
        "device": options.device,
        "size": options.size,
        "dtype": options.dtype,
        "clips": options.clips,
        "pictures": options.pictures,
        "tokens": options.tokens,
        "minutes": options.minutes,
        **best,
        "engine_s": engine_s,
        "ratio": engine_s / best["daemon_s"],
        "small_alone_s": min(one["small_s"] for one in rounds),
        "small_empty": spread(small.get("empty")),
        "small_behind": spread(small.get("behind")),
        "long_outlasted_them": small.get("long_outlasted_them"),
    }


def told(one: dict[str, Any]) -> str:
    """A round in words."""
    starved = "" if one["starved"] is None else f", {one['starved']:.1%} with files at hand"
    return (
        f"engine alone {one['engine_s']:.1f} s, daemon {one['daemon_s']:.1f} s, "
        f"ratio {one['engine_s'] / one['daemon_s']:.3f}; "
        f"the engine waited {one['waited']:.1%}{starved}"
    )


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    files = result["clips"] + result["pictures"]
    print(f"{result['clips']} clips and {result['pictures']} pictures, {result['rows']} at a time")
    for name, seconds in (("engine alone", result["engine_s"]), ("daemon", result["daemon_s"])):
        print(f"  {name:40} {seconds:8.1f} s {files / seconds:8.2f} files/s")
    met = "met" if result["ratio"] >= WANTED else "MISSED"
    print(f"  {'throughput of the engine alone':40} {result['ratio']:8.1%}  {WANTED:.0%}: {met}")
    cpu = "{engine_cpu_s:.1f} s, {daemon_cpu_s:.1f} s and {decode_cpu_s:.1f} s of decoding"
    print(f"  {'processor time, alone and by the daemon':40} {cpu.format(**result)}")
    print(f"  {'time that the engine waited':40} {result['waited']:8.1%}")
    if result["starved"] is not None:
        print(f"  {'of it while files were at hand':40} {result['starved']:8.1%}")
    if result["small_empty"] is None:
        return
    print(f"a small file, {SMALL_S:.0f} s of sound")
    print(f"  {'engine alone':40} {result['small_alone_s']:8.2f} s")
    behind = f"daemon, behind {result['minutes']:g} minutes"
    for name, found in (
        ("daemon, nothing else to do", result["small_empty"]),
        (behind, result["small_behind"]),
    ):
        words = (
            "p50 {p50:8.2f} s  p99 {p99:8.2f} s  of {files}".format(**found)
            if found
            else "was not done within --patience"
        )
        print(f"  {name:36} {words}")
    if not result["long_outlasted_them"]:
        print("  the long recording ended before: give more --minutes")


def main() -> int:
    """Measure and print."""
    if sys.argv[1:2] == ["--alone"]:
        config_file, folder, *names = sys.argv[2:]
        print(json.dumps(alone(Path(config_file), Path(folder), names)))
        return 0
    from models import SIZES, made  # not before: phi4d sets torch's threads before it is loaded

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=list(SIZES), help="default: mid on the CPU, else full")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=50, help="of each answer")
    parser.add_argument("--batch-size", type=int, help="default: the configuration's")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--drops", type=int, default=20, help="small files, each time; 0: none")
    parser.add_argument("--minutes", type=float, default=180.0, help="of the long recording")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for a small file")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))  # noqa: S108 -- a disk
    options = parser.parse_args()
    options.size = options.size or ("mid" if options.device == "cpu" else "full")
    options.picture = SIZES[options.size]
    with made(options.size, options.device, options.folder) as model:
        result = measure(model, options)
    show(result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
