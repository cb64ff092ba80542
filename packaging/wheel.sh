#!/bin/sh
# wheel.sh FOLDER: build phi4d's wheel into FOLDER. Nothing is written into the source.
#
# It is built by the project's .venv, if there is one with setuptools 77: that takes no network.
# Else pip fetches what building wants, from where its own configuration says, into a virtual
# environment that is thrown away.
#
# PYTHON  makes that one (python3)
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
to=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

new='import setuptools; raise SystemExit(int(setuptools.__version__.split(".")[0]) < 77)'
python=$top/.venv/bin/python
isolation=--no-build-isolation
if ! "$python" -c "import pip; $new" 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$work/venv" || {
        echo "a virtual environment cannot be made; on Debian: apt install python3-venv" >&2
        exit 1
    }
    python=$work/venv/bin/python
    isolation=
fi

# setuptools leaves its litter beside what it builds
mkdir "$work/source"
cp -R "$top/pyproject.toml" "$top/README.md" "$top/LICENSE" "$top/phi4d" "$work/source"
find "$work/source" -name __pycache__ -type d -prune -exec rm -rf {} +
rm -f "$to"/phi4d-*.whl
"$python" -m pip --disable-pip-version-check --no-input wheel --quiet --no-deps $isolation \
    --wheel-dir "$to" "$work/source"
