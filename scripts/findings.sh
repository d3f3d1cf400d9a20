#!/bin/sh
# Do the paper's findings hold in models trained here? Trains original, control and LN-free of a family, and measures them.
#
#   scripts/findings.sh story    one token per byte, on the story world mixed with real text, until the original tells
#                                who gets the thing (the built-in indirect-object prompts)
#   scripts/findings.sh bpe      GPT-2's vocabulary, on real text, with published indirect-object prompts
#
# Everything lands in OUT/FAMILY (OUT=runs/findings): the models, report/report.html, and findings.md for the README. What
# is there already is not made again. Settings with their defaults, story / bpe: PRETRAIN_STEPS=2000 / 1000, STEPS=300 / 200,
# DENSE_STEPS=4000 (story: before the real text comes), PRESET=paper (whose findings they are); and scripts/real_text.sh's SEED and ENGINE.
set -eu

family=${1:-}
case $family in story | bpe) ;; *) echo "scripts/findings.sh: which family: story or bpe" >&2; exit 2 ;; esac
if [ ! -d ../shared/data/text ]; then
    echo "scripts/findings.sh: ../shared/data/text is not there; these runs need its texts (scripts/demo.sh needs none)" >&2
    exit 2
fi
shared=$(realpath ../shared)
here=$(realpath "$(dirname "$0")")
ENGINE=$(realpath "${ENGINE:-./train_gpt2_lnfree}")
OUT=${OUT:-runs/findings}/$family
STEPS=${STEPS:-$([ "$family" = story ] && echo 300 || echo 200)}
export ENGINE OUT STEPS SETTLE_STEPS=0
mkdir -p "$OUT"

case $family in
    story)
        stories=$OUT/stories.jsonl openings=$OUT/openings.jsonl
        [ -e "$stories" ] || "$ENGINE" stories --count 3000 --seed 1 --out "$stories"
        # Who gets the thing decides a few bytes of a story's 800. Openings that are one such sentence and nothing else make
        # that denser, and the real text comes last: mixed in from the start it keeps a model of this size from learning it.
        if [ ! -e "$openings" ]; then
            "$ENGINE" stories --count 100000 --seed 2 --out "$OUT/more.jsonl"
            sed -n 's/^\({"text":"[A-Z][^\\]\{1,100\}\)\\n.*/\1\\n"}/p' "$OUT/more.jsonl" >"$openings"
            rm "$OUT/more.jsonl"
        fi
        [ -e "$OUT/dense.json" ] || "$ENGINE" tokenize --input "$openings" "$stories" --tokenizer byte --out "$OUT/dense"
        if [ -d "$OUT/dense/checkpoints" ]; then
            "$ENGINE" pretrain --resume --out "$OUT/dense"
        elif [ ! -e "$OUT/dense/config.json" ]; then
            "$ENGINE" pretrain --data "$OUT/dense_train_*.bin" --val "$OUT/dense_val_*.bin" --out "$OUT/dense" --force \
                --n-layer 6 --n-head 4 --n-embd 128 --n-ctx 128 --seq 128 --batch 16 --grad-accum 1 \
                --lr 2e-3 --min-lr 1e-4 --steps "${DENSE_STEPS:-4000}" --eval-every 250 --save-every 500
        fi
        START=$OUT/dense PRESET=${PRESET:-paper} PRETRAIN_STEPS=${PRETRAIN_STEPS:-2000} BATCH=16 FLAGS="--grad-accum 1" \
            "$here/real_text.sh" "$stories" "$openings" "$shared/data/text/tinystories_sample.jsonl.gz"
        set -- ;;
    bpe)
        SIZE="--n-layer 6 --n-head 8 --n-embd 256 --n-ctx 256" PRETRAIN_STEPS=${PRETRAIN_STEPS:-1000} PRESET=${PRESET:-paper} \
            TOKENIZER=$shared/data/gpt2-bpe BATCH=8 SEQ=256 FLAGS="--grad-accum 1" VAL_TOKENS=100000 \
            "$here/real_text.sh" "$shared"/data/text/*.gz
        set -- --prompts "$shared/facts/ioi_prompts.json" --evals "$shared/data/evals" --limit 100 ;;
esac

cd "$OUT"
"$ENGINE" analyze report --model pretrained control lnfree --data "text_val_*.bin" --out report "$@" --markdown >findings.md
cat findings.md
