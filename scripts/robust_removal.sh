#!/bin/sh
# What makes removal hard, and what helps: removals done in different ways from models whose position 0 stands out.
#
#   scripts/robust_removal.sh            trains what is missing, then prints the tables and draws the picture
#   scripts/robust_removal.sh --table    only the tables and the picture of what is there
#
# Small young models have no position whose residual norm is far above the others', as GPT-2's position 0 is. Here it gets
# one, in 300 more steps of training: BEDS="0 8 40 grown40" are none, an embedding of position 0 that is made so long
# (finetune --plant-position0), and layers that learn to make it so many times as long as the others, as GPT-2's do
# (--grow-position0). Other settings with their defaults: OUT=runs/robust TEXTS="tinystories openwebtext" (or files of
# your own, or TEXT=FILE for one: scripts/find_text.sh says what is found or fetched) SEEDS="1 2 3"
# STEPS="300 150 75 38" (of controls and removals), WAYS="..." (those of way() below) at the first of these, FEWER="protocol
# adaptive" (some of WAYS) at all of them, for the picture of loss over steps; SIZE="--n-layer 4 --n-head 4 --n-embd 128 --n-ctx 128"
# PRETRAIN_STEPS=1500 JOBS=1 ENGINE=./train_gpt2_lnfree. JOBS trainings run side by side. What is there is not made again.
#
# `protocol` is the paper's: schedule, learning rates, auxiliary loss. All others have preset auto's learning rates. Each is
# compared with a control (fine-tuning that removes nothing) of the same steps and learning rates.
set -eu

out=${OUT:-runs/robust}
texts=${TEXTS:-${TEXT:-tinystories openwebtext}}
beds=${BEDS:-0 8 40 grown40}
seeds=${SEEDS:-1 2 3}
all_steps=${STEPS:-300 150 75 38}
ways=${WAYS:-protocol adaptive protocol_rate at_once evened shrunk_protocol shrunk_at_once shrunk no_aux gradual \
    gradual_no_aux gradual_everywhere own_released own_geometric}
fewer=${FEWER:-protocol adaptive}
engine=${ENGINE:-./train_gpt2_lnfree}
most=${all_steps%% *}
here=$(dirname "$0")

# The flags of each way, but for learning rates.
way() { # NAME STEPS
    at_once="--gap-mlp 0 --gap-qk 0 --gap-v 0"
    gradual="$at_once --start-mlp $(($2 / 20)) --gradual $(($2 * 6 / 10)) --sigma-without-position0"
    shrunk="--shrink-position0 $(($2 / 10))"
    case $1 in
        protocol_rate) ;;
        no_aux) echo "--aux-weight 0" ;;
        at_once) echo "$at_once" ;;
        evened) echo "--aux-everywhere --aux-relative --sigma-without-position0 --start-mlp $(($2 / 5))" ;;
        shrunk) echo "$shrunk $gradual" ;;
        shrunk_protocol) echo "$shrunk --sigma-without-position0" ;;
        shrunk_at_once) echo "$shrunk --sigma-without-position0 --start-mlp $(($2 / 10)) $at_once" ;;
        gradual) echo "$gradual" ;;
        gradual_no_aux) echo "$gradual --aux-weight 0" ;;
        gradual_everywhere) echo "$gradual --aux-everywhere --aux-relative" ;;
        own_released) echo "--own-position0 --release-position0 $(($2 * 6 / 10)) --stop $2" ;;
        own_geometric) echo "--own-position0 --release-position0 $(($2 / 2)) --release-steps $(($2 * 35 / 100)) --aux-weight 0 --stop $2" ;;
        *) echo "scripts/robust_removal.sh: WAYS=$1: see the list in the script" >&2; exit 2 ;;
    esac
}

ways_at() { if [ "$1" = "$most" ]; then echo "$ways"; else echo "$fewer"; fi; } # STEPS

folder_of() { echo "$out/$(basename "$1")/seed$2"; } # TEXT SEED

