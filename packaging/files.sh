#!/bin/sh
# files.sh: put everything but the program and its configuration where it belongs, below DESTDIR.
# `make install` and the Debian package do it with this; with the word "list" it only names the files.
#
# DESTDIR  a folder in place of /
# PREFIX   /usr/local, or /usr for a package
# ZSH      where zsh looks for completions
# UNITS    "no": the system's unit is installed by others
set -eu
cd "$(dirname "$0")/.."
prefix=${PREFIX:-/usr/local}
share=$prefix/share
lib=$prefix/lib
zsh=${ZSH:-$share/zsh/site-functions}
what=${1:-install}

# put SOURCE TARGET
put() {
    if [ "$what" = list ]; then
        echo "$2"
    else
        install -D -m 644 "$1" "${DESTDIR:-}$2"
    fi
}

if [ "${UNITS:-}" != no ]; then
    put systemd/phi4d.service "$lib/systemd/system/phi4d.service"
fi
put systemd/phi4d-user.service "$lib/systemd/user/phi4d.service"
put systemd/phi4d.sysusers "$lib/sysusers.d/phi4d.conf"
put systemd/phi4d.tmpfiles "$lib/tmpfiles.d/phi4d.conf"
put systemd/phi4d.catalog "$lib/systemd/catalog/phi4d.catalog"
put docs/man/phi4d.8 "$share/man/man8/phi4d.8"
put docs/man/phi4d.toml.5 "$share/man/man5/phi4d.toml.5"
put completion/phi4d.bash "$share/bash-completion/completions/phi4d"
put completion/_phi4d "$zsh/_phi4d"
put completion/phi4d.fish "$share/fish/vendor_completions.d/phi4d.fish"
put etc/phi4d.toml "$share/doc/phi4d/examples/phi4d.toml"
put etc/grafana.json "$share/doc/phi4d/examples/grafana.json"
put etc/prometheus/phi4d.rules.yml "$share/doc/phi4d/examples/phi4d.rules.yml"
put README.md "$share/doc/phi4d/README.md"
