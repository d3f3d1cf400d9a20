# Builds, tests and checks gpt2-lnfree. `make help` lists what can be asked for.

#: make                  show what was found on this machine, then build ./train_gpt2_lnfree; with nvcc also ./train_gpt2_lnfree_cuda
#: make demo             the paper's main result on this CPU, in minutes; TEXT=FILE: on your own text
#: make test             every test; ONLY=PART: only the tests whose name contains PART
#: make fuzz             throw made-up files at every reader, FUZZ_SECONDS=30 each; needs clang++
#: make test-interop     against transformers and TransformerLens, in a virtual environment of its own; needs Python and the network
#: make test-long        what takes an hour: ten minutes of fuzzing per reader, 50 kills, 10 GB of text
#: make deps             install the packages that are needed and missing (scripts/packages.txt); deps-all: also the optional ones
#: make dev/cpu/NAME     a program of the kernel laboratory, for this processor only
#: make dev/cuda/NAME    one for the GPU; without nvcc, or with EMULATE=1, in emulation. lab_cuda: all of them
#: make format           lay the sources out in the house style (clang-format)
#: make lint             check style (clang-format) and habits (clang-tidy)
#: make clean            remove everything that was built
#:
#: CXX=clang++           another compiler                  ISA=native|portable|avx2|avx512  one instruction set only, builds faster
#: SAN=1                 with Address- and UndefinedBehaviorSanitizer    WERROR=1  warnings are errors    V=1  show the commands
#: CXXFLAGS=...          instead of -O2                    make -j1          one job at a time (default: one per core)
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
OBJCOPY ?= objcopy
NM ?= nm
export CXX LD OBJCOPY

# These targets need no compiler. test and demo start a second make after the packages are there, and that one looks.
ifneq ($(filter-out help clean format lint deps deps-all test demo fuzz,$(or $(MAKECMDGOALS),all)),)
    FOUND := $(shell CXX='$(CXX)' LD='$(LD)' OBJCOPY='$(OBJCOPY)' scripts/detect.sh --words)
endif

# ---- instruction sets ------------------------------------------------------------------------------------------------

# From the most widely supported to the fastest. No -march=native: the program runs on every processor of its kind and
# uses what the one at hand has (dev/cpu/dispatch.cpp). Compilers halve AVX-512's vectors unless told not to; GELU takes
# 1.6 times as long with halves.
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

# What the program holds: all of them where the tools can keep them apart, a single one if asked.
ifdef ISA
    VARIANTS := $(filter $(ISA),native $(ALL_ISAS))
    ifeq ($(VARIANTS)$(if $(FOUND),,not looked yet),)
        $(error ISA=$(ISA): choose one of: native $(ALL_ISAS))
    endif
else ifdef SAN
    VARIANTS := $(BEST_ISA)
else ifneq ($(filter split,$(FOUND)),)
    VARIANTS := $(ALL_ISAS)
else
    VARIANTS := portable
endif

# ---- flags -----------------------------------------------------------------------------------------------------------

# clang++ warns (pass-failed) where it could not make vector code of a loop that asks for it: slower, not wrong.
# Never -ffast-math: a NaN must stay a NaN, and sums are taken in the order that the source writes.
LANGUAGE := -std=c++17 -fno-math-errno -fno-trapping-math -Wall -Wextra $(if $(WERROR),-Werror) -I. \
            $(if $(filter openmp,$(FOUND)),-fopenmp,-Wno-unknown-pragmas) $(if $(findstring clang,$(CXX)),-Wno-pass-failed)
LIBS := -lpcre2-8 -lz -ldl
ifdef SAN
    LANGUAGE += -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
    CXXFLAGS ?= -O1
endif
CXXFLAGS ?= -O2
TESTFLAGS ?= $(if $(SAN),-O1,-O2)

BUILD := build/$(notdir $(lastword $(CXX)))$(if $(SAN),-san)$(if $(ISA),-$(ISA))

# ---- the program -----------------------------------------------------------------------------------------------------

# Sanitised programs stay in their folder, so that nobody times one by accident.
PROGRAM := $(if $(SAN),$(BUILD)/)train_gpt2_lnfree

# nvcc compiles for g++ only, and the sanitizers do not know the GPU: other builds are of the CPU engine alone.
CUDA_PROGRAM := $(if $(filter 0,$(CUDA))$(SAN)$(ISA)$(findstring clang,$(CXX)),,$(if $(filter cuda,$(FOUND)),train_gpt2_lnfree_cuda))

