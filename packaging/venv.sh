#!/bin/sh
# venv.sh WHEEL: install phi4d from its wheel, with its libraries, into its own virtual environment.
# `make install` and the Debian package do it with this; doing it again mends or upgrades.
#
# DESTDIR   a folder that will be the root of another system; nothing outside it is changed
# PYTHON    the interpreter, 3.11 or newer (python3)
# PIP_ARGS  more for pip; where packages come from is better said in /etc/pip.conf
#
# pip finds and downloads everything before it changes anything: if that fails, what was installed
# before is as it was.
set -eu
wheel=$1
root=${DESTDIR:-}
place=/opt/phi4d
venv=$root$place
python=${PYTHON:-python3}

say() { echo "phi4d: $*" >&2; }

"$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' || {
    say "$python is not Python 3.11 or newer; name one: PYTHON=python3.12"
    exit 1
}
case $("$python" -c 'import os, sys; print(os.path.realpath(sys._base_executable))') in
    /root/* | /home/*)
        say "$python lies in a home folder, where the service cannot run it; name another:" \
            "PYTHON=/usr/bin/python3"
        if [ -z "$root" ]; then exit 1; fi
        ;;
esac
if [ -d "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    say "$venv is there and is no virtual environment: move it away"
    exit 1
fi
# one that was made by another Python, or whose Python is gone, is of no use to this one
now=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
again=
if [ -e "$venv/pyvenv.cfg" ]; then
    has=$("$venv/bin/python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])' 2>/dev/null) || has=
    [ "$has" = "$now" ] || again=--clear
fi
if [ -n "$again" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv $again "$venv" || {
        say "a virtual environment cannot be made; on Debian: apt install python3-venv"
        exit 1
    }
fi

# what a download that was cut off had is not fetched again; in the end it goes
cache=$venv/.pip
pip() {
    verb=$1
    shift
    # shellcheck disable=SC2086  # PIP_ARGS is a list
    PIP_ROOT_USER_ACTION=ignore "$venv/bin/python" -m pip --disable-pip-version-check --no-input \
        --cache-dir "$cache" "$verb" --quiet ${root:+--no-compile} ${PIP_ARGS:-} "$@"
}
pip install "$wheel"
# pip passes over a version that is there already, though the wheel may be another
pip install --force-reinstall --no-deps "$wheel"

# systemd-python gives the journal its fields. It is built where it can be; Debian has it built for
# its own Python. phi4d runs without it.
has_systemd() { "$venv/bin/python" -c 'import systemd.journal' 2>/dev/null; }
site=$venv/lib/$now/site-packages
debian=/usr/lib/python3/dist-packages/systemd
if ! has_systemd && [ -z "${WITHOUT_BUILDING:-}" ] && command -v cc >/dev/null \
    && pkg-config --exists libsystemd 2>/dev/null; then
    pip install 'systemd-python>=235' 2>/dev/null || :
fi
if ! has_systemd && [ -d "$debian" ]; then
    rm -f "$site/systemd"
    ln -s "$debian" "$site/systemd"
    has_systemd || rm -f "$site/systemd"
fi
has_systemd || say "without systemd-python the journal gets plain lines, and no PHI4D_ fields;" \
    "apt install python3-systemd, or libsystemd-dev, pkg-config and gcc, then install again"
rm -rf "$cache"

if [ -n "$root" ]; then
    # made there, for here: every path in it must be the one that it will have
    find "$venv/bin" "$venv/pyvenv.cfg" -type f -exec grep -lIZF "$venv" {} + \
        | xargs -0r sed -i "s|$venv|$place|g"
    find "$venv/bin" -type l -lname "$venv/*" | while read -r link; do
        ln -sfn "$place${link#"$venv"}" "$link"
    done
    find "$venv/lib" -name __pycache__ -type d -prune -exec rm -rf {} +
    "$venv/bin/python" -m compileall -q -s "$root" -p / "$venv/lib" >/dev/null || :
fi
