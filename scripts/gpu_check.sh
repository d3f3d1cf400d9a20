#!/bin/sh
# Everything that only a GPU can show, in one command and under eight minutes: builds, checks, measures, and writes a
# Markdown table for dev/results/.
#
#   scripts/gpu_check.sh
#
# Steps, each timed, each tried whatever became of the ones before:
#   1. build             make: both engines; make lab_cuda: the kernel laboratory
#   2. check             every operation and whole steps against the reference
#   3. laboratory        every program dev/cuda/NAME, every version of every kernel
#   4. sanitizer         compute-sanitizer's memcheck, racecheck and initcheck on a tiny removal, where it is installed
#   5. bench             GPT-2 Small at T = 1024, kernel by kernel; tokens/s and memory of all four sizes
#   6. removal           a tiny model of bytes, 60 steps of pretraining and 60 of removal, in fp32 on both engines: the
#                        losses of every step side by side
#
# Settings with their defaults: OUT=dev/results/GPU-DATE.md, the table; WORK=runs/gpu_check, logs and models, replaced;
# BENCH_SECONDS=2 for each stage of a step. Exit status: 0 all passed, 1 something failed, 2 bad use, 3 no GPU.
set -u

engine=./train_gpt2_lnfree_cuda
reference=./train_gpt2_lnfree
work=${WORK:-runs/gpu_check}

if [ ! -e train_gpt2_lnfree.cu ]; then
    echo "scripts/gpu_check.sh: run it in the project's folder" >&2
    exit 2
fi
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | head -n 1)
if [ -z "$gpu" ]; then
    echo "scripts/gpu_check.sh: no GPU was found (nvidia-smi names none); nothing was checked" >&2
    exit 3
fi
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
memory_mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
cuda=$("$nvcc" --version 2> /dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')
today=$(date +%Y-%m-%d)
out=${OUT:-dev/results/$(echo "$gpu" | tr 'A-Z ' 'a-z_' | tr -cd 'a-z0-9_-')-$today.md}

# Replaces an earlier check, and nothing that is not one.
if [ -e "$work" ] && [ ! -e "$work/.gpu_check" ]; then
    echo "scripts/gpu_check.sh: $work exists and is not an earlier check; name another folder with WORK=" >&2
    exit 2
fi
rm -rf "$work"
mkdir -p "$work" "$(dirname "$out")" || exit 1
touch "$work/.gpu_check"
steps=$work/steps.md
failed=0
begun=$(date +%s)

note() { # STEP RESULT SECONDS REMARK
    printf '| %s | %s | %s | %s |\n' "$1" "$2" "$3" "$4" >> "$steps"
    printf '%-34s %-8s %4s s  %s\n' "$1" "$2" "$3" "$4"
}

# Runs a command with its output in WORK/LOG; notes how it went and the last line that it wrote.
step() { # NAME LOG COMMAND...
    name=$1 log=$work/$2
    shift 2
    from=$(date +%s)
    "$@" > "$log" 2>&1
    status=$?
    seconds=$(($(date +%s) - from))
    remark=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr '|' '/' | cut -c 1-100)
    if [ $status -eq 0 ]; then
        note "$name" ok "$seconds" "$remark"
    else
        failed=$((failed + 1))
        note "$name" FAILED "$seconds" "exit $status: $remark"
    fi
    return $status
}

# ---- 1 to 3: build, check, laboratory

step "make" build.log make
step "make lab_cuda" lab_build.log make lab_cuda
step "check" check.log timeout 120 "$engine" check
for source in dev/cuda/*.cu; do
    program=${source%.cu}
    step "$program" "lab_$(basename "$program").log" timeout 60 "$program"
done

# ---- data for what follows

make_data() {
    "$reference" stories --count 2000 --seed 1 --out "$work/stories.jsonl" &&
        "$reference" tokenize --input "$work/stories.jsonl" --tokenizer byte --out "$work/text"
}
step "data" data.log make_data

# The flags of both engines' small runs. Every step trains on the same tokens whoever trains.
train() { # ENGINE COMMAND OUT FLAG...
    program=$1 command=$2 folder=$3
    shift 3
    "$program" "$command" --data "$work/text_train_*.bin" --val "$work/text_val_*.bin" --val-tokens 4096 \
        --save-every 0 --out "$folder" "$@"
}

# ---- 4: compute-sanitizer

sanitize() { # TOOL
    compute-sanitizer --tool "$1" --error-exitcode 9 "$engine" remove --model "$work/tiny" --steps 8 --batch 2 --seq 33 \
        --grad-accum 1 --data "$work/text_train_*.bin" --val "$work/text_val_*.bin" --val-tokens 512 --save-every 0 \
        --out "$work/sanitized_$1"
}
if command -v compute-sanitizer > /dev/null; then
    step "a tiny model" tiny.log train "$reference" pretrain "$work/tiny" --n-layer 2 --n-head 2 --n-embd 64 --n-ctx 64 \
        --steps 3 --batch 2 --seq 33
    for tool in memcheck racecheck initcheck; do step "compute-sanitizer $tool" "$tool.log" sanitize $tool; done
else
    note "compute-sanitizer" skipped 0 "not installed"
fi

# ---- 5: bench

# The value of a row of `bench --json`: its rows are lists of four strings.
bench_value() { # FILE WHAT FIGURE
    tr -d '\n' < "$1" | sed 's/\[ *"/\n["/g; s/" *, *"/","/g' |
        sed -n "s/^\[\"$2\",\"$3\",\"\([^\"]*\)\".*/\1/p" | head -n 1
}

