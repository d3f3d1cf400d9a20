#include "dev/run/start.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/model_config.h"
#include "data/model_folder.h"
#include "dev/cpu/machine.h"
#include "dev/cpu/operations.h"
#include "dev/low_rank.h"
#include "dev/processes.h"
#include "dev/run/checkpoint.h"
#include "dev/run/evaluate.h"
#include "dev/run/experiments.h"
#include "dev/run/launch.h"
#include "dev/run/models.h"
#include "dev/run/records.h"
#include "dev/run/samples.h"
#include "dev/run/settings.h"

namespace lnfree {

namespace fs = std::filesystem;

void configure_engine(const Session& session) {
    backend().use_precision(session.settings().precision);
    if (backend().use_options != nullptr) backend().use_options(session.options().engine);
}

void choose_what_is_trained(const Session& session) {
    const Settings& s = session.settings();
    if (s.norm_scale == "depth") session.model->scale_norms_by_depth();
    if (s.lora > 0) start_low_rank(*session.model, s.lora, s.lora_embeddings, s.seed);
}

// ---------------------------------------------------------------------------------------------------------------------
// A new run

namespace {

// --tokenizer, or the built-in one that made the data; "" if neither says.
std::string tokenizer_source(const std::string& given, const Json& made_by) {
    const bool bytes = made_by.is_object() && made_by["name"] == "byte";
    return given.empty() && bytes ? "byte" : given;
}

void make_new_model(Session& session) {
    const Json made_by = tokenizer_of_shard(session.train->paths()[0]);
    const std::string source = tokenizer_source(session.options().tokenizer, made_by);
    if (!source.empty()) session.tokenizer = load_tokenizer(source);
    const Tokenizer* tokenizer = session.tokenizer.get();
    const int64_t V = tokenizer != nullptr  ? tokenizer->vocab_size()
                      : made_by.is_object() ? made_by["vocab_size"].get<int64_t>()
                                            : 0;
    ModelConfig config = session.request.shape(V);
    if (config.V < V)
        throw BadInput("--vocab-size " + std::to_string(config.V) + ": the tokenizer has " + std::to_string(V) +
                       " tokens; give at least that, or leave the flag out");
    if (tokenizer != nullptr) config.end_of_text = tokenizer->end_of_text();
    parse_config(config_json(config, "float32").dump(), "the new model");  // refuses what could not be read again
    session.model = backend().make(config);
    if (session.options().values.norm_scale == "depth") session.model->scale_norms_by_depth();
    initialise(*session.model, session.options().values.seed);
}

void load_given_model(Session& session) {
    const std::string& folder = session.options().model;
    const std::string& command = session.request.command;
    LoadedModel loaded = load_model(folder);
    session.model = std::move(loaded.model);
    session.tokenizer = std::move(loaded.tokenizer);
    session.companions = std::move(loaded.companions);
    session.based_on = std::move(loaded.lnfree);
    const Sites& sites = session.model->sites;
    if (command == "remove" && sites.all_removed())
        throw BadInput(folder + ": this model has no LayerNorm left; use finetune to train it further");
    if (command == "finetune" && !sites.none_removed() && !sites.all_linear_everywhere())
        throw BadInput(
            folder +
            ": the removal of its LayerNorms is not finished, and finetune would leave it so; let `remove` go "
            "to its end first");
}

// The same tokens, and as many of them at a time.
void require_teacher_of(const Session& session, const LoadedModel& teacher) {
    const ModelConfig &theirs = teacher.model->config, &ours = session.model->config;
    const RunSettings& o = session.options();
    const std::string names = "--teacher " + o.teacher + " and --model " + o.model;
    if (theirs.V != ours.V)
        throw BadInput(names + " have vocabularies of " + std::to_string(theirs.V) + " and " + std::to_string(ours.V) +
                       " tokens; a teacher must have the model's own");
    const Tokenizer *one = teacher.tokenizer.get(), *other = session.tokenizer.get();
    if (one != nullptr && other != nullptr && one->fingerprint() != other->fingerprint())
        throw BadInput(names + " have different tokenizers; a teacher must have the model's own");
    if (theirs.n_ctx < session.settings().seq)
        throw BadInput("--teacher " + o.teacher + " reads at most " + std::to_string(theirs.n_ctx) +
                       " positions (n_ctx), and --seq is " + std::to_string(session.settings().seq) +
                       "; choose --seq within that");
}

Settings resolved(const Session& session) {
    const Engine& model = *session.model;
    return resolve_settings(session.options(), session.request.command == "remove", model.sites.L, model.config.n_ctx,
                            model.parameters(),
                            session.request.processes > 0 ? session.request.processes : processes().size());
}

// --teacher, or the model as it is in its folder. BadInput unless it can say something about every token of the run, and
// of a run that goes on unless it is the one that the run began with.
void load_teacher(Session& session) {
    const Settings& s = session.settings();
    if (s.distill == 0 && session.options().has("teacher"))
        throw BadInput("--teacher " + session.options().teacher + ": this run has none (--distill 0)");
    if (s.distill == 0) return;
    RunSettings& o = session.options();
    if (o.teacher.empty()) o.teacher = o.model;
    if (session.request.resume && !fs::is_directory(o.teacher))
        throw BadInput("--teacher " + o.teacher +
                       ": the folder of this run's teacher is not there any more; name where "
                       "it lies now: --resume --teacher FOLDER");
    LoadedModel loaded = load_model(o.teacher);
    require_teacher_of(session, loaded);
    Hash64 hash;
    add_model(hash, *loaded.model);
    std::string& recorded = session.teacher_fingerprint;
    if (!recorded.empty() && recorded != hex(hash.value()))
        throw BadInput("--teacher " + o.teacher + ": is no longer the model that this run began with (fingerprint " +
                       hex(hash.value()) + ", then " + quoted_name(recorded) +
                       "); name the folder that has it, or begin anew");
    recorded = hex(hash.value());
    session.teacher = std::move(loaded.model);
}

// Steps that this machine does in that time, about: measured on the second of two micro-batches and of two updates (the
// first also touches its memory for the first time), of which a twentieth more for all that is neither. The updates are at
// rate 0, so the weights stay; the run begins with new moments anyway. Several processes have a micro-batch each meanwhile.
int64_t steps_within(Session& session, double seconds) {
    configure_engine(session);
    const Settings& s = session.settings();
    Engine& model = *session.model;
    choose_what_is_trained(session);
    model.prepare_training(s.batch, s.seq);
    model.prepare_optimiser();
    const std::vector<int32_t> tokens(static_cast<size_t>(s.batch * s.seq), 0);
    double micro_batch = 0, update = 0;
    for (int i = 0; i < 2; i++) {
        const double begin = seconds_now();
        model.forward_backward(tokens.data(), tokens.data(), s.batch, s.seq, s.aux(), processes().size(),
                               {s.distill, session.teacher.get()});
        const double middle = seconds_now();
        model.gradient_norm();
        model.update(AdamWStep());
        model.zero_gradients();
        micro_batch = middle - begin;
        update = seconds_now() - middle;
    }
    model.resume(s.seed);
    const int64_t in_a_row = share_of(s.grad_accum, 0, processes().size()).size();
    const double per_step = 1.05 * (micro_batch * static_cast<double>(in_a_row) + update);
    const auto steps = std::max<int64_t>(1, static_cast<int64_t>(std::min(seconds / per_step, 1e9)));
    return processes().of_the_first(steps);
}

void resolve_start(Session& session) {
    RunSettings& o = session.options();
    Settings& s = session.state.settings;
    s = resolved(session);
    require_position0(session.model->config, s);
    load_teacher(session);
    if (o.hours > 0) {
        if (o.has("steps") || o.has("tokens"))
            throw BadInput("--hours, --steps and --tokens all set the length of the run; give one");
        o.values.steps = steps_within(session, 3600 * o.hours);
        o.given.insert("steps");
        s = resolved(session);
    }
    if (session.request.command == "pretrain")
        s = pretraining_settings(s, o, session.model->sites.L, session.model->parameters());
    const int64_t tenth = std::max<int64_t>(1, s.stop / 10);
    if (o.eval_every == 0) o.eval_every = tenth;
    if (o.save_every < 0) o.save_every = std::max<int64_t>(50, tenth);
    if (o.val_tokens < 0) o.val_tokens = std::min<int64_t>(131'072, std::max<int64_t>(16'384, 8 * s.tokens_per_step()));
}

}  // namespace

