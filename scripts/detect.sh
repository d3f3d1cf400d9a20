#!/bin/sh
# Looks at this machine on behalf of the Makefile.
#
#   scripts/detect.sh            prints what was found, for people
#   scripts/detect.sh --words    prints what the Makefile acts on, as words in one line:
#                                openmp    programs with -fopenmp build
#                                cuda      nvcc and cuBLASLt are there
#                                nccl      NCCL is beside them
#                                mpi       programs for several processes build
#                                x86       the compiler builds for x86-64
#                                avx2, avx512   the processor runs the instruction set
#   scripts/detect.sh --mpi compile | link   the flags for that, from MPI's compiler wrapper
#
# CXX names the compiler (g++ if unset). Nothing here fails: what is missing is reported as missing.
set -u

# CXX may hold a launcher and flags ("ccache g++ -m64"), so it is split into words on purpose everywhere below.
# shellcheck disable=SC2086
compile() { ${CXX:-g++} -x c++ "$@" 2>/dev/null; }

has_openmp() {
    printf '#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n' |
        compile -fopenmp -o /dev/null -
}

nvcc_path() { command -v nvcc || { [ -x /usr/local/cuda/bin/nvcc ] && echo /usr/local/cuda/bin/nvcc; }; }

has_cuda() {
    nvcc=$(nvcc_path) && test -e "$(dirname "$(dirname "$(realpath "$nvcc")")")/include/cublasLt.h"
}

# Open MPI's wrapper knows --showme, MPICH's and its kin -compile_info, which begins with the compiler's name.
mpi_flags() { # compile | link
    mpicxx --showme:"$1" 2>/dev/null || mpicxx "-$1_info" 2>/dev/null | cut -d ' ' -f 2-
}

# The flags are separate words on purpose.
# shellcheck disable=SC2046
has_mpi() {
    command -v mpicxx >/dev/null 2>&1 &&
        printf '#include <mpi.h>\nint main() { return MPI_Finalize(); }\n' |
        compile $(mpi_flags compile) -o /dev/null - $(mpi_flags link)
}

has_nccl() {
    has_cuda || return
    toolkit=$(dirname "$(dirname "$(realpath "$(nvcc_path)")")")
    test -e "$toolkit/include/nccl.h" || test -e /usr/include/nccl.h
}

words() {
    has_openmp && echo openmp
    has_mpi && echo mpi
    has_cuda && echo cuda
    has_nccl && echo nccl
    # -march=native defines the macros of what the processor offers; elsewhere than on x86 nothing is printed.
    compile -march=native -E -P - <<'END' | grep -v '^#'
#ifdef __x86_64__
x86
#endif
#if defined(__AVX2__) && defined(__FMA__) && defined(__BMI__) && defined(__BMI2__)
avx2
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && \
    defined(__AVX512CD__)
avx512
#endif
END
}

# The version that a header states about itself; "found" if it has none, nothing if it is not there.
version_of() { # HEADER MACRO...
    header=$1
    shift
    text=$(printf '#include <%s>\n@ %s\n' "$header" "$*" | compile -DPCRE2_CODE_UNIT_WIDTH=8 -E -P -) || return 0
    text=$(echo "$text" | sed -n 's/^@ //p')
    case $text in
        *_*) echo found ;;
        *) echo "$text" | tr -d '" ' | sed 's/,/./g' ;;
    esac
}

row() { # NAME VALUE WITHOUT-IT
    printf '  %-18s %s\n' "$1" "${2:-not found${3:+ ($3)}}"
}

program_version() { # PROGRAM: the first thing that looks like a version
    command -v "$1" >/dev/null 2>&1 && "$1" --version 2>/dev/null | grep -Eo '[0-9]+\.[0-9]+(\.[0-9]+)?' | tail -n 1
}

table() {
    echo "Found on this machine:"
    row "C++ compiler" "$(compile --version </dev/null | head -n 1)" "make deps installs g++"
    row OpenMP "$(has_openmp && echo yes)" "one thread only; with clang++: libomp-dev"
    row doctest "$(version_of doctest/doctest.h DOCTEST_VERSION_STR)" "tests need it: make deps"
    row nlohmann-json "$(version_of nlohmann/json_fwd.hpp \
        NLOHMANN_JSON_VERSION_MAJOR,NLOHMANN_JSON_VERSION_MINOR,NLOHMANN_JSON_VERSION_PATCH)" "make deps"
    row CLI11 "$(version_of CLI/Version.hpp CLI11_VERSION)" "make deps"
    row Eigen "$(version_of eigen3/Eigen/src/Core/util/Macros.h \
        EIGEN_WORLD_VERSION,EIGEN_MAJOR_VERSION,EIGEN_MINOR_VERSION)" "make deps"
    row PCRE2 "$(version_of pcre2.h PCRE2_MAJOR,PCRE2_MINOR)" "make deps"
    row utf8proc "$(version_of utf8proc.h UTF8PROC_VERSION_MAJOR,UTF8PROC_VERSION_MINOR)" "make deps"
    row zlib "$(version_of zlib.h ZLIB_VERSION)" "make deps"
    row Boost.Context "$(version_of boost/version.hpp BOOST_LIB_VERSION | tr _ .)" "tests of the CUDA engine need it: make deps"
    row nvcc "$(program_version "$(nvcc_path || echo none)")" "no CUDA engine"
    row cuBLASLt "$(has_cuda && echo yes)" "no CUDA engine"
    row NCCL "$(has_nccl && echo yes)" "several processes do not train on GPUs"
    row GPU "$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)" "the CUDA engine will build and not run"
    row MPI "$(has_mpi && program_version mpirun)" "one process only: make deps-all"
    row clang-format "$(program_version clang-format)" "only for make format, make lint"
    row clang-tidy "$(program_version clang-tidy)" "only for make lint"
    row python3 "$(program_version python3)" "only for scripts that say so"
}

case ${1:-} in
    --words) words | tr '\n' ' ' ;;
    --mpi) mpi_flags "$2" ;;
    '') table ;;
    *) echo "detect.sh: unknown argument '$1' (use: --words, --mpi)" >&2 && exit 2 ;;
esac
