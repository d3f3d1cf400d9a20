#!/bin/sh
# Installs the Debian packages of scripts/packages.txt that this machine lacks.
#
#   scripts/install_deps.sh [needed|tests|all] [--check]
#
# needed: what the program is built from; tests (the default): that and what its tests need; all: the whole list.
# With root's rights or password-less sudo it installs; otherwise, and with --check, it prints the one line to type.
# Exit 0: nothing is missing (any more). Exit 2: something is, and the line says what to do about it.
# CXX names the compiler that has to find the headers (g++ if unset).
set -eu

wanted="needed tests"
check_only=no
for argument in "$@"; do
    case $argument in
        needed) wanted="needed" ;;
        tests) wanted="needed tests" ;;
        all) wanted="needed tests optional" ;;
        --check) check_only=yes ;;
        *) echo "install_deps.sh: unknown argument '$argument' (use: needed, tests, all, --check)" >&2 && exit 2 ;;
    esac
done

list=$(dirname "$0")/packages.txt
compiler=${CXX:-g++}
if [ "$compiler" != g++ ] && ! command -v "${compiler%% *}" >/dev/null 2>&1; then
    echo "CXX=$compiler: there is no such compiler on this machine; leave CXX away to use g++" >&2
    exit 2
fi

# CXX may hold a launcher and flags ("ccache g++ -m64"), so it is split into words on purpose.
# shellcheck disable=SC2086
includes() { # COMPILER HEADER
    printf '#if !__has_include(<%s>)\n#error missing\n#endif\n' "$2" | $1 -E -x c++ - >/dev/null 2>&1
}

present() { # WHAT: the third column of the list
    case $1 in
        # The C++ library's headers come in a package of their own: a bare clang++ finds none.
        @compiler) includes "$compiler" vector ;;
        *:*) includes "${1%%:*}" "${1#*:}" ;;
        *.h | *.hpp) includes "$compiler" "$1" ;;
        *.so.*) PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -qF "$1" ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

missing_packages() {
    missing=
    while read -r kind package seen_by _; do
        case " $wanted " in
            *" $kind "*) ;;
            *) continue ;;
        esac
        present "$seen_by" || missing="$missing $package"
    done <"$list"
    echo "${missing# }"
}

missing=$(missing_packages)
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing, by their Debian names: $missing. This is not Debian: install what your system calls them" \
        "(scripts/packages.txt says what each is for), then repeat the command" >&2
    exit 2
fi

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
if [ "$check_only" = yes ] || ! { [ -z "$sudo" ] || sudo -n true 2>/dev/null; }; then
    echo "missing packages; type:  ${sudo:+sudo }apt-get install -y $missing" >&2
    exit 2
fi

# The package names are separate words on purpose.
# shellcheck disable=SC2086
install() {
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -qq install -y \
        --no-install-recommends $missing </dev/null
}

echo "installing $missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A fresh or long unused machine has no package lists or points to files that are gone: fetch the lists and try again.
if ! install >"$log" 2>&1 && ! { $sudo apt-get -qq update && install; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "apt-get could not install: $missing (its messages stand above)" >&2
    exit 2
fi

still_missing=$(missing_packages)
if [ -n "$still_missing" ]; then
    echo "$compiler still does not find what these packages bring, although apt-get has installed them:" \
        "$still_missing" >&2
    exit 2
fi