bool writes_own_text(const Session& session) {
    return !session.request.resume && session.options().data == std::vector<std::string>{"self"};
}

namespace {

// Where write_own_text puts it: under the output folder, which may have moved since.
std::vector<std::string> own_text(const std::string& out, const char* split) {
    return {out + "/self_" + split + "_*.bin"};
}

}  // namespace

void load_start(Session& session) {
    RunSettings& o = session.options();
    if (writes_own_text(session)) {
        if (session.request.command == "pretrain")
            throw BadInput("--data self: pretrain begins with a model that has nothing to say; name token shards");
    } else {
        if (o.data.empty() || o.val.empty())
            throw BadInput(
                "--data and --val are required: token shards made by `tokenize`, or --data self for text that the "
                "model "
                "writes");
        session.train = std::make_unique<TokenShards>(o.data);
    }
    if (!o.val.empty()) session.val = std::make_unique<TokenShards>(o.val);
    if (session.request.command == "pretrain") {
        make_new_model(session);
    } else {
        load_given_model(session);
    }
    resolve_start(session);
}

void write_own_text(Session& session) {
    RunSettings& o = session.options();
    const Settings& s = session.settings();
    const std::string prefix = o.out + "/self";
    SampleRequest r;
    r.prefix = prefix;
    r.tokens = static_cast<uint64_t>((s.stop * s.tokens_per_step()) + s.seq);
    if (o.val.empty()) r.val_tokens = static_cast<uint64_t>(std::max<int64_t>(o.val_tokens, 16'384) + s.seq);
    r.sampling.seed = s.seed;
    if (processes().leads()) write_samples(*session.model, session.tokenizer.get(), r, "writing its own text");
    processes().of_the_first(0);  // it is there
    o.data = own_text(o.out, "train");
    session.train = std::make_unique<TokenShards>(o.data);
    if (!o.val.empty()) return;
    o.val = own_text(o.out, "val");
    session.val = std::make_unique<TokenShards>(o.val);
}

// ---------------------------------------------------------------------------------------------------------------------
// A run that goes on

void load_resume_point(Session& session) {
    RunSettings& o = session.options();
    const std::string& out = o.out;
    if (o.data == std::vector<std::string>{"self"}) o.data = own_text(out, "train");
    if (o.val == std::vector<std::string>{"self"}) o.val = own_text(out, "val");
    if (processes().leads() && !list_checkpoints(out).empty()) session.lock = std::make_unique<FolderLock>(out);
    load_checkpoint(session);
    require_position0(session.model->config, session.settings());
    load_teacher(session);
}

// ---------------------------------------------------------------------------------------------------------------------
// Both

namespace {

// How many shards of --val are also among those of --data: the same file, however it is called, or the same bytes.
size_t shared_shards(const TokenShards& train, const TokenShards& val) {
    const std::vector<uint64_t>& theirs = train.shard_fingerprints();
    const std::set<uint64_t> in_train(theirs.begin(), theirs.end());
    const std::vector<uint64_t>& ours = val.shard_fingerprints();
    return static_cast<size_t>(
        std::count_if(ours.begin(), ours.end(), [&](uint64_t shard) { return in_train.count(shard) > 0; }));
}

// A line on standard error, no refusal: whoever tries whether a model can learn a text by heart wants just this.
void warn_of_shared_shards(const Session& session) {
    if (session.train == nullptr || session.val == nullptr) return;
    const size_t shared = shared_shards(*session.train, *session.val);
    if (shared == 0) return;
    std::fprintf(stderr,
                 "warning: %zu of the %zu shards of --val are also in --data: their validation loss says nothing about "
                 "text that the model has not seen\n",
                 shared, session.val->paths().size());
}

}  // namespace

void check_data(const Session& session) {
    const int64_t T = session.settings().seq;
    for (const TokenShards* shards : {session.train.get(), session.val.get()}) {
        if (shards == nullptr) continue;  // the model's own text, which is not written yet
        const std::string which = shards == session.train.get() ? "--data" : "--val";
        shards->check_vocabulary(static_cast<uint32_t>(session.model->config.V));
        if (shards->sequences(static_cast<uint64_t>(T)) == 0)
            throw BadInput(which + " " + shards->paths()[0] + ": fewer than seq + 1 = " + std::to_string(T + 1) +
                           " tokens; use more text or a smaller --seq");
        require_same_tokenizer(*shards, session.tokenizer.get(), which);
    }
    warn_of_shared_shards(session);
}

namespace {

uint64_t fingerprint_of(const std::unique_ptr<Engine>& model) {
    Hash64 hash;
    if (model != nullptr) add_model(hash, *model);
    return hash.value();
}

uint64_t fingerprint_of(const std::unique_ptr<TokenShards>& shards) {
    return shards == nullptr ? 0 : shards->fingerprint();
}

std::vector<Common> what_must_agree(const Session& session) {
    const RunSettings& o = session.options();
    const Json rest = Json::array({o.eval_every, o.val_tokens, o.save_every, session.request.command});
    const std::string settings = settings_json(session.settings()).dump() + rest.dump();
    Hash64 of_settings;
    add_bytes(of_settings, settings.data(), settings.size());
    return {{"other --data", fingerprint_of(session.train)},
            {"other --val", fingerprint_of(session.val)},
            {"another --model", fingerprint_of(session.model)},
            {"another --teacher", fingerprint_of(session.teacher)},
            {"another checkpoint in --out", static_cast<uint64_t>(session.state.step)},
            {"other settings", of_settings.value()}};
}

}  // namespace

void require_same_run(const Session& session) {
    const int64_t size = session.request.processes > 0 ? session.request.processes : processes().size();
    if (size == 1) return;
    const Settings& s = session.settings();
    if (!backend().trains_together)
        throw BadInput(std::to_string(size) + " processes: this engine trains in one; start it once");
    if (size > s.grad_accum)
        throw BadInput(std::to_string(size) + " processes for " + std::to_string(s.grad_accum) +
                       (s.grad_accum == 1 ? " micro-batch" : " micro-batches") +
                       " per step (--grad-accum): some would have none; start fewer, or choose a smaller --batch and a "
                       "larger --grad-accum");
    require_alike([&] { return what_must_agree(session); });
    Hash64 isa;
    isa.add(reinterpret_cast<const unsigned char*>(operations().isa), std::strlen(operations().isa));
    if (processes().largest(isa.value() != processes().of_the_first(isa.value())) > 0)
        std::fprintf(
            stderr,
            "note: not all processes have the instruction set of the first (%s): the weights will not be those of "
            "one process to the bit; LNFREE_ISA=portable makes them so\n",
            operations().isa);
}

namespace {

void require_free(const std::string& out, bool force) {
    if (holds_files(out) && !force)
        throw BadInput("--out " + out +
                       ": already holds files; continue that run with --resume, replace it with --force, or name "
                       "another folder");
}

}  // namespace

void claim_output_folder(Session& session) {
    if (session.lock != nullptr) return;
    const std::string& out = session.options().out;
    const bool force = session.request.force;
    if (fs::exists(out) && !fs::is_directory(out)) throw BadInput("--out " + out + ": is a file; name a folder");
    require_other_folder(out, session.options().model);
    require_other_folder(out, session.options().teacher);
    require_free(out, force);
    try {
        fs::create_directories(out);
        session.lock = std::make_unique<FolderLock>(out);
        require_free(out, force);  // another run may have come and gone meanwhile
        remove_leftovers(out);
        prune_checkpoints(out, 0);
        remove_model_files(out);
        for (const char* name : {"log.jsonl", "loss.svg", "checkpoints"}) fs::remove_all(fs::path(out) / name);
    } catch (const fs::filesystem_error& e) {
        throw RunFailure("--out " + out + ": " + e.code().message());
    }
}

}  // namespace lnfree
