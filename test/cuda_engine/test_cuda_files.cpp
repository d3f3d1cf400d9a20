// The CUDA engine behind the commands, in emulation: a run saved by one engine is resumed by the other.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "data/error.h"
#include "data/json.h"
#include "data/model_folder.h"
#include "data/safetensors.h"
#include "data/tokenizer.h"
#include "dev/commands/commands.h"
#include "dev/cuda/cuda_engine.h"
#include "dev/engine.h"
#include "dev/method.h"
#include "dev/run/models.h"
#include "dev/run/records.h"
#include "dev/run/run.h"
#include "dev/run/settings.h"
#include "test/alike.h"
#include "test/file_helpers.h"
#include "test/in_memory.h"
#include "test/quiet.h"
#include "test/test_models.h"
#include "test/tiny_task.h"

using namespace lnfree;

namespace {

void use_cpu_engine() {
    backend() = Backend();
}

// The CUDA engine as long as it lives; then everything is as it was, whatever the test chose meanwhile.
struct WithCuda {
    WithCuda() { cuda::use_cuda_engine(); }
    ~WithCuda() { use_cpu_engine(); }
    cuda::OptionsKeeper keeper;
};

static const ModelConfig kOneLayer = shape_of(1, 2, 16, 257, 17, 40);

struct Task : TinyTask {
    Task() : TinyTask(kOneLayer) {
        set(request.settings, "precision", "fp32");
        set(request.settings, "save_every", "6");
    }

    // The first seven steps with one engine, which stops there without a word; the others with the other, which must get
    // from the checkpoint what the run was started with.
    std::string run_in_two_parts(const std::string& name, void (*first)(), void (*second)()) {
        const cuda::OptionsKeeper keeper;
        struct Stop {};
        RunRequest part = request;
        part.settings.out = scratch / name;
        part.on_step = [](int64_t step) {
            if (step == 7) throw Stop();
        };
        first();
        CHECK_THROWS_AS(run(part), Stop);
        second();
        RunRequest rest;
        rest.command = request.command;
        rest.json_output = true;
        rest.resume = true;
        rest.settings.model = request.settings.model;
        rest.settings.data = request.settings.data;
        rest.settings.val = request.settings.val;
        rest.settings.out = part.settings.out;
        run(rest);
        attention_at_the_end = cuda::device_options().attention;
        use_cpu_engine();
        return part.settings.out;
    }
    std::string attention_at_the_end;
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
    return {status, read_bytes(scratch_file)};
}

}  // namespace

TEST_CASE("a removal saved by one engine and resumed by the other is the run of one engine") {
    Task task;
    const std::string cpu = task.run_into("cpu", task.request);
    const std::string onto_cpu = task.run_in_two_parts("onto_cpu", cuda::use_cuda_engine, use_cpu_engine);
    const std::string onto_gpu = task.run_in_two_parts("onto_gpu", use_cpu_engine, cuda::use_cuda_engine);
    const std::vector<double> expected = logged(cpu, "loss");
    REQUIRE(expected.size() == 12);
    const LoadedModel reference = load_model(cpu);
    for (const std::string& out : {onto_cpu, onto_gpu}) {
        CAPTURE(out);
        const std::vector<double> found = logged(out, "loss");
        REQUIRE(found.size() == 12);
        for (size_t s = 0; s < 12; s++) CHECK(found[s] == doctest::Approx(expected[s]).epsilon(1e-6));
        const LoadedModel loaded = load_model(out);
        CHECK(loaded.model->sites.all_linear_everywhere());
        double largest = 0;
        for (int64_t i = 0; i < loaded.model->parameters(); i++)
            largest = std::max(largest, static_cast<double>(std::abs(loaded.model->params.data()[i] -
                                                                     reference.model->params.data()[i])));
        CHECK(largest < 1e-4);
    }
}

TEST_CASE("a run beside a teacher goes on with the other engine, and ends where one engine ends") {
    Task task;
    set(task.request.settings, "distill", "0.7");
    const std::string cpu = task.run_into("cpu", task.request);
    const std::string onto_gpu = task.run_in_two_parts("onto_gpu", use_cpu_engine, cuda::use_cuda_engine);
    for (const char* figure : {"loss", "kl"}) {
        const std::vector<double> expected = logged(cpu, figure), found = logged(onto_gpu, figure);
        REQUIRE(expected.size() == 12);
        REQUIRE(found.size() == 12);
        for (size_t s = 0; s < 12; s++) CHECK(found[s] == doctest::Approx(expected[s]).epsilon(1e-5));
    }
}