# Micro-batches of 1024 tokens that fit the memory at hand: small, medium, large, xl.
if [ "$memory_mib" -gt 130000 ]; then
    batches="64 48 32 16"
elif [ "$memory_mib" -gt 75000 ]; then
    batches="32 24 16 8"
else
    batches="8 4 2 0"
fi
bench_one() { # SIZE BATCH SECONDS
    "$engine" bench --size "$1" --batch "$2" --seq 1024 --seconds "$3" --json > "$work/bench_$1.json"
}
sizes=$work/sizes.md
: > "$sizes"
# shellcheck disable=SC2086  # $batches is four words
set -- $batches
for size in small medium large xl; do
    batch=$1
    shift
    if [ "$batch" -eq 0 ]; then
        note "bench $size" skipped 0 "needs more than $memory_mib MiB"
        continue
    fi
    # With --json the tables for people go to standard error, which is the log.
    step "bench $size" "bench_$size.log" bench_one "$size" "$batch" "$(
        [ $size = small ] && echo "${BENCH_SECONDS:-2}" || echo 0.5
    )" || continue
    json=$work/bench_$size.json
    printf '| %s | %s | %s | %s | %s | %s | %s | %s |\n' "$size" "$batch" \
        "$(bench_value "$json" "all LayerNorm" tokens)" "$(bench_value "$json" "one layer's qk removed, v not" tokens)" \
        "$(bench_value "$json" "all removed" tokens)" "$(bench_value "$json" "all LayerNorm" "MFU of measured")" \
        "$(bench_value "$json" "all LayerNorm" "MFU of vendor's")" \
        "$(bench_value "$json" training "device memory")" >> "$sizes"
done

# ---- 6: a removal on both engines

# The largest difference of the losses of two runs, over all steps; fails beyond 0.001 nats, or if a step is missing.
# fp32 sums in another order differ by 1e-7, which training then lets grow.
compare_losses() { # FOLDER FOLDER
    for folder in "$1" "$2"; do
        sed -n 's/.*"loss": *\([-+0-9.e]*\).*/\1/p' "$folder/log.jsonl" > "$folder/losses.txt"
    done
    paste "$1/losses.txt" "$2/losses.txt" | awk '
        NF != 2 { missing = 1 }
        { off = $1 - $2; if (off < 0) off = -off; if (off > largest) largest = off }
        END {
            printf "%d steps, largest difference of losses %.2e nats, last losses %s and %s\n", NR, largest, $1, $2
            exit NR == 0 || missing || !(largest < 0.001)
        }'
}
run_pair() { # COMMAND FLAG...
    command=$1
    shift
    train "$reference" "$command" "$work/cpu_$command" "$@" &&
        train "$engine" "$command" "$work/gpu_$command" --precision fp32 "$@" &&
        compare_losses "$work/cpu_$command" "$work/gpu_$command"
}
step "pretraining on both" pretrain.log run_pair pretrain --size tiny --steps 60 --batch 8 --seq 128
step "removal on both" remove.log run_pair remove --model "$work/cpu_pretrain" --steps 60 --batch 8 --seq 128 --grad-accum 1
with_graphs() {
    train "$engine" remove "$work/graphs" --model "$work/cpu_pretrain" --steps 60 --batch 8 --seq 128 --grad-accum 1 \
        --precision fp32 --cuda-graphs && compare_losses "$work/gpu_remove" "$work/graphs"
}
step "removal with CUDA graphs and without" graphs.log with_graphs

# ---- the table

small=$work/bench_small.json
{
    echo "# $gpu, $today"
    echo
    echo "Driver $driver, CUDA $cuda, $memory_mib MiB; \`scripts/gpu_check.sh\`, $(($(date +%s) - begun)) s in all."
    echo
    echo "| step | result | seconds | last line |"
    echo "|---|---|---:|---|"
    cat "$steps"
    if [ -s "$sizes" ]; then
        echo
        echo "A training step in bf16 at T = 1024: tokens/s in three stages of a removal; the share of what the device can do"
        echo "(measured: a 4096 x 4096 x 4096 product of the same session; vendor's: the data sheet) with all LayerNorms."
        echo
        echo "| size | micro-batch | all LayerNorm | one layer's qk and v apart | all removed | MFU, % of measured | MFU, % of vendor's | device memory, MiB |"
        echo "|---|---:|---:|---:|---:|---:|---:|---:|"
        cat "$sizes"
    fi
    if [ -s "$work/bench_small.log" ] && [ -s "$small" ]; then
        echo
        echo "GPT-2 Small, kernel by kernel, caches emptied before each:"
        echo
        echo '```text'
        cat "$work/bench_small.log"
        echo '```'
    fi
} > "$out.new" && mv "$out.new" "$out" || exit 1

echo
echo "$out is written; what the steps printed is in $work"
if [ $failed -gt 0 ]; then
    echo "scripts/gpu_check.sh: $failed steps FAILED" >&2
    exit 1
fi
