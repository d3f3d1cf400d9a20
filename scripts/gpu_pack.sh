#!/bin/sh
# Makes one folder that holds everything scripts/gpu_check.sh needs on a machine with a GPU and little else: no compiler, no
# headers, no packages; a driver, and CUDA 13's cuBLAS (its own, or the one that PyTorch brings).
#
#   scripts/gpu_pack.sh [FOLDER]      FOLDER=build/gpu_pack, replaced; then, wherever the GPU is:
#   FOLDER/scripts/gpu_check.sh --pack FOLDER --out RESULTS
#
# Inside: both engines' programs and the kernel laboratory, the model data/stories_gpt2, a text of stories, and the shared
# libraries that such a machine may lack. Needs nvcc here, but no GPU.
#
# Settings with their defaults: GPU=90a, whose code is made (H100, H200; 80: A100); EMULATE=1 makes the twin whose GPU is this
# processor: to try the check itself, says so in every row; CUDNN_FRONTEND=DIR makes a second kind of pack, with cuDNN's
# attention (dev/cuda/README.md); that one needs cuDNN 9 where it runs. PROCESSES=1 makes a third kind, for several GPUs, which
# needs this machine's MPI and NCCL 2 where it runs.
# Exit status: 0 made and checked, 1 failed, 2 bad use.
set -eu

fail() { echo "scripts/gpu_pack.sh: $1" >&2 && exit "${2:-1}"; }

made=${1:-build/gpu_pack}
folder=$made.new
most_mib=40
newest_glibc=2.36 # Debian 12's
[ -e train_gpt2_lnfree.cu ] || fail "run it in the project's folder" 2
[ ! -e "$made" ] || [ -e "$made/PACK" ] || fail "$made exists and is not an earlier pack; name another folder" 2

# Made from a copy of the sources, so that the programs of this checkout stay what they are.
work=build/gpu_pack_work
rm -rf "$work" "$folder"
mkdir -p "$work" "$folder/lib" "$folder/dev/cuda" "$folder/scripts" "$folder/data"
cp -R Makefile train_gpt2_lnfree.cpp train_gpt2_lnfree.cu data dev scripts test "$work"

mpi=''
if [ -n "${PROCESSES:-}" ]; then
    mpi=$(scripts/detect.sh --mpi link)
    [ -n "$mpi" ] || fail "PROCESSES=1: there is no mpicxx here; make deps-all installs Open MPI" 2
fi

# What is small is linked in; CUDA's runtime, which would be 650 KiB of every program of the laboratory, goes along
# once. The GPU's code alone, no intermediate code.
build() {
    NVCC_APPEND_FLAGS="-Xcompiler -static-libstdc++,-static-libgcc -cudart shared" MAKEFLAGS='' make -C "$work" NCCL="${PROCESSES:-0}" \
        -j"$(nproc)" ${EMULATE:+EMULATE=1} ${CUDNN_FRONTEND:+USE_CUDNN=1 "CUDNN_FRONTEND=$CUDNN_FRONTEND"} \
        CUDA_ARCHS="-gencode arch=compute_${GPU:-90a},code=sm_${GPU:-90a}" \
        MPI="${PROCESSES:-0}" LIBS="-l:libpcre2-8.a -l:libutf8proc.a -l:libz.a -ldl -static-libstdc++ -static-libgcc $mpi" "$@"
}
build clean >/dev/null
build train_gpt2_lnfree train_gpt2_lnfree_cuda lab_cuda || fail "the programs cannot be built; make says why above"

cp "$work/train_gpt2_lnfree" "$work/train_gpt2_lnfree_cuda" "$folder"
for source in dev/cuda/*.cu; do
    program=${source%.cu}
    [ "$program" = dev/cuda/main ] || cp "$work/$program" "$folder/$program"
done
cp -R data/stories_gpt2 "$folder/data"
cp scripts/gpu_check.sh "$folder/scripts"
programs="$folder/train_gpt2_lnfree $folder/train_gpt2_lnfree_cuda $folder/dev/cuda/*"
# shellcheck disable=SC2086  # several words, and a pattern
strip $programs

# Shared libraries that a bare machine may lack go along; the C library's are there, the driver's and cuBLAS are CUDA's.
# shellcheck disable=SC2086
needed=$(objdump -p $programs | sed -n 's/^ *NEEDED *//p' | sort -u)
for library in $needed libgcc_s.so.1; do # the last one is cuBLAS's
    case $library in
        libc.so.* | libm.so.* | libdl.so.* | librt.so.* | libpthread.so.* | ld-linux*) ;;
        libcublasLt.so.* | libcudnn*.so.* | libnvrtc.so.* | libnccl.so.* | libmpi*.so.* | libopen-*.so.*) ;;
        *)
            # shellcheck disable=SC2086
            path=$({ ldd $programs; ldconfig -p; } | sed -n "s|^.*$library .*=> \(/[^ ]*\).*|\1|p" | head -n 1)
            cp -L "$path" "$folder/lib/$library" || fail "$library, which the programs need, is not on this machine"
            ;;
    esac
done

"$folder/train_gpt2_lnfree" stories --count 500 --seed 1 --out "$work/stories.jsonl" >/dev/null
"$folder/train_gpt2_lnfree" tokenize --input "$work/stories.jsonl" --tokenizer byte --out "$folder/data/text" >/dev/null

# shellcheck disable=SC2086
glibc=$(objdump -T $programs "$folder"/lib/* | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1)
[ "$(printf '%s\n' "$glibc" "$newest_glibc" | sort -V | tail -n 1)" = "$newest_glibc" ] ||
    fail "the programs need glibc $glibc, newer than $newest_glibc; make the pack on an older system"
mib=$(du -sm "$folder" | cut -f 1)
[ "$mib" -le $most_mib ] || [ -n "${EMULATE:-}" ] || fail "the pack has $mib MiB, more than $most_mib"
{
    echo "made $(date +%Y-%m-%d) from $(git describe --always --dirty 2>/dev/null || echo sources without git)"
    if [ -n "${EMULATE:-}" ]; then
        echo "emulated: the GPU is the processor, times mean nothing"
    else
        nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
        echo "for sm_${GPU:-90a} by nvcc $("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')"
    fi
    echo "needs glibc $glibc, $(echo "$needed" | grep -c 'cublasLt\|cudnn\|nvrtc') libraries of CUDA: $(echo "$needed" | grep 'cublasLt\|cudnn\|nvrtc' | paste -sd ' ')"
} >"$folder/PACK"
rm -rf "$work" "$made"
mv "$folder" "$made"
cat "$made/PACK"
echo "$made: $mib MiB"
