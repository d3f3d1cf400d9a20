#include "dev/run/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <future>
#include <vector>

#include "data/files.h"
#include "data/json.h"
#include "data/model_folder.h"
#include "data/safetensors.h"
#include "dev/method.h"
#include "dev/processes.h"
#include "dev/run/models.h"
#include "dev/run/records.h"
#include "dev/run/start.h"

namespace lnfree {

namespace fs = std::filesystem;

// ---------------------------------------------------------------------------------------------------------------------
// lnfree.json

namespace {

Json shards_json(const TokenShards& shards) {
    Json j;
    for (const std::string& path : shards.paths()) j["files"].push_back(fs::path(path).filename().string());
    j["tokens"] = shards.tokens();
    j["fingerprint"] = hex(shards.fingerprint());
    return j;
}

Json tokenizer_json(const Tokenizer* tokenizer) {
    if (tokenizer == nullptr) return {};
    return {{"name", tokenizer->name()},
            {"fingerprint", tokenizer->fingerprint()},
            {"vocab_size", tokenizer->vocab_size()}};
}

// Its last part, whether or not a slash follows.
std::string folder_name(const std::string& path) {
    const fs::path absolute = fs::absolute(path).lexically_normal();
    return (absolute.has_filename() ? absolute : absolute.parent_path()).filename().string();
}

const char* form_name(ModelForm form) {
    return form == ModelForm::checkpoint ? "checkpoint" : form == ModelForm::folded ? "folded" : "hf";
}

}  // namespace

Json model_record(const Session& session, const RunState& state, ModelForm form, bool finished) {
    Json j;
    j["version"] = kFormatVersion;
    j["form"] = form_name(form);
    if (form == ModelForm::checkpoint) j["checkpoint_version"] = kCheckpointVersion;
    j["command"] = session.request.command;
    j["finished"] = finished;
    j["layernorm_free"] = state.sites.all_linear_everywhere();
    j.update(state_json(state));
    if (finished) j.erase("resume");
    j["results"]["val_tokens"] = session.options().val_tokens;
    j["data"]["train"] = shards_json(*session.train);
    j["data"]["val"] = shards_json(*session.val);
    j["tokenizer"] = tokenizer_json(session.tokenizer.get());
    if (session.teacher)
        j["teacher"] = {{"folder", folder_name(session.options().teacher)},
                        {"fingerprint", session.teacher_fingerprint}};
    j["based_on"] = session.based_on.empty() ? Json() : parse_json(session.based_on, "based_on");
    return j;
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

namespace {

// "raw:" and its kin stay in front, the path behind becomes absolute: a run may be resumed from another folder.
std::vector<std::string> absolute_patterns(const std::vector<std::string>& patterns) {
    std::vector<std::string> absolute;
    for (const std::string& p : patterns) {
        const ShardName name = parse_shard_name(p);
        absolute.push_back(name.prefix + fs::absolute(name.path).string());
    }
    return absolute;
}

// What going on needs beyond the state: the run's options.
void add_options(Json& resume, const Session& session) {
    const RunSettings& o = session.options();
    resume["model"] = o.model.empty() ? "" : fs::absolute(o.model).string();
    resume["data"] = absolute_patterns(o.data);
    resume["val"] = absolute_patterns(o.val);
    resume["eval_every"] = o.eval_every;
    resume["val_tokens"] = o.val_tokens;
    resume["save_every"] = o.save_every;
    resume["keep_checkpoints"] = o.keep_checkpoints;
    resume["stochastic_rounding"] = o.engine.stochastic_rounding;
    resume["attention"] = o.engine.attention;
    if (!o.engine.products.empty()) resume["products"] = fs::absolute(o.engine.products).string();
    resume["data_fingerprint"] = hex(session.train->fingerprint());
    if (session.teacher) resume["teacher"] = fs::absolute(o.teacher).string();
}

// Whether every process has a part of the moments alone, in its engine.
bool is_in_parts(const Engine& model) {
    return processes().size() > 1 && !model.has_copies();
}

// Collective: whether the first process will write this checkpoint, or has it already.
bool will_be_written(const Session& session, int64_t step) {
    const fs::path path = fs::path(session.options().out) / "checkpoints" / checkpoint_name(step);
    return processes().of_the_first(processes().leads() && !fs::exists(path));
}

// One tensor of a flat buffer of which every process holds its part, `mine`: whole, in the first one's `out`. Collective.
void collect_tensor(real* out, const Tensor& t, const Buffer& mine, int64_t numbers) {
    const Range tensor = {t.offset, t.offset + t.size};
    std::vector<int64_t> counts;
    for (int r = 0; r < processes().size(); r++)
        counts.push_back(common(part_of(numbers, r, processes().size()), tensor).size());
    const Range part = processes().part(numbers);
    processes().collect(out, mine.data() + (common(part, tensor).first - part.first), counts);
}

void write_buffer(const std::string& path, const Engine& model, const Buffer& buffer, bool in_parts) {
    TensorRecipes<real> recipes;
    for (const Tensor& t : model.trained()) {
        const real* from = buffer.data() + t.offset;
        if (in_parts)
            recipes.push_back(
                {t.name, t.shape, [&](real* out) { collect_tensor(out, t, buffer, model.trained_numbers()); }});
        else
            recipes.push_back({t.name, t.shape, [from, n = t.size](real* out) { std::copy(from, from + n, out); }});
    }
    write_safetensors<real>(path, recipes, dtype_of<real>());
}

// What the other processes do while the first one writes, if it does.
void give_moments(const Session& session, int64_t step) {
    const Engine& model = *session.model;
    if (!is_in_parts(model) || !will_be_written(session, step)) return;
    for (const Buffer* buffer : {&model.m, &model.v})
        for (const Tensor& t : model.trained()) collect_tensor(nullptr, t, *buffer, model.trained_numbers());
}

void write_files(const std::string& folder, const Session& session, const Json& record) {
    const Engine& model = *session.model;
    write_buffer(folder + "/adam_m.safetensors", model, model.m, is_in_parts(model));
    write_buffer(folder + "/adam_v.safetensors", model, model.v, is_in_parts(model));
    if (model.low_rank.R > 0) write_buffer(folder + "/low_rank.safetensors", model, model.low_rank.values, false);
    ModelConfig config = model.config;
    if (config.form != ModelForm::folded) config.form = ModelForm::checkpoint;
    write_model(folder, config, plain_recipes(model), WeightType::of_real, record, session.tokenizer.get(), "",
                session.companions);
}

}  // namespace

void finish_checkpoint(Session& session) {
    if (session.writing.valid()) session.writing.get();
}

void save_checkpoint(Session& session, const RunState& at) {
    finish_checkpoint(session);  // it reads what is fetched anew now
    session.model->fetch_parameters();
    session.model->fetch_moments();
    if (!processes().leads()) return give_moments(session, at.step);
    if (is_in_parts(*session.model) && !will_be_written(session, at.step)) return;
    Json record = model_record(session, at, ModelForm::checkpoint, false);
    add_options(record["resume"], session);
    const auto write = [&session, record, step = at.step] {
        write_checkpoint(session.options().out, step,
                         [&](const std::string& folder) { write_files(folder, session, record); });
        prune_checkpoints(session.options().out, 2);
    };
    if (session.model->has_copies()) {
        session.writing = std::async(std::launch::async, write);
    } else {
        write();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

namespace {

std::string newest_checkpoint(const std::string& out) {
    const auto checkpoints = list_checkpoints(out);
    if (!checkpoints.empty()) return checkpoints.back().string();
    const Json done = read_lnfree_json(out);
    if (done.is_object() && done.contains("finished") && done["finished"] == true)
        throw BadInput("--out " + out +
                       ": that run is finished, nothing is left to resume; train the model further with --model " +
                       out);
    throw BadInput("--out " + out + ": holds no checkpoint to resume from; start the run without --resume");
}

// This process's part of the flat buffer in the file, or all of it for an engine that holds all.
void read_buffer(Buffer& buffer, const Engine& model, const std::string& path) {
    const SafetensorsFile file(path);
    const std::vector<Tensor>& table = model.trained();
    const std::vector<MatchedTensor> views = match_tensors(table, file.tensors(), path);
    if (buffer.size() == model.trained_numbers()) return copy_tensors(buffer.data(), table, views, path);
    Buffer whole(model.trained_numbers());
    copy_tensors(whole.data(), table, views, path);
    const Range part = processes().part(model.trained_numbers());
    std::copy(whole.data() + part.first, whole.data() + part.last, buffer.data());
}

// Options that the command line named win over the saved ones; the others cannot be named (require_resumable_flags).
void take_options(RunSettings& o, const Json& resume) {
    resume.at("model").get_to(o.model);
    if (!o.has("data")) resume.at("data").get_to(o.data);
    if (!o.has("val")) resume.at("val").get_to(o.val);
    resume.at("val_tokens").get_to(o.val_tokens);
    if (!o.has("eval_every")) resume.at("eval_every").get_to(o.eval_every);
    if (!o.has("save_every")) resume.at("save_every").get_to(o.save_every);
    if (!o.has("keep_checkpoints")) resume.at("keep_checkpoints").get_to(o.keep_checkpoints);
    resume.at("stochastic_rounding").get_to(o.engine.stochastic_rounding);
    resume.at("attention").get_to(o.engine.attention);
    if (resume.contains("products")) resume["products"].get_to(o.engine.products);
    if (!o.has("teacher") && resume.contains("teacher")) resume["teacher"].get_to(o.teacher);
}

void require_command(const Json& record, const Session& session) {
    if (record.at("command") != session.request.command)
        throw BadInput("--out " + session.options().out + " is a run of " +
                       quoted_name(record.at("command").get<std::string>()) + "; resume it with that command");
}

// A checkpoint's lnfree.json is a file like any other: nothing in it may lead the loop astray.
void require_usable(const Session& session, const std::string& path) {
    const Settings& s = session.settings();
    const bool sizes = s.batch >= 1 && s.grad_accum >= 1 && s.seq >= 1 && s.seq <= session.model->config.n_ctx;
    const bool place = session.state.step >= 0 && session.state.step <= s.stop && session.state.adam_updates >= 0;
    if (!sizes || !place || session.options().eval_every < 1)
        throw BadInput(path + ": cannot be resumed from: its step, sizes or eval_every are out of range");
}

void take_model(Session& session, LoadedModel& loaded, const std::string& folder) {
    session.model = std::move(loaded.model);
    session.tokenizer = std::move(loaded.tokenizer);
    session.companions = std::move(loaded.companions);
    Engine& model = *session.model;
    if (model.config.form == ModelForm::checkpoint) model.config.form = ModelForm::hugging_face;
    choose_what_is_trained(session);
    model.prepare_optimiser();
    if (model.low_rank.R > 0) read_buffer(model.low_rank.values, model, folder + "/low_rank.safetensors");
    read_buffer(model.m, model, folder + "/adam_m.safetensors");
    read_buffer(model.v, model, folder + "/adam_v.safetensors");
    restore_engine(model, session.state);
}

}  // namespace

namespace {

// The shards that a run goes on with, wherever they lie now. BadInput, with the flag that names their place, unless they are
// there and are those of its checkpoint: `recorded` is what the checkpoint says of them, null in early ones.
std::unique_ptr<TokenShards> same_shards(const std::string& flag, const std::vector<std::string>& patterns,
                                         const Json& recorded, const std::string& out) {
    std::unique_ptr<TokenShards> shards;
    try {
        shards = std::make_unique<TokenShards>(patterns);
    } catch (const BadInput& error) {
        throw BadInput(std::string(error.what()) + "; if the shards of the run in " + out +
                       " have moved, name where they lie now: --resume " + flag + " PATTERN");
    }
    const std::string fingerprint = hex(shards->fingerprint());
    if (recorded.is_null() || recorded == fingerprint) return shards;
    throw BadInput(flag + " " + shards->paths()[0] + ": not the shards of the run in " + out +
                   ", or they have changed since its checkpoint (fingerprint " + fingerprint + ", then " +
                   quoted_name(recorded.dump()) + "); a resumed run needs the same ones in the same order");
}

}  // namespace

void load_checkpoint(Session& session) {
    const std::string folder = newest_checkpoint(session.options().out), path = folder + "/lnfree.json";
    LoadedModel loaded = load_model(folder);
    const Json record = lnfree_of(loaded);
    try {
        require_checkpoint_version(record, folder);  // also of a folded model, which load_model takes for what it is
        require_command(record, session);
        const Json& resume = record.at("resume");
        session.state = state_from_json(record, loaded.model->sites.L, path);
        take_options(session.options(), resume);
        if (session.settings().distill > 0) record.at("teacher").at("fingerprint").get_to(session.teacher_fingerprint);
        if (record.at("based_on").is_object()) session.based_on = record["based_on"].dump();
        take_model(session, loaded, folder);
        require_usable(session, path);
        const std::string& out = session.options().out;
        const Json* const val = record.at("data").at("val").find("fingerprint");
        session.train = same_shards("--data", session.options().data, resume.at("data_fingerprint"), out);
        session.val = same_shards("--val", session.options().val, val != nullptr ? *val : Json(), out);
    } catch (const JsonError& e) {
        throw BadInput(path + ": cannot be resumed from: " + e.what());
    }
}

}  // namespace lnfree
