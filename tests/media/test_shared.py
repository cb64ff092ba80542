"""Memory that two processes see: what is refused of one that is not trusted."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import numpy as np
import pytest

from phi4d.media.shared import filled, mapped

DATA = np.arange(10_000, dtype=np.float32)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


def memory(data: bytes, seals: int) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def test_what_was_filled_is_mapped() -> None:
    found = mapped(filled(DATA), DATA.nbytes)
    assert np.array_equal(found.view(np.float32), DATA)
    assert not found.flags.writeable


def test_an_array_in_any_order_is_filled_as_it_is_read() -> None:
    turned = DATA.reshape(100, 100).T
    assert np.array_equal(mapped(filled(turned), DATA.nbytes).view(np.float32), turned.ravel())


def test_sealed_memory_is_nobodys_to_change() -> None:
    descriptor = filled(DATA)
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 5)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, DATA.nbytes + 1)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    mapped(descriptor, DATA.nbytes)


def test_memory_that_may_still_change_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a body of 1 bytes, seals 0x3"):
        mapped(memory(b"x", fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL), 10)


@pytest.mark.parametrize(("data", "most"), [(np.zeros(0, np.uint8), 10), (DATA, 39_999)])
def test_of_no_length_or_too_long_is_refused(data: np.ndarray, most: int) -> None:
    with pytest.raises(ValueError, match="a body of"):
        mapped(filled(data), most)


def test_what_is_no_such_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be mapped"):
        mapped(os.open("/dev/zero", os.O_RDONLY), 10)
    with pytest.raises(ValueError, match="cannot be mapped"):
        mapped(os.open("/proc/self/cmdline", os.O_RDONLY), 10)
