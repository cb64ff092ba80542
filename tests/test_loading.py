"""From a configuration to engines: planned, loaded side by side, told, and given up together."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from phi4d import demo, loading, notify
from phi4d.config import Config
from phi4d.engine.fake import FakeEngine
from phi4d.engine.plan import Device, Slot, Wishes
from phi4d.engine.resident import Resident
from phi4d.errors import ConfigError, DeviceError, EnvironmentFault, Stopped
from phi4d.job import Kind, Request

CPU, GPU = Slot("cpu", why="float32: 1 of 2 GB"), Slot("cuda:0", "bfloat16", why="merged")


def two(load: loading.Load) -> list[object]:
    return list(loading.side_by_side([CPU, GPU], load, "the model"))


@pytest.fixture(autouse=True)
def _no_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi4d.engine.devices.used_bytes", lambda device: 3_000_000_000)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's ear."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(path))
        ear.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield ear


class TestSideBySide:
    def test_all_load_at_the_same_time_and_come_in_the_plans_order(self) -> None:
        together = threading.Barrier(2)

        def load(slot: Slot, progress: Callable[[int, int], None]) -> FakeEngine:
            together.wait(10)  # it would break if one waited for the other
            return FakeEngine(device=slot.device)

        assert [engine.device for engine in two(load)] == ["cpu", "cuda:0"]  # type: ignore[attr-defined]

    def test_the_log_has_the_plan_the_seconds_and_the_memory(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        two(lambda slot, progress: FakeEngine(device=slot.device))
        lines = [record.getMessage() for record in caplog.records]
        assert "loading the model on cpu: float32: 1 of 2 GB" in lines
        assert "loading the model on cuda:0: merged" in lines
        done = [line for line in lines if line.startswith("cuda:0: loaded in ")]
        assert done[0].endswith(" s, 3.0 GB")

    def test_the_service_manager_hears_how_far_each_is(self, manager: socket.socket) -> None:
        first = threading.Event()

        def load(slot: Slot, progress: Callable[[int, int], None]) -> FakeEngine:
            if slot is GPU:
                first.wait(10)
            progress(3, 5)
            first.set()
            return FakeEngine(device=slot.device)

        two(load)
        assert manager.recv(999) == b"EXTEND_TIMEOUT_USEC=300000000"
        assert manager.recv(999) == b"STATUS=loading 3/5 shards on cpu"
        assert manager.recv(999) == b"STATUS=loading 3/5 shards on cpu, 3/5 shards on cuda:0"

    def test_within_a_large_file_the_service_manager_is_asked_for_more_time(
        self, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(notify, "BEG_SECONDS", 0.0)

        def load(slot: Slot, progress: Callable[[int, int], None]) -> FakeEngine:
            progress(0, 1)
            progress(0, 1)  # the first tensor
            return FakeEngine()

        loading.side_by_side([CPU], load, "m")
        assert manager.recv(999) == b"EXTEND_TIMEOUT_USEC=300000000"
        assert manager.recv(999) == b"STATUS=loading 0/1 shards on cpu"
        assert manager.recv(999) == b"EXTEND_TIMEOUT_USEC=300000000"

    def test_slow_files_are_told_in_the_log_and_fast_ones_are_not(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.INFO)

        def load(slot: Slot, progress: Callable[[int, int], None]) -> FakeEngine:
            progress(1, 5)
            monkeypatch.setattr(loading, "QUIET_SECONDS", 0.0)
            progress(2, 5)
            return FakeEngine()

        loading.side_by_side([CPU], load, "m")
        told = [r.getMessage() for r in caplog.records if "shards" in r.getMessage()]
        assert told == ["loading 2/5 shards on cpu"]

    @pytest.mark.parametrize("error", [ConfigError("bad"), DeviceError("full"), ValueError("bug")])
    def test_one_that_fails_ends_the_others_and_gives_their_memory_back(
        self, error: Exception
    ) -> None:
        made = FakeEngine()
        loaded = threading.Event()
        ended = []

        def load(slot: Slot, progress: Callable[[int, int], None]) -> FakeEngine:
            if slot.device == "cuda:1":
                loaded.set()
                return made
            if slot is CPU:
                loaded.wait(10)
                raise error
            try:
                while True:
                    progress(0, 5)
            except Stopped:
                ended.append(slot)
                raise

        with pytest.raises(type(error)) as caught:
            loading.side_by_side([CPU, GPU, Slot("cuda:1")], load, "m")
        assert caught.value is error
        assert made.closed
        assert ended == [GPU]

    def test_a_signal_to_stop_ends_loading(self) -> None:
        begun = threading.Event()

        def load(slot: Slot, progress: Callable[[int, int], None]) -> FakeEngine:
            while True:
                progress(0, 5)
                begun.set()

        before = signal.pthread_sigmask(signal.SIG_BLOCK, loading.STOP_SIGNALS)
        here = threading.get_ident()
        killer = threading.Thread(
            target=lambda: begun.wait(10) and signal.pthread_kill(here, signal.SIGTERM)
        )
        killer.start()
        try:
            with pytest.raises(Stopped, match="told to stop while loading"):
                loading.side_by_side([CPU], load, "m")
        finally:
            killer.join()
            signal.sigtimedwait(loading.STOP_SIGNALS, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class TestBusyDevices:
    @pytest.fixture
    def attempts(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """What loading does, attempt by attempt."""
        attempts: list[object] = []

        def make_engines(config: Config) -> Iterator[object]:
            now = attempts.pop(0)
            if isinstance(now, Exception):
                raise now
            yield now

        monkeypatch.setattr(loading, "make_engines", make_engines)
        monkeypatch.setattr(loading, "BUSY_SECONDS", 0.0)
        return attempts

    def test_memory_that_others_have_is_waited_for_and_told_once(
        self, attempts: list[object], manager: socket.socket, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = FakeEngine()
        attempts += [EnvironmentFault("cuda:0 has 1 GB"), EnvironmentFault("again"), engine]
        assert list(loading.make_engines_when_free(Config())) == [engine]
        (line,) = [r.getMessage() for r in caplog.records]
        assert line == "nothing is lost, phi4d waits until there is room: cuda:0 has 1 GB"
        assert manager.recv(999) == (
            b"STATUS=waiting for memory: cuda:0 has 1 GB\nEXTEND_TIMEOUT_USEC=300000000"
        )

    def test_what_waiting_does_not_mend_is_not_waited_for(self, attempts: list[object]) -> None:
        attempts += [EnvironmentFault("full"), ConfigError("bad")]
        with pytest.raises(ConfigError):
            list(loading.make_engines_when_free(Config()))

    def test_a_signal_to_stop_ends_the_waiting(
        self, attempts: list[object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loading, "BUSY_SECONDS", 60.0)
        monkeypatch.setattr(signal, "sigpending", lambda: {signal.SIGTERM})
        attempts.append(EnvironmentFault("full"))
        with pytest.raises(Stopped):
            list(loading.make_engines_when_free(Config()))


def test_the_wishes_are_the_configuration_s():
    config = Config(device="cuda:1", quantization="8bit", multi_gpu_threshold_gb=3)
    assert loading.wishes_of(config) == Wishes(
        "cuda:1", quantization="8bit", multi_gpu_threshold_gb=3
    )
    assert loading.wishes_of(Config(model_path="demo")).dtype == "float32"
    assert loading.wishes_of(Config(model_path="demo", dtype="bfloat16")).dtype == "bfloat16"


def test_a_model_is_called_by_its_hubs_name_or_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("phi4d.engine.hub.resolve", lambda *_: tmp_path / "0123456789abcdef")
    assert loading.locate(Config())[1] == "microsoft/Phi-4-multimodal-instruct@01234567"
    assert loading.locate(Config(model_path="demo")) == (demo.CHECKPOINT, demo.NAME)
    monkeypatch.undo()
    (tmp_path / "phi").mkdir()
    (tmp_path / "link").symlink_to("phi")
    assert loading.locate(Config(model_path=str(tmp_path / "link")))[1] == "phi"


def test_two_slots_on_the_cpu_are_two_engines_as_configured():
    config = Config(
        model_path="demo", device="cpu,cpu", dtype="bfloat16", quantization="4bit",
        prompt_suffix="<|end|>",
    )  # fmt: skip
    first, second = loading.make_engines(config)
    assert (first.model, first.device) == (demo.NAME, "cpu")
    assert first is not second
    for engine in (first, second):
        engine.close()


def test_a_model_that_is_missing_is_told_before_torch_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("phi4d.engine.devices.probe", None)
    with pytest.raises(ConfigError, match="no such folder"):
        next(loading.make_engines(Config(model_path=str(tmp_path / "none"), device="cuda")))


class TestUnloading:
    @pytest.fixture
    def _room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cpu = Device("cpu", product="", total_bytes=10**11, free_bytes=10**11)
        monkeypatch.setattr("phi4d.engine.devices.cpu", lambda: cpu)
        gpu = Device("cuda:0", product="", total_bytes=2 * 10**10, free_bytes=10**10)
        monkeypatch.setattr("phi4d.engine.devices.probe", lambda: [gpu])

    @pytest.mark.usefixtures("_room")
    @pytest.mark.parametrize(
        ("slot", "fault"),
        [
            (Slot("cuda:0", needs_bytes=9 * 10**9, room_bytes=2 * 10**9), ""),
            (Slot("cuda:0", "float16", needs_bytes=9 * 10**9, room_bytes=3 * 10**9), "cuda:0: 10."),
            (Slot("cuda:0", offload_bytes=1, main_bytes=2 * 10**11), "cpu: 100.0 GB are free"),
            (Slot("cuda:1", needs_bytes=2 * 10**9), "cuda:1: 0.0 GB are free"),
            (Slot("cpu", needs_bytes=10**11), ""),
        ],
    )
    def test_it_is_loaded_again_as_it_was_or_not_at_all(self, slot: Slot, fault: str) -> None:
        engine = FakeEngine()
        slots = []

        def load(slot: Slot, progress: Callable[[int, int], None]) -> FakeEngine:
            slots.append(slot)
            return engine

        if fault:
            with pytest.raises(EnvironmentFault, match=f"^{fault}"):
                loading.load_again(slot, load, lambda done, of: None)
            assert slots == []
        else:
            assert loading.load_again(slot, load, lambda done, of: None) is engine
            assert slots == [slot]

    def test_the_weights_go_with_the_idle_engine_and_its_answers_are_the_same_afterwards(
        self,
    ) -> None:
        # given a model of which two slots share the files, and what other tests left
        gc.collect()
        others = {id(each) for each in gc.get_objects() if issubclass(type(each), torch.Tensor)}
        config = Config(
            model_path="demo", device="cpu,cpu", on_idle="unload", idle_unload_seconds=0.001
        )
        first, second = loading.make_engines(config)
        assert isinstance(first, Resident)
        assert isinstance(second, Resident)
        media = np.zeros((448, 448, 3), np.uint8)
        request = Request(Kind.IMAGE, "Describe the image.", media, max_new_tokens=8)
        before = first.generate([request])
        tensors = [
            weakref.ref(each)
            for each in gc.get_objects()
            if issubclass(type(each), torch.Tensor)
            and each.numel() > 1000
            and id(each) not in others
        ]
        assert len(tensors) > 100
        # when nothing is to do
        while not first.rest():
            pass
        while not second.rest():
            pass
        # then nothing holds a weight
        alive = [tensor for ref in tensors if (tensor := ref()) is not None]
        assert [tuple(tensor.shape) for tensor in alive] == []
        # and the next request is answered as the one before
        beats = []
        assert first.generate([request], on_step=lambda: beats.append(1)) == before
        assert len(beats) > 100  # at least one for each tensor that is read
        assert not second.is_loaded
        first.close()
        second.close()

    def test_who_keeps_it_has_the_engines_bare(self) -> None:
        (engine,) = loading.make_engines(Config(model_path="demo", device="cpu"))
        assert not isinstance(engine, Resident)
        engine.close()