.PHONY: all help clean detect ready FORCE
# What takes longest begins first, so that the other cores do not wait for it at the end.
all: detect $(CUDA_PROGRAM) $(PROGRAM)
	@echo "Built ./$(PROGRAM) ($(VARIANTS))$(if $(filter openmp,$(FOUND)),, without OpenMP: it will use one thread)"
	@$(if $(CUDA_PROGRAM),echo "Built ./$(CUDA_PROGRAM) ($(foreach code,$(filter code=%,$(subst $(comma), ,$(CUDA_ARCHS))),$(code:code=%=%)))",:)

help:
	@sed -n 's/^#: \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

detect:
	@scripts/detect.sh

# One clear line instead of pages of "file not found".
ready: | detect
	@scripts/install_deps.sh needed --check

# Rewritten only when it changes: other flags rebuild everything.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(LANGUAGE) $(CXXFLAGS) $(TESTFLAGS) $(VARIANTS)' | cmp -s - $@ || \
	    echo '$(LANGUAGE) $(CXXFLAGS) $(TESTFLAGS) $(VARIANTS)' > $@

$(BUILD)/unit_%.o: train_gpt2_lnfree.cpp $(BUILD)/flags | ready
	@echo "compile  $< ($*)"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) $(FLAGS_$*) $(NO_UNIQUE) -DLNFREE_ENTRY=lnfree_main_$* \
	    -DLNFREE_ISA_NAME='"$*"' -MMD -MP -c $< -o $@

# An inline function or template is compiled into every object, and the linker keeps the first copy that it meets: the
# AVX-512 copy of some std::vector member would then run on every processor. So each object is made self-contained:
# its COMDAT groups are dissolved, every symbol but the entry becomes local, and the list of static constructors moves
# to a section of its own, to be run by dispatch.cpp for the chosen build only. The last command checks that it is so.
# (GNU's "unique" symbols would escape this; clang++ makes none and does not know the flag.)
NO_UNIQUE = $(if $(findstring clang,$(CXX)),,-fno-gnu-unique)
$(BUILD)/variant_%.o: $(BUILD)/unit_%.o
	$(Q)$(LD) -r -d --force-group-allocation -o $@ $<
	$(Q)$(OBJCOPY) --keep-global-symbol=lnfree_main_$* --rename-section .init_array=lnfree_constructors_$* $@
	@visible=$$($(NM) -g --defined-only $@ | sed 's/.* //'; readelf -SW $@ | grep -oE '\.(init_array|fini_array|ctors|dtors)[^ ]*'); \
	    test "$$visible" = lnfree_main_$* || { echo "$@ is not self-contained; it shows:" $$visible >&2; exit 1; }

$(BUILD)/dispatch.o: dev/cpu/dispatch.cpp $(BUILD)/flags | ready
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) '-DLNFREE_VARIANTS=$(foreach isa,$(VARIANTS),VARIANT($(isa)))' -MMD -MP -c $< -o $@

# A single build needs none of this and is linked as the compiler made it.
OBJECTS := $(BUILD)/dispatch.o $(VARIANTS:%=$(BUILD)/$(if $(word 2,$(VARIANTS)),variant,unit)_%.o)
$(BUILD)/train_gpt2_lnfree: $(OBJECTS)
	@echo "link     $@"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) $^ $(LIBS) -o $@

# Copied whenever it differs, not when it is older: g++, clang++ and ISA= builds take turns here.
ifndef SAN
train_gpt2_lnfree: $(BUILD)/train_gpt2_lnfree FORCE
	@cmp -s $< $@ || { cp $< $@.new && mv $@.new $@; }
endif

# ---- the CUDA engine -------------------------------------------------------------------------------------------------

# nvcc gets the kernels and the model; folders, training run and commands are the CPU program's portable unit. Warning
# 1675 is about GCC's unroll pragmas in the reference.
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
    $(error USE_CUDNN=1: there is no cudnn_frontend.h in $(CUDNN_PLACES); give CUDNN_FRONTEND=DIR (README.md, On a GPU))
endif
# (nvcc's -O is about the code for this processor; that for the GPU is always fully optimised.)
NVCCFLAGS := -std=c++17 --threads 0 -I. -diag-suppress 1675 \
             -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas$(if $(filter openmp,$(FOUND)),$(comma)-fopenmp)

