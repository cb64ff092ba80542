"""The exception tree and the exit codes. The class says whose fault it is, and so what happens.

Phi4dError
├── ConfigError        the operator's: refuse to start, exit 78
├── FileError          the file's: quarantine it with the reason
│   ├── DecoderDied    the decode process crashed or hung on it: one more try
│   └── FileChanged    it was not settled: drop this job, a newer one follows
├── EnvironmentFault   the disk's, mount's or permission's: the inbox pauses and resumes
│   └── SourceFault    of one file, which cannot be read now: it waits, its inbox goes on
├── DeviceError        the GPU's memory is full: ask for less at a time, then give the job up
│   └── DeviceLost     the GPU failed: put the work back, exit 69, be started again
├── HookFailed         a command's or a receiver's: it is said and counted, no job fails by it
├── Stopped            nobody's: the daemon was asked to stop, put the work back
└── Cancelled          nobody's: a file is wanted no more, go on with the others
"""

from __future__ import annotations

import errno
from typing import ClassVar

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_DOWN = 3
"""of `phi4d status`: no daemon runs; as an init script has it."""
EXIT_DEVICE = 69
"""EX_UNAVAILABLE of sysexits.h: a device was lost; a new process may have it again."""
EXIT_LATER = 75
"""EX_TEMPFAIL of sysexits.h: something waits for its surroundings to be mended."""
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: the configuration cannot be used."""


class Phi4dError(Exception):
    """Base of everything that phi4d raises on purpose. ``str()`` is fit for an operator's eyes."""

    fault: ClassVar[str] = "internal"


class ConfigError(Phi4dError):
    """The configuration, or the model that it names, cannot be used. Holds every fault found.

    Attributes:
        faults: one line each: the file or key, what was found, what was expected, what to do.
    """

    fault = "config"

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


class FileError(Phi4dError):
    """The file cannot be described or transcribed, and trying again would not help."""

    fault = "file"


class DecoderDied(FileError):
    """A decode process crashed, hung or ran out of memory on this file."""


class FileChanged(FileError):
    """The file is no longer the version that was queued: changed, replaced or gone."""


class EnvironmentFault(Phi4dError):
    """The file did nothing wrong: a full disk, a missing mount, a refused permission.

    Attributes:
        place: the folder that refused, if it was one.
    """

    fault = "environment"

    def __init__(self, words: str, place: bytes = b"") -> None:
        self.place = place
        super().__init__(words)


class SourceFault(EnvironmentFault):
    """One file cannot be read at the moment: no permission, a bad sector. Others may well be."""


class DeviceError(Phi4dError):
    """The device that holds the model has too little memory for what was asked."""

    fault = "device"


class DeviceLost(DeviceError):
    """The device failed, and answers this process no more."""


class HookFailed(Phi4dError):
    """What an inbox wants run or told at the end of a job could not be, or ended badly.

    Attributes:
        again: whether another try, later, may help.
    """

    fault = "hook"

    def __init__(self, words: str, *, again: bool = False) -> None:
        self.again = again
        super().__init__(words)


class Stopped(Phi4dError):
    """Work was given up because the daemon is stopping."""

    fault = "none"


class Cancelled(Phi4dError):
    """Work on a file was given up because somebody wants it no more."""

    fault = "operator"


PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENFILE, errno.EMFILE, errno.ENOMEM}
"""errors of the system that go by with room or a mended disk, and not with another configuration"""


def refusal(error: OSError, words: str) -> ConfigError | EnvironmentFault:
    """What to raise at the start when the system refuses something that was configured."""
    return EnvironmentFault(words) if error.errno in PASSING else ConfigError(words)