TEST_CASE("a checkpoint that cannot be written while the GPU trains on ends the run, and no model is written") {
    Task task;
    RunRequest request = task.request;
    request.settings.out = task.scratch / "full";
    set(request.settings, "save_every", "4");
    const std::filesystem::path out = request.settings.out;
    request.on_step = [&](int64_t step) {
        if (step != 6) return;
        while (!std::filesystem::exists(out / "checkpoints" / "step_000004")) std::this_thread::yield();
        std::filesystem::rename(out / "checkpoints", out / "kept");
        write_file_atomically((out / "checkpoints").string(), "in the way");
    };
    const WithCuda with_cuda;
    CHECK_THROWS_WITH_AS(run(request), doctest::Contains("checkpoints"), RunFailure);
    CHECK(std::filesystem::exists(out / "kept" / "step_000004" / "weights.safetensors"));
    CHECK_FALSE(std::filesystem::exists(out / "model.safetensors"));
}

TEST_CASE("a resumed run reads the choice of products that it was started with") {
    Task task;
    RunRequest part = task.request;
    part.settings.out = task.scratch / "chosen";
    const WithCuda with_cuda;
    cuda::ProductChoices choices;
    choices.made_for = cuda::products_made_for();
    const std::string path = task.scratch / "products.txt";
    write_file_atomically(path, choices.text());
    set(part.settings, "products", path);
    struct Stop {};
    part.on_step = [](int64_t step) {
        if (step == 7) throw Stop();
    };
    CHECK_THROWS_AS(run(part), Stop);
    RunRequest rest;
    rest.command = part.command;
    rest.json_output = true;
    rest.resume = true;
    rest.settings.out = part.settings.out;
    std::filesystem::rename(path, path + ".moved");
    CHECK_THROWS_WITH_AS(run(rest), doctest::Contains("products.txt"), BadInput);
    std::filesystem::rename(path + ".moved", path);
    run(rest);
    CHECK(cuda::device_options().products == path);
}

TEST_CASE("attention kernels that this program has not are refused, before anything is written") {
    Task task;
    const WithCuda with_cuda;
    task.request.settings.out = task.scratch / "out";
    const auto refused = [&](const char* attention, const char* words) {
        task.request.settings.engine.attention = attention;
        CHECK_THROWS_WITH_AS(task.run(task.request), doctest::Contains(words), BadInput);
    };
    refused("cudnn", "USE_CUDNN=1");
    refused("quick", "use flash, plain or cudnn");
    CHECK_FALSE(std::filesystem::exists(task.request.settings.out));
}

TEST_CASE("a resumed run keeps the attention kernels that it was started with") {
    Task task;
    task.request.settings.engine.attention = "plain";
    task.run_in_two_parts("out", cuda::use_cuda_engine, cuda::use_cuda_engine);
    CHECK(task.attention_at_the_end == "plain");
}

TEST_CASE("a resumed run goes on rounding at random, to the bits of one that was never stopped") {
    Task task;
    const WithCuda with_cuda;
    set(task.request.settings, "precision", "bf16");
    task.request.settings.engine.stochastic_rounding = true;
    const std::string at_once = task.run_into("at_once", task.request);
    const std::string in_two = task.run_in_two_parts("in_two", cuda::use_cuda_engine, cuda::use_cuda_engine);
    CHECK(logged(in_two, "loss") == logged(at_once, "loss"));
    CHECK(task.weights(in_two) == task.weights(at_once));
}

TEST_CASE("eval and generate compute in the precision that is asked for, in TF32 unless told") {
    Task task;
    const std::string shard = task.request.settings.val[0];
    const auto evaluated = [&](const std::vector<std::string>& more) {
        std::vector<std::string> words = {"eval",  "--model", task.scratch / "base", "--data", shard, "--json",
                                          "--seq", "17",      "--val-tokens",        "200"};
        words.insert(words.end(), more.begin(), more.end());
        const Outcome outcome = command_line(words, task.scratch / "out");
        REQUIRE(outcome.status == 0);
        return parse_json(outcome.out, "test");
    };
    const Json reference = evaluated({});
    const WithCuda with_cuda;
    const Json by_itself = evaluated({}), fp32 = evaluated({"--precision", "fp32"}),
               bf16 = evaluated({"--precision", "bf16"});
    const double loss = reference["loss"].number();
    CHECK(reference["precision"] == "fp32");
    CHECK(by_itself["precision"] == "tf32");
    CHECK(by_itself["loss"].get<double>() == doctest::Approx(loss).epsilon(1e-3));
    CHECK(fp32["loss"].get<double>() == doctest::Approx(loss).epsilon(1e-6));
    CHECK(bf16["precision"] == "bf16");
    CHECK(bf16["loss"].get<double>() == doctest::Approx(loss).epsilon(0.01));
    const auto off = [&](const Json& other) {  // in the mean rounding averages out
        double sum = 0;
        for (const auto& [name, value] : reference["percentiles"].items())
            sum += std::abs(value.get<double>() - other["percentiles"][name].get<double>());
        return sum;
    };
    CHECK(off(fp32) < 1e-5);
    CHECK(off(by_itself) > 1e-5);
    CHECK(off(by_itself) < off(bf16));
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
}

