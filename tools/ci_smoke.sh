#!/usr/bin/env bash
# Run the smoke subset in new environments: with the oldest allowed releases on the oldest Python, and with the newest of both.
#   bash tools/ci_smoke.sh [oldest] [newest]        both by default
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Print the interpreter of the newest Python X.Y in pyenv or on PATH.
find_python() {
    local candidate
    for candidate in $(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python 2>/dev/null | sort -rV) "python$1"; do
        if "$candidate" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Run the subset in a new environment: smoke NAME PYTHON [pip's arguments...]
smoke() {
    local name=$1 python=$2 begin=$SECONDS
    shift 2
    echo "-- smoke, $name: $("$python" --version)"
    "$python" -m venv "$work/$name"
    "$work/$name/bin/pip" install --quiet --no-compile "$@" -e '.[test]'
    "$work/$name/bin/pip" list --format=freeze 2>/dev/null | grep -iE '^(jax|flax|optax|numpy|orbax-checkpoint|grain|tensorflow-datasets)=' | xargs echo
    echo "-- smoke, $name: installed after $((SECONDS - begin)) s"
    JAXSEG_CACHE="$work/cache-$name" "$work/$name/bin/python" -m pytest -q -m smoke -p no:cacheprovider tests/test_smoke.py
    echo "-- smoke, $name: $((SECONDS - begin)) s"
    rm -rf "${work:?}/$name"
}

for which in "${@:-oldest newest}"; do
    for name in $which; do
        case $name in
        oldest)
            python=$(find_python 3.11) || { echo "error: the oldest set needs Python 3.11, which is neither in pyenv nor on PATH" >&2; exit 1; }
            smoke oldest "$python" -c tools/oldest.txt
            ;;
        newest)
            python=$(find_python 3.14) || python=$(find_python 3.13) || python=$(find_python 3.12) || {
                echo "error: the newest set needs Python 3.12 or later, which is neither in pyenv nor on PATH" >&2; exit 1; }
            smoke newest "$python" --upgrade --upgrade-strategy eager
            ;;
        *)
            echo "error: '$name' is no set; the sets are oldest and newest" >&2
            exit 1
            ;;
        esac
    done
done
