#include "dev/run/run.h"

#include <algorithm>
#include <filesystem>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "dev/method.h"
#include "dev/processes.h"
#include "dev/run/checkpoint.h"
#include "dev/run/launch.h"
#include "dev/run/loop.h"
#include "dev/run/models.h"
#include "dev/run/report.h"
#include "dev/run/session.h"
#include "dev/run/signals.h"
#include "dev/run/start.h"

namespace lnfree {

namespace fs = std::filesystem;

namespace {

// Memory, moments and the output folder, which is the first process's alone; from here on a signal saves.
void prepare(Session& session) {
    const Settings& s = session.settings();
    if (!session.request.resume) choose_what_is_trained(session);
    session.model->prepare_training(s.batch, s.seq);
    stop_on_signals();
    if (session.request.resume) {
        session.model->resume(s.seed);
        if (processes().leads()) remove_leftovers(session.options().out);
    } else {
        session.model->prepare_optimiser();
        if (processes().leads()) claim_output_folder(session);
    }
}

// The model as it is, in the form of checkpoints, which no stock loader takes for an ordinary GPT-2: theirs has one epsilon
// for all norms, so that none of them can stay alone.
std::vector<TensorRecipe> recipes_with_f(const Engine& model, ModelConfig& config) {
    config = model.config;
    config.form = ModelForm::checkpoint;
    return plain_recipes(model);
}

// The finished model becomes the output folder itself, in Hugging Face form (folded models stay folded).
void write_result(Session& session) {
    Engine& model = *session.model;
    const std::string& out = session.options().out;
    ModelConfig config;
    finish_checkpoint(session);
    model.fetch_parameters();
    if (!processes().leads()) return;
    const bool folded = model.config.form == ModelForm::folded, with_f = session.settings().experiment.keep_f;
    const std::vector<TensorRecipe> recipes = folded   ? folded_recipes(model, config)
                                              : with_f ? recipes_with_f(model, config)
                                                       : hugging_face_recipes(model, config);
    const std::string& command = session.request.command;
    write_file_atomically(out + "/loss.svg", render_svg(loss_chart({{command, out}}, "Training loss of " + command)));
    const RunState state = captured(session.state, model);
    write_model(out, config, recipes, WeightType::of_real, model_record(session, state, config.form, true),
                session.tokenizer.get(), model_card(session), session.companions);
    prune_checkpoints(out, static_cast<size_t>(std::max<int64_t>(0, session.options().keep_checkpoints)));
    std::error_code ignored;
    fs::remove(fs::path(out) / "checkpoints", ignored);  // only if it is empty
}

std::string where_to_go_on(const std::string& out) {
    const auto kept = list_checkpoints(out);
    return kept.empty() ? "; no checkpoint was written yet"
                        : "; the last good checkpoint, from which --resume goes on, is " + kept.back().string();
}

}  // namespace

Json run(const RunRequest& request) {
    Session session(request);
    if (request.resume) {
        load_resume_point(session);
    } else {
        load_start(session);
    }
    check_data(session);
    configure_engine(session);
    require_same_run(session);
    if (request.dry_run) return dry_run(session);
    if (writes_own_text(session)) {
        if (processes().leads()) claim_output_folder(session);
        write_own_text(session);
        check_data(session);
    }
    prepare(session);
    try {
        if (processes().leads()) session.log.open(session.options().out + "/log.jsonl", session.state.step);
        carry_out(session);
        write_result(session);
    } catch (const RunFailure& e) {
        if (session.writing.valid()) session.writing.wait();
        throw RunFailure(e.what() + where_to_go_on(session.options().out));
    }
    Json summary = summary_of(session);
    print_summary(session, summary);
    return summary;
}

}  // namespace lnfree
