// The CUDA engine behind the commands, in emulation: a run saved by one engine is resumed by the other.
#include <doctest/doctest.h>

#define LNFREE_LIBRARY_ONLY
#include "train_gpt2_lnfree.cu"

// after the program that it is about
#include "test/tiny_task.h"

using namespace lnfree;

namespace {

void use_cpu_engine() {
    engine() = Engine();
}

static const GPT2Config kOneLayer = shape_of(1, 2, 16, 257, 17, 40);

struct Task : TinyTask {
    Task() : TinyTask(kOneLayer) {
        options.flags.precision = "fp32";
        options.save_every = 6;
    }

    // The first seven steps with one engine, which stops there without a word; the others with the other.
    void run_in_two_parts(const std::string& out, void (*first)(), void (*second)()) {
        options.out = out;
        RunOptions part = options;
        struct Stop {};
        part.on_step = [](int64_t step) {
            if (step == 7) throw Stop();
        };
        first();
        CHECK_THROWS_AS(run(part), Stop);
        second();
        RunOptions rest = options;
        rest.resume = true;
        rest.eval_every = 0;
        rest.save_every = -1;
        rest.keep_checkpoints = -1;
        rest.engine = {};  // what the run was started with must come from its checkpoint
        run(rest);
        use_cpu_engine();
    }

