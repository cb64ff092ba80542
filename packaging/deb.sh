#!/bin/sh
# deb.sh FOLDER: build the Debian package into FOLDER, with Debian's own tools, in a copy of what
# belongs to it. Its version is phi4d's own.
#
# REVISION  what is put behind the version, such as +2: a package made again, newer than the last
# PYTHON    see wheel.sh
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
to=$(cd "$1" && pwd)
cd "$top"
for tool in dpkg-buildpackage dh; do
    command -v $tool >/dev/null || {
        echo "$tool is missing: apt install dpkg-dev debhelper" >&2
        exit 1
    }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# 1.0rc1 comes before 1.0
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' phi4d/__init__.py \
    | sed -E 's/\.?(a|b|rc|dev)([0-9]+)/~\1\2/')${REVISION:-}
when=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH="$when"

source=$work/phi4d-$version
mkdir "$source"
cp -R CHANGELOG.md LICENSE README.md completion debian docs etc packaging systemd "$source"
packaging/wheel.sh "$source/wheel"
cat >"$source/debian/changelog" <<WORDS
phi4d ($version) unstable; urgency=medium

  * What has changed stands in CHANGELOG.md.

 -- $(sed -n 's/^Maintainer: //p' debian/control)  $(date -R -d "@$when")
WORDS

cd "$source"
dpkg-buildpackage --build=binary --no-sign >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
}
mv "$work/phi4d_${version}_all.deb" "$to"
echo "$to/phi4d_${version}_all.deb"