namespace {

// The same but for rounding. Effects are in shares of differences between logits, which divide the rounding of both by as
// little as a tenth.
void check_alike(const Json& a, const Json& b) {
    lnfree::check_alike(a, b, 1e-4, 1);
}

std::vector<real> activations_in(const std::string& path) {
    const SafetensorsFile file(path);
    std::vector<real> all;
    for (const TensorView& tensor : file.tensors()) {
        if (tensor.name == "tokens") continue;
        uint64_t size = 1;
        for (const uint64_t extent : tensor.shape) size *= extent;
        all.resize(all.size() + size);
        copy_tensor(tensor, all.data() + all.size() - size);
    }
    return all;
}

// Folders of a model with LayerNorms, the same without, and that one folded.
std::vector<std::string> write_three_forms(const TemporaryFolder& scratch) {
    const std::unique_ptr<Engine> model = random_model(shape_of(2, 2, 24, 257, 17, 56), 3);
    ModelConfig c = model->config;
    c.form = ModelForm::hugging_face;
    const auto write = [&](const char* name, const std::vector<TensorRecipe>& recipes) {
        write_model(scratch / name, c, recipes, WeightType::f32,
                    {{"version", kFormatVersion}, {"sites", sites_json(model->sites)}}, load_tokenizer("byte").get(),
                    "");
        return scratch / name;
    };
    std::vector<std::string> folders = {write("norms", plain_recipes(*model))};
    double sigma = 0.6;
    for (Site& site : model->sites.all) freeze(site, sigma += 0.17);
    const std::vector<TensorRecipe> recipes = hugging_face_recipes(*model, c);
    folders.push_back(write("free", recipes));
    const std::vector<TensorRecipe> of_folded = folded_recipes(*model, c);
    for (Site& site : model->sites.all) site.folded = true;
    folders.push_back(write("folded", of_folded));
    return folders;
}

}  // namespace

TEST_CASE("analyze on the CUDA engine finds what the reference finds, in every measurement, explain and cache") {
    Task task;
    const std::vector<std::string> models = write_three_forms(task.scratch);
    write_bytes(task.scratch / "prompts.json",
                R"({"a": {"prompts": ["Ann met Bea. A", "Bea met Ann. A", "Ann saw Bea. B", "Bea saw Ann. B"],
                          "answers": [["n", "e"], ["e", "n"], ["x", "y"], ["y", "x"]]}})");
    const std::string shard = task.request.settings.val[0];
    const auto said = [&](std::vector<std::string> words) {
        words.push_back("--json");
        const Quiet quiet(2);
        const Outcome outcome = command_line(words, task.scratch / "said");
        REQUIRE(outcome.status == 0);
        return parse_json(outcome.out, "test");
    };
    for (const bool paper : {false, true}) {
        const auto report = [&](const char* out) {
            std::vector<std::string> words = {
                "analyze",     "report",    "--data",
                shard,         "--prompts", task.scratch / "prompts.json",
                "--sequences", "5",         "--batch",
                "3",           "--out",     task.scratch / (out + std::string(paper ? "_paper" : "")),
                "--model"};
            if (paper) words.insert(words.begin() + 2, "--paper");
            words.insert(words.end(), models.begin(), models.end());
            return said(words);
        };
        const Json expected = report("cpu");
        CHECK(expected["patching"]["models"][0]["sets"][0]["counts"] == true);
        CHECK(expected["confidence"]["models"].size() == 3);
        const WithCuda with_cuda;
        check_alike(report("gpu"), expected);
    }
    for (const std::string& model : models) {
        CAPTURE(model);
        const bool is_linear = model != models[0];
        std::vector<std::string> explain = {"analyze",  "explain", "--model",   model,
                                            "--prompt", "Ann met", "--neurons", "--sources"};
        if (is_linear) explain.push_back("--paths");
        const auto cache = [&](const char* out) {
            const std::string file = task.scratch / out;
            said({"analyze", "cache", "--model", model, "--data", shard, "--tokens", "34", "--force", "--out", file,
                  "--hooks",
                  "hook_embed,blocks.*.hook_resid_pre,blocks.*.hook_resid_mid,blocks.*.attn.hook_z,"
                  "blocks.*.attn.hook_q,blocks.*.mlp.hook_post,blocks.*.hook_mlp_out,blocks.*.hook_resid_post"});
            return activations_in(file);
        };
        const Json explained = said(explain);
        const std::vector<real> cached = cache("cpu.safetensors");
        const WithCuda with_cuda;
        check_alike(said(explain), explained);
        CHECK(largest_difference(cache("gpu.safetensors"), cached) < 1e-4);
    }
}
