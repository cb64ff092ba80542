"""The drop-in: each need in systemd's words, with the key that it comes from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from phi4d.config import Config, user_file
from phi4d.errors import EnvironmentFault
from phi4d.unit import memory, needs
from phi4d.unit.host import Host
from phi4d.unit.needs import Folder, Network, Use
from phi4d.unit.syntax import mount_unit, quoted

SYSTEM = Path("/etc/systemd/system")
DROP_IN = SYSTEM / "phi4d.service.d/phi4d.conf"
OWN = tuple(map(Path, ("/var/lib/phi4d", "/var/cache/phi4d", "/run/phi4d")))
"""what systemd makes for the service, and mounts first, by systemd/phi4d.service"""
WRITABLE = (Path("/srv/phi4d"), *OWN)
"""what it may write to"""
HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))
"""what ProtectHome= hides from it"""
TEMPORARY = tuple(map(Path, ("/tmp", "/var/tmp")))  # noqa: S108  # names only
"""what PrivateTmp= hides from it"""
_MADE = {
    Use.STATE: (Path("/var/lib"), "StateDirectory"),
    Use.RUNTIME: (Path("/run"), "RuntimeDirectory"),
    Use.LOGS: (Path("/var/log"), "LogsDirectory"),
}
"""where systemd makes folders for a service, and by which setting"""


@dataclass(frozen=True, slots=True)
class Setting:
    """A line of the drop-in."""

    section: str
    name: str
    value: str
    why: str
    """the key that it comes from, and what it is for; a line each"""

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


def settings(config: Config, host: Host) -> list[Setting]:
    """What the service's unit lacks, by section."""
    found = needs.folders(config)
    return [
        *_mounts(found, host),
        *_homes(found),
        *(setting for each in found for setting in _folder(each)),
        *_network(needs.networks(config)),
        *_devices(config, host),
        *_memory(config, host),
    ]


def for_user(config: Config, host: Host) -> list[Setting]:
    """What the unit of a user's own systemd lacks: that one hides no folders and no devices."""
    wanted = needs.networks(config)
    network = [_families(wanted)] if wanted else []
    return [*network, *_memory(config, host)]


