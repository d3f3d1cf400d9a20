#!/bin/sh
# The method on real text: trains a byte-level GPT-2, then control and removal, and prints a table (scripts/README.md).
#
#   scripts/real_text.sh [TEXT...]        (or: TEXT="FILE ..." scripts/real_text.sh)
#
# TEXT is a file (.txt, .jsonl, .gz of both), or openwebtext (the default) or tinystories, small samples of these that
# scripts/find_text.sh finds or fetches. What is made of other texts needs another OUT. Settings with their
# defaults: TOKENIZER=byte OUT=runs/real_text SIZE="--n-layer 4 --n-head 4 --n-embd 128 --n-ctx 128" PRETRAIN_STEPS=5000
# SETTLE_STEPS=1250 STEPS=300 BATCH=32 SEQ=128 SEED=1 ENGINE=./train_gpt2_lnfree FLAGS="" (more for every training)
# VAL_TOKENS=0 (for the table; 0: all) PRESET=auto ALSO="" START="" (a model folder to train further, instead of a new
# model; no SIZE then). The documents held out (5 %) are never trained on. A run that is there already is not made again.
# With PRESET=paper, ALSO adds removals that the paper warns of: no_aux (without the auxiliary loss), at_once (all sites at
# the same step).
#
# The original is trained in two stages, the second at a twentieth of the learning rate, until it has settled: a model
# that is still learning would gain from any further training, and hide what the removal costs. SETTLE_STEPS=0 leaves
# the second stage out.
set -eu

fail() { # MESSAGE
    echo "scripts/real_text.sh: $1" >&2
    exit 2
}

case ${1:-} in
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    -*) fail "there is no flag $1; settings are environment variables (--help)" ;;
esac
here=$(dirname "$0")
engine=${ENGINE:-./train_gpt2_lnfree}
tokenizer=${TOKENIZER:-byte}
out=${OUT:-runs/real_text}
size=${SIZE:---n-layer 4 --n-head 4 --n-embd 128 --n-ctx 128}
pretrain_steps=${PRETRAIN_STEPS:-5000}
settle_steps=${SETTLE_STEPS:-1250}
steps=${STEPS:-300}
also=${ALSO:-}
preset=${PRESET:-auto}
seed=${SEED:-1}

[ -x "$engine" ] || fail "$engine is not built; run make"
for variant in $also; do
    case $variant in no_aux | at_once) ;; *) fail "ALSO=$variant: there is no_aux and at_once" ;; esac
done
if [ -n "$also" ] && [ "$preset" != paper ]; then fail "ALSO=$also changes the paper's schedule; set PRESET=paper"; fi

# shellcheck disable=SC2086  # $TEXT may be several
if [ $# -eq 0 ]; then set -- ${TEXT:-openwebtext}; fi
for text in "$@"; do
    shift
    path=$("$here/find_text.sh" "$text")
    set -- "$@" "$path"
done

# Which texts these are, by their content: a run that is there is kept, so it must not be of others.
checksums=$(for text in "$@"; do cksum <"$text"; done)
if [ -e "$out/text.json" ] && [ -e "$out/text.cksum" ] && [ "$(cat "$out/text.cksum")" != "$checksums" ]; then
    fail "$out holds runs on other texts; name another folder by OUT="
fi
mkdir -p "$out"
if [ ! -e "$out/text.json" ]; then
    echo "$checksums" >"$out/text.cksum"
    "$engine" tokenize --input "$@" --tokenizer "$tokenizer" --out "$out/text"
fi
data="--data $out/text_train_*.bin --val $out/text_val_*.bin --seq ${SEQ:-128} --batch ${BATCH:-32} --seed $seed ${FLAGS:-}"

# A run that was stopped goes on; one that is finished stays.
run() { # COMMAND NAME FLAGS...
    command=$1 name=$2
    shift 2
    if [ -e "$out/$name/config.json" ]; then return; fi
    if [ -d "$out/$name/checkpoints" ]; then "$engine" "$command" --resume --out "$out/$name"; return; fi
    # shellcheck disable=SC2086
    "$engine" "$command" $data --out "$out/$name" --force "$@"
}
often="--eval-every $((pretrain_steps / 20)) --save-every 500"
# shellcheck disable=SC2086
if [ -n "${START:-}" ]; then
    run finetune pretrained --model "$START" --lr 1e-3 --min-lr 1e-4 --steps "$pretrain_steps" $often
else
    run pretrain pretrained $size --tokenizer "$tokenizer" --lr 2e-3 --min-lr 0 --steps "$pretrain_steps" $often
fi
original=original
if [ "$settle_steps" -gt 0 ]; then
    run finetune original --model "$out/pretrained" --lr 1e-4 --min-lr 1e-5 --steps "$settle_steps" --save-every 500
else
    original=pretrained
fi
run finetune control --model "$out/$original" --preset "$preset" --steps "$steps"
run remove lnfree --model "$out/$original" --preset "$preset" --steps "$steps"
for variant in $also; do
    case $variant in
        no_aux) run remove no_aux --model "$out/$original" --preset "$preset" --steps "$steps" --aux-weight 0 ;;
        at_once) run remove at_once --model "$out/$original" --preset "$preset" --steps "$steps" --gap-mlp 0 --gap-qk 0 --gap-v 0 ;;
    esac
done

engine=$(realpath "$engine")
# shellcheck disable=SC2086
(cd "$out" && "$engine" eval --model $original control lnfree $also --baseline control --val-tokens "${VAL_TOKENS:-0}" \
    --data "text_val_*.bin" --markdown) > "$out/table.md"
cat "$out/table.md"
"$engine" plot --run control="$out/control" lnfree="$out/lnfree" --title "Removing every LayerNorm, real text" --out "$out/loss.svg" --force

# Whether the original had settled: its validation loss before and after the second stage, a fifth of all its steps.
if [ "$original" = original ]; then grep val_loss "$out/original/log.jsonl" | sed -n '1p;$p'; fi
