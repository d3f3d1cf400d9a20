#!/bin/sh
# Everything that only a GPU can show, in five minutes at most and worth having after one: speed first, then whether it is
# right. Every result is written as soon as it is there.
#
#   scripts/gpu_check.sh --pack FOLDER --out RESULTS      from a pack that scripts/gpu_pack.sh made, on any machine with a GPU
#   scripts/gpu_check.sh --out RESULTS                    makes the pack itself, where nvcc is
#
# The steps, in this order:
#   bench small          a training step of GPT-2 Small at T = 1024, kernel by kernel and as a whole
#   check                every operation and whole steps against the CPU's functions
#   bench small, chosen  the same beside cuBLASLt's first guesses: the fastest of eight kernels for every product
#   bench xl             the same for GPT-2 XL
#   bench small, cuDNN   attention by cuDNN beside ours, in packs that have it
#   removal, both        the paper's schedule on data/stories_gpt2, in fp32 on GPU and CPU: the losses of every step
#   removal, CUDA graphs the same on the GPU with CUDA graphs: the same bits
#   two GPUs             the same on two of them, where there are two, MPI, and a pack for several
#   eval                 what that left, in fp32, TF32 and bf16
#   small, teacher       GPT-2 Small's shape, random weights, ten steps of removal with a teacher, in bf16
#   small, report        every analysis of that shape that needs no question sets
#   kernels              every program of the laboratory, every version of every kernel
#   memcheck, initcheck  compute-sanitizer on a tiny removal, where it is installed
#
# RESULTS (default dev/results/GPU-DATE) is made, or an earlier one is replaced: results.md, the table; output.txt, all that the
# programs said; bench_*.json; products.txt, for --products. --emulated lets programs run whose GPU is this processor (EMULATE=1 scripts/gpu_pack.sh), at
# tiny sizes, and says so in every row; without it they are refused. SECONDS_IN_ALL=300: later steps are left out.
# Exit status: 0 all passed, 1 something failed, 2 bad use, 3 no GPU.
set -u

usage() {
    echo "scripts/gpu_check.sh: $1; usage: scripts/gpu_check.sh [--pack FOLDER] [--out RESULTS] [--emulated]" >&2
    exit 2
}

pack='' out='' emulated=''
while [ $# -gt 0 ]; do
    case $1 in
        --pack | --out) [ $# -gt 1 ] || usage "$1 needs a folder" ;;
    esac
    case $1 in
        --pack) pack=$2 && shift ;;
        --out) out=$2 && shift ;;
        --emulated) emulated=yes ;;
        -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
        *) usage "$1 is not known" ;;
    esac
    shift
done

gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader,nounits 2>/dev/null | head -n 1)
if [ -n "$emulated" ]; then
    gpu="emulation"
elif [ -z "$gpu" ]; then
    echo "scripts/gpu_check.sh: no GPU was found (nvidia-smi names none); nothing was checked" >&2
    exit 3
fi
if [ -z "$pack" ]; then
    pack=build/gpu_pack
    "$(dirname "$0")/gpu_pack.sh" "$pack" || exit
fi
[ -e "$pack/PACK" ] || usage "$pack is no pack (scripts/gpu_pack.sh makes one)"
name=$(echo "${gpu%%,*}" | tr 'A-Z ' 'a-z_' | tr -cd 'a-z0-9_-')
out=${out:-dev/results/$name-$(date +%Y-%m-%d)}
if [ -e "$out" ] && [ -n "$(ls -A "$out" 2>/dev/null)" ] && [ ! -e "$out/results.md" ]; then
    usage "$out is there and no earlier result; name another folder"
fi
mkdir -p "$out" || exit 1
pack=$(realpath "$pack")
out=$(realpath "$out")
rm -f "$out/results.md" "$out/output.txt" "$out/products.txt" "$out"/bench_*.json
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$pack" || exit 1
engine=./train_gpt2_lnfree_cuda
reference=./train_gpt2_lnfree

# cuBLAS: CUDA's own, or PyTorch's, or wherever it lies.
cublas() {
    for place in /usr/local/cuda/lib64 "$(python3 -c 'import nvidia.cu13 as m; print(list(m.__path__)[0] + "/lib")' 2>/dev/null)"; do
        if [ -e "$place/libcublasLt.so.13" ]; then echo "$place" && return; fi
    done
    dirname "$(timeout 20 find / -xdev -name libcublasLt.so.13 2>/dev/null | head -n 1)"
}
LD_LIBRARY_PATH="$pack/lib:$(cublas)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LD_LIBRARY_PATH

begun=$(date +%s)
patience=${emulated:+10} # times as long for everything in emulation
in_all=$((${SECONDS_IN_ALL:-300} * ${patience:-1}))
failed=0
{
    echo "# $(echo "$gpu" | sed 's/, / driver /; s/, \(.*\)/, \1 MiB/'), $(date +%Y-%m-%d)"
    echo
    sed 's/$/  /' PACK
    echo
    echo "| step | result | seconds | what it said |"
    echo "|---|---|---:|---|"
} >"$out/results.md"

