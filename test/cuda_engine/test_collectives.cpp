// Several processes with the CUDA engine, in emulation (NCCL as well: dev/cuda_on_cpu/nccl.h): what the collective layer does,
// and a removal with a teacher beside the reference's, which shares the same steps by a way of its own. The first three cases
// are carried out by processes that the others start.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/random.h"
#include "dev/cuda/collectives.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/cuda/removal_steps.h"
#include "dev/cuda_on_cpu/options.h"
#include "dev/method.h"
#include "dev/run/launch.h"
#include "dev/run/processes_mpi.h"
#include "test/program.h"
#include "test/test_models.h"

using namespace lnfree;
namespace fs = std::filesystem;

namespace {

const ModelConfig kThreeBlocks = shape_of(2, 2, 48, 131, 13, 112);

bool is_launched() {
    return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("LNFREE_RENDEZVOUS") != nullptr;
}

void use_this_program() {
    ::setenv("LNFREE_PROGRAM", fs::read_symlink("/proc/self/exe").c_str(), 1);
}

Settings settings() {
    Settings s;
    s.steps = s.stop = 8;
    s.batch = 2;
    s.seq = 11;
    s.grad_accum = 5;
    s.lr = 5e-3;
    s.min_lr = 1e-3;
    s.warmup = 1;
    s.distill = 0.5;
    s.start_mlp = s.start_qk = 1;
    s.start_v = 2;
    s.start_f = 4;
    s.gap_mlp = s.gap_qk = s.gap_v = 1;
    return s;
}

class MadeUpBatches : public Seams {
  public:
    explicit MadeUpBatches(const Settings& s) : s_(s) {}
    void read_batches(int64_t step, StepBatches& batches) override {
        batches = {};
        for (int64_t a = 0; a < s_.grad_accum; a++) {
            SplitMix64 random(static_cast<uint64_t>(100 * step + a));
            std::vector<int32_t> tokens;
            for (int64_t i = 0; i <= s_.batch * s_.seq; i++)
                tokens.push_back(static_cast<int32_t>(random.below(random.below(3) == 0 ? 131 : 5)));
            batches.inputs.emplace_back(tokens.begin(), tokens.end() - 1);
            batches.targets.emplace_back(tokens.begin() + 1, tokens.end());
        }
    }
    void after_loss(const StepReport& report) override {
        losses.push_back(report.loss.loss + report.loss.aux + report.loss.kl);
        norms.push_back(report.gradient_norm);
    }
    std::vector<double> losses, norms;

  private:
    const Settings& s_;
};

struct Trained {
    std::unique_ptr<Engine> model;
    std::vector<double> losses, norms;
};

Trained train_by(std::unique_ptr<Engine> (*make)(const ModelConfig&)) {
    const Settings s = settings();
    Trained t;
    t.model = make(kThreeBlocks);
    randomise(*t.model, 3);
    const std::unique_ptr<Engine> teacher = make(kThreeBlocks);
    randomise(*teacher, 8);
    t.model->prepare_training(s.batch, s.seq);
    t.model->prepare_optimiser();
    MadeUpBatches seams(s);
    train(*t.model, s, removal_schedule(s, t.model->sites.L), seams, 0, teacher.get());
    t.model->fetch_parameters();
    t.model->fetch_moments();
    t.losses = seams.losses;
    t.norms = seams.norms;
    return t;
}

void check_close(const std::vector<double>& ours, const std::vector<double>& theirs) {
    REQUIRE(ours.size() == theirs.size());
    for (size_t i = 0; i < ours.size(); i++) CHECK(ours[i] == doctest::Approx(theirs[i]).epsilon(1e-5));
}

double largest_error(const Buffer& ours, const real* theirs, Range part) {
    double largest = 0;
    for (int64_t i = part.first; i < part.last; i++)
        largest = std::max(largest, std::abs(static_cast<double>(ours.data()[i] - theirs[i - part.first])));
    return largest;
}

}  // namespace

TEST_CASE("in each process: parts become sums over all, and everyone's" * doctest::skip(!is_launched())) {
    backend().use_device = [](int) {};  // a program with GPUs: it needs no MPI
    join_processes();
    const int size = processes().size(), rank = processes().rank();
    const int64_t n = 3 * kFlatBlock + 17;
    const auto value = [&](int r, int64_t i) { return 1 / static_cast<float>(1 + (i % 1000) + 7 * r); };
    std::vector<float> flat(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i++) flat[static_cast<size_t>(i)] = value(rank, i);
    cuda::sum_over_processes(flat.data(), n, {0, n}, nullptr);
    double off = 0;
    for (int64_t i = processes().part(n).first; i < processes().part(n).last; i++) {
        double sum = 0;
        for (int r = 0; r < size; r++) sum += static_cast<double>(value(r, i));
        off = std::max(off, std::abs(static_cast<double>(flat[static_cast<size_t>(i)]) / sum - 1));
    }
    CHECK(off < 1e-6);
    cuda::share_over_processes(flat.data(), n, nullptr);
    off = 0;
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int r = 0; r < size; r++) sum += static_cast<double>(value(r, i));
        off = std::max(off, std::abs(static_cast<double>(flat[static_cast<size_t>(i)]) / sum - 1));
    }
    CHECK(off < 1e-6);
    CHECK(cuda::norm_over_processes(rank + 1) == doctest::Approx(std::sqrt(size * (size + 1) * (2 * size + 1) / 6.0)));
}