    std::vector<double> losses(const std::string& out) const {
        std::vector<double> values;
        std::istringstream lines(read_file(out + "/log.jsonl", 1 << 30));
        for (std::string line; std::getline(lines, line);) {
            const json j = json::parse(line);
            if (j.contains("loss")) values.push_back(j["loss"]);
        }
        return values;
    }
};

// What the command line prints on standard output, with its exit status.
struct Outcome {
    int status;
    std::string out;
};
Outcome command_line(const std::vector<std::string>& words, const std::string& scratch_file) {
    std::vector<std::string> all = {"train_gpt2_lnfree_cuda"};
    all.insert(all.end(), words.begin(), words.end());
    std::vector<char*> arguments;
    for (std::string& word : all) arguments.push_back(word.data());
    std::fflush(stdout);
    const int kept = dup(1), file = open(scratch_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(file, 1);
    const int status = run_program(static_cast<int>(arguments.size()), arguments.data());
    std::fflush(stdout);
    dup2(kept, 1);
    close(kept);
    close(file);
    return {status, read_file(scratch_file, 1 << 30)};
}

}  // namespace

TEST_CASE("a removal saved by one engine and resumed by the other is the run of one engine") {
    Task task;
    task.options.out = task.scratch / "cpu";
    task.run(task.options);
    task.run_in_two_parts(task.scratch / "onto_cpu", cuda::use_cuda_engine, use_cpu_engine);
    task.run_in_two_parts(task.scratch / "onto_gpu", use_cpu_engine, cuda::use_cuda_engine);
    const std::vector<double> expected = task.losses(task.scratch / "cpu");
    REQUIRE(expected.size() == 12);
    const auto reference = load_model(task.scratch / "cpu");
    for (const char* name : {"onto_cpu", "onto_gpu"}) {
        CAPTURE(name);
        const std::vector<double> found = task.losses(task.scratch / name);
        REQUIRE(found.size() == 12);
        for (size_t s = 0; s < 12; s++) CHECK(found[s] == doctest::Approx(expected[s]).epsilon(1e-6));
        const auto loaded = load_model(task.scratch / name);
        CHECK(loaded.model->sites.all_linear_everywhere());
        double largest = 0;
        for (int64_t i = 0; i < loaded.model->parameters(); i++)
            largest = std::max(largest, static_cast<double>(std::abs(loaded.model->params.data()[i] -
                                                                     reference.model->params.data()[i])));
        CHECK(largest < 1e-4);
    }
}

TEST_CASE("attention kernels that this program has not are refused, before anything is written") {
    Task task;
    task.options.out = task.scratch / "out";
    const auto refused = [&](const char* attention, const char* words) {
        task.options.engine.attention = attention;
        CHECK_THROWS_WITH_AS(task.run(task.options), doctest::Contains(words), BadInput);
    };
    cuda::use_cuda_engine();
    refused("cudnn", "USE_CUDNN=1");
    refused("quick", "use flash, plain or cudnn");
    CHECK_FALSE(fs::exists(task.options.out));
    cuda::device_options() = {};
    use_cpu_engine();
}

TEST_CASE("a resumed run keeps the attention kernels that it was started with") {
    Task task;
    task.options.engine.attention = "plain";
    task.run_in_two_parts(task.scratch / "out", cuda::use_cuda_engine, cuda::use_cuda_engine);
    CHECK(cuda::device_options().attention == "plain");
    cuda::device_options() = {};
}

TEST_CASE("a resumed run goes on rounding at random, to the bits of one that was never stopped") {
    Task task;
    task.options.flags.precision = "bf16";
    task.options.engine.stochastic_rounding = true;
    cuda::use_cuda_engine();
    task.options.out = task.scratch / "at_once";
    task.run(task.options);
    task.run_in_two_parts(task.scratch / "in_two", cuda::use_cuda_engine, cuda::use_cuda_engine);
    CHECK(task.losses(task.scratch / "in_two") == task.losses(task.scratch / "at_once"));
    CHECK(task.weights(task.scratch / "in_two") == task.weights(task.scratch / "at_once"));
}

TEST_CASE("eval and generate compute in the precision that is asked for, in fp32 unless told") {
    Task task;
    const auto evaluated = [&](const std::vector<std::string>& more) {
        std::vector<std::string> words = {
            "eval",  "--model", task.scratch / "base", "--data", task.options.val[0], "--json",
            "--seq", "17",      "--val-tokens",        "200"};
        words.insert(words.end(), more.begin(), more.end());
        const Outcome outcome = command_line(words, task.scratch / "out");
        REQUIRE(outcome.status == 0);
        return json::parse(outcome.out);
    };
    const json reference = evaluated({});
    cuda::use_cuda_engine();
    const json by_itself = evaluated({}), fp32 = evaluated({"--precision", "fp32"}),
               bf16 = evaluated({"--precision", "bf16"});
    const double loss = reference["loss"];
    CHECK(by_itself["loss"] == fp32["loss"]);
    CHECK(by_itself["precision"] == "fp32");
    CHECK(fp32["loss"].get<double>() == doctest::Approx(loss).epsilon(1e-6));
    CHECK(bf16["precision"] == "bf16");
    CHECK(bf16["loss"].get<double>() == doctest::Approx(loss).epsilon(0.01));
    const auto off = [&](const json& other) {  // in the mean rounding averages out
        double sum = 0;
        for (const auto& [name, value] : reference["percentiles"].items())
            sum += std::abs(value.get<double>() - other["percentiles"][name].get<double>());
        return sum;
    };
    CHECK(off(fp32) < 1e-5);
    CHECK(off(bf16) > 1e-4);

    const auto generated = [&](const char* precision) {
        return command_line({"generate", "--model", task.scratch / "base", "--prompt", "One day", "--max-tokens", "3",
                             "--temperature", "0", "--json", "--precision", precision},
                            task.scratch / "out");
    };
    CHECK(generated("bf16").status == 0);
    CHECK(cuda::device_options().in_bf16);
    CHECK(generated("fp32").status == 0);
    CHECK_FALSE(cuda::device_options().in_bf16);
    cuda::device_options() = {};
    use_cpu_engine();
}

TEST_CASE("a folded model, which runs on the processor, is refused in bf16 on the CUDA engine") {
    cuda::use_cuda_engine();
    GPT2Config folded = kOneLayer;
    folded.form = ModelForm::folded;
    CHECK(engine().make_model(folded) != nullptr);
    engine().use_precision("bf16");
    CHECK_THROWS_WITH_AS(engine().make_model(folded), doctest::Contains("folded"), BadInput);
    CHECK(engine().make_model(kOneLayer) != nullptr);
    cuda::device_options() = {};
    use_cpu_engine();
}