# What comes first is in the first place of a list: WAYS in their order, so that what is asked for first is there first.
for_all() { # WORDS...: a line for each text and seed
    for seed in $seeds; do for text in $texts; do echo "$* $text $seed"; done; done
}
bases() { for_all --base; }
bed_models() { for bed in $beds; do for_all --bed "$bed"; done; }
controls() {
    for name in control control_paper; do for steps in $all_steps; do for bed in $beds; do
        for_all --removal "$name" "$steps" "$bed"
    done; done; done
}
removals() {
    for name in $ways; do for steps in $all_steps; do
        case " $(ways_at "$steps") " in *" $name "*) for bed in $beds; do for_all --removal "$name" "$steps" "$bed"; done ;; esac
    done; done
}

data_of() { echo "--data $1/text_train_*.bin --val $1/text_val_*.bin --seed $2 --save-every 0 --force"; } # FOLDER SEED

# One training each.
# shellcheck disable=SC2046,SC2086  # several words each
base() { # TEXT SEED
    folder=$(folder_of "$1" "$2")
    mkdir -p "$folder"
    text=$("$here/find_text.sh" "$1")
    [ -e "$folder/text.json" ] || "$engine" tokenize --input "$text" --tokenizer byte --out "$folder/text"
    [ -e "$folder/base/config.json" ] ||
        "$engine" pretrain $(data_of "$folder" "$2") ${SIZE:---n-layer 4 --n-head 4 --n-embd 128 --n-ctx 128} --lr 2e-3 \
            --steps "${PRETRAIN_STEPS:-1500}" --out "$folder/base"
}

# shellcheck disable=SC2046,SC2086
bed() { # BED TEXT SEED
    folder=$(folder_of "$2" "$3")
    case $1 in
        grown*) flags="--grow-position0 ${1#grown}" ;;
        *) flags="--plant-position0 $1" ;;
    esac
    [ -e "$folder/$1/original/config.json" ] ||
        "$engine" finetune --model "$folder/base" $(data_of "$folder" "$3") --steps 300 --lr 1e-3 --min-lr 3e-4 $flags --out "$folder/$1/original"
}

# Those of the control, which has preset auto's: the first in its record (what it is based on has others).
rates() { # RUN
    for key in lr min_lr; do
        sed -n "/^ *\"$key\":/ { s/.*: \(.*\),/--$(echo $key | tr _ -) \1/p; q; }" "$1/lnfree.json"
    done
}

# shellcheck disable=SC2046,SC2086
removal() { # WAY STEPS BED TEXT SEED
    folder=$(folder_of "$4" "$5")
    run=$folder/$3/$1-$2
    [ ! -e "$run/loss" ] || return 0
    case $1 in
        control) command=finetune flags= ;;
        control_paper) command=finetune flags="--preset paper" ;;
        protocol) command=remove flags="--preset paper" ;;
        adaptive) command=remove flags="--preset adaptive" ;;
        *) command=remove flags="--preset paper $(rates "$folder/$3/control-$2") $(way "$1" "$2")" ;;
    esac
    status=0
    "$engine" $command --model "$folder/$3/original" $(data_of "$folder" "$5") --steps "$2" $flags --out "$run" || status=$?
    if [ "$status" -gt 1 ]; then return "$status"; fi # stopped, or bad use; a removal that failed is a result
    if [ "$status" -eq 1 ]; then echo failed >"$run/loss"; return 0; fi
    "$engine" eval --model "$run" --data "$folder/text_val_*.bin" --markdown | awk 'NR == 3 { print $4 }' >"$run/loss.new"
    test -s "$run/loss.new" && mv "$run/loss.new" "$run/loss"
}

# What the training says goes to OUT/output. It is a process of its own: in a condition `set -e` would not stop it.
logged() { # NAME COMMAND...
    name=$1
    shift
    mkdir -p "$out/output"
    echo "$(date +%T) $name"
    "$0" "$@" >"$out/output/$name.txt" 2>&1 ||
        { echo "scripts/robust_removal.sh: $name failed; see $out/output/$name.txt" >&2; return 1; }
}

