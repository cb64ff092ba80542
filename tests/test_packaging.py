"""`make install` and the Debian package: what they put where, and what they leave alone."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import phi4d
from phi4d.unit import DROP_IN

TOP = Path(__file__).parents[1]
SAMPLE = (TOP / "etc" / "phi4d.toml").read_bytes()
needs_debian = pytest.mark.skipif(
    not (shutil.which("dpkg-buildpackage") and shutil.which("dh")),
    reason="needs dpkg-dev and debhelper",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to users")


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=TOP,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run("packaging/wheel.sh", folder)
    assert done.returncode == 0, done.stderr
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = run("packaging/deb.sh", tmp_path_factory.mktemp("deb"))
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def install(tmp_path: Path, wheel: Path) -> Callable[..., str]:
    """Installs into `tmp_path / "root"`, without the libraries, and gives back what was said."""

    def do(**environ: str) -> str:
        done = run(
            "packaging/install.sh",
            DESTDIR=str(tmp_path / "root"),
            WHEEL=str(wheel),
            PYTHON=sys.executable,
            PIP_ARGS="--no-deps --no-index",
            **environ,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return do


def files(root: Path) -> set[str]:
    """Everything below it but the virtual environment."""
    return {
        f"/{path.relative_to(root)}"
        for path in root.rglob("*")
        if not path.is_dir() and "opt" not in path.relative_to(root).parts
    }


def test_the_wheel_has_the_whole_program(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {str(path.relative_to(TOP)) for path in (TOP / "phi4d").rglob("*.py")}

    assert wheel.name == f"phi4d-{phi4d.__version__}-py3-none-any.whl"
    assert ours <= names


def test_install_puts_everything_below_the_folder_that_was_named(
    tmp_path: Path, install: Callable[..., str]
):
    install()
    root = tmp_path / "root"

    assert os.readlink(root / "usr/local/bin/phi4d") == "/opt/phi4d/bin/phi4d"
    assert (root / "etc/phi4d/phi4d.toml").read_bytes() == SAMPLE
    assert (root / "etc/phi4d/conf.d").is_dir()
    assert files(root) >= {
        "/usr/local/lib/systemd/system/phi4d.service",
        "/usr/local/lib/systemd/user/phi4d.service",
        "/usr/local/lib/sysusers.d/phi4d.conf",
        "/usr/local/lib/tmpfiles.d/phi4d.conf",
        "/usr/local/share/doc/phi4d/examples/grafana.json",
        "/usr/local/share/doc/phi4d/examples/phi4d.rules.yml",
    }


def test_what_is_installed_knows_nothing_of_the_folder_it_was_made_in(
    tmp_path: Path, install: Callable[..., str]
):
    install()
    root = tmp_path / "root"
    program = (root / "opt/phi4d/bin/phi4d").read_text()

    assert re.match(r"#!/opt/phi4d/bin/python\S*\n", program)
    named = run("grep", "-rlF", root, root)
    assert (named.returncode, named.stdout) == (1, "")


def test_a_prefix_is_honoured(tmp_path: Path, install: Callable[..., str]):
    install(PREFIX="/usr")

    assert {path.split("/")[1] for path in files(tmp_path / "root")} == {"usr", "etc"}
    assert (tmp_path / "root/usr/bin/phi4d").is_symlink()
    assert not (tmp_path / "root/usr/local").exists()


def test_a_configuration_that_is_there_is_never_touched(
    tmp_path: Path, install: Callable[..., str]
):
    first = install()
    config = tmp_path / "root/etc/phi4d/phi4d.toml"
    config.write_text("# mine\n")
    second = install()

    assert config.read_text() == "# mine\n"
    assert (config.parent / "phi4d.toml.new").read_bytes() == SAMPLE
    assert "phi4d.toml.new" not in first
    assert "phi4d.toml.new" in second
    # when it is the sample again, the copy beside it goes
    config.write_bytes(SAMPLE)
    install()
    assert not (config.parent / "phi4d.toml.new").exists()


def test_uninstall_leaves_what_is_yours_and_says_so(tmp_path: Path, install: Callable[..., str]):
    install()
    root = tmp_path / "root"
    mine = root / "srv/phi4d/outbox/a.jpg.txt"
    drop_in = root / DROP_IN.relative_to("/")
    for file in (mine, drop_in):
        file.parent.mkdir(parents=True)
        file.touch()
    done = run("packaging/uninstall.sh", DESTDIR=str(root))

    assert done.returncode == 0
    assert files(root) == {
        "/etc/phi4d/phi4d.toml",
        "/srv/phi4d/outbox/a.jpg.txt",
        str(DROP_IN),
    }
    assert f"{drop_in.parent}" in done.stderr
    assert not (root / "opt/phi4d").exists()
    assert f"{root}/etc/phi4d" in done.stderr
    assert f"{root}/srv/phi4d" in done.stderr


def test_without_root_and_without_a_folder_it_says_so(tmp_path: Path):
    # given somebody who is not root
    nobody = tmp_path / "bin"
    nobody.mkdir()
    (nobody / "id").write_text("#!/bin/sh\necho 1000\n")
    (nobody / "id").chmod(0o755)
    path = f"{nobody}:{os.environ['PATH']}"
    # when
    done = [run(f"packaging/{name}install.sh", PATH=path, DESTDIR="") for name in ("", "un")]
    # then
    assert [one.returncode for one in done] == [1, 1]
    assert all("sudo make" in one.stderr for one in done)


@pytest.mark.parametrize("name", ["DESTDIR", "PREFIX"])
def test_a_relative_folder_is_refused(name: str, wheel: Path):
    done = run("packaging/install.sh", **{"DESTDIR": "/nowhere", "PREFIX": "/usr", name: "here"})

    assert done.returncode == 2
    assert f"{name}=here: expected an absolute path" in done.stderr


def test_a_folder_that_is_no_virtual_environment_is_left_alone(tmp_path: Path, wheel: Path):
    (tmp_path / "opt/phi4d").mkdir(parents=True)
    (tmp_path / "opt/phi4d/mine").touch()
    done = run("packaging/venv.sh", wheel, DESTDIR=str(tmp_path), PYTHON=sys.executable)

    assert done.returncode == 1
    assert "is no virtual environment" in done.stderr
    assert [path.name for path in (tmp_path / "opt/phi4d").iterdir()] == ["mine"]


@needs_debian
@pytest.mark.skipif(shutil.which("lintian") is None, reason="needs lintian")
def test_lintian_finds_no_error_and_no_warning(deb: Path):
    done = run("lintian", "--fail-on", "error,warning", "--allow-root", deb)

    assert (done.returncode, done.stdout) == (0, "")


@needs_debian
def test_the_package_is_what_make_install_puts_there(deb: Path, tmp_path: Path):
    assert deb.name == f"phi4d_{phi4d.__version__}_all.deb"
    run("dpkg-deb", "--extract", deb, tmp_path / "data")
    run("dpkg-deb", "--control", deb, tmp_path / "control")
    listed = run(
        "packaging/files.sh", "list", PREFIX="/usr", ZSH="/usr/share/zsh/vendor-completions"
    )
    there = {
        path.removesuffix(".gz").replace("/usr/lib/systemd/system", "/lib/systemd/system")
        for path in files(tmp_path / "data")
    }
    wanted = {
        path.replace("/usr/lib/systemd/system", "/lib/systemd/system")
        for path in listed.stdout.split()
    }

    assert wanted <= there
    assert (tmp_path / "control/conffiles").read_text() == "/etc/phi4d/phi4d.toml\n"
    assert os.readlink(tmp_path / "data/usr/bin/phi4d") == "/opt/phi4d/bin/phi4d"
    # a user's own service is enabled for nobody who did not enable it
    postinst = (tmp_path / "control/postinst").read_text()
    before, enable, _ = postinst.partition("deb-systemd-helper --user enable")
    assert enable
    assert before.rstrip().splitlines()[-2].strip() == (
        "if deb-systemd-helper --quiet --user was-enabled 'phi4d.service' ; then"
    )
    for script in ("postinst", "prerm", "postrm"):
        assert run("sh", "-n", tmp_path / "control" / script).returncode == 0


@needs_debian
def test_a_package_made_again_can_be_newer(tmp_path: Path):
    done = run("packaging/deb.sh", tmp_path, REVISION="+2")
    version = f"{phi4d.__version__}+2"

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == f"phi4d_{version}_all.deb"
    assert run("dpkg", "--compare-versions", version, "gt", phi4d.__version__).returncode == 0


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A root with the service's user and folders, made by systemd's own tools."""
    if not (shutil.which("systemd-sysusers") and shutil.which("systemd-tmpfiles")):
        pytest.skip("needs systemd-sysusers and systemd-tmpfiles")
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", TOP / "systemd/phi4d.sysusers")
    assert done.returncode == 0, done.stderr
    # names in ACLs are looked up in the system that runs, not in that root
    user, group = number(tmp_path)
    rules = (TOP / "systemd/phi4d.tmpfiles").read_text()
    copy = tmp_path / "phi4d.conf"
    copy.write_text(
        rules.replace("user:phi4d", f"user:{user}").replace("group:phi4d", f"group:{group}")
    )
    done = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", copy)
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path


