#!/bin/sh
# How faithful removal is: ways to do it side by side, on models (beds) that make it easy or hard.
#
#   scripts/faithful_removal.sh            makes the rows that are missing, then prints the tables
#   scripts/faithful_removal.sh --table    only prints the tables of what is there
#   scripts/faithful_removal.sh --summary  a line per bed: auto, auto with a quarter of the tokens, the paper's schedule, fine-tuning
#   scripts/faithful_removal.sh --picture FILE.svg    draws KL over tokens
#
# A row of ROWS=scripts/faithful_removal.csv is one run: its held-out loss, and how far it is from the model that it started from. Rows that
# are there are not made again, so a script that was stopped goes on; to make one anew, delete its line. Originals are
# trained where they are missing, one for each bed and text, and kept in OUT=runs/faithful; a run's own folder goes when
# its row is written.
#
# Settings with their defaults: BEDS="embedded settled young planted40 grown40" TEXTS="tinystories openwebtext" SEEDS="1 2 3"
# STEPS="300 150 75" (of 4,096 tokens, whatever a way's own steps are) WAYS="auto paper tapernorm control_1e-4 ..." (the
# words of way() below; an ending _1e-3 is a learning rate, one _1024 tokens per step) JOBS=1 (runs side by side, of one
# thread each from two on) ENGINE=./train_gpt2_lnfree LNFREE_ISA=avx2 (one for all rows: an instruction set gives the same
# bits on any processor, so that originals can be trained again elsewhere).
#
#   embedded    the model of this repository (data/stories_gpt2), on its own text: trained until its loss was flat
#   settled     4 layers x 128, 6,250 steps, the last fifth at a low rate
#   wide        6 layers x 256, on the first text alone; not among the defaults, since it takes hours
#   flat        4 layers x 64, 4,000 steps, the last at a very low rate, on the last text alone; flat_neox and flat_llama: the same
#               in Pythia's shape and in Llama's, flat_scaled: with LayerNorm Scaling. Not among the defaults either
#   young       2 layers x 64 that still learn: what misleads, since training on their text makes them better in any case
#   planted40   the same with an embedding of position 0 that is far longer than the others, 300 steps after it was made so
#   grown40     the same with layers that have learned to make position 0 forty times as long
set -eu

out=${OUT:-runs/faithful}
rows=${ROWS:-scripts/faithful_removal.csv}
engine=${ENGINE:-./train_gpt2_lnfree}
beds=${BEDS:-embedded settled young planted40 grown40}
seeds=${SEEDS:-1 2 3}
all_steps=${STEPS:-300 150 75}
ways=${WAYS:-auto paper tapernorm control_1e-4 control_3e-4 control_1e-3 control_2e-3}
shown="auto auto_half auto_self adaptive paper tapernorm tapernorm_keep_f control_1e-4 control_3e-4 control_1e-3 control_2e-3"
here=$(dirname "$0")
export LNFREE_ISA="${LNFREE_ISA:-avx2}"

texts_of() { # BED
    case $1 in
        embedded) echo stories ;;
        wide) echo "${TEXTS:-tinystories openwebtext}" | cut -d " " -f 1 ;;
        flat*) echo "${TEXTS:-tinystories openwebtext}" | sed "s/.* //" ;;
        *) echo "${TEXTS:-tinystories openwebtext}" ;;
    esac
}

