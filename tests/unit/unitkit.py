"""A configuration and a machine to work drop-ins out for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from phi4d.config import Config, load
from phi4d.engine.plan import Device
from phi4d.unit.host import Host

UNIT = Path(__file__).parents[2] / "systemd" / "phi4d.service"


def config_of(text: str, folder: Path) -> Config:
    """The configuration of a file with this text, and of the demo's model."""
    file = folder / "phi4d.toml"
    model = "" if "model_path" in text else 'model_path = "demo"\n'
    file.write_text(model + text)
    return load(config=file, environ={})


def machine(memory_gb: float = 0.0, **facts: Any) -> Host:
    """A machine; without a memory that it has, no limit is made for it."""
    cpu = Device("cpu", "CPU", int(memory_gb * 1e9), int(memory_gb * 1e9), bfloat16=True)
    return replace(Host(cpu), **facts)
