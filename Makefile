# Builds, tests and checks gpt2-lnfree. `make help` lists what can be asked for.

#: make                  show what was found on this machine, then build ./train_gpt2_lnfree; with nvcc also ./train_gpt2_lnfree_cuda
#: make demo             the paper's main result on this CPU, in minutes; TEXT=FILE: on your own text
#: make test             every test; ONLY=PART: only the tests whose name contains PART, and nothing else is built
#: make quick            in seconds, after an edit: gradients, oracle, instruction set, command line, for this processor's best set
#: make fuzz             throw made-up files at every reader, FUZZ_SECONDS=30 each; needs clang++
#: make test-interop     against transformers, TransformerLens and other clients, in virtual environments; needs Python and the network
#: make test-long        what takes hours: ten minutes of fuzzing per reader, 50 kills twice, several hosts, 240 removals, 10 GB of text, the GPU's check emulated
#: make deps             install the packages that are needed and missing (scripts/packages.txt); deps-all: also the optional ones
#: make dev/cpu/NAME     a program of the kernel laboratory, for this processor only
#: make dev/cuda/NAME    one for the GPU; without nvcc, or with EMULATE=1, in emulation (so is train_gpt2_lnfree_cuda with
#:                       EMULATE=1). lab_cuda: all of them
#: make format           lay the sources out in the house style (clang-format)
#: make lint             check style (clang-format) and habits (clang-tidy)
#: make clean            remove everything that was built
#:
#: CXX=clang++           another compiler                  ISA=native|portable|avx2|avx512  one instruction set only, builds faster
#: SAN=1                 with Address- and UndefinedBehaviorSanitizer    WERROR=1  warnings are errors    V=1  show the commands
#: CXXFLAGS=...          instead of -O2                    make -j1          one job at a time (default: one per core)
#: MPI=0  NCCL=0         without MPI, without NCCL, though they are there: one process only
#: CUDA=0                leave the CUDA engine out          CUDA_ARCHS=...    nvcc's -gencode flags (scripts/cuda_archs.sh)
#: USE_CUDNN=1           with cuDNN's attention as well     CUDNN_FRONTEND=DIR  where cudnn_frontend.h is, if not in a usual place
#:
#: At run time LNFREE_ISA=portable|avx2|avx512 makes the program use that instruction set instead of the best one.

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory
ifeq ($(MAKELEVEL),0)
    MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
endif
ifneq ($(filter clean,$(MAKECMDGOALS)),)
    .NOTPARALLEL:
endif
Q := $(if $(V),,@)

# ---- the machine -----------------------------------------------------------------------------------------------------

ifeq ($(origin CXX),default)
    CXX := $(if $(shell command -v g++),g++,$(if $(shell command -v clang++),clang++,g++))
endif
NM ?= nm
export CXX

# These targets need no compiler. test, quick and demo start a second make after the packages are there, and that one looks.
ifneq ($(filter-out help clean format lint deps deps-all test quick demo,$(or $(MAKECMDGOALS),all)),)
    FOUND := $(shell CXX='$(CXX)' scripts/detect.sh --words)
endif

# ---- instruction sets ------------------------------------------------------------------------------------------------

# From the most widely supported to the fastest. No -march=native: the program runs on every processor of its kind and
# uses what the one at hand has (dev/cpu/dispatch.cpp). Compilers halve AVX-512's vectors unless told not to; GELU takes
# 1.6 times as long with halves. Only the operations (section 2 of train_gpt2_lnfree.cpp) are compiled for each.
ifneq ($(filter x86,$(FOUND)),)
    FLAGS_portable := -march=x86-64
    FLAGS_avx2     := -march=haswell
    FLAGS_avx512   := -march=skylake-avx512 -mavx512bf16 -mprefer-vector-width=512
    ALL_ISAS       := portable avx2 avx512
else
    ALL_ISAS       := portable
endif
FLAGS_native   := -march=native
RUNNABLE_ISAS  := portable $(filter avx2 avx512,$(FOUND))
BEST_ISA       := $(lastword $(RUNNABLE_ISAS))

