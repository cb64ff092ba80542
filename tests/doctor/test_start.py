from __future__ import annotations

from pathlib import Path

import pytest

from phi4d.config import Config
from phi4d.doctor import start
from phi4d.doctor.check import Status
from phi4d.engine.plan import PUBLISHED, Device, Wishes

GB = 10**9
ALL = frozenset({"flash_attn", "bitsandbytes", "accelerate"})
CPU = Device("cpu", "Xeon", 64 * GB, 60 * GB, None, True)


def gpu(free_gb: float) -> Device:
    return Device("cuda:0", "NVIDIA L4", 24 * GB, int(free_gb * GB), (8, 9), True, "550")


class TestModel:
    @pytest.fixture(autouse=True)
    def _no_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))

    def test_one_that_is_whole(self) -> None:
        (check,), size = start.model(Config(model_path="demo"))

        assert (check.check, check.status) == ("model", Status.OK)
        assert size

    def test_one_that_is_missing_says_which_command_gets_it(self, tmp_path: Path) -> None:
        (check,), size = start.model(Config(cache_dir=tmp_path))

        assert (check.status, size) == (Status.FAIL, None)
        assert f"phi4d model pull --cache-dir {tmp_path}" in check.advice

    def test_one_that_is_broken_has_a_line_for_each_fault(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "phi4_multimodal"}')

        checks, size = start.model(Config(model_path=str(tmp_path)))

        assert size is None
        assert len(checks) > 1
        assert {check.status for check in checks} == {Status.FAIL}
        assert all(check.advice for check in checks)


class TestSlots:
    def look(self, card: Device | None, *, size=PUBLISHED, busy=False, **wishes):
        return list(
            start.slots([card] if card else [], CPU, size, Wishes(**wishes), ALL, busy=busy)
        )

    def test_what_was_chosen_and_why(self) -> None:
        (check,) = self.look(gpu(23.1))

        assert (check.check, check.status) == ("plan cuda:0", Status.OK)
        assert check.found == (
            "bfloat16, merged adapters: 15.9 of 23.1 GB free; attention: flash_attention_2"
        )

    def test_before_the_model_is_here_it_is_the_published_one_s(self) -> None:
        (check,) = self.look(gpu(23.1), size=None)

        assert check.found.startswith("once the model is here: bfloat16, merged adapters: 15.9 of")

    def test_what_is_offloaded_is_slow(self) -> None:
        (check,) = self.look(gpu(6))

        assert (check.status, bool(check.advice)) == (Status.WARN, True)

    def test_every_fault_of_a_plan_fails(self) -> None:
        checks = self.look(gpu(3), device="cuda:0,cuda:9")

        assert [check.status for check in checks] == [Status.FAIL, Status.FAIL]
        assert "has 3.0 GB free" in checks[1].found
        assert "nvidia-smi" in checks[1].advice

    def test_memory_that_phi4d_itself_holds_is_no_failure(self) -> None:
        (check,) = self.look(gpu(3), busy=True)

        assert check.status is Status.WARN
        assert check.advice.startswith("stop phi4d")
