#!/bin/sh
# Runs fuzz targets one after the other, each on the seeds in test/fuzz/seeds/NAME, then on inputs that it invents.
#
#   test/fuzz/run.sh SECONDS PROGRAM...
#
# What a target finds worth keeping goes to build/fuzz/corpus/NAME, and the next run starts from there. An input that
# makes a target fail is named in the output and stays beside the corpus: mend the reader, then move the input to the
# seeds, so that every later run begins with it. The last line is "N passed, N failed, N skipped", in targets; exit 1
# if one failed.
set -u

seconds=$1
shift
passed=0
failed=0
for program in "$@"; do
    name=${program##*/fuzz_}
    here=build/fuzz/corpus/$name
    log=build/fuzz/$name.log
    mkdir -p "$here"
    dictionary=test/fuzz/$name.dict
    if "$program" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        ${dictionary:+-dict="$dictionary"} -artifact_prefix="build/fuzz/$name-" "$here" "test/fuzz/seeds/$name" >"$log" 2>&1; then
        passed=$((passed + 1))
        printf 'ok       %-14s %9s inputs\n' "$name" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    else
        failed=$((failed + 1))
        printf 'FAILED   %s\n' "$name"
        tail -n 40 "$log"
    fi
done
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
