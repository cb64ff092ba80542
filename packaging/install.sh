#!/bin/sh
# install.sh: what `make install` does; doing it again upgrades. Needs root, or DESTDIR.
#
# PREFIX    where the command, the units and the rest go (/usr/local); the program is in /opt/phi4d
# DESTDIR   a folder that will be the root of another system: nothing outside it is changed, nothing
#           is run but Python
# WHEEL     phi4d's wheel, if it is built already
# PYTHON, PIP_ARGS  see venv.sh
set -eu
cd "$(dirname "$0")/.."
export DESTDIR="${DESTDIR:-}" PREFIX="${PREFIX:-/usr/local}"

say() { echo "phi4d: $*" >&2; }

case $DESTDIR in
    '' | /*) ;;
    *) say "DESTDIR=$DESTDIR: expected an absolute path" && exit 2 ;;
esac
case $PREFIX in
    /*) ;;
    *) say "PREFIX=$PREFIX: expected an absolute path" && exit 2 ;;
esac
if [ -z "$DESTDIR" ]; then
    if [ "$(id -u)" != 0 ]; then
        say "installing needs root: sudo make install. Or name a folder that is yours: DESTDIR=…"
        exit 1
    fi
    if dpkg-query --show --showformat='${db:Status-Status}' phi4d 2>/dev/null | grep -q '^installed'; then
        say "the Debian package phi4d is installed, and has /opt/phi4d: upgrade that, or remove it first"
        exit 1
    fi
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
wheel=${WHEEL:-}
if [ -z "$wheel" ]; then
    packaging/wheel.sh "$work"
    wheel=$(echo "$work"/phi4d-*.whl)
fi

# whether this is about the system that runs, and systemd runs it
live() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }
stopped=
if live; then
    case $(systemctl show --property=ActiveState --value phi4d.service) in
        active | activating | reloading)
            systemctl stop phi4d.service
            stopped=yes
            ;;
    esac
fi

say "installing into $DESTDIR/opt/phi4d; the first time takes some minutes"
packaging/venv.sh "$wheel" || {
    # pip changes nothing before it has all
    if [ -n "$stopped" ]; then systemctl start phi4d.service || :; fi
    exit 1
}
install -d "$DESTDIR$PREFIX/bin"
ln -sfn /opt/phi4d/bin/phi4d "$DESTDIR$PREFIX/bin/phi4d"
packaging/files.sh

config=$DESTDIR/etc/phi4d/phi4d.toml
install -d "$DESTDIR/etc/phi4d/conf.d"
new=
if [ ! -e "$config" ]; then
    install -m 644 etc/phi4d.toml "$config"
elif cmp -s etc/phi4d.toml "$config"; then
    rm -f "$config.new"
else
    install -m 644 etc/phi4d.toml "$config.new"
    new=yes
fi

if [ -z "$DESTDIR" ]; then
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers "$PREFIX/lib/sysusers.d/phi4d.conf"
    elif ! getent passwd phi4d >/dev/null; then
        useradd --system --user-group --home-dir /var/lib/phi4d --shell /usr/sbin/nologin phi4d
    fi
    if command -v systemd-tmpfiles >/dev/null; then
        systemd-tmpfiles --create "$PREFIX/lib/tmpfiles.d/phi4d.conf"
    else
        say "systemd-tmpfiles is not there: make the folders of $PREFIX/lib/tmpfiles.d/phi4d.conf"
    fi
    if command -v journalctl >/dev/null; then journalctl --update-catalog || :; fi
fi
if live; then
    systemctl daemon-reload
    if [ -n "$stopped" ]; then systemctl start phi4d.service; fi
fi

say "$("$DESTDIR/opt/phi4d/bin/python" -c 'from importlib.metadata import version; print(version("phi4d"))') is installed"
if [ -n "$new" ]; then
    say "$config was there and is as it was; the sample of this version is beside it: $config.new"
fi
if [ -z "$DESTDIR" ]; then
    if [ -e /etc/systemd/system/phi4d.service ]; then
        say "/etc/systemd/system/phi4d.service stands before the unit that was installed:" \
            "move what you changed into \`systemctl edit phi4d\`, and remove it"
    fi
    if [ -n "$stopped" ]; then
        say "the service was stopped for it, and is started again"
    else
        cat >&2 <<'WORDS'
phi4d: what is next:
         1. download the model, some 11 GB:  runuser -u phi4d -- phi4d model pull
         2. look through /etc/phi4d/phi4d.toml; folders outside /srv/phi4d want:  phi4d unit --write
         3. start it, and at every boot:     systemctl enable --now phi4d
       Who may drop files into /srv/phi4d/inbox:  usermod -aG phi4d NAME
WORDS
    fi
fi