note() { # STEP RESULT SECONDS REMARK
    printf '| %s%s | %s | %s | %s |\n' "$1" "${emulated:+ (emulated)}" "$2" "$3" "$4" >>"$out/results.md"
    printf '%-34s %-8s %4s s  %s\n' "$1${emulated:+ (emulated)}" "$2" "$3" "$4"
}

# Runs a command, at most LIMIT seconds of it, and notes the last line that it wrote. What it writes to standard output goes
# to the file $save, where one is named, all else to output.txt.
step() { # NAME LIMIT COMMAND...
    step=$1 limit=$(($2 * ${patience:-1})) from=$(date +%s)
    shift 2
    left=$((in_all - (from - begun)))
    if [ $left -lt 5 ]; then
        note "$step" "left out" 0 "no time left of $in_all s"
        return 1
    fi
    if [ "$limit" -gt $left ]; then limit=$left; fi
    echo "==== $step: $*" >>"$out/output.txt"
    log=$work/log.txt
    if [ -n "${save:-}" ]; then
        timeout -k 5 "$limit" "$@" >"$save" 2>"$log"
    else
        timeout -k 5 "$limit" "$@" >"$log" 2>&1
    fi
    status=$?
    cat "$log" >>"$out/output.txt"
    seconds=$(($(date +%s) - from))
    said=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr '|' '/' | cut -c 1-150)
    if [ -z "$emulated" ] && grep -qi 'emulated' "$log"; then
        said="an emulated program, which says nothing about a GPU: make the pack without EMULATE"
    elif [ $status -eq 0 ]; then
        [ -n "${save:-}" ] || note "$step" ok "$seconds" "$said"
        return 0
    elif [ $status -eq 124 ] || [ $status -eq 137 ]; then
        said="stopped after $limit s; $said"
    else
        said="exit $status: $said"
    fi
    failed=$((failed + 1))
    note "$step" FAILED "$seconds" "$said"
    return 1
}

# ---- speed

# The value of a row of `bench --json`: its rows are lists of four strings.
bench_value() { # FILE WHAT FIGURE
    tr -d '\n' <"$1" | sed 's/\[ *"/\n["/g; s/" *, *"/","/g' |
        sed -n "s/^\[\"$2\",\"$3\",\"\([^\"]*\)\".*/\1/p" | head -n 1
}
# Sequences of 1,024 tokens that fit the memory at hand, of GPT-2 Small and XL.
memory=${gpu##*, }
case $memory in *[!0-9]*) memory=0 ;; esac
small_batch=8 xl_batch=0
if [ "$memory" -gt 75000 ]; then small_batch=32 xl_batch=8; fi
if [ "$memory" -gt 130000 ] || [ -n "$emulated" ]; then small_batch=64 xl_batch=16; fi
bench() { # NAME SIZE BATCH FLAG...
    file=$out/bench_$(echo "$1" | tr ' ,' '__').json
    name=$1 size=$2 batch=$3
    shift 3
    if [ "$batch" -eq 0 ]; then note "bench $name" "left out" 0 "needs more than $memory MiB" && return; fi
    seq=1024 budget=1
    if [ -n "$emulated" ]; then size=tiny batch=1 seq=16 budget=0.01; fi
    save=$file # not in front of the call: in some shells it would stay
    step "bench $name" 60 "$engine" bench --size "$size" --batch "$batch" --seq $seq --seconds $budget --json "$@"
    status=$?
    save=
    [ $status -eq 0 ] || return
    figure() { bench_value "$file" "$1" "$2"; }
    said="$batch x $seq tokens: $(figure "all LayerNorm" tokens) tokens/s, half removed $(figure "one layer's qk removed, v not" tokens)"
    said="$said, all removed $(figure "all removed" tokens); $(figure "all LayerNorm" "MFU of measured") % of a measured product"
    said="$said, $(figure "all LayerNorm" "MFU of vendor's") % of the data sheet; $(figure training "device memory") MiB"
    note "bench $name" ok "$seconds" "$said; copy $(figure ceiling copy) GB/s"
}

bench small small "$small_batch"
step check 60 "$engine" check
bench "small, chosen" small "$small_batch" --products "$out/products.txt"
bench xl xl "$xl_batch"
if grep -aq libcudnn "$engine"; then bench "small, cuDNN" small "$small_batch" --attention cudnn; fi

# ---- a removal on both engines