# As $(BUILD)/flags, for nvcc: another GPU rebuilds what is made for it.
$(BUILD)/cuda_flags: FORCE
	@mkdir -p $(@D)
	@echo '$(NVCCFLAGS) $(CUDA_ARCHS) $(CUDNN_FLAG)' | cmp -s - $@ || echo '$(NVCCFLAGS) $(CUDA_ARCHS) $(CUDNN_FLAG)' > $@

$(BUILD)/cuda_engine.o: train_gpt2_lnfree.cu $(BUILD)/cuda_flags | ready
	@echo "compile  $< (nvcc)"
	$(Q)$(NVCC) -O2 $(NVCCFLAGS) $(CUDNN_FLAG) $(CUDA_ARCHS) -MMD -MP -c $< -o $@

$(BUILD)/cudnn_attention.o: dev/cuda/cudnn_attention.cpp $(BUILD)/flags $(BUILD)/cuda_flags | ready
	@echo "compile  $<"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) $(CUDNN_FLAG) -idirafter $(CUDNN_INCLUDE) -idirafter $(CUDA_ROOT)/include \
	    -MMD -MP -c $< -o $@

train_gpt2_lnfree_cuda: $(BUILD)/cuda_engine.o $(BUILD)/unit_portable.o $(if $(CUDNN),$(BUILD)/cudnn_attention.o)
	@echo "link     $@"
	$(Q)$(CXX) $(LANGUAGE) $^ $(LIBS) -L$(CUDA_ROOT)/lib64 -Wl,-rpath,$(CUDA_ROOT)/lib64 -lcublasLt -lcudart_static \
	    $(if $(CUDNN),-lcudnn -lnvrtc) -lpthread -lrt -o $@

# ---- packages, demo --------------------------------------------------------------------------------------------------

.PHONY: deps deps-all demo run-demo
deps:
	@scripts/install_deps.sh tests

deps-all:
	@scripts/install_deps.sh all

# A second make, because the first one looked at the machine before the packages were installed.
demo test: deps
	@$(MAKE) run-$@

run-demo: all
	@scripts/demo.sh $${TEXT:+"$$TEXT"}

# ---- tests -----------------------------------------------------------------------------------------------------------

# test/*.cpp                 once, with the best instruction set of this processor; test/engine/*.cpp: the program as a whole
# test/isa/*.cpp             once per instruction set that this processor has (the ops); the best one with test/engine
# test/double/*.cpp          in double precision (gradients, the oracle)
# test/cuda/*.cpp            the CUDA engine's kernels, in emulation; test/cuda_engine/*.cpp: the engine itself
# test/long/*.cpp            only in `make test-long`
# Every file runs by itself, with the main() of test/main.cpp; one that crashes takes no other with it.
TEST_ISAS := $(if $(SAN)$(ISA),$(VARIANTS),$(filter $(RUNNABLE_ISAS),$(ALL_ISAS)))

# 1 folder of the programs, 2 folder of the sources, 3 extra flags, 4 extra libraries
define test_rules
$(BUILD)/test/$(1)/%.o: $(2)/%.cpp $(BUILD)/flags | ready
	@mkdir -p $$(@D)
	@echo "compile  $$< ($(1))"
	$$(Q)$$(CXX) $$(LANGUAGE) $$(TESTFLAGS) $(3) -DLNFREE_NO_MAIN -MMD -MP -c $$< -o $$@

$(BUILD)/test/$(1)/%: $(BUILD)/test/$(1)/%.o $(BUILD)/test/main.o
	$$(Q)$$(CXX) $$(LANGUAGE) $$^ $$(LIBS) $(4) -o $$@
endef