# What the program holds: all of them, or a single one if asked.
ifdef ISA
    VARIANTS := $(filter $(ISA),native $(ALL_ISAS))
    ifeq ($(VARIANTS)$(if $(FOUND),,not looked yet),)
        $(error ISA=$(ISA): choose one of: native $(ALL_ISAS))
    endif
else ifdef SAN
    VARIANTS := $(BEST_ISA)
else
    VARIANTS := $(ALL_ISAS)
endif

# ---- flags -----------------------------------------------------------------------------------------------------------

# clang++ warns (pass-failed) where it could not make vector code of a loop that asks for it: slower, not wrong.
# Never -ffast-math: a NaN must stay a NaN, and sums are taken in the order that the source writes.
LANGUAGE := -std=c++17 -fno-math-errno -fno-trapping-math -Wall -Wextra $(if $(WERROR),-Werror) -I. \
            $(if $(filter openmp,$(FOUND)),-fopenmp,-Wno-unknown-pragmas) $(if $(findstring clang,$(CXX)),-Wno-pass-failed)
# Several processes: with MPI's own flags (MPI=0: without it). Its leaks are not the sanitizers' business.
MPI_FOUND := $(if $(filter 0,$(MPI))$(SAN),,$(filter mpi,$(FOUND)))
MPI_FLAGS := $(if $(MPI_FOUND),-DLNFREE_MPI $(shell scripts/detect.sh --mpi compile))
LIBS := -lpcre2-8 -lutf8proc -lz -ldl $(if $(MPI_FOUND),$(shell scripts/detect.sh --mpi link))
ifdef SAN
    LANGUAGE += -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1
    CXXFLAGS ?= -O1
    COLDFLAGS ?= -O0
endif
CXXFLAGS ?= -O2
# The reference and the readers of data/ with CXXFLAGS; what only calls them with less: a fifth off the compiler's time.
COLDFLAGS ?= $(if $(filter -O2,$(CXXFLAGS)),-O1,$(CXXFLAGS))
# Tests spend their time in what they link, so their own code is compiled quickly.
TESTFLAGS ?= -O0

BUILD := build/$(notdir $(lastword $(CXX)))$(if $(SAN),-san)$(if $(ISA),-$(ISA))

# ---- the program -----------------------------------------------------------------------------------------------------

# Sanitised programs stay in their folder, so that nobody times one by accident.
PROGRAM := $(if $(SAN),$(BUILD)/)train_gpt2_lnfree

# nvcc compiles for g++ only, and the sanitizers do not know the GPU: other builds are of the CPU engine alone.
CUDA_PROGRAM := $(if $(filter 0,$(CUDA))$(SAN)$(ISA)$(findstring clang,$(CXX)),,$(if $(filter cuda,$(FOUND)),train_gpt2_lnfree_cuda))

.PHONY: all help clean detect ready FORCE
# What takes longest begins first, so that the other cores do not wait for it at the end.
all: detect $(CUDA_PROGRAM) $(PROGRAM)
	@echo "Built ./$(PROGRAM) ($(VARIANTS))$(if $(filter openmp,$(FOUND)),, without OpenMP: it will use one thread)$(if $(MPI_FOUND),$(comma) also for several processes over MPI)"
	@$(if $(CUDA_PROGRAM),echo "Built ./$(CUDA_PROGRAM) ($(foreach code,$(filter code=%,$(subst $(comma), ,$(CUDA_ARCHS))),$(code:code=%=%)))",:)

help:
	@sed -n 's/^#: \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

detect:
	@scripts/detect.sh

# One clear line instead of pages of "file not found".
ready: | detect
	@scripts/install_deps.sh needed --check

# Rewritten only when they change: other flags rebuild everything, those of MPI the one file that knows it.
$(BUILD)/flags: WORDS = $(LANGUAGE) $(CXXFLAGS) $(COLDFLAGS) $(TESTFLAGS) $(VARIANTS)
$(BUILD)/mpi_flags: WORDS = $(MPI_FLAGS)
$(BUILD)/flags $(BUILD)/mpi_flags: FORCE
	@mkdir -p $(@D)
	@echo '$(WORDS)' | cmp -s - $@ || echo '$(WORDS)' > $@

