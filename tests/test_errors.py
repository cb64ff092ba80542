"""The exception tree says whose fault it is."""

import pytest

from phi4d import errors


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (errors.ConfigError("x"), "config"),
        (errors.FileError("x"), "file"),
        (errors.DecoderDied("x"), "file"),
        (errors.FileChanged("x"), "file"),
        (errors.EnvironmentFault("x"), "environment"),
        (errors.DeviceError("x"), "device"),
        (errors.DeviceLost("x"), "device"),
    ],
)
def test_every_error_names_whose_fault_it_is(error: errors.Phi4dError, fault: str) -> None:
    assert error.fault == fault
    assert isinstance(error, errors.Phi4dError)
    assert str(error) == "x"


def test_a_config_error_holds_every_fault() -> None:
    error = errors.ConfigError("one", "two")
    assert error.faults == ("one", "two")
    assert str(error) == "one\ntwo"
