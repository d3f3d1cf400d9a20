#!/bin/sh
# Do the paper's findings hold in models trained here? Trains original, control and LN-free of a family, and measures them.
#
#   scripts/findings.sh story    one token per byte, on the story world mixed with real text, until the original tells
#                                who gets the thing (the built-in indirect-object prompts)
#   scripts/findings.sh bpe      GPT-2's vocabulary, on real text, with published indirect-object prompts
#
# Everything lands in OUT/FAMILY (OUT=runs/findings): the models, report/report.html, and findings.md for the tables in
# README.md and dev/analysis/README.md; report_paper and findings_paper.md are what --paper makes of them, where the paper's
# code measures otherwise than we do. What is there already is not made again.
#
# The real text is TEXT, one or more files, or openwebtext or tinystories, which scripts/find_text.sh finds or fetches.
# Default: tinystories (story); all packed texts of ../shared/data/text, else openwebtext (bpe). For bpe also, each from
# ../shared where that is there: TOKENIZER, a folder with GPT-2's tokenizer files (else models/gpt2-small, which
# `scripts/download_gpt2.sh small` fetches); PROMPTS, a JSON file of prompt sets; EVALS, a folder with the benchmarks'
# files. Without PROMPTS and EVALS patching and benchmarks are left out.
#
# Settings with their defaults, story / bpe: PRETRAIN_STEPS=2000 / 1000, STEPS=300 / 200,
# DENSE_STEPS=4000 (story: before the real text comes), PRESET=paper (whose findings they are); and scripts/real_text.sh's SEED and ENGINE.
set -eu

fail() { # MESSAGE
    echo "scripts/findings.sh: $1" >&2
    exit 2
}

family=${1:-}
case $family in
    story | bpe) ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) fail "which family: story or bpe" ;;
esac
here=$(realpath "$(dirname "$0")")
ENGINE=${ENGINE:-./train_gpt2_lnfree}
[ -x "$ENGINE" ] || fail "$ENGINE is not built; run make"
ENGINE=$(realpath "$ENGINE")

# One of the files that bpe measures with: what the user names, else that of ../shared, else none.
find_input() { # NAME VALUE PATH-IN-SHARED
    if [ -n "$2" ]; then
        [ -r "$2" ] || fail "$1=$2 cannot be read"
        realpath "$2"
    elif [ -e "../shared/$3" ]; then
        realpath "../shared/$3"
    fi
}

if [ "$family" = story ]; then
    texts=${TEXT:-tinystories}
else
    texts=${TEXT:-$(ls ../shared/data/text/*.gz 2>/dev/null || echo openwebtext)}
    tokenizer=$(find_input TOKENIZER "${TOKENIZER:-}" data/gpt2-bpe)
    if [ -z "$tokenizer" ] && [ -r models/gpt2-small/merges.txt ]; then tokenizer=$(realpath models/gpt2-small); fi
    [ -n "$tokenizer" ] ||
        fail "GPT-2's tokenizer is not there; scripts/download_gpt2.sh small fetches it, or name a folder by TOKENIZER="
    prompts=$(find_input PROMPTS "${PROMPTS:-}" facts/ioi_prompts.json)
    evals=$(find_input EVALS "${EVALS:-}" data/evals)
fi
unset TEXT # real_text.sh gets them as arguments
set --
for text in $texts; do
    path=$("$here/find_text.sh" "$text")
    set -- "$@" "$path"
done
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
            "$here/real_text.sh" "$stories" "$openings" "$@"
        set -- ;;
    bpe)
        SIZE="--n-layer 6 --n-head 8 --n-embd 256 --n-ctx 256" PRETRAIN_STEPS=${PRETRAIN_STEPS:-1000} PRESET=${PRESET:-paper} \
            TOKENIZER=$tokenizer BATCH=8 SEQ=256 FLAGS="--grad-accum 1" VAL_TOKENS=100000 "$here/real_text.sh" "$@"
        set --
        if [ -n "$prompts" ]; then set -- --prompts "$prompts"; else echo "without PROMPTS=FILE: no patching" >&2; fi
        if [ -n "$evals" ]; then set -- "$@" --evals "$evals" --limit 100; else echo "without EVALS=DIR: no benchmarks" >&2; fi ;;
esac

cd "$OUT"
"$ENGINE" analyze report --model pretrained control lnfree --data "text_val_*.bin" --out report "$@" --markdown >findings.md
"$ENGINE" analyze report --model pretrained control lnfree --data "text_val_*.bin" --out report_paper "$@" \
    --paper --parts dla patching sinks confidence --markdown >findings_paper.md
cat findings.md findings_paper.md
