from __future__ import annotations

import weakref

import numpy as np
import pytest
import soundfile
import torch
from deskkit import Desk
from enginekit import TRANSCRIBE, speech

from phi4d.engine.fake import FakeEngine
from phi4d.engine.faults import device_faults, give_back
from phi4d.errors import DeviceError, DeviceLost
from phi4d.job import SAMPLE_RATE_HZ, Kind
from phi4d.media.pool import DecodePool
from phi4d.prepared.cutting import size


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously"),
        torch.AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=str,
)
def test_memory_that_ends_is_a_device_error(error):
    with pytest.raises(DeviceError) as caught, device_faults("cpu", "answering 4 requests"):
        raise error
    assert type(caught.value) is DeviceError
    text = str(caught.value)
    assert text.startswith("cpu: out of memory while answering 4 requests (")
    assert "\n" not in text
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered", 214),
        torch.AcceleratorError("unspecified launch failure", 719),
        RuntimeError("CUDA error: misaligned address"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        RuntimeError("all CUDA-capable devices are busy or unavailable"),
        RuntimeError("CUDA error: the launch timed out and was terminated"),
        RuntimeError("CUDA error: unknown error"),
        RuntimeError("CUDA error: operation not supported on global/shared address space"),
        RuntimeError("CUDA driver error: device is lost"),
        RuntimeError("GPU is lost: GPU has fallen off the bus"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("NCCL Error 1: unhandled cuda error"),
        RuntimeError("HIP error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)"),
    ],
    ids=str,
)
def test_a_device_that_fails_is_lost(error):
    with pytest.raises(DeviceLost) as caught, device_faults("cuda:1", "answering 4 requests"):
        raise error
    text = str(caught.value)
    assert text.startswith("cuda:1: the device failed while answering 4 requests (")
    assert "\n" not in text
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape '[3]' is invalid"),
        RuntimeError("Expected all tensors to be on the same device, cuda:0 and cpu!"),
        RuntimeError("\"add_cuda\" not implemented for 'Half'"),
        torch.AcceleratorError("CUDA error: invalid configuration argument", 9),
        RuntimeError("Triton Error [CUDA]: invalid argument"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        ValueError("CUDA error: unknown error"),
        KeyError("x"),
    ],
    ids=str,
)
def test_a_bug_stays_what_it_is(error):
    with pytest.raises(type(error)) as caught, device_faults("cuda:0", "answering"):
        raise error
    assert caught.value is error


def test_the_failed_calls_tensors_are_let_go():
    freed = []

    class Big:
        def __del__(self):
            freed.append(True)

    def fail():
        big = Big()
        raise torch.OutOfMemoryError(f"out of memory {type(big)}")

    with pytest.raises(DeviceError) as caught, device_faults("cpu", "answering"):
        fail()
    assert caught.value  # the error is still held, its frames' tensors are not
    assert freed


def test_a_gpus_cache_is_emptied(monkeypatch):
    emptied = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(True))
    with pytest.raises(DeviceError), device_faults("cuda:0", "answering"):
        raise torch.OutOfMemoryError("out of memory")
    assert emptied


def test_a_lost_gpu_has_no_memory_to_give_back(monkeypatch):
    def lost():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)

    monkeypatch.setattr("torch.cuda.empty_cache", lost)
    give_back("cuda:0")
    with pytest.raises(DeviceError, match="out of memory"), device_faults("cuda:0", "answering"):
        raise torch.OutOfMemoryError("out of memory")


class SmallDevice(FakeEngine):
    """A device of so many places: a request takes one for each crop, or second, that it asks.

    It fails as torch would, in a frame that holds the call's tensors.
    """

    def __init__(self, places: float, **options):
        super().__init__(capacity=self._holds, **options)
        self.places = places
        self.alive = []
        self._tensors = []

    def _holds(self, requests):
        self.alive.append(sum(tensor() is not None for tensor in self._tensors))
        try:
            with device_faults(self.device, f"answering {len(requests)} requests"):
                self._forward(requests)
        except DeviceError:
            return False
        return True

    def _forward(self, requests):
        tensor = torch.zeros(1024)
        self._tensors.append(weakref.ref(tensor))
        taken = sum(
            min(size(r.kind, r.media), (r.max_crops or 36) if r.kind is Kind.IMAGE else 30)
            for r in requests
        )
        if taken > self.places:
            raise torch.OutOfMemoryError(f"CUDA out of memory. {taken} of {self.places} places")


