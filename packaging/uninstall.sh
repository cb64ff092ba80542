#!/bin/sh
# uninstall.sh: take away what install.sh put there. Configuration, state, models, inboxes and
# sidecars stay. PREFIX and DESTDIR as they were then.
set -eu
cd "$(dirname "$0")/.."
export DESTDIR="${DESTDIR:-}" PREFIX="${PREFIX:-/usr/local}"

say() { echo "phi4d: $*" >&2; }

if [ -z "$DESTDIR" ]; then
    if [ "$(id -u)" != 0 ]; then
        say "uninstalling needs root: sudo make uninstall"
        exit 1
    fi
    if dpkg-query --show --showformat='${db:Status-Status}' phi4d 2>/dev/null | grep -q '^installed'; then
        say "the Debian package phi4d is installed: apt remove phi4d"
        exit 1
    fi
    if [ -d /run/systemd/system ]; then
        systemctl disable --now --quiet phi4d.service 2>/dev/null || :
    fi
fi

link=$DESTDIR$PREFIX/bin/phi4d
if [ "$(readlink "$link" 2>/dev/null)" = /opt/phi4d/bin/phi4d ]; then rm "$link"; fi
packaging/files.sh list | while read -r file; do
    rm -f "$DESTDIR$file"
done
for folder in examples .; do
    if [ -d "$DESTDIR$PREFIX/share/doc/phi4d/$folder" ]; then
        rmdir --ignore-fail-on-non-empty "$DESTDIR$PREFIX/share/doc/phi4d/$folder" 2>/dev/null || :
    fi
done
if [ -e "$DESTDIR/opt/phi4d/pyvenv.cfg" ]; then rm -rf "$DESTDIR/opt/phi4d"; fi
rm -f "$DESTDIR/etc/phi4d/phi4d.toml.new"

if [ -z "$DESTDIR" ]; then
    if command -v journalctl >/dev/null; then journalctl --update-catalog || :; fi
    if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
fi
left=
for path in /etc/phi4d /etc/systemd/system/phi4d.service.d /var/lib/phi4d /var/cache/phi4d /srv/phi4d; do
    if [ -e "$DESTDIR$path" ]; then left="$left $DESTDIR$path"; fi
done
say "it is uninstalled"
if [ -n "$left" ]; then
    say "left as they are, with configuration, store, models, inboxes and sidecars:$left"
fi
if [ -z "$DESTDIR" ] && getent passwd phi4d >/dev/null; then
    say "left as well: the user and group phi4d, which own them"
fi
