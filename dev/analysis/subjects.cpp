#include "dev/analysis/subjects.h"

#include <algorithm>

#include "data/error.h"
#include "data/json.h"
#include "data/shards.h"
#include "data/story_world.h"
#include "data/tokenizer.h"
#include "dev/run/evaluate.h"
#include "dev/run/models.h"
#include "dev/run/signals.h"

namespace lnfree {
namespace analysis {

// ---------------------------------------------------------------------------------------------------------------------
// Fingerprints

namespace {

void add_text(Hash64& hash, const std::string& text) {
    add_bytes(hash, text.data(), text.size());
}

void add_tokens(Hash64& hash, const std::vector<int32_t>& tokens) {
    add_bytes(hash, tokens.data(), tokens.size() * sizeof(int32_t));
}

uint64_t fingerprint_of(const std::vector<PromptSet>& sets) {
    Hash64 hash;
    for (const PromptSet& set : sets) {
        add_text(hash, set.name);
        for (const std::vector<int32_t>& prompt : set.prompts) add_tokens(hash, prompt);
        add_tokens(hash, set.right);
        add_tokens(hash, set.wrong);
    }
    return hash.value();
}

}  // namespace

uint64_t fingerprint_of(const LoadedModel& loaded) {
    Hash64 hash;
    add_model(hash, *loaded.model);
    add_text(hash, loaded.tokenizer ? loaded.tokenizer->fingerprint() : "");
    add_text(hash, loaded.lnfree);
    return hash.value();
}

// ---------------------------------------------------------------------------------------------------------------------
// Text

namespace {

void require_one_vocabulary(const Subjects& s) {
    const auto fingerprint = [&](size_t i) {
        return s.loaded[i].tokenizer ? s.loaded[i].tokenizer->fingerprint() : std::string();
    };
    for (size_t i = 1; i < s.loaded.size(); i++)
        if (s.model(i).config.V != s.model(0).config.V || fingerprint(i) != fingerprint(0))
            throw BadInput(s.folders[i] + ": has another vocabulary than " + s.folders[0] +
                           "; compare models with the same tokenizer");
}

Sample sample_for(const Subjects& s, const Options& o) {
    if (o.data.empty()) throw BadInput("--data is required: token shards made by `tokenize`");
    int64_t T = o.seq > 0 ? o.seq : 512;
    for (size_t i = 0; i < s.loaded.size(); i++) {
        if (o.seq == 0) T = std::min(T, s.model(i).config.n_ctx);
        sequence_length(T, s.model(i).config, s.folders[i]);
    }
    if (T < 2)
        throw BadInput("--seq " + std::to_string(T) +
                       ": what position 0 is to the others needs others; use at least 2");
    const TokenShards shards(o.data);
    for (const LoadedModel& loaded : s.loaded) {
        shards.check_vocabulary(static_cast<uint32_t>(loaded.model->config.V));
        require_same_tokenizer(shards, loaded.tokenizer.get(), "--data");
    }
    return take_sample(shards, T, o.sequences);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Prompts

namespace {

std::vector<int32_t> tokens_of(const Tokenizer& tokenizer, const std::string& text) {
    std::vector<int32_t> tokens;
    tokenizer.encode(text, tokens, true);
    return tokens;
}

// One prompt with its two answers into a set. BadInput, naming `where`, unless it has the set's length and the answers
// differ in their first token.
void add_prompt(PromptSet& set, const Tokenizer& tokenizer, const std::string& prompt, const std::string& right,
                const std::string& wrong, const std::string& where) {
    const std::vector<int32_t> tokens = tokens_of(tokenizer, prompt);
    const std::vector<int32_t> answers[] = {tokens_of(tokenizer, right), tokens_of(tokenizer, wrong)};
    if (set.prompts.empty()) set.T = static_cast<int64_t>(tokens.size());
    if (tokens.empty() || static_cast<int64_t>(tokens.size()) != set.T)
        throw BadInput(where + ": has " + std::to_string(tokens.size()) + " tokens, the set's first prompt " +
                       std::to_string(set.T) + "; all prompts of a set must have equally many");
    if (answers[0].empty() || answers[1].empty() || answers[0][0] == answers[1][0])
        throw BadInput(where + ": the two answers begin with the same token; nothing tells them apart");
    set.prompts.push_back(tokens);
    set.right.push_back(answers[0][0]);
    set.wrong.push_back(answers[1][0]);
}

}  // namespace

std::vector<PromptSet> read_prompts(const std::string& path, const Tokenizer& tokenizer) {
    const Json file = read_json(path, uint64_t{64} << 20);
    std::vector<PromptSet> sets;
    try {
        for (const auto& [name, entry] : file.items()) {
            const auto prompts = entry.at("prompts").get<std::vector<std::string>>();
            const auto answers = entry.at("answers").get<std::vector<std::vector<std::string>>>();
            if (prompts.empty() || prompts.size() % 2 != 0 || prompts.size() != answers.size())
                throw BadInput(path + ": set " + name + " has " + std::to_string(prompts.size()) + " prompts and " +
                               std::to_string(answers.size()) + " pairs of answers; give an even number of both");
            PromptSet set;
            set.name = name;
            for (size_t i = 0; i < prompts.size(); i++) {
                const std::string where = path + ": set " + name + ", prompt " + std::to_string(i);
                if (answers[i].size() != 2) throw BadInput(where + ": needs two answers, the right and the wrong one");
                add_prompt(set, tokenizer, prompts[i], answers[i][0], answers[i][1], where);
            }
            sets.push_back(std::move(set));
        }
    } catch (const JsonError& e) {
        throw BadInput(path + ": is no file of prompts: " + e.what());
    }
    if (sets.empty()) throw BadInput(path + ": holds no prompts");
    return sets;
}

namespace {

// The story world's indirect-object prompts, one set per form of sentence.
std::vector<PromptSet> story_prompts(const Tokenizer& tokenizer) {
    const size_t forms = story::indirect_forms().size();
    std::vector<PromptSet> sets(forms);
    for (const IndirectObjectPrompt& p : indirect_object_prompts(1, static_cast<int>(16 * forms))) {
        PromptSet& set = sets[p.form];
        set.name = "story form " + std::to_string(p.form + 1);
        add_prompt(set, tokenizer, p.clean, p.correct, p.wrong, set.name);
        add_prompt(set, tokenizer, p.corrupted, p.wrong, p.correct, set.name);
    }
    return sets;
}

// TransformerLens puts end-of-text in front of every text that it tokenises.
void prepend_end_of_text(std::vector<PromptSet>& sets, int32_t end_of_text) {
    for (PromptSet& set : sets) {
        set.T++;
        for (std::vector<int32_t>& prompt : set.prompts) prompt.insert(prompt.begin(), end_of_text);
    }
}

std::vector<PromptSet> prompts_for(const Subjects& s, const Options& o) {
    const Tokenizer* const tokenizer = &required_tokenizer(s.loaded[0], s.folders[0], "patching");
    if (o.prompts.empty() && tokenizer->name() != "byte")
        throw BadInput("--prompts is required: the built-in ones are for byte models");
    std::vector<PromptSet> sets = o.prompts.empty() ? story_prompts(*tokenizer) : read_prompts(o.prompts, *tokenizer);
    if (o.paper) prepend_end_of_text(sets, tokenizer->end_of_text());
    for (size_t i = 0; i < s.loaded.size(); i++)
        for (const PromptSet& set : sets)
            if (set.T > s.model(i).config.n_ctx)
                throw BadInput("--prompts: those of set " + set.name + " have " + std::to_string(set.T) + " tokens" +
                               (o.paper ? ", end-of-text in front, and " : ", and ") + s.folders[i] +
                               " reads at most " + std::to_string(s.model(i).config.n_ctx) +
                               " (n_ctx); give shorter ones");
    return sets;
}

// Throws BadInput unless the answers can be asked of these models.
void check_benchmarks(const Options& o) {
    if (o.benchmarks.evals.empty()) throw BadInput("--evals is required: the folder with the benchmarks' files");
    if (!o.benchmarks.choices.empty() && o.models.size() > 1)
        throw BadInput("--choices " + o.benchmarks.choices + ": is for one model; give a single --model");
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// All of it

Subjects load_subjects(const Options& o) {
    Subjects s;
    s.folders = o.models;
    for (const std::string& folder : o.models) {
        s.loaded.push_back(load_model(folder));
        s.model_fingerprints.push_back(fingerprint_of(s.loaded.back()));
    }
    require_one_vocabulary(s);
    s.procedure.batch = o.batch;
    s.procedure.seed = o.seed;
    s.procedure.paper = o.paper;
    s.procedure.pause = [] {
        if (g_signal != 0) throw Interrupted{g_signal};
    };
    return s;
}

void prepare(Subjects& s, TakenOn on, const Options& o) {
    if (on == TakenOn::text && s.sample.sequences == 0) s.sample = sample_for(s, o);
    if (on == TakenOn::prompts && s.prompts.empty()) {
        s.prompts = prompts_for(s, o);
        s.prompts_fingerprint = fingerprint_of(s.prompts);
    }
    if (on == TakenOn::questions) {
        check_benchmarks(o);
        s.benchmarks = o.benchmarks;
        s.benchmarks.pause = s.procedure.pause;
        s.benchmarks.force = o.force;
        s.questions_fingerprint = fingerprint_of(benchmark_files(s.benchmarks));
    }
}

void prepare_tasks(Subjects& s) {
    if (!s.tasks.empty()) return;
    for (const LoadedModel& loaded : s.loaded) s.tasks.push_back(prepare_benchmarks(loaded, s.benchmarks));
}

}  // namespace analysis
}  // namespace lnfree