# The command and flags of a way. `adaptive`, the default before `auto` had a teacher, is in the engine of commit a97a23d
# and before (ENGINE=that).
way() { # NAME STEPS
    warmup=$(($2 / 20 > 10 ? $2 / 20 : 10))
    at_once="--gap-mlp 0 --gap-qk 0 --gap-v 0 --start-mlp"
    taught="remove --preset paper --distill 1"
    together="$taught $at_once $warmup --gradual $(($2 / 2 - warmup))" # all divisors together, until half of the run
    down="--sigma-without-position0 --shrink-position0 $(($2 / 10))"   # a position 0 that stands out comes down first
    case $1 in
        *_[0-9]*e-[0-9])
            rate=${1##*_}
            case $1 in auto*) set -- "$1" "$2" "" ;; *) set -- "$1" "$2" "--warmup $warmup" ;; esac # auto has its own
            echo "$(way "${1%_*}" "$2") --lr $rate --min-lr $(echo "$rate" | awk '{ print $1 / 10 }') $3"
            ;;
        *_[0-9]*) echo "$(way "${1%_*}" "$2") --batch $((${1##*_} / 128)) --grad-accum 1" ;; # so many tokens a step
        control) echo finetune ;;
        auto | paper | tapernorm | adaptive) echo "remove --preset $1" ;;
        lora[0-9]*_paper) echo "$(way paper "$2") --lora $(echo "$1" | tr -dc 0-9)" ;;
        lora[0-9]*) echo "remove --lora ${1#lora}" ;; # the teacher's; as the line above without
        auto_half) echo "remove --distill 0.5" ;;
        auto_self) echo "remove" ;; # on text that the original writes itself
        tapernorm_keep_f) echo "remove --preset tapernorm --keep-f" ;;
        taught) echo "$taught" ;; # the paper's schedule
        taught_at_once) echo "$taught $at_once $warmup" ;;
        taught_together) echo "$together" ;;
        taught_shrunk) echo "$together $down" ;;
        taught_shrunk_relative) echo "$together $down --aux-everywhere --aux-relative" ;;
        shrunk_little_aux) echo "$together $down --aux-weight 0.01" ;;
        shrunk_no_aux) echo "$together $down --aux-weight 0" ;;
        shrunk_soon) echo "$taught $at_once $warmup --gradual $(($2 / 4 > warmup ? $2 / 4 - warmup : 1)) $down" ;;
        shrunk_once) echo "$taught $at_once $(($2 / 10 + 1)) $down" ;;
        *) echo "scripts/faithful_removal.sh: $1: no such way; see the list in the script" >&2; exit 2 ;;
    esac
}

# The model that a bed's runs start from, trained where it is missing.
# shellcheck disable=SC2046,SC2086  # several words each
original() { # BED TEXT
    folder=$out/$2
    model=$folder/$1
    [ ! -e "$model/config.json" ] || return 0
    data="--data $folder/text_train_*.bin --val $folder/text_val_*.bin --seed 1 --force"
    small="--n-layer 2 --n-head 2 --n-embd 64 --n-ctx 128"
    case $1 in
        wide) pretrained="--n-layer 6 --n-head 8 --n-embd 256 --n-ctx 128 --steps 2500 --lr 1e-3 --min-lr 1e-5" ;;
        settled) pretrained="--n-layer 4 --n-head 4 --n-embd 128 --n-ctx 128 --steps 6250 --lr 2e-3 --min-lr 2e-5" ;;
        flat*)
            pretrained="--n-layer 4 --n-head 4 --n-embd 64 --n-ctx 128 --steps 4000 --lr 2e-3 --min-lr 1e-5"
            case $1 in
                flat_scaled) pretrained="$pretrained --norm-scale depth" ;;
                flat_*) pretrained="$pretrained --family ${1#flat_}" ;;
            esac
            ;;
        young) pretrained="$small --steps 1500 --lr 2e-3" ;;
        planted*) changed="--plant-position0 ${1#planted}" ;;
        grown*) changed="--grow-position0 ${1#grown}" ;;
        *) echo "scripts/faithful_removal.sh: $1: no such bed" >&2; exit 2 ;;
    esac
    if [ -n "${pretrained:-}" ]; then
        "$engine" pretrain $data $pretrained --out "$model"
    else
        "$0" --do original young "$2"
        "$engine" finetune --model "$folder/young" $data --save-every 0 --steps 300 --lr 1e-3 --min-lr 3e-4 $changed --out "$model"
    fi
}

text() { # TEXT
    [ -e "$out/$1/text.json" ] && return 0
    mkdir -p "$out/$1"
    case $1 in
        stories)
            "$engine" stories --count 20000 --seed 7 --out "$out/$1/stories.jsonl" --force
            "$engine" tokenize --input "$out/$1/stories.jsonl" --tokenizer byte --out "$out/$1/text"
            ;;
        *) "$engine" tokenize --input "$("$here/find_text.sh" "$1")" --tokenizer byte --out "$out/$1/text" ;;
    esac
}

number() { sed -n "s/^.*\"$1\": *\(-\{0,1\}[0-9.e+-]*\).*$/\1/p" | tail -n 1; } # KEY, of the last model in eval's JSON

