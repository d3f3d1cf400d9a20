#!/bin/sh
# The method in a minute and a half: takes the LayerNorms out of a small GPT-2, and looks at what is left.
#
#   scripts/demo.sh [TEXT]       (or: make demo, make demo TEXT=FILE)
#
# Without TEXT nothing is downloaded and nothing trained first: the original is data/stories_gpt2, which has learned the
# built-in story world. With TEXT (.txt, .jsonl, .gz of both) an original is trained on that, which takes some minutes
# more. Everything lands in demo/: the models, both exports, log files, loss.svg, table.md, and the measurements in report/
# and findings.md. Settings: PRETRAIN_STEPS (with TEXT), STEPS
# (of the removals, 4,096 tokens each), OUT.
set -eu

engine=$PWD/train_gpt2_lnfree
out=${OUT:-demo}
pretrain_steps=${PRETRAIN_STEPS:-500}
steps=${STEPS:-100}

if [ ! -x "$engine" ]; then
    echo "scripts/demo.sh: $engine is not built; run make" >&2
    exit 2
fi
if [ $# -gt 0 ] && [ ! -r "$1" ]; then
    echo "scripts/demo.sh: $1 cannot be read; TEXT names a text file" >&2
    exit 2
fi
say() { printf '\n== %s\n' "$*"; }

# Replaces an earlier demo, and nothing that is not one.
if [ -e "$out" ] && [ ! -e "$out/.demo" ]; then
    echo "scripts/demo.sh: $out exists and is not an earlier demo; name another folder with OUT=" >&2
    exit 2
fi
rm -rf "$out"
mkdir -p "$out"
touch "$out/.demo"

if [ $# -gt 0 ]; then
    say "1. Your text: $1, one token per byte, and an ordinary GPT-2 trained on it: 4 layers, 128 wide"
    "$engine" tokenize --input "$1" --tokenizer byte --out "$out/text"
else
    say "1. A GPT-2 that has learned this program's story world: 4 layers, 96 wide, one token per byte; and new stories"
    "$engine" stories --count 4000 --seed 1 --out "$out/stories.jsonl"
    head -n 1 "$out/stories.jsonl" | cut -c 1-400
    "$engine" tokenize --input "$out/stories.jsonl" --tokenizer byte --out "$out/text"
fi
data="--data $out/text_train_*.bin --val $out/text_val_*.bin --seq 128 --val-tokens 16384 --save-every 0"
if [ $# -gt 0 ]; then
    # shellcheck disable=SC2086  # $data is several words
    "$engine" pretrain --size tiny $data --batch 32 --steps "$pretrain_steps" --out "$out/original"
else
    cp -r data/stories_gpt2 "$out/original"
fi

say "2. Its LayerNorms go, all together, with the original as teacher: $((steps * 4096)) tokens in small steps"
# shellcheck disable=SC2086
"$engine" remove --model "$out/original" $data --tokens $((steps * 4096)) --out "$out/lnfree"

say "3. The same by the paper's schedule, one LayerNorm after another, without a teacher: $steps steps of 4,096 tokens"
# shellcheck disable=SC2086
"$engine" remove --preset paper --model "$out/original" $data --batch 32 --steps "$steps" --out "$out/paper"

say "4. Both exact forms of the first result"
"$engine" export --model "$out/lnfree" --form hf --out "$out/lnfree_hf"
"$engine" export --model "$out/lnfree" --form folded --out "$out/lnfree_folded"

say "5. How far each is from the original, on held-out text"
cd "$out"
"$engine" eval --model original lnfree paper lnfree_hf lnfree_folded --baseline original --markdown --val-tokens 32768 --data "text_val_*.bin" >table.md
cat table.md
"$engine" plot --run "paper's schedule=paper" "auto, all gone within a quarter of its steps=lnfree" --title "Removing every LayerNorm: training loss" --out loss.svg

say "6. What can be computed exactly now: attribution, patching; and the norms along the way"
"$engine" analyze report --model original lnfree paper --parts loss dla patching norms --data "text_val_*.bin" --sequences 50 --out report --markdown >findings.md
cat findings.md

cat <<END

Look at   $out/report/report.html  the three models side by side
          $out/loss.svg            the loss while LayerNorms disappear (the paper's Fig. 1)
Try       ./train_gpt2_lnfree generate --model $out/lnfree --prompt "When "
          ./train_gpt2_lnfree info --model $out/lnfree
END
