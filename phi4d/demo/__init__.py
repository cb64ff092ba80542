"""The trained tiny checkpoint and sample files, for trying the plumbing and for tests."""

from __future__ import annotations

from pathlib import Path

MODEL_PATH = "demo"
"""Value of ``model_path`` that stands for the checkpoint which ships."""
NAME = "phi4d demo toy (coloured shapes and spoken digits only)"
"""What the checkpoint is called wherever a model's name stands."""
CHECKPOINT = Path(__file__).parent / "checkpoint"
SAMPLES = Path(__file__).parent / "samples"