def number(root: Path) -> tuple[int, int]:
    """The service's user and group there."""
    (line,) = re.findall(r"^phi4d:.*", (root / "etc/passwd").read_text(), re.MULTILINE)
    _, _, user, group, *_ = line.split(":")
    return int(user), int(group)


@needs_root
def test_the_folders_are_the_group_s(served: Path):
    user, group = number(served)
    for name, mode in (
        ("srv/phi4d/inbox", 0o2775),
        ("srv/phi4d/outbox", 0o2775),
        ("var/lib/phi4d", 0o750),
        ("var/cache/phi4d", 0o755),
    ):
        found = (served / name).stat()
        assert stat.S_IMODE(found.st_mode) == mode, name
        assert (found.st_uid, found.st_gid) == (user, group), name


@needs_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_whatever_umask_a_member_drops_with_the_daemon_can_read_and_move(served: Path, umask: int):
    user, group = number(served)
    member = pwd.getpwnam("nobody").pw_uid
    inbox = served / "srv/phi4d/inbox"
    for folder in (served, *served.parents):  # a folder of tests is its maker's alone
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    # given a member of the group
    done = subprocess.run(
        ["sh", "-c", 'mkdir "$0/trip" && echo sea > "$0/trip/beach.jpg" && cp "$1" "$0/one"',
         inbox, TOP / "LICENSE"],
        user=member, group=member, extra_groups=[group], umask=umask, check=True,
    )  # fmt: skip
    assert done.returncode == 0
    # then the daemon, who is in no other group
    subprocess.run(
        ["sh", "-c", 'cat "$0/trip/beach.jpg" "$0/one" && mv "$0/trip/beach.jpg" "$0/done"', inbox],
        user=user, group=group, extra_groups=[], check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    # and nobody else
    other = subprocess.run(
        ["cat", inbox / "one"], user=member - 1, group=member - 1, extra_groups=[],
        capture_output=True, check=False,
    )  # fmt: skip
    assert other.returncode != 0
    assert b"Permission denied" in other.stderr
