// Decoding token by token, and text that a model writes itself.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/error.h"
#include "data/json.h"
#include "data/shards.h"
#include "dev/commands/commands.h"
#include "dev/engine.h"
#include "dev/method.h"
#include "dev/run/models.h"
#include "dev/run/run.h"
#include "dev/run/samples.h"
#include "dev/run/settings.h"
#include "test/file_helpers.h"
#include "test/in_memory.h"
#include "test/quiet.h"
#include "test/test_models.h"
#include "test/tiny_task.h"

using namespace lnfree;
namespace fs = std::filesystem;

namespace {

const ModelConfig kSmall = shape_of(2, 2, 16, 61, 23, 40);

// Models whose norms differ: LayerNorm; some FakeLN, with numbers of their own for position 0 and end-of-text; none.
std::vector<std::unique_ptr<Engine>> kinds_of_models() {
    std::vector<std::unique_ptr<Engine>> models;
    ModelConfig c = kSmall;
    c.end_of_text = 5;
    models.push_back(random_model(c, 3));
    models.push_back(random_model(c, 4));
    for (Site& site : models.back()->sites.all) {
        if (site.kind == SiteKind::mlp) continue;
        freeze(site, 0.7);
        site.own_position0 = true;
        site.own_end_of_text = site.kind == SiteKind::v;
        site.sigma_bar_0 = 1.9;
    }
    c.form = ModelForm::folded;
    models.push_back(random_model(c, 5));
    return models;
}

// What a full pass over each sequence says of its next token; tokens (B,T)
std::vector<real> next_logits(Engine& model, const std::vector<int32_t>& tokens, int64_t B) {
    const auto T = static_cast<int64_t>(tokens.size()) / B;
    std::vector<real> out(static_cast<size_t>(B * model.config.V));
    model.logits(out.data(), tokens.data(), B, T, T - 1);
    return out;
}

std::vector<int32_t> tokens_in(const std::string& shard) {
    const TokenShards shards({shard});
    std::vector<int32_t> tokens;
    for (uint64_t i = 0; i < shards.tokens(); i++) tokens.push_back(static_cast<int32_t>(shards.token_at(0, i)));
    return tokens;
}

}  // namespace

TEST_CASE("decoding a few tokens at a time gives the logits of full passes, for every kind of norm, up to n_ctx") {
    const int64_t B = 3, V = kSmall.V;
    for (const std::unique_ptr<Engine>& model : kinds_of_models()) {
        const std::vector<int32_t> all = random_tokens(B * kSmall.n_ctx, V);
        const std::unique_ptr<Engine> full = make_reference(model->config);
        std::copy(model->params.data(), model->params.data() + model->parameters(), full->params.data());
        full->sites = model->sites;
        for (int again = 0; again < 2; again++) {  // a second batch finds nothing of the first
            model->start_decoding(B);
            for (int64_t t = 0; t < kSmall.n_ctx;) {
                const int64_t more = std::min<int64_t>(t == 0 ? 4 : t % 3 + 1, kSmall.n_ctx - t);
                std::vector<int32_t> next, so_far;
                for (int64_t b = 0; b < B; b++) {
                    const auto row = all.begin() + b * kSmall.n_ctx;
                    next.insert(next.end(), row + t, row + t + more);
                    so_far.insert(so_far.end(), row, row + t + more);
                }
                std::vector<real> logits(static_cast<size_t>(B * V));
                model->decode(logits.data(), next.data(), B, more);
                t += more;
                CAPTURE(t);
                CHECK(largest_difference(logits, next_logits(*full, so_far, B)) < 1e-5);
            }
        }
    }
}

