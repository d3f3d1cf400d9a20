#!/bin/bash
# How long a build takes, and how long from saving an edit to the test's result. Works in a copy of the tree, build/times.
#
#   scripts/build_times.sh                  measures all of it and prints a table; on two cores half an hour
#   scripts/build_times.sh --parts clean    only builds from nothing
#   scripts/build_times.sh --parts edits    only edits
#   scripts/build_times.sh --readme         also writes the table into dev/README.md, with what was measured before
#
# Builds with nvcc are measured where it is found. The machine should have nothing else to do.
# Exit status: 0; 1 if a build or a test failed; 2 for bad use.
# shellcheck disable=SC2016  # backquotes are Markdown
set -u
cd "$(dirname "$0")/.." || exit 1

unset MAKEFLAGS MAKELEVEL
work=$PWD/build/times
copy=$work/tree
rows=$work/rows.tsv # order, what, wall, user, limit

die() { # STATUS MESSAGE
    echo "scripts/build_times.sh: $2" >&2
    exit "$1"
}

copy_tree() {
    rm -rf "$copy"
    git -c core.quotepath=off ls-files -co --exclude-standard | while IFS= read -r file; do
        [ -f "$file" ] || continue
        mkdir -p "$copy/$(dirname "$file")"
        cp "$file" "$copy/$file" || exit
    done || die 1 "cannot copy the tree to $copy"
    [ -f "$copy/Makefile" ] || die 1 "git names no files here; run it in a git checkout"
    if [ -d ../shared ]; then ln -sfn "$(realpath ../shared)" "$work/shared"; fi # tests look for data there
}

# ---- measuring -------------------------------------------------------------------------------------------------------

failures=0
TIMEFORMAT='%R %U'

run_in_copy() { # COMMAND...
    "$@" >"$work/log" 2>&1 </dev/null && return
    echo "failed: $*; the last lines of $work/log:" >&2
    tail -n 5 "$work/log" >&2
    return 1
}

# LIMIT: what dev/README.md promises for a quiet machine of two cores, or "".
measure() { # ORDER WHAT LIMIT COMMAND...
    local order=$1 what=$2 limit=$3 wall user
    shift 3
    echo "measuring $what ..." >&2
    if ! { time run_in_copy "$@" 2>&3; } 3>&2 2>"$work/time"; then
        failures=$((failures + 1))
        return
    fi
    read -r wall user <"$work/time"
    touch "$rows"
    awk -F '\t' -v order="$order" '$1 != order' "$rows" >"$rows.new"
    printf '%s\t%s\t%s\t%s\t%s\n' "$order" "$what" "$wall" "$user" "$limit" >>"$rows.new"
    sort -n "$rows.new" >"$rows"
}

clean() { make -C "$copy" clean >/dev/null; }

measure_clean_builds() {
    clean && measure 10 'clean `make CUDA=0`' '60 s' make -C "$copy" CUDA=0
    clean && measure 11 'clean `make CUDA=0 test`' '6 min' make -C "$copy" CUDA=0 test
    scripts/detect.sh --words | grep -qw cuda || return
    clean && measure 12 'clean `make`, with nvcc' '' make -C "$copy"
    clean && measure 13 'clean `make test`, with nvcc' '8 min' make -C "$copy" test
}