# Every room is compiled once, file by file, into an archive; a program takes what it needs.
objects_of = $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard $(1:%=%/*.cpp)))
NOT_LINKED := dev/cpu/matmul.cpp dev/cpu/dispatch.cpp dev/cuda/cudnn_attention.cpp
$(BUILD)/%.o: %.cpp $(BUILD)/flags | ready
	@mkdir -p $(@D)
	@echo "compile  $<"
	$(Q)$(CXX) $(LANGUAGE) $(if $(filter data/%,$<),$(CXXFLAGS),$(COLDFLAGS)) $(EXTRA) -MMD -MP -c $< -o $@
$(BUILD)/dev/run/processes_mpi.o: EXTRA = $(MPI_FLAGS)
$(BUILD)/dev/run/processes_mpi.o: $(BUILD)/mpi_flags
$(BUILD)/dev/commands/command_line.o: EXTRA = -O0  # CLI11's templates: -O1 takes half as long again

# The operations, once per instruction set. No function of theirs may be one that the linker shares with other units: it
# would keep the first copy that it meets, compiled for AVX-512 perhaps, and run it on every processor. (The weak names left
# are the compilers' ways into exception handling: nothing is computed there.)
$(BUILD)/operations_%.o: train_gpt2_lnfree.cpp $(BUILD)/flags | ready
	@echo "compile  $< (operations, $*)"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) $(FLAGS_$*) -DLNFREE_OPERATIONS=$* -MMD -MP -c $< -o $@
	$(if $(SAN)$(filter-out -O2 -O3,$(CXXFLAGS)),,@shared=$$($(NM) -C --defined-only $@ | grep ' [WVu] ' | grep -v -e DW.ref.__gxx_personality -e __clang_call_terminate); \
	    test -z "$$shared" || { echo "$@ shares these names with other units:" "$$shared" >&2; rm $@; exit 1; })

# All else of that file: for programs that have their own main(), and with the program's.
$(BUILD)/method.o $(BUILD)/main.o: train_gpt2_lnfree.cpp $(BUILD)/flags | ready
	@echo "compile  $< ($(basename $(@F)))"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) -DLNFREE_DISPATCH $(if $(filter main,$(basename $(@F))),-DLNFREE_PROGRAM,-DLNFREE_NO_MAIN) \
	    -MMD -MP -c $< -o $@

$(BUILD)/dispatch.o: dev/cpu/dispatch.cpp $(BUILD)/flags | ready
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) '-DLNFREE_VARIANTS=$(foreach isa,$(VARIANTS),VARIANT($(isa)))' -MMD -MP -c $< -o $@

OPERATIONS := $(BUILD)/dispatch.o $(VARIANTS:%=$(BUILD)/operations_%.o)
DATA := $(BUILD)/data.a
REFERENCE := $(BUILD)/reference.a
ROOMS := $(BUILD)/rooms.a
$(DATA): $(call objects_of,data)
$(REFERENCE): $(BUILD)/method.o $(OPERATIONS)
$(ROOMS): $(filter-out $(NOT_LINKED:%.cpp=$(BUILD)/%.o),$(call objects_of,dev/run dev/analysis dev/commands dev/cpu dev/cuda))
$(DATA) $(REFERENCE) $(ROOMS):
	@rm -f $@
	$(Q)ar rcs $@ $^

$(BUILD)/train_gpt2_lnfree: $(BUILD)/main.o $(ROOMS) $(OPERATIONS) $(DATA)
	@echo "link     $@"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) $^ $(LIBS) -o $@

# Copied whenever it differs, not when it is older: g++, clang++ and ISA= builds take turns here.
ifndef SAN
train_gpt2_lnfree: $(BUILD)/train_gpt2_lnfree FORCE
	@cmp -s $< $@ || { cp $< $@.new && mv $@.new $@; }
endif

# ---- the CUDA engine -------------------------------------------------------------------------------------------------

# nvcc gets the kernels and the model alone; all else is what the CPU program is linked from.
comma := ,
NVCC ?= $(or $(shell command -v nvcc 2>/dev/null),/usr/local/cuda/bin/nvcc)
CUDA_ROOT := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
ifneq ($(filter cuda,$(FOUND)),)
    CUDA_ARCHS ?= $(shell scripts/cuda_archs.sh '$(NVCC)')
endif
# USE_CUDNN=1: cuDNN's attention beside ours. Its frontend is headers only, which take the C++ compiler a minute and 1.4 GB.
CUDNN := $(filter-out 0,$(USE_CUDNN))
CUDNN_FLAG := $(if $(CUDNN),-DLNFREE_CUDNN)
CUDNN_PLACES := $(or $(CUDNN_FRONTEND),$(CUDA_ROOT)/include /usr/local/include /usr/include)
CUDNN_INCLUDE := $(if $(CUDNN),$(firstword $(patsubst %/cudnn_frontend.h,%,$(wildcard $(CUDNN_PLACES:%=%/cudnn_frontend.h)))))
ifneq ($(and $(CUDNN),$(FOUND),$(if $(CUDNN_INCLUDE),,missing)),)
    $(error USE_CUDNN=1: there is no cudnn_frontend.h in $(CUDNN_PLACES); give CUDNN_FRONTEND=DIR (dev/cuda/README.md))
endif
# (nvcc's -O is about the code for this processor; that for the GPU is always fully optimised.)
NVCCFLAGS := -std=c++17 --threads 0 -I. \
             -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas$(if $(filter openmp,$(FOUND)),$(comma)-fopenmp)

# Several GPUs: NCCL, between processes that MPI or torchrun's environment starts (dev/run/README.md).
NCCL_FOUND := $(if $(filter 0,$(NCCL)),,$(filter nccl,$(FOUND)))
NVCCFLAGS += $(if $(NCCL_FOUND),-DLNFREE_NCCL)

# As $(BUILD)/flags, for nvcc: another GPU rebuilds what is made for it.
$(BUILD)/cuda_flags: FORCE
	@mkdir -p $(@D)
	@echo '$(NVCCFLAGS) $(CUDA_ARCHS) $(CUDNN_FLAG) $(EMULATE)' | cmp -s - $@ || echo '$(NVCCFLAGS) $(CUDA_ARCHS) $(CUDNN_FLAG) $(EMULATE)' > $@

$(BUILD)/cuda_engine.o: dev/cuda/main.cu $(BUILD)/cuda_flags | ready
	@echo "compile  $< (nvcc)"
	$(Q)$(NVCC) -O2 $(NVCCFLAGS) $(CUDNN_FLAG) $(CUDA_ARCHS) -MMD -MP -c $< -o $@

$(BUILD)/cudnn_attention.o: dev/cuda/cudnn_attention.cpp $(BUILD)/flags $(BUILD)/cuda_flags | ready
	@echo "compile  $<"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) $(CUDNN_FLAG) -idirafter $(CUDNN_INCLUDE) -idirafter $(CUDA_ROOT)/include \
	    -MMD -MP -c $< -o $@

# With EMULATE=1 a program that runs everything on this processor, slowly: to try what only a GPU would do otherwise.
ifdef EMULATE
train_gpt2_lnfree_cuda: dev/cuda/main.cu $(ROOMS) $(REFERENCE) $(DATA) $(BUILD)/flags $(BUILD)/cuda_flags
	@echo "compile  $< (emulation)"
	$(Q)$(EMULATION) $(ROOMS) $(REFERENCE) $(DATA) $(LIBS) -lboost_context -o $@
else
train_gpt2_lnfree_cuda: $(BUILD)/cuda_engine.o $(if $(CUDNN),$(BUILD)/cudnn_attention.o) $(ROOMS) $(REFERENCE) $(DATA)
	@echo "link     $@"
	$(Q)$(CXX) $(LANGUAGE) $(filter %.o %.a,$^) $(LIBS) -L$(CUDA_ROOT)/lib64 -Wl,-rpath,$(CUDA_ROOT)/lib64 -lcublasLt -lcudart_static $(if $(NCCL_FOUND),-lnccl) \
	    $(if $(CUDNN),-lcudnn -lnvrtc) -lpthread -lrt -o $@
endif

# ---- packages, demo --------------------------------------------------------------------------------------------------

.PHONY: deps deps-all demo run-demo quick run-quick
deps:
	@scripts/install_deps.sh tests

deps-all:
	@scripts/install_deps.sh all

# A second make, because the first one looked at the machine before the packages were installed.
demo test quick: deps
	@$(MAKE) run-$@

run-demo: all
	@scripts/demo.sh $${TEXT:+"$$TEXT"}

# ---- tests -----------------------------------------------------------------------------------------------------------

# Every file is a program, with the main() of test/main.cpp; one that crashes takes no other with it. It is linked from
# what its folder is about, and nothing else is built for it:
#
# test/*.cpp                 data/, and the program itself, which some of them run
# test/engine/*.cpp          all rooms
# test/isa/*.cpp             the operations, run once per instruction set that this processor has (PROGRAM@ISA)
# test/double/*.cpp          the reference in double precision: gradients, the oracle
# test/cuda/*.cpp            the CUDA engine's kernels, in emulation; test/cuda_engine/*.cpp: the engine itself
# test/long/*.cpp            only in `make test-long`
TEST_ISAS := $(if $(SAN)$(ISA),$(VARIANTS),$(filter $(RUNNABLE_ISAS),$(ALL_ISAS)))
LAST_ISA := $(lastword $(TEST_ISAS))

$(BUILD)/test/%.o: test/%.cpp $(BUILD)/flags | ready
	@mkdir -p $(@D)
	@echo "compile  $<"
	$(Q)$(CXX) $(LANGUAGE) $(TESTFLAGS) $(EXTRA) -MMD -MP -c $< -o $@
$(BUILD)/test/double/%.o: EXTRA = -DLNFREE_REAL=double
$(BUILD)/test/cuda/%.o $(BUILD)/test/cuda_engine/%.o: EXTRA = -O1 -Wno-unknown-pragmas -DLNFREE_EXTERN_KERNELS

# 1 the program's files, 2 what they are linked from
define test_programs
$(1): %: %.o $(BUILD)/test/main.o $(2)
	$$(Q)$$(CXX) $$(LANGUAGE) $$^ $$(LIBS) $$(TESTLIBS) -o $$@
endef
tests_in = $(patsubst test/%.cpp,$(BUILD)/test/%,$(filter-out test/main.cpp,$(wildcard test/$(1:%=%/)*.cpp)))
ENGINE := $(ROOMS) $(REFERENCE) $(DATA)

TESTS_data := $(call tests_in,)
TESTS_engine := $(call tests_in,engine)
$(eval $(call test_programs,$(TESTS_data) $(call tests_in,long),$(DATA)))
$(eval $(call test_programs,$(TESTS_engine),$(ENGINE)))

# Kernels that tests include are compiled for each instruction set, and what goes through operations() runs with each.
ISA_KERNELS := test_matmul test_vector_math
ISA_TESTS := $(filter-out $(ISA_KERNELS),$(notdir $(call tests_in,isa)))
$(eval $(call test_programs,$(ISA_TESTS:%=$(BUILD)/test/isa/%),$(ENGINE)))
define isa_kernel_tests
$(BUILD)/test/isa-$(1)/%.o: test/isa/%.cpp $(BUILD)/flags | ready
	@mkdir -p $$(@D)
	@echo "compile  $$< ($(1))"
	$$(Q)$$(CXX) $$(LANGUAGE) $$(CXXFLAGS) $$(FLAGS_$(1)) -MMD -MP -c $$< -o $$@
$(call test_programs,$(ISA_KERNELS:%=$(BUILD)/test/isa-$(1)/%),$(DATA))
TESTS_isa += $(ISA_TESTS:%=$(BUILD)/test/isa/%@$(1)) $(ISA_KERNELS:%=$(BUILD)/test/isa-$(1)/%@$(1))
endef
$(foreach isa,$(TEST_ISAS),$(eval $(call isa_kernel_tests,$(isa))))

# The reference once more, in double: one unit, operations included, for this processor.
DOUBLE_SOURCES := train_gpt2_lnfree.cpp dev/run/experiments.cpp
DOUBLE := $(DOUBLE_SOURCES:%.cpp=$(BUILD)/double/%.o)
$(BUILD)/double/%.o: %.cpp $(BUILD)/flags | ready
	@mkdir -p $(@D)
	@echo "compile  $< (double)"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) $(FLAGS_$(LAST_ISA)) -DLNFREE_REAL=double -DLNFREE_NO_MAIN -MMD -MP -c $< -o $@
TESTS_double := $(call tests_in,double)
$(eval $(call test_programs,$(TESTS_double),$(DOUBLE) $(DATA)))

# The emulation runs kernels as fibres. All kernels are compiled once, as an object that these tests share; -O2 would bring
# nothing and take twice as long. Unroll pragmas are for nvcc.
TESTS_cuda := $(call tests_in,cuda) $(call tests_in,cuda_engine)
TESTS_emulation := $(filter %/test_emulation %/test_bf16 %/test_nvcc %/test_device_memory,$(TESTS_cuda))
$(TESTS_cuda): TESTLIBS = -lboost_context
$(eval $(call test_programs,$(TESTS_emulation),))
$(eval $(call test_programs,$(filter-out $(TESTS_emulation),$(TESTS_cuda)),$(BUILD)/test/emulated_engine.o $(ENGINE)))
$(BUILD)/test/emulated_engine.o: test/cuda/emulated_engine.cu $(BUILD)/flags | ready
	@mkdir -p $(@D)
	@echo "compile  $< (emulation)"
	$(Q)$(CXX) $(LANGUAGE) -O1 -Wno-unknown-pragmas -MMD -MP -x c++ -c $< -o $@

$(BUILD)/test/main.o: test/main.cpp $(BUILD)/flags | ready
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LANGUAGE) -O1 -MMD -MP -c $< -o $@

# Sanitised, the others of the CUDA tests take minutes each; the emulation has its own eye on shared memory in all of
# them. And the oracle's numbers of the analyses run through nothing that test_analysis does not, nor runs that stop at every
# step through what test_engine and test_command_line do not.
SLOW_SANITISED := $(filter-out %/test_emulation %/test_bf16 %/test_streaming,$(TESTS_cuda)) %/test_analysis_oracle %/test_resume
TESTS := $(filter-out $(if $(SAN),$(SLOW_SANITISED)),$(TESTS_data) $(TESTS_engine) $(TESTS_double) $(TESTS_isa) $(TESTS_cuda))

# What a choice of tests needs: their programs, and the program under test where some of them run it.
RUN_THE_PROGRAM := %/test_command_line %/test_memory %/test_processes
programs_of = $(sort $(foreach test,$(1),$(firstword $(subst @, ,$(test))))) $(if $(filter $(RUN_THE_PROGRAM),$(1)),$(PROGRAM))

.PHONY: test run-test
CHOSEN_TESTS := $(strip $(if $(ONLY),$(foreach test,$(TESTS),\
                $(if $(findstring $(ONLY),$(test:$(BUILD)/test/%=%)),$(test))),$(TESTS)))
run-test: $(if $(ONLY),,all) $(call programs_of,$(CHOSEN_TESTS))
	@LNFREE_PROGRAM=./$(PROGRAM) test/run.sh $(if $(SAN)$(ISA),,$(patsubst %,--without %,\
	    $(filter-out $(TEST_ISAS),$(ALL_ISAS)))) $(CHOSEN_TESTS)

# After an edit: what finds most mistakes soonest, and of the command line the cases marked "quick".
QUICK_TESTS := $(TESTS_double) $(filter %@$(LAST_ISA),$(TESTS_isa)) $(BUILD)/test/test_command_line:quick
run-quick: $(call programs_of,$(QUICK_TESTS:%:quick=%))
	@LNFREE_PROGRAM=./$(PROGRAM) test/run.sh $(QUICK_TESTS)

# ---- longer tests ----------------------------------------------------------------------------------------------------

# libFuzzer comes with clang++. -O1 and no OpenMP: the readers are what is tested.
FUZZ_SECONDS ?= 30
FUZZERS := $(patsubst test/fuzz/%.cpp,build/fuzz/%,$(wildcard test/fuzz/*.cpp))
FUZZ_FLAGS := -std=c++17 -Wall -Wextra -Wno-pass-failed -Wno-unknown-pragmas -I. -O1 -gline-tables-only \
              -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
FUZZ_OBJECTS := $(patsubst %.cpp,build/fuzz/%.o,$(wildcard data/*.cpp) dev/run/records.cpp dev/run/settings.cpp dev/run/resolve_settings.cpp dev/run/state.cpp) build/fuzz/method.o
build/fuzz/%.o: %.cpp
	@mkdir -p $(@D)
	@command -v clang++ >/dev/null || { echo "make fuzz needs clang++: make deps-all" >&2; exit 2; }
	$(Q)clang++ $(FUZZ_FLAGS) -MMD -MP -c $< -o $@
build/fuzz/method.o: train_gpt2_lnfree.cpp
	@mkdir -p $(@D)
	$(Q)clang++ $(FUZZ_FLAGS) -DLNFREE_NO_MAIN -MMD -MP -c $< -o $@
build/fuzz/fuzz.a: $(FUZZ_OBJECTS)
	@rm -f $@
	$(Q)ar rcs $@ $^
$(FUZZERS): build/fuzz/%: build/fuzz/test/fuzz/%.o build/fuzz/fuzz.a
	@echo "link     $@ (libFuzzer)"
	$(Q)clang++ $(FUZZ_FLAGS) -fsanitize=fuzzer $^ $(LIBS) -o $@

.PHONY: fuzz test-interop test-long
fuzz: $(FUZZERS)
	@test/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZERS)

test-interop: all
	@test/interop/run.sh

# The kills are those of test_command_line and test_processes, the treatments those of test_engine, more of them.
TESTS_long := $(call tests_in,long)
test-long: all $(BUILD)/test/test_command_line $(BUILD)/test/test_processes $(BUILD)/test/engine/test_engine $(TESTS_long)
	@LNFREE_PROGRAM=./$(PROGRAM) LNFREE_KILLS=50 LNFREE_TREATMENTS=20 TEST_TIMEOUT=7200 \
	    test/run.sh $(BUILD)/test/test_command_line $(BUILD)/test/test_processes $(BUILD)/test/engine/test_engine $(TESTS_long)
	@test/hosts.sh ./$(PROGRAM)
	@$(MAKE) fuzz FUZZ_SECONDS=600
	@EMULATE=1 scripts/gpu_pack.sh build/gpu_pack_emulated
	@scripts/gpu_check.sh --emulated --pack build/gpu_pack_emulated --out build/gpu_check_emulated

# ---- the laboratory --------------------------------------------------------------------------------------------------

LAB := dev/cpu/matmul
.PHONY: lab
lab: $(LAB)
$(LAB): %: %.cpp $(DATA) $(BUILD)/flags | ready
	@echo "compile  $< (native)"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) $(FLAGS_native) -MMD -MP -MF $(BUILD)/$(@F).lab.d $< $(DATA) $(LIBS) -o $@

# By nvcc for the GPU, or for this processor in emulation, which needs no toolkit.
CUDA_LAB := $(filter-out dev/cuda/main,$(patsubst %.cu,%,$(wildcard dev/cuda/*.cu)))
CUDA_LAB_BY := $(if $(or $(EMULATE),$(if $(CUDA_PROGRAM),,no nvcc)),emulation,nvcc)
.PHONY: lab_cuda
lab_cuda: $(CUDA_LAB)
$(CUDA_LAB): %: %.cu $(REFERENCE) $(DATA) $(BUILD)/flags $(BUILD)/cuda_flags | ready
	@echo "compile  $< ($(CUDA_LAB_BY))"
	$(Q)$(CUDA_LAB_$(CUDA_LAB_BY))
# Without a GPU at hand: intermediate code alone, which the driver translates for whatever GPU it meets. Translating each
# program for five of them takes four times as long.
CUDA_LAB_ARCHS = $(if $(word 3,$(CUDA_ARCHS)),-gencode arch=compute_80$(comma)code=compute_80,$(CUDA_ARCHS))
CUDA_LAB_DEPENDENCIES = -MMD -MP -MF $(BUILD)/$(@F).cuda_lab.d
CUDA_LAB_nvcc = $(NVCC) -O1 $(NVCCFLAGS) $(CUDA_LAB_ARCHS) $(CUDA_LAB_DEPENDENCIES) $< $(REFERENCE) $(DATA) -lcublasLt -lgomp -o $@
EMULATION = $(CXX) $(LANGUAGE) -O1 -Wno-unknown-pragmas $(CUDA_LAB_DEPENDENCIES) -MT $@ -x c++ $< -x none
CUDA_LAB_emulation = $(EMULATION) $(REFERENCE) $(DATA) $(LIBS) -lboost_context -o $@

# ---- style -----------------------------------------------------------------------------------------------------------

SOURCES := $(wildcard train_gpt2_lnfree.cpp train_gpt2_lnfree.cu data/*.h data/*.cpp dev/*.h dev/*/*.h dev/*/*.cpp dev/cuda/*.cu test/cuda/*.cu test/*.h test/*.cpp test/*/*.h test/*/*.cpp)
.PHONY: format lint lint-tools lint-format
format:
	clang-format -i $(SOURCES)

# clang-tidy reads the headers through the programs that include them, and every header must compile by itself.
LINTED := train_gpt2_lnfree.cpp $(filter-out dev/cuda/cudnn_attention.cpp,$(wildcard data/*.cpp dev/*/*.cpp))  # that needs cuDNN
HEADERS := $(filter %.h,$(SOURCES))
ALONE := $(filter-out dev/cuda_on_cpu/device.h dev/cuda_on_cpu/device_launch.h,$(HEADERS))  # those two are for nvcc
# So must the laboratory's programs, which no test builds.
lint: lint-format $(LINTED:%=build/lint/%.ok) $(ALONE:%=build/lint/%.alone) $(patsubst %,build/lint/%.alone,$(wildcard dev/cuda/*.cu))
	@echo "lint: no findings"

build/lint/%.alone: % $(HEADERS)
	@mkdir -p $(@D)
	$(Q)echo '#include "$<"' | $(CXX) -std=c++17 -I. -fopenmp -Wall -Wextra -Wno-unknown-pragmas -fsyntax-only -x c++ - || \
	    { echo "$<: does not compile by itself" >&2; exit 1; }
	@touch $@

lint-tools:
	@command -v clang-format >/dev/null && command -v clang-tidy >/dev/null || \
	    { echo "make lint needs clang-format and clang-tidy: make deps-all" >&2; exit 2; }

lint-format: lint-tools
	@wrong=$$(for file in $(SOURCES); do clang-format $$file | cmp -s - $$file || echo $$file; done); \
	    test -z "$$wrong" || { echo "not in the house style (make format lays them out):" $$wrong >&2; exit 1; }

# The analyzer follows every path, which is half of lint's time: of what reads untrusted files, and of the reference.
ANALYZED := train_gpt2_lnfree.cpp data/%
build/lint/%.ok: % .clang-tidy $(HEADERS) | lint-tools
	@mkdir -p $(@D)
	@echo "lint     $<"
	$(Q)clang-tidy --quiet $(if $(filter $(ANALYZED),$<),,--checks=-clang-analyzer-*) $< -- -x c++ -std=c++17 -I. -fopenmp -Wall -Wextra -Wno-pragma-once-outside-header \
	    $(if $(findstring dispatch,$<),'-DLNFREE_VARIANTS=VARIANT(portable) VARIANT(avx2)') > $@.log 2>&1 || \
	    { cat $@.log; exit 1; }
	@touch $@

clean:
	rm -rf build train_gpt2_lnfree train_gpt2_lnfree.new train_gpt2_lnfree_cuda $(LAB) $(CUDA_LAB)

FORCE:

-include $(wildcard build/fuzz/*.d build/fuzz/*/*.d build/fuzz/*/*/*.d $(BUILD)/*.d $(BUILD)/*/*.d $(BUILD)/*/*/*.d $(BUILD)/*/*/*/*.d)
