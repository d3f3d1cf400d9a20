#!/bin/sh
# Makes the virtual environments of `make test-interop`, once (about 7 GB, a few minutes), and runs check.py in the first.
#
#   test/interop/run.sh        PYTHON=python3 chooses the interpreter, VENV=build/interop-venv the place, and
#                              LNFREE_PROGRAM=./train_gpt2_lnfree the program under test
#
# Clients that exclude each other have environments of their own within VENV; what these do not hold themselves, torch above
# all, they find in VENV. Environments that were made from the same test/interop/requirements*.txt are used as they are.
set -eu
venv=${VENV:-build/interop-venv}
python=${PYTHON:-python3}
here=$(dirname "$0")

fail() {
    echo "test/interop/run.sh: $1" >&2
    exit 1
}
wanted() { cat "$here"/requirements*.txt; }
pip() { "$venv/bin/pip" --disable-pip-version-check --quiet install "$@"; }

make_side_venv() { # NAME
    "$python" -m venv "$venv/$1"
    packages=$(realpath "$venv"/lib/python*/site-packages)
    echo "$packages" >"$(echo "$venv/$1"/lib/python*/site-packages)/shared.pth"
    "$venv/$1/bin/pip" --disable-pip-version-check --quiet install -r "$here/requirements_$1.txt" ||
        fail "pip cannot install test/interop/requirements_$1.txt; it says why above"
}

make_venv() {
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments; install python3-venv"
    echo "making $venv from test/interop/requirements*.txt: a few minutes, about 7 GB"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    # The tests need no GPU: without CUDA torch is a tenth as large, where the package index in use has such builds.
    torch=$(sed -n 's/^torch==//p' "$here/requirements.txt")
    pip "torch==$torch+cpu" 2>/dev/null || true
    pip -r "$here/requirements.txt" || fail "pip cannot install test/interop/requirements.txt; it says why above"
    pip --no-deps --target "$venv/lens2" -r "$here/requirements_lens2.txt" ||
        fail "pip cannot install test/interop/requirements_lens2.txt; it says why above"
    make_side_venv saelens
    make_side_venv circuits
    wanted >"$venv/made_from"
}

wanted | cmp -s - "$venv/made_from" || make_venv
exec "$venv/bin/python" "$here/check.py" "${LNFREE_PROGRAM:-./train_gpt2_lnfree}"