TEST_CASE("a text is continued as without the cache, also beyond n_ctx") {
    for (const std::unique_ptr<Engine>& model : kinds_of_models())
        for (const double temperature : {0.0, 0.9}) {
            const Sampling sampling{temperature, 7, 11, {}};
            std::vector<int32_t> expected = {5, 9, 2}, tokens = expected;
            SplitMix64 random(sampling.seed);
            while (expected.size() < 40) {
                const size_t T = std::min<size_t>(expected.size(), 23);
                std::vector<real> logits =
                    next_logits(*model, {expected.end() - static_cast<int64_t>(T), expected.end()}, 1);
                expected.push_back(sample_token(logits.data(), kSmall.V, sampling, random));
            }
            continue_tokens(*model, tokens, sampling, [&](int32_t) { return tokens.size() < 40; });
            CHECK(tokens == expected);
        }
}

TEST_CASE("samples depend on seed and model alone, begin as asked, and say in PREFIX.json what they are") {
    const TemporaryFolder folder;
    const std::unique_ptr<Engine> model = random_model(kSmall, 3, 0.3);
    const auto sampled = [&](uint64_t seed, int64_t batch, const std::vector<int32_t>& prompt) {
        SampleRequest r;
        r.prefix = folder / "s";
        r.tokens = 10 * 23 - 3;
        r.val_tokens = 24;
        r.batch = batch;
        r.prompt = prompt;
        r.sampling.seed = seed;
        write_samples(*model, nullptr, r, "test");
        std::vector<int32_t> all = tokens_in(folder / "s_train_000000.bin");
        CHECK(all.size() == 10 * 23);
        const std::vector<int32_t> val = tokens_in(folder / "s_val_000000.bin");
        CHECK(val.size() == 2 * 23);
        all.insert(all.end(), val.begin(), val.end());
        return all;
    };
    model->config.end_of_text = 5;
    const std::vector<int32_t> one = sampled(1, 4, {});
    CHECK(sampled(1, 7, {}) == one);
    CHECK(sampled(2, 4, {}) != one);
    for (size_t i = 0; i < 12; i++) {
        CHECK(one[i * 23] == 5);
        for (size_t k = 0; k < i; k++) CHECK_FALSE(std::equal(&one[i * 23], &one[i * 23] + 23, &one[k * 23]));
    }
    const std::vector<int32_t> prompted = sampled(1, 4, {8, 3});
    for (size_t i = 0; i < 12; i++) CHECK((prompted[i * 23] == 8 && prompted[i * 23 + 1] == 3));
    model->config.end_of_text = -1;
    std::vector<int32_t> firsts;
    const std::vector<int32_t> any = sampled(1, 4, {});
    for (size_t i = 0; i < 12; i++) firsts.push_back(any[i * 23]);
    CHECK(*std::max_element(firsts.begin(), firsts.end()) - *std::min_element(firsts.begin(), firsts.end()) > 20);
    const Json about = read_json(folder / "s.json");
    CHECK(about["tokens"]["val"] == 46);
    CHECK(about["sampled"]["seed"] == 1);
    // Without a part for validation, an earlier one does not stay.
    SampleRequest all_of_it;
    all_of_it.prefix = folder / "s";
    all_of_it.tokens = 1;
    write_samples(*model, nullptr, all_of_it, "test");
    CHECK_FALSE(fs::exists(folder / "s_val_000000.bin"));
    SampleRequest r;
    r.prefix = folder / "long";
    r.tokens = 1;
    r.prompt.assign(23, 1);
    CHECK(contains(message_of<BadInput>([&] { write_samples(*model, nullptr, r, "test"); }), "23"));
}

namespace {

// Bytes with ids from `first` on, of which every third is missing.
std::unique_ptr<Tokenizer> tokenizer_with_gaps(int32_t first) {
    BpeVocabulary vocabulary;
    for (int32_t b = 0; b < 256; b++) vocabulary.ids[byte_symbols()[static_cast<size_t>(b)]] = first + b + b / 2;
    vocabulary.ids[vocabulary.end_of_text] = first + 1000;
    return std::make_unique<BpeTokenizer>(vocabulary, BpeTokenizer::Files(), "test");
}

}  // namespace

