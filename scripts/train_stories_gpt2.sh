#!/bin/sh
# Makes data/stories_gpt2, the model that `make demo` starts from, anew: 4 layers, 96 wide, 485 thousand weights, an hour and
# a half of one core. OUT=runs/stories_gpt2; a call that was stopped goes on.
#
# First on stories of the story world. Who gets the thing in "When Anna and Tom went to the barn, Anna gave a hat to ..."
# decides a few bytes of a story's 800, and after 3,282 steps the model still guessed (46 % right; that is when it was
# stopped). So then on openings that are one such sentence and nothing else, as many tokens as of whole stories, until the
# loss is flat.
set -eu

out=${OUT:-runs/stories_gpt2}
engine=${ENGINE:-./train_gpt2_lnfree}
here=$(dirname "$0")
mkdir -p "$out"

begin_or_go_on() { # COMMAND FOLDER FLAGS...
    command=$1 folder=$2
    shift 2
    if [ -e "$folder/config.json" ]; then
        echo "$folder is there"
    elif [ -d "$folder/checkpoints" ]; then
        "$engine" "$command" --resume --out "$folder"
    else
        "$engine" "$command" "$@" --batch 32 --val-tokens 65536 --eval-every 250 --save-every 250 --seed 1 --out "$folder" --force
    fi
}

if [ ! -e "$out/openings.json" ]; then
    "$engine" stories --count 120000 --seed 20261129 --out "$out/stories.jsonl" --force
    "$engine" stories --count 300000 --seed 2 --out "$out/more.jsonl" --force
    sed -n 's/^\({"text":"[A-Z][^\\]\{1,100\}\)\\n.*/\1\\n"}/p' "$out/more.jsonl" >"$out/openings.jsonl"
    head -n 9000 "$out/stories.jsonl" >"$out/some.jsonl"
    "$engine" tokenize --input "$out/stories.jsonl" --val-fraction 0.01 --out "$out/stories"
    "$engine" tokenize --input "$out/openings.jsonl" "$out/some.jsonl" --val-fraction 0.01 --out "$out/openings"
    rm "$out/more.jsonl"
fi
begin_or_go_on pretrain "$out/first" --data "$out/stories_train_*.bin" --val "$out/stories_val_*.bin" \
    --n-layer 4 --n-head 3 --n-embd 96 --n-ctx 128 --steps 6000 --stop 3282 --lr 3e-3 --min-lr 3e-5 --warmup 300
begin_or_go_on finetune "$out/model" --model "$out/first" --data "$out/openings_train_*.bin" --val "$out/openings_val_*.bin" \
    --grad-accum 1 --steps 3000 --lr 2e-3 --min-lr 2e-5 --warmup 100 --weight-decay 0.1

# What is shipped: the folder without the record of where it was made, and every 50th step and all validations of the log.
shipped=$here/../data/stories_gpt2
mkdir -p "$shipped"
for file in config.json generation_config.json model.safetensors special_tokens_map.json tokenizer.json tokenizer_config.json; do
    cp "$out/model/$file" "$shipped/"
done
for part in first model; do grep -E '"step":[0-9]*[05]0,|val_loss' "$out/$part/log.jsonl"; done >"$shipped/training_log.jsonl"
"$engine" analyze patching --model "$shipped"