# Loss of one run above another's from the same model: mean over texts and seeds, and the spread (largest minus smallest);
# runs that failed apart.
above() { # RUN OTHER BED
    for text in $texts; do for seed in $seeds; do
        runs=$(folder_of "$text" "$seed")/$3
        if [ -e "$runs/$1/loss" ] && [ -e "$runs/$2/loss" ]; then paste "$runs/$1/loss" "$runs/$2/loss"; fi
    done; done | awk '$1 == "failed" || $2 == "failed" { failed++; next }
        { d = $1 - $2; sum += d; n++; if (n == 1 || d < low) low = d; if (n == 1 || d > high) high = d }
        END { if (n) printf "%+.4f %.4f", sum / n, high - low; if (failed) printf " and %d failed", failed }'
}

above_control() { # WAY STEPS BED
    if [ "$1" = protocol ]; then above "$1-$2" "control_paper-$2" "$3"; else above "$1-$2" "control-$2" "$3"; fi
}

name_of_bed() {
    case $1 in
        0) echo "R = 0" ;;
        grown*) echo "grown, R = ${1#grown}" ;;
        *) echo "planted, R = $1" ;;
    esac
}

table() { # STEPS
    printf '| at %s steps' "$1"
    for bed in $beds; do printf ' | %s' "$(name_of_bed "$bed")"; done
    printf ' |\n|---'
    for bed in $beds; do printf '|---:'; done
    printf '|\n'
    for name in $(ways_at "$1"); do
        printf '| %s' "$name"
        for bed in $beds; do printf ' | %s' "$(above_control "$name" "$1" "$bed" | sed 's/ \(.*\)/ (\1)/')"; done
        printf ' |\n'
    done
    printf '| loss of adaptive above that of protocol'
    for bed in $beds; do printf ' | %s' "$(above "adaptive-$1" "protocol-$1" "$bed" | sed 's/ \(.*\)/ (\1)/')"; done
    printf ' |\n'
}

# A line for every way and bed: loss above the control's over tokens, of which auto takes 4,096 a step for models so small.
picture() {
    {
        printf 'tokens'
        for bed in $beds; do for name in $fewer; do printf ',%s' "$(name_of_bed "$bed" | tr -d ,): $name"; done; done
        echo
        for steps in $all_steps; do
            printf '%s' $((4096 * steps))
            for bed in $beds; do for name in $fewer; do printf ',%s' "$(above_control "$name" "$steps" "$bed" | sed 's/ .*//; s/^+//')"; done; done
            echo
        done
    } | awk -F, 'NR == 1 { print; next } { line[NR] = $0 } END { for (i = NR; i > 1; i--) print line[i] }' >"$out/fewer.csv"
    "$engine" plot --table "$out/fewer.csv" --log-x --title "What removal costs, over the tokens it may take" \
        --y-label "nats above the control" --out "$out/fewer.svg" --force
}

fail() { # MESSAGE
    echo "scripts/robust_removal.sh: $1" >&2
    exit 2
}

# Before anything is trained: the engine, and the texts, each found or fetched once.
prepare() {
    [ -x "$engine" ] || fail "$engine is not built; run make"
    for name in $ways; do case $name in protocol | adaptive) ;; *) way "$name" 100 >/dev/null ;; esac; done
    twice=$(for text in $texts; do basename "$text"; done | sort | uniq -d)
    [ -z "$twice" ] || fail "two texts are called $twice; results are kept by name, so give one another"
    for text in $texts; do "$here/find_text.sh" "$text" >/dev/null; done
}

case ${1:-} in
    --base) logged "base-$(basename "$2")-$3" --do base "$2" "$3"; exit ;;
    --bed) logged "bed-$2-$(basename "$3")-$4" --do bed "$2" "$3" "$4"; exit ;;
    --removal) logged "$2-$3-$4-$(basename "$5")-$6" --do removal "$2" "$3" "$4" "$5" "$6"; exit ;;
    --do) shift; "$@"; exit ;;
    --table) ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
    "")
        prepare
        jobs=${JOBS:-1} cores=$(nproc 2>/dev/null || echo 1)
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > jobs ? cores / jobs : 1))}"
        for stage in bases bed_models controls removals; do $stage | xargs -P "$jobs" -L 1 "$0"; done
        ;;
    *) fail "usage: scripts/robust_removal.sh [--table]; settings are environment variables (--help)" ;;
esac
for steps in $all_steps; do table "$steps"; echo; done | tee "$out/table.md"
if [ "$most" != "$all_steps" ]; then picture; fi