# A constant that stays in the object, in the first namespace behind the line that begins with HEADING.
edit() { # FILE HEADING
    local file=$copy/$1
    awk -v heading="$2" -v value="$RANDOM" '
        heading == "" || index($0, heading) == 1 { armed = 1 }
        { print }
        armed && !done && /^namespace .*\{$/ {
            print "[[gnu::used]] static const int timed_edit = " value ";"
            done = 1
        }
        END { exit !done }
    ' "$file" >"$work/edited" || die 1 "$1 has no namespace behind \"$2\"; mend scripts/build_times.sh"
    cat "$work/edited" >"$file"
}

measure_edit() { # ORDER WHAT LIMIT FILE HEADING COMMAND...
    local order=$1 what=$2 limit=$3 file=$4 heading=$5
    shift 5
    echo "building, not measured ..." >&2
    if ! run_in_copy "$@"; then
        failures=$((failures + 1))
        return
    fi
    edit "$file" "$heading"
    measure "$order" "$what" "$limit" "$@"
}

measure_edits() {
    measure_edit 20 'edit of an operation, `make quick`' '30 s' train_gpt2_lnfree.cpp '// 2. The operations' \
        make -C "$copy" CUDA=0 quick
    measure_edit 21 'edit of a command (dev/commands/eval.cpp), `make quick`' '20 s' dev/commands/eval.cpp '' \
        make -C "$copy" CUDA=0 quick
    measure_edit 22 'edit of a kernel, `make CUDA=0 test ONLY=cuda/test_streaming`' '' train_gpt2_lnfree.cu '' \
        make -C "$copy" CUDA=0 test ONLY=cuda/test_streaming
    measure_edit 23 'edit of data/safetensors.h, `make CUDA=0 test ONLY=test_safetensors`' '' data/safetensors.h '' \
        make -C "$copy" CUDA=0 test ONLY=test_safetensors
}

# ---- the table -------------------------------------------------------------------------------------------------------

machine() {
    local processor compiler nvcc
    processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
    compiler=$(${CXX:-g++} --version | head -n 1)
    nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
    if [ -x "$nvcc" ]; then compiler+=", nvcc $("$nvcc" --version | sed -n 's/.*release \([^,]*\).*/\1/p')"; fi
    printf '%s, %s cores; %s.\n' "${processor:-$(uname -m)}" "$(nproc)" "$compiler"
}

table() {
    machine
    printf '\n| | wall | processor time | at most |\n|---|---:|---:|---:|\n'
    awk -F '\t' '{ printf "| %s | %.0f s | %.0f s | %s |\n", $2, $3, $4, $5 }' "$rows"
}

write_readme() {
    local readme=dev/README.md
    [ "$(grep -cxF -e '<!-- build times -->' -e '<!-- end of build times -->' "$readme")" = 2 ] ||
        die 2 "$readme needs the lines <!-- build times --> and <!-- end of build times -->, each once"
    table >"$work/table.md"
    awk -v file="$work/table.md" '
        $0 == "<!-- end of build times -->" { inside = 0 }
        !inside { print }
        $0 == "<!-- build times -->" { inside = 1; while ((getline line < file) > 0) print line }
    ' "$readme" >"$work/readme.md" && cat "$work/readme.md" >"$readme"
    echo "wrote the table into $readme" >&2
}

# ---- what was asked for ----------------------------------------------------------------------------------------------

parts='' readme=''
while [ $# -gt 0 ]; do
    case $1 in
        --parts)
            parts=${2:-}
            case $parts in clean | edits) ;; *) die 2 "--parts ${2:-}: use clean or edits" ;; esac
            shift
            ;;
        --readme) readme=yes ;;
        --help | -h) sed -n '2,/^set /s/^# \{0,1\}//p' scripts/build_times.sh && exit ;;
        *) die 2 "what is \"$1\"? See --help" ;;
    esac
    shift
done

mkdir -p "$work" || die 1 "cannot write to $work"
exec 9>"$work/lock"
flock -n 9 || die 1 "another run is at work in $work; wait for it"
copy_tree
awk '$1 > 0.5 { exit 1 }' /proc/loadavg 2>/dev/null || echo "warning: this machine is busy with something else" >&2
[ "$parts" = edits ] || measure_clean_builds 9>&-
[ "$parts" = clean ] || measure_edits 9>&-
if [ -s "$rows" ]; then table; fi
if [ -n "$readme" ] && [ "$failures" -eq 0 ]; then write_readme; fi
[ "$failures" -eq 0 ]