# Every step trains on the same tokens whoever trains.
train() { # NAME LIMIT PROGRAM OUT COMMAND FLAG...
    name=$1 limit=$2 program=$3 folder=$4
    shift 4
    step "$name" "$limit" "$program" "$@" --data 'data/text_train_*.bin' --val 'data/text_val_*.bin' --val-tokens 1024 --save-every 0 \
        --out "$work/$folder"
}
# The largest difference of the losses of two runs, over all steps; fails beyond LIMIT, or if a step is missing.
compare_losses() { # NAME LIMIT FOLDER FOLDER
    for folder in "$3" "$4"; do
        sed -n 's/.*"loss": *\([-+0-9.e]*\).*/\1/p' "$work/$folder/log.jsonl" >"$work/$folder.losses" 2>/dev/null
    done
    said=$(paste "$work/$3.losses" "$work/$4.losses" | awk -v limit="$2" '
        NF != 2 { missing = 1 }
        { off = $1 - $2; if (off < 0) off = -off; if (off > largest) largest = off }
        END {
            printf "%d steps, largest difference of losses %.2e nats, last losses %s and %s\n", NR, largest, $1, $2
            exit NR == 0 || missing || !(largest <= limit)
        }')
    status=$?
    [ $status -eq 0 ] || failed=$((failed + 1))
    note "$1" "$([ $status -eq 0 ] && echo ok || echo FAILED)" 0 "$said"
}
# fp32 sums in another order differ by 1e-7, which training then lets grow.
removal="remove --model data/stories_gpt2 --preset paper --batch 4 --seq 128 --steps 40"
[ -z "$emulated" ] || removal="remove --model data/stories_gpt2 --preset paper --batch 1 --seq 16 --steps 20"
# shellcheck disable=SC2086
train "removal on the CPU" 60 "$reference" cpu $removal --grad-accum 1 && train "removal on the GPU" 60 "$engine" gpu $removal --grad-accum 1 --precision fp32 &&
    compare_losses "removal, both" 0.001 cpu gpu && train "removal with CUDA graphs" 60 "$engine" graphs $removal --grad-accum 1 --precision fp32 --cuda-graphs &&
    compare_losses "with CUDA graphs and without" 0 gpu graphs

# A pack for several GPUs; in emulation two processes, whose GPU is the same processor.
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
if [ -n "$emulated" ]; then gpus=2; fi
if command -v mpirun >/dev/null && [ "$gpus" -ge 2 ] && ldd "$engine" 2>/dev/null | grep -q libmpi; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 # Open MPI's; in a container one is root
    # shellcheck disable=SC2086
    train "removal on one GPU" 60 "$engine" halves $removal --precision fp32 --grad-accum 2 &&
        train "removal on two GPUs" 60 "mpirun" two --bind-to none -np 2 "$engine" $removal --precision fp32 --grad-accum 2 &&
        compare_losses "two GPUs" 0.001 halves two
else
    note "two GPUs" "left out" 0 "needs two GPUs, mpirun, and a pack made with PROCESSES=1"
fi

eval_tokens=65536
[ -z "$emulated" ] || eval_tokens=1024
for precision in fp32 tf32 bf16; do
    step "eval, $precision" 60 "$engine" eval --model "$work/gpu" --data 'data/text_val_*.bin' --seq 128 --val-tokens $eval_tokens --worst 0 --markdown \
        --precision $precision
done

# ---- a removal with a teacher, at a size that fills the device

shape="--size small --vocab-size 50257 --seq 1024 --batch 8"
[ -z "$emulated" ] || shape="--size tiny --seq 16 --batch 1"
steps="--grad-accum 1 --data data/text_train_*.bin --val data/text_val_*.bin --val-tokens 1024 --save-every 0"
# shellcheck disable=SC2086
step "small, random weights" 60 "$engine" pretrain $shape --steps 1 $steps --out "$work/small" &&
    step "small, teacher" 60 "$engine" remove --model "$work/small" ${shape#--size * } --steps 10 $steps --distill 1 --out "$work/taught"
sample="--seq 512 --sequences 100"
[ -z "$emulated" ] || sample="--seq 16 --sequences 2"
# shellcheck disable=SC2086
step "small, report" 60 "$engine" analyze report --model "$work/small" --data 'data/text_val_*.bin' $sample --parts loss dla norms sinks confidence --out "$work/report"

# ---- kernels, and compute-sanitizer

for program in dev/cuda/*; do step "$program" 20 "$program"; done

if [ -z "$emulated" ] && command -v compute-sanitizer >/dev/null; then
    for tool in memcheck initcheck; do
        # shellcheck disable=SC2086
        step "$tool" 60 compute-sanitizer --tool $tool --error-exitcode 9 "$engine" remove --model data/stories_gpt2 --steps 8 --batch 2 --seq 33 $steps \
            --out "$work/$tool"
    done
else
    note memcheck "left out" 0 "compute-sanitizer is not installed, or the GPU is emulated"
fi

{
    echo
    echo "$(($(date +%s) - begun)) s in all, $failed failed. bench_*.json has every kernel; output.txt all that was said."
} >>"$out/results.md"
echo "$out/results.md is written"
if [ $failed -gt 0 ]; then
    echo "scripts/gpu_check.sh: $failed steps FAILED" >&2
    exit 1
fi
