#!/bin/sh
# The paper's run for one GPT-2 and its control: fetches the model, fine-tunes it once as it is and once losing every
# LayerNorm, evaluates, exports, draws.
#
#   scripts/run_preset.sh small|medium|large|xl [FLAG...]     (or: scripts/run_small.sh [FLAG...], ...)
#
# FLAGs that `remove` and `finetune` both have go to both, behind --preset. Everything lands in OUT: control/, lnfree/
# (in Hugging Face form), lnfree_folded/, a table for every text that there is, loss.svg. What is finished is not made
# again, and a run that was interrupted goes on (with the flags it began with): type the same line again.
#
# Settings with their defaults: OUT=runs/gpt2-SIZE; MODEL=models/gpt2-SIZE, downloaded unless MODEL is set; prefixes of
# token shards DATA=shards/openwebtext (data/openwebtext.py), PILE=shards/pile (data/pile.py) and
# PILE_FILTERED=shards/pile_filtered (data/pile_filtered.py); ENGINE=./train_gpt2_lnfree_cuda if that is built, else
# ./train_gpt2_lnfree, which takes days and says so first; GPUS=1: so many processes, a GPU each, started by mpirun
# (dev/run/README.md).
#
# Exit status: that of the program if it fails; 2 bad use.
set -eu

fail() { # MESSAGE
    echo "scripts/run_preset.sh: $1" >&2
    exit 2
}

case ${1:-} in
    small | medium | large | xl) size=$1 ;;
    *) fail "usage: scripts/run_preset.sh small|medium|large|xl [FLAG...]" ;;
esac
shift
model=${MODEL:-models/gpt2-$size}
out=${OUT:-runs/gpt2-$size}
data=${DATA:-shards/openwebtext}
engine=${ENGINE:-./train_gpt2_lnfree_cuda}
[ -n "${ENGINE:-}" ] || [ -x "$engine" ] || engine=./train_gpt2_lnfree
[ -x "$engine" ] || fail "$engine is not built; run make"
gpus=${GPUS:-1}
case $gpus in
    *[!0-9]* | '' | 0) fail "GPUS=$gpus: not a number of processes" ;;
    1) ;;
    *) command -v mpirun >/dev/null 2>&1 || fail "GPUS=$gpus: there is no mpirun; make deps-all, then make" ;;
esac
# Trains and evaluates.
together() {
    if [ "$gpus" = 1 ]; then "$engine" "$@"; else mpirun --bind-to none -np "$gpus" "$engine" "$@"; fi
}

say() { printf '\n== %s\n' "$*"; }

has() { # PREFIX SIDE: whether there are such shards, and not those of a data/*.py that was interrupted
    [ ! -e "$1.state.npz" ] && [ -e "$1_$2_000000.bin" ]
}

if ! has "$data" train || ! has "$data" val; then
    fail "${data}_train_*.bin and ${data}_val_*.bin are not there, or not all of them. To make them, or to go on:
    python3 -m venv .venv && .venv/bin/pip install -r data/requirements.txt
    .venv/bin/python data/openwebtext.py --out $data
Or name others by DATA=PREFIX (./train_gpt2_lnfree tokenize makes them from any text)."
fi

if [ -z "${MODEL:-}" ]; then
    say "The model"
    scripts/download_gpt2.sh "$size" "$model"
fi

begin() { # COMMAND FOLDER FLAG...
    command=$1 folder=$2
    shift 2
    together "$command" --preset "$size" --model "$model" --data "${data}_train_*.bin" --val "${data}_val_*.bin" \
        --out "$folder" "$@"
}

# One that was stopped before its first checkpoint begins again.
begin_or_go_on() { # COMMAND FOLDER FLAG...
    if [ -e "$2/config.json" ]; then
        echo "$2 is finished"
    elif [ -n "$(find "$2/checkpoints" -name 'step_*' 2>/dev/null)" ]; then
        together "$1" --resume --out "$2"
    else
        begin "$@" --force
    fi
}

case $engine in
    *cuda*) ;;
    *)
        if [ ! -e "$out/lnfree/config.json" ]; then
            say "What the removal takes on this CPU (Ctrl-C stops it at any time; the same line goes on)"
            begin remove "$out/lnfree" "$@" --dry-run
        fi
        ;;
esac

say "The control: LayerNorms kept"
begin_or_go_on finetune "$out/control" "$@"

say "The removal: the same steps on the same data"
begin_or_go_on remove "$out/lnfree" "$@"

say "The folded form: no norm at all"
if [ -e "$out/lnfree_folded/config.json" ]; then
    echo "$out/lnfree_folded is there"
else
    "$engine" export --model "$out/lnfree" --form folded --out "$out/lnfree_folded" --force
fi

# A column of the paper's Tab. 1.
table() { # NAME PREFIX
    if ! has "$2" val; then
        say "Left out: $1, there is no $2_val_000000.bin"
        return
    fi
    say "Mean cross-entropy: $1"
    together eval --model "$model" "$out/control" "$out/lnfree" --baseline "$out/control" --windows paper --markdown \
        --data "$2_val_*.bin" >"$out/table.new"
    mv "$out/table.new" "$out/table_$1.md"
    cat "$out/table_$1.md"
}
table openwebtext "$data"
table pile "${PILE:-shards/pile}"
table pile_filtered "${PILE_FILTERED:-shards/pile_filtered}"

"$engine" plot --run control="$out/control" lnfree="$out/lnfree" --title "GPT-2 $size: removing every LayerNorm" \
    --out "$out/loss.svg" --force
