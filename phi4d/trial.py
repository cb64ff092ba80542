"""The demo: the real daemon, started for real, on samples and the tiny toy checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from phi4d import demo

ANSWER_SECONDS = 180.0
"""How long one sample may take; on two busy cores it is a few seconds."""


def run(folder: Path) -> int:
    """Make folders, start the daemon on them, drop the samples in, print what comes out.

    Returns:
        The exit code: 0 if every sample was answered.
    """
    console = Console(highlight=False, soft_wrap=True)
    folder = _fresh(folder.absolute())
    inbox, outbox = folder / "inbox", folder / "outbox"
    inbox.mkdir(parents=True)
    config = folder / "phi4d.toml"
    config.write_text(
        f'model_path = "{demo.MODEL_PATH}"\ndevice = "cpu"\nstate_dir = "state"\n\n'
        '[[inbox]]\npath = "inbox"\noutbox = "outbox"\n'
    )
    log = folder / "phi4d.log"
    console.print(f"folder  {escape(str(folder))}")
    console.print(
        "model   the tiny toy that ships with phi4d; it knows coloured shapes and spoken\n"
        "        digits, and shows the plumbing, not what Phi-4-multimodal can do"
    )
    with log.open("wb") as log_file:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "phi4d", "run", "--config", str(config)],
            stderr=log_file,
            env={k: v for k, v in os.environ.items() if not k.startswith("PHI4_")},
        )
    try:
        with console.status("starting the daemon …"):
            ready = _until(lambda: b" ready: " in log.read_bytes(), daemon, ANSWER_SECONDS)
        if not ready:
            console.print(f"[red]the daemon did not start[/red]; see {log}")
            console.print(escape(log.read_text(errors="replace")))
            return 1
        console.print("daemon  ready\n")
        answered = _drop_samples(console, inbox, outbox, daemon)
    finally:
        daemon.send_signal(signal.SIGTERM)
        code = daemon.wait()
    console.print(f"\nThe daemon stopped with exit code {code}. Everything is left for a look:")
    for what, path in (("dropped", inbox), ("answers", outbox), ("log", log)):
        console.print(f"  {what:8}{escape(str(path))}")
    where = _programs()
    console.print(
        "\nTo go on with the real model, which is Microsoft's and some 11 GB:\n"
        f"  {where}phi4d model pull\n"
        f"  {where}phi4d run --inbox ~/inbox --outbox ~/outbox"
    )
    return 0 if answered and code == 0 else 1


def _programs() -> str:
    """What to put before a program's name, so that the commands can be copied as they are."""
    if shutil.which("phi4d"):
        return ""
    folder = Path(sys.executable).parent
    return f"{folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder}/"


def _fresh(folder: Path) -> Path:
    """The folder, or one like it with a number: nobody's files are ever removed."""
    candidate, number = folder, 2
    while candidate.exists() and any(candidate.iterdir()):
        candidate = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return candidate


def _drop_samples(
    console: Console, inbox: Path, outbox: Path, daemon: subprocess.Popen[bytes]
) -> bool:
    samples = sorted(p for p in demo.SAMPLES.iterdir() if p.suffix not in (".json", ".md"))
    width = max(len(sample.name) for sample in samples)
    everything = True
    for sample in samples:
        began = time.monotonic()
        # as people do it: the copy is not there at once
        shutil.copyfile(sample, inbox / sample.name)
        record = outbox / f"{sample.name}.json"
        with console.status(f"{sample.name} …"):
            came = _until(record.exists, daemon, ANSWER_SECONDS)
        if came:
            text = json.loads(record.read_text("utf-8"))["text"]
            seconds = time.monotonic() - began
            console.print(f"{sample.name:{width}}  {escape(text)}  [dim]{seconds:.1f} s[/dim]")
        else:
            console.print(f"{sample.name:{width}}  [red]no answer[/red]")
            everything = False
    return everything


def _until(condition: Callable[[], bool], daemon: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if daemon.poll() is not None:
            return False
        time.sleep(0.05)
    return False