def at_or_below(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a path is one of some folders, or in one."""
    return any(path == folder or folder in path.parents for folder in folders)


def real(path: Path) -> Path:
    """Where a path leads to: systemd grants what is there, not what leads there."""
    return Path(os.path.realpath(path))


def _mounts(found: Iterable[Folder], host: Host) -> Iterator[Setting]:
    """That mounts come before the service; without its inboxes it can do, without its model not."""
    told = set()
    for each in found:
        path = real(each.path)
        point = host.mount_of(path)
        if point is None or at_or_below(path, OWN):
            continue
        if each.use is Use.FILES:
            if point not in told:
                told.add(point)
                unit = mount_unit(point)
                why = f"{each.keys}: it is on a mount, which is tried first; phi4d can wait for it"
                yield Setting("Unit", "Wants", unit, why)
                yield Setting("Unit", "After", unit, "")
        elif (word := quoted(path)) is not None:
            why = f"{each.keys}: it is on a mount, and phi4d does not start without"
            yield Setting("Unit", "RequiresMountsFor", word, why)


def _homes(found: Iterable[Folder]) -> Iterator[Setting]:
    """Home folders are shown, to be read. To bind each folder would hide that it was replaced."""
    keys = [
        each.keys
        for each in found
        # a link may be there as well as what it leads to
        if at_or_below(each.path, HOMES) or at_or_below(real(each.path), HOMES)
    ]
    if keys:
        why = f"in a home folder: {'; '.join(keys)}"
        yield Setting("Service", "ProtectHome", "read-only", why)


def _folder(each: Folder) -> Iterator[Setting]:
    hidden = at_or_below(each.path, TEMPORARY)
    path = each.path if hidden else real(each.path)
    if not hidden and (not each.writes or at_or_below(path, WRITABLE)):
        return
    why = each.keys
    if (made := _made(each.use, path)) is not None:
        yield Setting("Service", *made, why)
        return
    word = quoted(path, "-")
    if word is None:
        why += (
            f"\n{str(path)!r} cannot be named in a unit, because of a line break or a character "
            "that is none: move it"
        )
        yield Setting("Service", "", "", why)
        return
    if _is_missing(path):
        why += "\nit is not there: make it for the user phi4d before the service starts"
    if hidden:
        name = "BindPaths" if each.writes else "BindReadOnlyPaths"
        why += "\nthe service has a /tmp of its own; a better place is not cleaned up"
    else:
        name = "ReadWritePaths"
    yield Setting("Service", name, word, why)


def _made(use: Use, path: Path) -> tuple[str, str] | None:
    """The setting that has systemd make a folder, if it is one that is phi4d's by its name."""
    if use not in _MADE:
        return None
    base, name = _MADE[use]
    if base not in path.parents or not path.relative_to(base).parts[0].startswith("phi4d"):
        return None
    below = str(path.relative_to(base))
    return (name, below) if quoted(Path(below)) == below else None


def _is_missing(path: Path) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # it may be there
        return False
    return False


def _network(wanted: list[Network]) -> Iterator[Setting]:
    if not wanted:
        return
    keys = ", ".join(each.keys for each in wanted)
    local = all(each.local for each in wanted)
    yield Setting("Service", "PrivateNetwork", "no", keys)
    yield replace(_families(wanted), why="")
    allowed = "localhost" if local else "any"
    yield Setting("Service", "IPAddressAllow", allowed, "")


def _families(wanted: list[Network]) -> Setting:
    keys = ", ".join(each.keys for each in wanted)
    value = " ".join(["AF_UNIX", *needs.families(wanted)])
    return Setting("Service", "RestrictAddressFamilies", value, keys)


def _devices(config: Config, host: Host) -> Iterator[Setting]:
    """AMD's GPUs; NVIDIA's are in the unit."""
    if not host.rocm or not memory.slots(config, host)[0]:
        return
    why = f"device: {config.device}; AMD's driver, and a torch for it, are here"
    yield Setting("Service", "DeviceAllow", "char-kfd rw", why)
    yield Setting("Service", "DeviceAllow", "char-drm rw", "")
    if host.gpu_groups:
        yield Setting("Service", "SupplementaryGroups", " ".join(host.gpu_groups), "")


def _memory(config: Config, host: Host) -> Iterator[Setting]:
    found = memory.bound(config, host)
    why = f"against a leak, not to save; {found.why}"
    if found.size:
        yield Setting("Service", "MemoryMax", f"{math.ceil(found.size / 2**30)}G", why)
    else:
        yield Setting("Service", "", "", f"MemoryMax: {found.why}")


def render(wanted: Iterable[Setting], *, source: str, user: bool = False) -> str:
    """The drop-in's text.

    Args:
        wanted: its settings.
        source: what it was worked out from, in words.
        user: whether it is for a user's own systemd.
    """
    lines = [*_head(source, user=user)]
    wanted = list(wanted)
    if not any(setting.name for setting in wanted):
        lines += ["", "# The unit allows all that this configuration wants."]
    for section in ("Unit", "Service"):
        of_it = [setting for setting in wanted if setting.section == section]
        if any(setting.name for setting in of_it):
            lines += ["", f"[{section}]"]
        elif of_it:
            lines.append("")
        for setting in of_it:
            lines += [f"# {_shown(line)}" for line in setting.why.splitlines()]
            lines += [str(setting)] if setting.name else []
    return "\n".join(lines)


def _head(source: str, *, user: bool) -> Iterator[str]:
    """What it is, and how it is put in place."""
    write = "phi4d unit --user --write" if user else "phi4d unit --write"
    yield f"# What phi4d.service lacks for {_shown(source)}. Made by `phi4d unit`, to be made anew"
    yield f"# after a change, and put in place{'' if user else ', as root,'} by"
    yield f"#   {write} && {read_again(user=user)}"
    yield "# What you want beyond it goes into a file of its own beside it (systemctl edit phi4d)."


def read_again(*, user: bool = False) -> str:
    """The commands that have systemd take a changed drop-in in."""
    systemctl = "systemctl --user" if user else "systemctl"
    return f"{systemctl} daemon-reload && {systemctl} restart phi4d"


def write(text: str, *, user: bool = False) -> Path:
    """Put the drop-in in place, whole or not at all.

    Args:
        text: of `render`.
        user: whether it is for a user's own systemd.

    Returns:
        Where it is.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    place = DROP_IN
    if user:
        place = user_file().parents[1] / "systemd/user" / DROP_IN.relative_to(SYSTEM)
    new = place.with_suffix(".new")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(f"{text}\n", "utf-8")
        new.chmod(0o644)
        new.replace(place)
    except OSError as error:
        advice = "make it writable" if user or os.geteuid() == 0 else "do this as root"
        raise EnvironmentFault(f"{place}: cannot be written: {error.strerror}; {advice}") from error
    return place


def _shown(line: str) -> str:
    """A line of a comment: names in it may hold anything."""
    safe = line.encode("utf-8", "backslashreplace").decode()
    safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in safe)
    return safe + " ." if safe.endswith("\\") else safe
