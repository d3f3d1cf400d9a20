#!/bin/sh
# What makes removal hard, and what helps: removals done in different ways from models whose position 0 stands out by R.
#
#   scripts/robust_removal.sh            trains what is missing, then prints the tables and draws the picture
#   scripts/robust_removal.sh --table    only the tables and the picture of what is there
#
# Small young models have no position whose residual norm is far above the others', as GPT-2's position 0 is. Here it is
# planted (pretrain --plant-position0 R). Settings with their defaults: OUT=runs/robust TEXTS="tinystories openwebtext"
# LENGTHS="0 8 40" (R) SEEDS="1 2 3" STEPS="300 150 75 38" (of control and removals) WAYS="..." (those of way() below) at
# the first of these, FEWER="protocol adaptive" at all of them, for the picture of loss over tokens;
# SIZE="--n-layer 4 --n-head 4 --n-embd 128 --n-ctx 128" PRETRAIN_STEPS=1800 (the last 300 with R) JOBS=1
# ENGINE=./train_gpt2_lnfree. JOBS trainings run side by side. A run that is there already is not made again.
set -eu

out=${OUT:-runs/robust}
texts=${TEXTS:-tinystories openwebtext}
lengths=${LENGTHS:-0 8 40}
seeds=${SEEDS:-1 2 3}
all_steps=${STEPS:-300 150 75 38}
ways=${WAYS:-protocol no_aux at_once gradual gradual_no_aux gradual_everywhere shrunk shrunk_protocol adaptive}
fewer=${FEWER:-protocol adaptive}
engine=${ENGINE:-./train_gpt2_lnfree}
most=${all_steps%% *}

# The flags of each way; a removal otherwise has preset auto's.
way() { # NAME STEPS
    gradual="--gap-mlp 0 --gap-qk 0 --gap-v 0 --start-mlp $(($2 / 20)) --gradual $(($2 * 6 / 10)) --sigma-without-position0"
    shrunk="--shrink-position0 $(($2 / 10))"
    case $1 in
        protocol) ;;
        adaptive) echo "--preset adaptive" ;;
        no_aux) echo "--aux-weight 0" ;;
        at_once) echo "--gap-mlp 0 --gap-qk 0 --gap-v 0" ;;
        gradual) echo "$gradual" ;;
        gradual_no_aux) echo "$gradual --aux-weight 0" ;;
        gradual_everywhere) echo "$gradual --aux-everywhere --aux-relative" ;;
        shrunk) echo "$shrunk $gradual" ;;
        shrunk_protocol) echo "$shrunk --sigma-without-position0" ;;
        shrunk_at_once) echo "$shrunk --sigma-without-position0 --start-mlp $(($2 / 10)) --gap-mlp 0 --gap-qk 0 --gap-v 0" ;;
        *) echo "scripts/robust_removal.sh: WAYS=$1: see the list in the script" >&2; exit 2 ;;
    esac
}

ways_at() { if [ "$1" = "$most" ]; then echo "$ways"; else echo "$fewer"; fi; } # STEPS

corpus_of() { # TEXT
    case $1 in
        openwebtext | tinystories) echo "../shared/data/text/${1}_sample.jsonl.gz" ;;
        *) echo "$1" ;;
    esac
}

trainings() {
    for seed in $seeds; do for length in $lengths; do for text in $texts; do echo "$text $length $seed"; done; done; done
}

train() { # TEXT R SEED
    folder=$out/$(basename "$1")/R$2/seed$3
    mkdir -p "$folder"
    echo "training $folder"
    {
        [ -e "$folder/text.json" ] || "$engine" tokenize --input "$(corpus_of "$1")" --tokenizer byte --out "$folder/text"
        data="--data $folder/text_train_*.bin --val $folder/text_val_*.bin --seed $3 --save-every 0"
        # shellcheck disable=SC2086  # several words each, here and below
        [ -e "$folder/original/config.json" ] ||
            "$engine" pretrain $data ${SIZE:---n-layer 4 --n-head 4 --n-embd 128 --n-ctx 128} --lr 2e-3 --force \
                --steps "${PRETRAIN_STEPS:-1800}" --plant-position0 "$2" --out "$folder/original"
        for steps in $all_steps; do for name in control $(ways_at "$steps"); do
            run=$folder/$name-$steps
            [ -e "$run/loss" ] && continue
            command=remove flags=
            if [ "$name" = control ]; then command=finetune; else flags=$(way "$name" "$steps"); fi
            status=0
            # shellcheck disable=SC2086
            "$engine" $command --model "$folder/original" $data --steps "$steps" $flags --force --out "$run" || status=$?
            if [ "$status" -gt 1 ]; then return "$status"; fi # stopped, or bad use; a removal that failed is a result
            if [ "$status" -eq 1 ]; then echo failed >"$run/loss"; continue; fi
            "$engine" eval --model "$run" --data "$folder/text_val_*.bin" --markdown | awk 'NR == 3 { print $4 }' >"$run/loss.new"
            test -s "$run/loss.new" && mv "$run/loss.new" "$run/loss" || return 1
        done; done
    } >>"$folder/output.txt" 2>&1 || { echo "scripts/robust_removal.sh: $folder failed; see output.txt there" >&2; return 1; }
}

# Loss above the control's: mean over texts and seeds, and the spread (largest minus smallest); removals that failed apart.
above_control() { # WAY STEPS R
    for text in $texts; do
        for run in "$out/$(basename "$text")/R$3"/seed*/"$1-$2"; do
            if [ -e "$run/loss" ]; then paste "$run/loss" "${run%/*}/control-$2/loss"; fi
        done
    done | awk '$1 == "failed" { failed++; next }
        { d = $1 - $2; sum += d; n++; if (n == 1 || d < low) low = d; if (n == 1 || d > high) high = d }
        END { if (n) printf "%+.4f %.4f", sum / n, high - low; if (failed) printf " and %d failed", failed }'
}

table() { # STEPS
    printf '| at %s steps' "$1"
    for length in $lengths; do printf ' | R = %s' "$length"; done
    printf ' |\n|---'
    for length in $lengths; do printf '|---:'; done
    printf '|\n'
    for name in $(ways_at "$1"); do
        printf '| %s' "$name"
        for length in $lengths; do printf ' | %s' "$(above_control "$name" "$1" "$length" | sed 's/ \(.*\)/ (\1)/')"; done
        printf ' |\n'
    done
}

# A line for every way and R: loss above the control's over steps.
picture() {
    {
        printf 'steps'
        for length in $lengths; do for name in $fewer; do printf ',R = %s: %s' "$length" "$name"; done; done
        echo
        for steps in $all_steps; do
            printf '%s' "$steps"
            for length in $lengths; do for name in $fewer; do printf ',%s' "$(above_control "$name" "$steps" "$length" | sed 's/ .*//; s/^+//')"; done; done
            echo
        done
    } >"$out/fewer.csv"
    "$engine" plot --table "$out/fewer.csv" --log-x --title "What removal costs, over the steps it may take" \
        --y-label "nats above the control" --out "$out/fewer.svg" --force
}

if [ "${1:-}" = --train ]; then train "$2" "$3" "$4"; exit; fi
if [ "${1:-}" != --table ]; then
    jobs=${JOBS:-1} cores=$(nproc 2>/dev/null || echo 1)
    threads=$((cores > jobs ? cores / jobs : 1))
    trainings | OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} xargs -P "$jobs" -L 1 "$0" --train
fi
for steps in $all_steps; do table "$steps"; echo; done | tee "$out/table.md"
if [ "$most" != "$all_steps" ]; then picture; fi