TEST_CASE("in each process: a removal with a teacher gives the reference's losses, weights and moments" *
          doctest::skip(!is_launched())) {
    const cuda::TemporaryEmulationOptions without_checks(false, 0);
    const Trained reference = train_by(make_reference), ours = train_by(cuda::make_engine);
    check_close(ours.losses, reference.losses);
    check_close(ours.norms, reference.norms);
    const int64_t n = ours.model->parameters();
    CHECK(ours.model->sites.all_removed());
    CHECK(cuda::largest_tensor_error(kThreeBlocks, ours.model->params.data(), reference.model->params.data()) < 1e-4);
    const Range part = processes().part(n);
    CHECK(reference.model->m.size() == part.size());
    CHECK(largest_error(ours.model->m, reference.model->m.data(), part) < 1e-6);
    CHECK(largest_error(ours.model->v, reference.model->v.data(), part) < 1e-6);
    // The first has all of them, which it would write into a checkpoint.
    for (const bool first_moment : {true, false}) {
        const Buffer& of_part = first_moment ? reference.model->m : reference.model->v;
        std::vector<real> whole(static_cast<size_t>(n));
        std::copy(of_part.data(), of_part.data() + part.size(), whole.begin() + part.first);
        processes().complete(whole.data(), n);
        if (processes().leads())
            CHECK(largest_error(first_moment ? ours.model->m : ours.model->v, whole.data(), {0, n}) < 1e-6);
    }
}

TEST_CASE("in each process: sums beside the backward pass are those after it, to the bit" *
          doctest::skip(!is_launched())) {
    const cuda::TemporaryEmulationOptions without_checks(false, 0);
    const Trained beside = train_by(cuda::make_engine);  // as late as it is allowed
    cuda::emulation::streams_are_late() = false;         // as soon as they are given
    const Trained soon = train_by(cuda::make_engine);
    cuda::emulation::streams_are_late() = true;
    cuda::device_options().cuda_graphs = true;  // a recorded pass is over before anything is summed
    const Trained after = train_by(cuda::make_engine);
    cuda::device_options().cuda_graphs = false;
    const int64_t n = after.model->parameters();
    for (const Trained* const other : {&beside, &soon}) {
        CHECK(other->losses == after.losses);
        CHECK(other->norms == after.norms);
        CHECK(std::equal(other->model->params.data(), other->model->params.data() + n, after.model->params.data()));
    }
    leave_processes(0, "");
}

TEST_CASE("blocks lie one after another in the table of tensors, so that what is left of it is two ranges") {
    for (const ModelForm form : {ModelForm::hugging_face, ModelForm::folded}) {
        ModelConfig c = kThreeBlocks;
        c.form = form;
        const std::vector<Tensor> table = tensor_table(c);
        Range all = cuda::range_of_block(table, 0);
        CHECK(all.first == c.V * c.C + c.n_ctx * c.C);
        for (int64_t l = 1; l < c.L; l++) {
            const Range block = cuda::range_of_block(table, l);
            CHECK(block.first == all.last);
            CHECK(block.size() == cuda::range_of_block(table, 0).size());
            all.last = block.last;
        }
        CHECK(all.last < parameter_count(table));  // the last norm, or the head
        CHECK(cuda::range_of_block(table, c.L).size() == 0);
    }
}

namespace {

const Words kCases = {"--test-case=in each process*"};

// Of those that carried out the cases above.
void check_passed(const Outcome& outcome) {
    CAPTURE(outcome.out);
    CAPTURE(outcome.err);
    CHECK(outcome.status == 0);
    CHECK(contains(outcome.out, "3 passed"));
}

}  // namespace

TEST_CASE("several processes over MPI train by the CUDA engine as by the reference") {
    if (is_launched()) return;
    if (!built_with_mpi() || std::system("mpirun --version >/dev/null 2>&1") != 0) {
        std::printf("SKIPPED: several processes over MPI with the CUDA engine: %s\n",
                    built_with_mpi() ? "there is no mpirun" : "built without MPI");
        return;
    }
    use_this_program();
    for (const char* const n : {"2", "3", "5"}) {
        CAPTURE(n);
        Surroundings s;
        s.launcher = {"env",
                      "OMPI_ALLOW_RUN_AS_ROOT=1",
                      "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                      "OMP_NUM_THREADS=1",
                      "mpirun",
                      "--oversubscribe",
                      "--bind-to",
                      "none",
                      "-np",
                      n};
        check_passed(run(kCases, s));
    }
}

TEST_CASE("so do several that a file joins") {
    if (is_launched()) return;
    use_this_program();
    for (const int n : {2, 5}) {
        CAPTURE(n);
        TemporaryFolder scratch;
        std::vector<std::unique_ptr<Process>> started;
        for (int r = 0; r < n; r++) {
            Surroundings s;
            s.launcher = {"env", "OMP_NUM_THREADS=1", "RANK=" + std::to_string(r), "WORLD_SIZE=" + std::to_string(n),
                          "LNFREE_RENDEZVOUS=" + scratch / "rendezvous"};
            started.push_back(std::make_unique<Process>(kCases, s));
        }
        check_passed(started[0]->wait());
        for (int r = 1; r < n; r++) CHECK(started[static_cast<size_t>(r)]->wait().status == 0);  // they are silent
    }
}
