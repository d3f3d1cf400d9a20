#!/bin/sh
# The paper in a few minutes: trains a small GPT-2, removes its LayerNorms, and compares.
#
#   scripts/demo.sh [TEXT]       (or: make demo, make demo TEXT=FILE)
#
# Without TEXT the built-in story world is the corpus and nothing is downloaded. TEXT is any text that `tokenize` reads
# (.txt, .jsonl, .gz of both). Everything lands in demo/: three models, both exports, log files, loss.svg, table.md, and the
# measurements of the three models in report/ and findings.md.
# Settings: PRETRAIN_STEPS, STEPS (of control and removal), OUT.
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
    text=$1
    say "1. Your text: $text, one token per byte"
else
    text=$out/stories.jsonl
    say "1. A corpus: stories of people, places and things (written by this program)"
    "$engine" stories --count 4000 --seed 1 --out "$text"
    head -n 1 "$text" | cut -c 1-400
fi
"$engine" tokenize --input "$text" --tokenizer byte --out "$out/text"
data="--data $out/text_train_*.bin --val $out/text_val_*.bin --seq 128 --batch 32 --val-tokens 16384"

say "2. An ordinary GPT-2 with LayerNorm: 4 layers, 128 wide, from scratch"
# shellcheck disable=SC2086  # $data is several words
"$engine" pretrain --size tiny $data --steps "$pretrain_steps" --save-every 0 --out "$out/original"

say "3. The control: fine-tuned for $steps more steps, LayerNorms kept"
# shellcheck disable=SC2086
"$engine" finetune --model "$out/original" $data --steps "$steps" --save-every 0 --out "$out/control"

say "4. The removal: the same $steps steps on the same data, one LayerNorm after another replaced by a fixed scale"
# shellcheck disable=SC2086
"$engine" remove --model "$out/original" $data --steps "$steps" --save-every 0 --out "$out/lnfree"

say "5. Both exact forms of the result"
"$engine" export --model "$out/lnfree" --form hf --out "$out/lnfree_hf"
"$engine" export --model "$out/lnfree" --form folded --out "$out/lnfree_folded"

say "6. What it cost, on held-out text"
cd "$out"
"$engine" eval --model original control lnfree lnfree_hf lnfree_folded --baseline control --markdown --val-tokens 100000 --data "text_val_*.bin" >table.md
cat table.md
"$engine" plot --run control=control lnfree=lnfree --title "Removing every LayerNorm: training loss" --out loss.svg

say "7. What the paper measures in them: attribution, patching, norms, sinks, confidence neurons"
"$engine" analyze report --model original control lnfree --data "text_val_*.bin" --out report --markdown >findings.md
cat findings.md

cat <<END

Look at   $out/loss.svg            the loss while LayerNorms disappear (the paper's Fig. 1)
          $out/report/report.html  the three models side by side
Try       ./train_gpt2_lnfree generate --model $out/lnfree --prompt "When "
          ./train_gpt2_lnfree info --model $out/lnfree
END
