#!/bin/sh
# Runs test programs, as many at a time as there are cores, and sums up what doctest reports.
#
#   test/run.sh [--without ISA]... PROGRAM[:SUITE][@ISA]...
#
# SUITE: only the test cases of that test suite. ISA: with the operations for that instruction set (LNFREE_ISA).
# The last line is "N passed, N failed, N skipped", in test cases. A program that crashes, hangs or reports nothing
# counts as one failure. A test case that cannot do its work here prints one line that begins with "SKIPPED: " and
# says why: it counts as skipped, not as passed. --without names an instruction set that this processor lacks.
# TEST_TIMEOUT: seconds for one program (1200). TEST_JOBS: programs at a time. Exit 0 if nothing failed, else 1.
set -u

# Threads that wait by spinning take the processor from those that they wait for, when tests share a machine.
OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export OMP_WAIT_POLICY

output=$(mktemp)
trap 'rm -f "$output"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A field of doctest's line "[doctest] test cases:  12 |  11 passed | 1 failed | 0 skipped".
cases() { # FIELD
    sed 's/\x1b\[[0-9;]*m//g' "$output" | sed -n "s/^\[doctest\] test cases:.*| *\([0-9]*\) $1.*/\1/p" | tail -n 1
}

run() { # PROGRAM[:SUITE][@ISA]
    program=${1%%@*}
    only=
    case $program in *:*) only="--test-suite=${program##*:}" ;; esac
    case $1 in *@*) LNFREE_ISA=${1##*@} && export LNFREE_ISA ;; esac
    start=$(date +%s)
    timeout "${TEST_TIMEOUT:-1200}" "${program%%:*}" ${only:+"$only"} >"$output" 2>&1 </dev/null
    status=$?
    good=$(cases passed)
    bad=$(cases failed)
    unable=$(grep -c '^SKIPPED: ' "$output")
    if [ "${good:-0}" -eq 0 ] && [ "${bad:-0}" -eq 0 ] && [ "$unable" -eq 0 ]; then
        echo "$1 has no test case" >>"$output"
        good=
    fi
    if [ -z "$good" ] || { [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; }; then
        good=${good:-0}
        bad=1
        echo "$1 ended with status $status" >>"$output"
    fi
    echo "$((good - unable)) $bad $unable" >>"$TALLY"
    # In one piece, because other tests write too.
    if [ "$bad" -ne 0 ]; then
        printf 'FAILED   %s\n%s\n' "$1" "$(cat "$output")"
    else
        skips=$(grep '^SKIPPED: ' "$output")
        printf 'ok       %-48s %3d test cases %4d s\n%s' "$1" "$good" "$(($(date +%s) - start))" "${skips:+$skips
}"
    fi
}

if [ "${1:-}" = --one ]; then
    run "$2"
    exit 0
fi

TALLY=$(mktemp)
export TALLY
trap 'rm -f "$output" "$TALLY"' EXIT
while [ "${1:-}" = --without ]; do
    echo "SKIPPED: test/isa with $2: this processor does not have it"
    echo "0 0 1" >>"$TALLY"
    shift 2
done
if [ $# -eq 0 ]; then
    echo "test/run.sh: no test program to run" >&2
    exit 1
fi
printf '%s\n' "$@" | xargs -P "${TEST_JOBS:-$(nproc 2>/dev/null || echo 1)}" -n 1 "$0" --one

awk '{ passed += $1; failed += $2; skipped += $3 }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit failed > 0 }' "$TALLY"