# Every file a program.
define test_kind
$(call test_rules,$(1),$(2),$(3),$(4))
TESTS_$(1) := $(patsubst $(2)/%.cpp,$(BUILD)/test/$(1)/%,$(filter-out test/main.cpp,$(wildcard $(2)/*.cpp)))
endef

# All files of some folders one program, `all`: they include train_gpt2_lnfree.cpp, which takes the compiler a minute. A
# test is then called PROGRAM:FILE, which test/run.sh understands. A folder's own date changes with the list of its files.
define test_group
$(call test_rules,$(1),$(BUILD)/test/$(1),$(3),$(4))
$(BUILD)/test/$(1)/all.cpp: $(2) $(wildcard $(2:%=%/*.cpp)) Makefile
	@mkdir -p $$(@D)
	@printf '#include "%s"\n' $(wildcard $(2:%=%/*.cpp)) > $$@

TESTS_$(1) := $(patsubst %.cpp,$(BUILD)/test/$(1)/all:%,$(notdir $(wildcard $(2:%=%/*.cpp))))
endef
programs_of = $(sort $(foreach test,$(1),$(firstword $(subst :, ,$(test)))))

LAST_ISA := $(lastword $(TEST_ISAS))
OTHER_ISAS := $(filter-out $(LAST_ISA),$(TEST_ISAS))
BEST_FLAGS := $(FLAGS_$(LAST_ISA)) -DLNFREE_ISA_NAME='"$(LAST_ISA)"'
$(eval $(call test_kind,float,test,$(BEST_FLAGS)))
$(eval $(call test_group,engine,test/engine test/isa,$(BEST_FLAGS)))
$(eval $(call test_group,double,test/double,$(BEST_FLAGS) -DLNFREE_REAL=double))
$(foreach isa,$(OTHER_ISAS),\
    $(eval $(call test_group,isa-$(isa),test/isa,$(FLAGS_$(isa)) -DLNFREE_ISA_NAME='"$(isa)"')))

# -O1: they are large, and compiling them at -O2 takes longer than it saves. Unroll pragmas are for nvcc.
$(eval $(call test_kind,cuda,test/cuda,-O1 -Wno-unknown-pragmas $(BEST_FLAGS),-lboost_context))
$(eval $(call test_group,cuda_engine,test/cuda_engine,-O1 -Wno-unknown-pragmas $(BEST_FLAGS),-lboost_context))

$(BUILD)/test/main.o: test/main.cpp $(BUILD)/flags | ready
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LANGUAGE) -O1 -MMD -MP -c $< -o $@

$(eval $(call test_kind,long,test/long,))
# Sanitised, the others of the CUDA tests take minutes each; the emulation has its own eye on shared memory in all of
# them. And the oracle's numbers of the analyses run through nothing that test_analysis does not.
SLOW_SANITISED := $(filter-out %/test_emulation %/test_bf16 %/test_streaming,$(TESTS_cuda)) $(TESTS_cuda_engine) \
                  $(filter %:test_analysis_oracle,$(TESTS_engine))
TESTS := $(filter-out $(if $(SAN),$(SLOW_SANITISED)),$(TESTS_float) $(TESTS_engine) $(TESTS_double) \
         $(foreach isa,$(OTHER_ISAS),$(TESTS_isa-$(isa))) $(TESTS_cuda) $(TESTS_cuda_engine))

.PHONY: test run-test
CHOSEN_TESTS := $(strip $(if $(ONLY),$(foreach test,$(TESTS),\
                $(if $(findstring $(ONLY),$(test:$(BUILD)/test/%=%)),$(test))),$(TESTS)))
run-test: all $(call programs_of,$(CHOSEN_TESTS))
	@LNFREE_PROGRAM=./$(PROGRAM) test/run.sh $(if $(SAN)$(ISA),,$(patsubst %,--without %,\
	    $(filter-out $(TEST_ISAS),$(ALL_ISAS)))) $(CHOSEN_TESTS)

# ---- longer tests ----------------------------------------------------------------------------------------------------

# libFuzzer comes with clang++. -O1 and no OpenMP: the readers are what is tested.
FUZZ_SECONDS ?= 30
FUZZERS := $(patsubst test/fuzz/%.cpp,build/fuzz/%,$(wildcard test/fuzz/*.cpp))
build/fuzz/%: test/fuzz/%.cpp
	@mkdir -p $(@D)
	@command -v clang++ >/dev/null || { echo "make fuzz needs clang++: make deps-all" >&2; exit 2; }
	@echo "compile  $< (libFuzzer)"
	$(Q)clang++ -std=c++17 -Wall -Wextra -Wno-pass-failed -Wno-unknown-pragmas -I. -O1 -gline-tables-only \
	    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DLNFREE_NO_MAIN -MMD -MP $< $(LIBS) -o $@

.PHONY: fuzz test-interop test-long
fuzz: $(FUZZERS)
	@test/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZERS)

test-interop: all
	@test/interop/run.sh

# The kills are those of test_command_line, more of them.
test-long: all $(BUILD)/test/float/test_command_line $(TESTS_long)
	@LNFREE_PROGRAM=./$(PROGRAM) LNFREE_KILLS=50 TEST_TIMEOUT=7200 \
	    test/run.sh $(BUILD)/test/float/test_command_line $(TESTS_long)
	@$(MAKE) fuzz FUZZ_SECONDS=600

# ---- the laboratory --------------------------------------------------------------------------------------------------

LAB := $(filter-out dev/cpu/dispatch,$(patsubst %.cpp,%,$(wildcard dev/cpu/*.cpp)))
.PHONY: lab
lab: $(LAB)
$(LAB): %: %.cpp $(BUILD)/flags | ready
	@echo "compile  $< (native)"
	$(Q)$(CXX) $(LANGUAGE) $(CXXFLAGS) $(FLAGS_native) $(if $(filter openblas,$(FOUND)),-DHAVE_OPENBLAS) \
	    -MMD -MP -MF $(BUILD)/$(@F).lab.d $< $(if $(filter openblas,$(FOUND)),-lopenblas) -o $@

# By nvcc for the GPU, or for this processor in emulation, which needs no toolkit.
CUDA_LAB := $(patsubst %.cu,%,$(wildcard dev/cuda/*.cu))
CUDA_LAB_BY := $(if $(or $(EMULATE),$(if $(CUDA_PROGRAM),,no nvcc)),emulation,nvcc)
.PHONY: lab_cuda
lab_cuda: $(CUDA_LAB)
$(CUDA_LAB): %: %.cu $(BUILD)/flags $(BUILD)/cuda_flags | ready
	@echo "compile  $< ($(CUDA_LAB_BY))"
	$(Q)$(CUDA_LAB_$(CUDA_LAB_BY))
# Without a GPU at hand: intermediate code alone, which the driver translates for whatever GPU it meets. Translating each
# program for five of them takes four times as long.
CUDA_LAB_ARCHS = $(if $(word 3,$(CUDA_ARCHS)),-gencode arch=compute_80$(comma)code=compute_80,$(CUDA_ARCHS))
CUDA_LAB_DEPENDENCIES = -MMD -MP -MF $(BUILD)/$(@F).cuda_lab.d
CUDA_LAB_nvcc = $(NVCC) -O1 $(NVCCFLAGS) $(CUDA_LAB_ARCHS) $(CUDA_LAB_DEPENDENCIES) $< -lcublasLt -o $@
CUDA_LAB_emulation = $(CXX) $(LANGUAGE) -O1 -Wno-unknown-pragmas $(CUDA_LAB_DEPENDENCIES) -MT $@ -x c++ $< -x none $(LIBS) -lboost_context -o $@

# ---- style -----------------------------------------------------------------------------------------------------------

SOURCES := $(wildcard train_gpt2_lnfree.cpp train_gpt2_lnfree.cu data/*.h dev/*/*.h dev/cpu/*.cpp dev/cuda/*.cpp dev/cuda/*.cu test/*.h test/*.cpp test/*/*.h test/*/*.cpp)
.PHONY: format lint lint-tools lint-format
format:
	clang-format -i $(SOURCES)

# clang-tidy reads the headers through the programs that include them; reading each by itself takes a quarter of an hour.
LINTED := train_gpt2_lnfree.cpp $(wildcard dev/cpu/*.cpp)
lint: lint-format $(LINTED:%=build/lint/%.ok)
	@echo "lint: no findings"

lint-tools:
	@command -v clang-format >/dev/null && command -v clang-tidy >/dev/null || \
	    { echo "make lint needs clang-format and clang-tidy: make deps-all" >&2; exit 2; }

lint-format: lint-tools
	@wrong=$$(for file in $(SOURCES); do clang-format $$file | cmp -s - $$file || echo $$file; done); \
	    test -z "$$wrong" || { echo "not in the house style (make format lays them out):" $$wrong >&2; exit 1; }

build/lint/%.ok: % .clang-tidy $(filter %.h,$(SOURCES)) | lint-tools
	@mkdir -p $(@D)
	@echo "lint     $<"
	$(Q)clang-tidy --quiet $< -- -x c++ -std=c++17 -I. -fopenmp -Wall -Wextra -Wno-pragma-once-outside-header \
	    $(if $(findstring test/,$<),-DLNFREE_NO_MAIN) $(if $(findstring test/double/,$<),-DLNFREE_REAL=double) \
	    $(if $(findstring dispatch,$<),'-DLNFREE_VARIANTS=VARIANT(portable) VARIANT(avx2)') > $@.log 2>&1 || \
	    { cat $@.log; exit 1; }
	@touch $@

clean:
	rm -rf build train_gpt2_lnfree train_gpt2_lnfree.new train_gpt2_lnfree_cuda $(LAB) $(CUDA_LAB)

FORCE:

-include $(wildcard build/fuzz/*.d $(BUILD)/*.d $(BUILD)/test/*.d $(BUILD)/test/*/*.d)