# One run and its row. A removal that fails is a result: its row says so.
# shellcheck disable=SC2046,SC2086
row() { # BED TEXT WAY STEPS SEED
    model=$out/$2/$1
    [ "$1" != embedded ] || model=data/stories_gpt2
    run=$out/$2/$1-$3-$4-$5
    data="$out/$2/text_train_*.bin"
    [ "$3" != auto_self ] || data=self
    status=0
    "$engine" $(way "$3" "$4") --model "$model" --tokens $(($4 * 4096)) --seed "$5" --val-tokens 16384 --eval-every 100000 \
        --data "$data" --val "$out/$2/text_val_*.bin" --save-every 0 --force --out "$run" || status=$?
    [ "$status" -le 1 ] || return "$status" # stopped, or bad use
    result=failed,,,
    if [ "$status" -eq 0 ]; then
        "$engine" eval --model "$model" "$run" --baseline "$model" --data "$out/$2/text_val_*.bin" --json --worst 0 --val-tokens 262144 >"$run/eval.json"
        result=$(for key in loss loss_minus_baseline kl agreement; do number "$key" <"$run/eval.json"; done | paste -sd ,)
    fi
    echo "$1,$2,$3,$4,$5,$result" >>"$rows"
    rm -rf "$run"
}

# Lines "bed text way steps seed" of the rows that are missing; what comes first in a list is made first.
missing() {
    for seed in $seeds; do for bed in $beds; do for text in $(texts_of "$bed"); do
        for name in $ways; do for steps in $all_steps; do
            grep -q "^$bed,$text,$name,$steps,$seed," "$rows" || echo "$bed $text $name $steps $seed"
        done; done
    done; done; done
}

# One table for each number of steps: a line for every way and bed, means over texts and seeds, and in brackets the spread
# (largest minus smallest). The best control of a text is the one whose losses are lowest on average.
tables() {
    for steps in $all_steps; do
        awk -F , -v steps="$steps" -v beds="$beds" -v ways="${WAYS:-$shown}" '
            NR == 1 || $4 != steps { next }
            $6 == "failed" { failed[$1, $3]++; next }
            { n[$1, $2, $3]++; loss[$1, $2, $3] += $6; line[++lines] = $0; texts[$2] }
            function best_control(bed, text,   key, part, mean, low) {
                low = 1e9
                for (key in loss) {
                    split(key, part, SUBSEP)
                    if (part[1] != bed || part[2] != text || part[3] !~ /^control/) continue
                    mean = loss[key] / n[key]
                    if (mean < low) low = mean
                }
                return low
            }
            function put(bed, way, what, x,   k) {
                k = bed SUBSEP way SUBSEP what
                sum[k] += x; count[k]++
                if (count[k] == 1 || x < least[k]) least[k] = x
                if (count[k] == 1 || x > most[k]) most[k] = x
            }
            function show(bed, way, what, form,   k) {
                k = bed SUBSEP way SUBSEP what
                if (count[k] == 1) return sprintf(form, sum[k])
                return sprintf(form " (" form ")", sum[k] / count[k], most[k] - least[k])
            }
            END {
                for (i = 1; i <= lines; i++) {
                    split(line[i], f, ",")
                    put(f[1], f[3], "original", f[7]); put(f[1], f[3], "kl", f[8]); put(f[1], f[3], "same", 100 * f[9])
                    c = best_control(f[1], f[2]); if (c < 1e9) put(f[1], f[3], "control", f[6] - c)
                }
                printf "| %s steps | KL to the original | same likeliest token, %% | loss minus original | minus best control | runs |\n", steps
                print "|---|---:|---:|---:|---:|---:|"
                bed_count = split(beds, b, " "); way_count = split(ways, w, " ")
                for (i = 1; i <= bed_count; i++) for (j = 1; j <= way_count; j++) {
                    k = b[i] SUBSEP w[j] SUBSEP "kl"
                    if (!count[k] && !failed[b[i], w[j]]) continue
                    runs = count[k] + 0
                    if (failed[b[i], w[j]]) runs = runs " and " failed[b[i], w[j]] " failed"
                    if (!count[k]) { printf "| %s: %s | | | | | %s |\n", b[i], w[j], runs; continue }
                    control = count[b[i] SUBSEP w[j] SUBSEP "control"] ? show(b[i], w[j], "control", "%.4f") : ""
                    printf "| %s: %s | %s | %s | %s | %s | %s |\n", b[i], w[j], show(b[i], w[j], "kl", "%.4f"),
                        show(b[i], w[j], "same", "%.1f"), show(b[i], w[j], "original", "%.4f"), control, runs
                }
            }' "$rows"
        echo
    done
}

