#!/bin/sh
# Prints nvcc's -gencode flags: for the GPU of this machine, or else for every GPU since Ampere that this nvcc knows.
#
#   scripts/cuda_archs.sh NVCC
set -u

flag() { echo "-gencode arch=compute_${2:-$1},code=sm_$1"; } # GPU [WHOSE INTERMEDIATE CODE]

# 9.0 -> 90a: Hopper's own instructions are in the "a" variant only.
installed=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d . | tr -dc 0-9)
if [ -n "$installed" ]; then
    [ "$installed" = 90 ] && installed=90a
    flag "$installed"
    exit
fi
known=$("$1" --list-gpu-code 2>/dev/null)
for arch in 80 86 89 90a 100; do
    case "
$known
" in
        *"
sm_${arch%a}
"*)
            # The kernels ask for nothing between Ampere and Hopper: intermediate code that is made once does for three.
            case $arch in
                86 | 89) flag $arch 80 ;;
                *) flag $arch ;;
            esac
            ;;
    esac
done | tr '\n' ' '
