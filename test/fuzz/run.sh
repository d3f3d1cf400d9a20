#!/bin/sh
# Runs fuzz targets, one per core at a time, each on the seeds in test/fuzz/seeds/NAME, then on inputs that it invents.
#
#   test/fuzz/run.sh SECONDS PROGRAM...
#
# What a target finds worth keeping goes to build/fuzz/corpus/NAME, and the next run starts from there. An input that
# makes a target fail is named in the output and stays beside the corpus: mend the reader, then move the input to the
# seeds, so that every later run begins with it. The last line is "N passed, N failed, N skipped", in targets; exit 1
# if one failed.
set -u

# One target; its line on the screen is all that the sum below needs.
run() { # SECONDS PROGRAM
    name=${2##*/fuzz_}
    here=build/fuzz/corpus/$name
    log=build/fuzz/$name.log
    mkdir -p "$here"
    if "$2" -max_total_time="$1" -timeout=30 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        -dict="test/fuzz/$name.dict" -artifact_prefix="build/fuzz/$name-" "$here" "test/fuzz/seeds/$name" >"$log" 2>&1; then
        printf 'ok       %-14s %9s inputs\n' "$name" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    else
        printf 'FAILED   %s\n%s\n' "$name" "$(tail -n 40 "$log")"
    fi
}
if [ "$1" = --one ]; then
    run "$2" "$3"
    exit
fi

seconds=$1
shift
results=build/fuzz/results.log
printf '%s\n' "$@" | xargs -P "$(nproc 2>/dev/null || echo 1)" -n 1 "$0" --one "$seconds" | tee "$results"
passed=$(grep -c '^ok  ' "$results")
echo "$passed passed, $(($# - passed)) failed, 0 skipped"
[ "$passed" -eq $# ]