TEST_CASE("ids that the tokenizer has no text for are never drawn, however likely; without a tokenizer all may be") {
    const TemporaryFolder folder;
    const std::unique_ptr<Engine> model = random_model(kSmall, 3, 0.3);
    const int64_t V = kSmall.V;
    CHECK(ids_without_text(nullptr, V).empty());
    CHECK(ids_without_text(load_tokenizer("byte").get(), 260) == std::vector<int32_t>{257, 258, 259});
    CHECK(ids_without_text(tokenizer_with_gaps(0).get(), 9) == std::vector<int32_t>{2, 5, 8});
    CHECK_THROWS_AS(ids_without_text(tokenizer_with_gaps(1000).get(), V), BadInput);
    const std::unique_ptr<Tokenizer> tokenizer = tokenizer_with_gaps(0);
    for (const int32_t end_of_text : {4, -1}) {
        model->config.end_of_text = end_of_text;
        SampleRequest r;
        r.prefix = folder / "s";
        r.tokens = 40 * 23;
        write_samples(*model, tokenizer.get(), r, "test");
        for (const int32_t token : tokens_in(folder / "s_train_000000.bin")) CHECK(token % 3 != 2);
    }
    SampleRequest any;
    any.prefix = folder / "s";
    any.tokens = 40 * 23;
    write_samples(*model, nullptr, any, "test");
    const std::vector<int32_t> all = tokens_in(folder / "s_train_000000.bin");
    CHECK(std::any_of(all.begin(), all.end(), [](int32_t token) { return token % 3 == 2; }));
    Sampling greedy;
    greedy.temperature = 0;
    greedy.never = {1, 2};
    SplitMix64 random(1);
    std::vector<real> logits = {1, 9, 8, 3};
    CHECK(sample_token(logits.data(), 4, greedy, random) == 3);
    greedy.temperature = 1;
    greedy.top_k = 3;
    for (int i = 0; i < 50; i++) {
        logits = {1, 9, 8, 3};
        const int32_t drawn = sample_token(logits.data(), 4, greedy, random);
        CHECK((drawn == 0 || drawn == 3));
    }
}

TEST_CASE("--data self: a run learns from its own text, which lies in its folder, and goes on with it") {
    const TinyTask task(shape_of(1, 2, 16, 257, 17, 40));
    RunRequest r = task.request;
    r.settings.data = {"self"};
    r.settings.val.clear();
    set(r.settings, "distill", "1");
    set(r.settings, "save_every", "6");
    r.settings.out = task.scratch / "dry";
    r.dry_run = true;
    CHECK(task.run(r)["epochs"] == 1);
    CHECK_FALSE(fs::exists(r.settings.out));
    r.dry_run = false;
    const std::string out = task.run_into("self", r);
    CHECK(load_model(out).model->sites.all_linear_everywhere());
    CHECK(tokens_in(out + "/self_train_000000.bin").size() >= 12 * 3 * 17 * 2);
    CHECK(tokens_in(out + "/self_train_000000.bin")[0] == 256);
    CHECK(read_json(out + "/self.json")["tokenizer"]["name"] == "byte");

    struct Stop {};
    r.settings.out = task.scratch / "stopped";
    r.on_step = [](int64_t step) {
        if (step == 8) throw Stop();
    };
    CHECK_THROWS_AS(task.run(r), Stop);
    RunRequest rest;
    rest.command = "remove";
    rest.json_output = true;
    rest.resume = true;
    rest.settings.out = r.settings.out;
    task.run(rest);
    CHECK(TinyTask::weights(r.settings.out) == TinyTask::weights(out));

    r.on_step = nullptr;
    r.settings.val = task.request.settings.val;
    const std::string judged = task.run_into("judged", r);
    CHECK_FALSE(fs::exists(judged + "/self_val_000000.bin"));
    r.command = "pretrain";
    CHECK(contains(message_of<BadInput>([&] { task.run_into("new", r); }), "--data self"));
    r.command = "remove";
    r.settings.data = task.request.settings.data;
    r.settings.val.clear();
    CHECK(contains(message_of<BadInput>([&] { task.run_into("no_val", r); }), "--val"));
}
