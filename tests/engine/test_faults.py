from __future__ import annotations

import pytest
import torch

from phi4d.engine.faults import device_faults
from phi4d.errors import DeviceError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (MemoryError(), "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out of memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), "failed"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "failed"),
        (RuntimeError("CUDA error: device-side assert triggered"), "failed"),
        (torch.AcceleratorError("unspecified launch failure", 719), "failed"),
    ],
)
def test_what_a_device_does_is_a_device_error(error, said):
    with pytest.raises(DeviceError) as caught, device_faults("cpu", "answering 4 requests"):
        raise error
    text = str(caught.value)
    assert text.startswith("cpu: ")
    assert "answering 4 requests" in text
    assert said in text
    assert "\n" not in text
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("shape '[3]' is invalid"), ValueError("CUDA"), KeyError("x")]
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