@pytest.fixture
def desk(tmp_path):
    with DecodePool(2) as pool:
        desk = Desk(tmp_path, pool)
        yield desk
        desk.close()


@pytest.mark.parametrize(
    ("places", "reduced_picture", "reduced_recording"),
    [
        (200, "", ""),
        (36, "", ""),
        (20, "at most 12 crops: device memory", "at most 15 s at a time: device memory"),
        (8, "at most 4 crops: device memory", "at most 8 s at a time: device memory"),
    ],
)
def test_all_is_done_on_a_small_device_and_no_less_than_needed(
    desk, make_picture, make_recording, places, reduced_picture, reduced_recording
):
    # given pictures and recordings, large and small
    for n in range(3):
        desk.add(
            make_picture(desk.inbox / f"large{n}.png", (3000, 2000)),
            make_picture(desk.inbox / f"small{n}.png"),
            make_recording(desk.inbox / f"long{n}.wav", 28.0),
            make_recording(desk.inbox / f"short{n}.wav", 1.0),
        )
    # when
    engine = SmallDevice(places)
    desk.start(engine, batch_size=4)
    found = desk.results(12)
    # then
    assert desk.counts() == {"done": 12}
    assert {job.attempts for job, _, _ in desk.ended} == {1}
    assert {found[f"large{n}.png"].reduced for n in range(3)} == {reduced_picture}
    assert {found[f"long{n}.wav"].reduced for n in range(3)} == {reduced_recording}
    for n in range(3):
        assert found[f"small{n}.png"].reduced == found[f"short{n}.wav"].reduced == ""
        segments = found[f"long{n}.wav"].segments
        assert (segments[0].start, segments[-1].end) == (0.0, 28.0)
    # what did not fit was let go each time
    assert set(engine.alive) == {0}


def test_what_is_too_large_for_one_device_is_done_on_another(desk, make_picture):
    small, large = SmallDevice(3, device="cuda:0"), SmallDevice(36, device="cuda:1")
    desk.add(*(make_picture(desk.inbox / f"{n}.png", (3000, 2000)) for n in range(6)))
    desk.start_all([small, large], batch_size=1)
    found = desk.results(6)
    assert desk.counts() == {"done": 6}
    assert {(result.device, result.reduced) for result in found.values()} == {("cuda:1", "")}


def test_what_is_too_large_for_all_devices_fails_and_the_rest_is_done(desk, make_picture):
    devices = [SmallDevice(n, device=f"cuda:{n}") for n in (2, 3)]
    desk.add(
        make_picture(desk.inbox / "large.png", (3000, 2000)), make_picture(desk.inbox / "a.png")
    )
    desk.start_all(devices, batch_size=1)
    words = {job.name: words for job, _, words in desk.wait_for(2)}
    assert desk.counts() == {"done": 1, "failed": 1}
    assert "even alone and with at most 4 crops" in words["large.png"]
    assert "out of memory" in words["large.png"]


def test_the_real_engine_goes_down_the_ladder(desk, engine, monkeypatch):
    # given the toy model on a device that holds eight seconds at a time
    encoder = engine._loaded.models["speech"].model.embed_tokens_extend.audio_embed.encoder
    real = encoder.forward

    def forward(features, mask):
        if features.shape[0] * features.shape[1] > 810:  # frames of 10 ms
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(features, mask)

    monkeypatch.setattr(encoder, "forward", forward)
    desk.prompts[Kind.AUDIO] = TRANSCRIBE
    # when a recording is longer than that
    path = desk.inbox / "a.wav"
    soundfile.write(path, np.resize(speech(), 20 * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    desk.add(path)
    desk.start(engine)
    ((_, result, _),) = desk.wait_for(1)
    # then it is answered in shorter parts
    assert result is not None
    assert result.reduced == "at most 8 s at a time: device memory"
    assert max(s.end - s.start for s in result.segments) <= 8
    assert "seven five" in result.text
