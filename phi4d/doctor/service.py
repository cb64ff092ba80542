"""The service, where one is installed: whether systemd lets it do what the configuration wants."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from phi4d.config import SYSTEM_FILE, Config
from phi4d.doctor.check import Check, ok, warn
from phi4d.unit import DROP_IN, Service, read_again, settings
from phi4d.unit.host import Host, look

ASK_SECONDS = 5.0  # systemd answers at once, or hangs
PUT = "as root: phi4d unit --write && "


def service(
    config: Config,
    *,
    root: Path = Path("/"),
    etc: Path = SYSTEM_FILE.parent,
    host: Host | None = None,
    stale: Callable[[], bool] | None = None,
) -> Iterator[Check]:
    """Compare the installed unit and its drop-ins with the configuration.

    Nothing is said where there is no service, nor of a configuration that is not the service's:
    that of a user who is neither its own nor root, or one of which nothing is the machine's.

    Args:
        config: of the service, or another.
        root: the system's root folder.
        etc: where the machine's configuration is.
        host: the machine; None to look.
        stale: whether systemd has to read its files again; None to ask it.
    """
    found = Service.find(root)
    if found is None or not (_is_from(config, etc) and _is_ours(found.value("User"))):
        return
    host = host or look()
    lacks = found.lacks(config, host)
    strays = found.strays(settings(config, host))
    if lacks:
        words = f"{found.unit}, with its drop-ins, lacks what is configured: {'; '.join(lacks)}"
        yield warn("service", words, PUT + read_again())
    if strays:
        yield warn(
            "service",
            f"{DROP_IN} is out of date: the configuration no longer wants {', '.join(strays)}",
            PUT + read_again(),
        )
    if (stale or _is_stale)():
        yield warn(
            "service", "its files were changed since systemd read them", f"as root: {read_again()}"
        )
    elif not lacks and not strays:
        yield ok("service", f"{found.unit}: allows what the configuration wants")


def _is_from(config: Config, etc: Path) -> bool:
    """Whether a configuration has anything from a folder's files."""
    origins = [config.origin(key) for key in Config.model_fields]
    return any(each.kind == "file" and etc in Path(each.name).parents for each in origins)


def _is_ours(user: str) -> bool:
    if os.geteuid() == 0:
        return True
    try:
        return pwd.getpwuid(os.geteuid()).pw_name == (user or "root")
    except KeyError:
        return False


def _is_stale() -> bool:
    """Whether systemd has read an older form of the unit's files."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return False
    try:
        done = subprocess.run(
            [systemctl, "show", "--property=NeedDaemonReload", "--value", "phi4d.service"],
            capture_output=True,
            text=True,
            check=False,
            timeout=ASK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "yes"