# A line for every bed, means over texts and seeds: KL to the original and loss minus the original's.
summary() {
    awk -F , '
        NR > 1 && $6 != "failed" { k = $1 SUBSEP $3 SUBSEP $4; kl[k] += $8; loss[k] += $7; n[k]++; texts[$1, $2]; seeds[$1, $5] }
        function cell(bed, way, steps,   k) {
            k = bed SUBSEP way SUBSEP steps
            return n[k] ? sprintf("%.4f, %+.4f", kl[k] / n[k], loss[k] / n[k]) : ""
        }
        function best(bed,   i, rates, k, found) { # of the controls, by loss
            split("1e-4 3e-4 1e-3 2e-3", rates, " ")
            for (i = 1; i in rates; i++) {
                k = bed SUBSEP "control_" rates[i] SUBSEP 300
                if (n[k] && (found == "" || loss[k] / n[k] < loss[found] / n[found])) found = k
            }
            return found == "" ? "" : sprintf("%.4f, %+.4f", kl[found] / n[found], loss[found] / n[found])
        }
        function row(bed, words) {
            if (!n[bed, "auto", 300]) return
            printf "| %s | %s | %s | %s | %s |\n", words, cell(bed, "auto", 300), cell(bed, "auto", 75), cell(bed, "paper", 300), best(bed)
        }
        END {
            print "| original | `auto` | `auto`, a quarter of the tokens | `paper` | control |"
            print "|---|---:|---:|---:|---:|"
            row("embedded", "the demo\047s, 4 x 96, on its stories")
            row("settled", "4 x 128, on real text until its loss was flat")
            row("wide", "6 x 256, the same")
            row("planted40", "2 x 64, position 0 planted 40 times too long")
            row("grown40", "2 x 64, position 0 grown 40 times as long")
        }' "$rows"
}

# KL over tokens, auto beside the paper's schedule, a line for every bed: means over texts and seeds.
picture() { # SVG
    mkdir -p "$out"
    awk -F , -v beds="$beds" -v ways="auto paper" '
        NR > 1 && $6 != "failed" { sum[$1, $3, $4] += $8; n[$1, $3, $4]++; steps[$4] }
        END {
            bed_count = split(beds, b, " "); way_count = split(ways, w, " ")
            printf "tokens"
            for (i = 1; i <= bed_count; i++) for (j = 1; j <= way_count; j++) printf ",%s: %s", b[i], w[j]
            print ""
            for (s in steps) {
                printf "%d", s * 4096
                for (i = 1; i <= bed_count; i++) for (j = 1; j <= way_count; j++)
                    printf ",%s", n[b[i], w[j], s] ? sum[b[i], w[j], s] / n[b[i], w[j], s] : ""
                print ""
            }
        }' "$rows" | { IFS= read -r names && echo "$names" && sort -n; } >"$out/kl.csv"
    "$engine" plot --table "$out/kl.csv" --log-x --log-y --title "How far from the original" \
        --y-label "KL(original || LayerNorm-free), nats per token" --out "$1" --force
}

# What a run says goes to OUT/output.
logged() { # BED TEXT WAY STEPS SEED
    log=$out/output/$(echo "$*" | tr ' ' -).txt
    mkdir -p "$out/output"
    echo "$(date +%T) $*"
    "$0" --do row "$@" >"$log" 2>&1 || { echo "scripts/faithful_removal.sh: $* failed; see $log" >&2; return 1; }
}

[ -e "$rows" ] || echo "bed,text,way,steps,seed,loss,minus_original,kl,agreement" >"$rows"
case ${1:-} in
    --row) shift; logged "$@"; exit ;;
    --do) shift; "$@"; exit ;;
    --table) ;;
    --summary) summary; exit ;;
    --picture) # eight lines, as many as the chart has colours
        beds=${BEDS:-embedded settled planted40 grown40}
        picture "${2:?which file?}"
        exit
        ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
    "")
        [ -x "$engine" ] || { echo "scripts/faithful_removal.sh: $engine is not built; run make" >&2; exit 2; }
        if [ "${JOBS:-1}" -gt 1 ]; then export OMP_NUM_THREADS=1; fi
        for bed in $beds; do for text in $(texts_of "$bed"); do
            text "$text"
            [ "$bed" = embedded ] || "$0" --do original "$bed" "$text" >>"$out/originals.txt" 2>&1
        done; done
        missing | xargs -r -P "${JOBS:-1}" -L 1 "$0" --row
        ;;
    *) echo "usage: scripts/faithful_removal.sh [--table | --summary | --picture FILE.svg]; settings are environment variables (--help)" >&2; exit 2 ;;
esac
tables
