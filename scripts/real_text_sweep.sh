#!/bin/sh
# The method over texts, sizes and seeds: scripts/real_text.sh for each, then one table for scripts/README.md.
#
#   scripts/real_text_sweep.sh            trains what is missing, then prints the table
#   scripts/real_text_sweep.sh --table    only the table of what is there
#
# Settings with their defaults: OUT=runs/sweep TEXTS="openwebtext tinystories" (or files of your own, or TEXT=FILE for one:
# scripts/find_text.sh says what is found or fetched) SIZES="2x64 4x128 6x256" (layers x width, heads of 32) SEEDS="1 2 3"
# PRETRAIN_STEPS=1000 STEPS=200 BATCH=16 SEQ=128 JOBS=1 ENGINE=./train_gpt2_lnfree. JOBS trainings run side by side, each
# on its share of the processor; a sweep that was stopped goes on. The seed decides weights, order of data and split.
set -eu

out=${OUT:-runs/sweep}
texts=${TEXTS:-${TEXT:-openwebtext tinystories}}
sizes=${SIZES:-2x64 4x128 6x256}
seeds=${SEEDS:-1 2 3}
jobs=${JOBS:-1}
here=$(dirname "$0")

# One line per training: text, size, seed. Small sizes first, so that a table is there early.
trainings() {
    for size in $sizes; do for seed in $seeds; do for text in $texts; do echo "$text $size $seed"; done; done; done
}

train() { # TEXT SIZE SEED
    layers=${2%x*} width=${2#*x}
    folder=$out/$(basename "$1")/$2/seed$3
    if [ -e "$folder/table.md" ]; then return; fi
    mkdir -p "$folder"
    echo "training $folder"
    OUT=$folder SIZE="--n-layer $layers --n-head $((width / 32)) --n-embd $width --n-ctx ${SEQ:-128}" SEED=$3 \
        PRETRAIN_STEPS=${PRETRAIN_STEPS:-1000} SETTLE_STEPS=0 STEPS=${STEPS:-200} BATCH=${BATCH:-16} \
        PRESET=paper ALSO="no_aux at_once" "$here/real_text.sh" "$1" > "$folder/output.txt" 2>&1 ||
        { echo "scripts/real_text_sweep.sh: $folder failed; see output.txt there" >&2; return 1; }
}

# How far sigma at position 0 lies above sigma elsewhere in the model that the removals start from: the site where it is
# furthest. `info` measures it once.
position0_ratio() { # FOLDER
    if [ ! -e "$1/position0.txt" ]; then
        "${ENGINE:-./train_gpt2_lnfree}" info --model "$1/pretrained" --data "$1/text_val_000000.bin" |
            awk '$NF + 0 > largest && /layernorm/ { largest = $NF; site = $1 } END { print largest, site }' > "$1/position0.txt"
    fi
    cat "$1/position0.txt"
}

# Mean over seeds and, behind it, the spread: largest minus smallest.
table() {
    echo "| text | size | seeds | original | control | LN-free minus control | without aux loss | all sites at once | sigma at position 0 / elsewhere |"
    echo "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for text in $texts; do for size in $sizes; do
        for folder in "$out/$(basename "$text")/$size"/seed*; do
            if [ -e "$folder/table.md" ]; then
                echo "position0 $(position0_ratio "$folder")"
                cat "$folder/table.md"
            fi
        done | awk -v text="$(basename "$text")" -v size="$size" '
            function note(column, value) {
                if (!(column in count) || value < low[column]) low[column] = value
                if (!(column in count) || value > high[column]) high[column] = value
                sum[column] += value; count[column]++
            }
            function mean(column) { return sum[column] / count[column] }
            function with_spread(column) {
                if (count[column] == 1) return sprintf("%+.4f", mean(column))
                return sprintf("%+.4f (%.4f)", mean(column), high[column] - low[column])
            }
            $1 == "position0" { note("ratio", $2) }
            $2 == "original" || $2 == "pretrained" { note("original", $4) }
            $2 == "control" { note("control", $4) }
            $2 == "lnfree" || $2 == "no_aux" || $2 == "at_once" { note($2, $6) }
            END {
                if (!("at_once" in count)) exit
                printf "| %s | %s | %d | %.4f | %.4f | %s | %s | %s | %.2f |\n", text, size, count["at_once"], mean("original"), \
                    mean("control"), with_spread("lnfree"), with_spread("no_aux"), with_spread("at_once"), mean("ratio")
            }'
    done; done
}

fail() { # MESSAGE
    echo "scripts/real_text_sweep.sh: $1" >&2
    exit 2
}

# Before anything is trained: the engine, and the texts, each found or fetched once.
prepare() {
    [ -x "${ENGINE:-./train_gpt2_lnfree}" ] || fail "${ENGINE:-./train_gpt2_lnfree} is not built; run make"
    twice=$(for text in $texts; do basename "$text"; done | sort | uniq -d)
    [ -z "$twice" ] || fail "two texts are called $twice; results are kept by name, so give one another"
    for text in $texts; do "$here/find_text.sh" "$text" >/dev/null; done
}

case ${1:-} in
    --train) train "$2" "$3" "$4"; exit ;;
    --table) ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
    "") ;;
    *) fail "usage: scripts/real_text_sweep.sh [--table]; settings are environment variables (--help)" ;;
esac
if [ "${1:-}" != --table ]; then
    prepare
    cores=$(nproc 2> /dev/null || echo 1)
    threads=$((cores > jobs ? cores / jobs : 1))
    trainings | OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} xargs -P "$jobs" -L 1 "$0" --train
fi
table | tee "$out/table.md"
