#include "dev/run/loop.h"

#include <algorithm>
#include <cmath>

#include "data/console.h"
#include "data/error.h"
#include "data/json.h"
#include "dev/cpu/machine.h"
#include "dev/processes.h"
#include "dev/run/checkpoint.h"
#include "dev/run/evaluate.h"
#include "dev/run/experiments.h"
#include "dev/run/report.h"
#include "dev/run/signals.h"
#include "dev/run/statistics.h"

namespace lnfree {

void carry_out(Session& session) {
    session.started = seconds_now();
    session.first_step = session.state.step;
    Loop loop(session);
    train(*session.model, session.state.settings, loop.schedule(), loop, session.state.step, session.teacher.get());
    loop.finish();
}

Loop::Loop(Session& session)
    : session_(session),
      model_(*session.model),
      state_(session.state),
      order_(session.train->sequences(static_cast<uint64_t>(session.settings().seq)), session.settings().seed),
      loop_removes_(loop_removes(session.settings(), session.model->sites)) {
    if (loop_removes_) schedule_ = removals_left(session.settings(), model_.sites);
}

// ---------------------------------------------------------------------------------------------------------------------
// A step, in the order of its seams

void Loop::begin_at(int64_t step) {
    state_.step = step;
    before_ = captured(state_, model_);
    events_.clear();
    finite_ = true;
}

void Loop::read_batches(int64_t step, StepBatches& batches) {
    begin_at(step);
    step_began_ = seconds_now();
    communication_began_ = processes().seconds();
    read_step(batches, *session_.train, order_, state_.settings, step);
}

void Loop::before_step(int64_t step, const StepBatches& batches) {
    const double now = seconds_now(), communicated = processes().seconds();
    if (step % session_.options().eval_every == 0) validate();
    step_began_ += seconds_now() - now;  // a validation is not the step's time
    communication_began_ += processes().seconds() - communicated;
    if (session_.request.on_step) session_.request.on_step(step);
    if (!loop_removes_) remove_sites(step, batches);
}

// Where train() is not to do it: experiments' ways of going.
void Loop::remove_sites(int64_t step, const StepBatches& batches) {
    Settings& s = state_.settings;
    const auto decide = [this](const std::string& what, const Json& why) { report_decision(session_, what, why); };
    if (step == 0 && s.preset == "auto" && s.removes) look_for_outlier(model_, s, batches, decide);
    if (step == 0) measure_own_sigmas(model_, s, batches);
    happened(advance_removals(s, model_.sites, step, sites_due(s, model_.sites, step)));
}

void Loop::happened(const std::vector<Event>& events) {
    events_.insert(events_.end(), events.begin(), events.end());
    state_.events.insert(state_.events.end(), events.begin(), events.end());
}

// A loss that is not finite is for after_loss, which knows what was removed in this step. Several processes stop there too,
// where all have come to the same point.
void Loop::after_micro_batch(int64_t, const BatchLoss& loss) {
    finite_ = finite_ && std::isfinite(loss.loss + loss.aux + loss.kl);
    if (processes().size() == 1 && g_signal != 0 && finite_) stop_for_signal(g_signal);
}

// The state before the step is saved once its loss and gradient have turned out finite: a checkpoint of weights that are
// about to diverge would push the good ones out.
void Loop::after_loss(const StepReport& report) {
    happened(report.removed);
    if (!std::isfinite(report.loss.loss + report.loss.aux + report.loss.kl)) stop_for_divergence("loss");
    if (processes().size() > 1)
        if (const int signal = signal_to_any()) stop_for_signal(signal);
    if (!std::isfinite(report.gradient_norm)) stop_for_divergence("gradient");
    if (checkpoint_is_due(report.step)) save_checkpoint(session_, before_);
    shrink_position0(model_, state_.settings, report.step);
}

bool Loop::checkpoint_is_due(int64_t step) const {
    const int64_t every = session_.options().save_every;
    return every > 0 && step > session_.first_step && step % every == 0;
}

void Loop::after_step(const StepReport& report) {
    const Settings& s = state_.settings;
    if (s.experiment.plant_position0 > 0 && report.step + 1 == s.experiment.plant_step)
        plant_position0(model_, s.experiment.plant_position0, s.seed);
    report_step(session_, report, events_, static_cast<double>(s.tokens_per_step()) / (seconds_now() - step_began_),
                processes().seconds() - communication_began_);
    if (report.step == 0 && session_.request.command != "pretrain") warn_if_untrained(session_, report.loss.loss);
}

void Loop::finish() {
    begin_at(state_.settings.stop);
    validate();
}

// ---------------------------------------------------------------------------------------------------------------------
// Validation

void Loop::validate() {
    measure_validation();
    if (!std::isfinite(state_.last_val_loss)) stop_for_divergence("validation loss");
    if (state_.step == 0) state_.first_val_loss = state_.last_val_loss;
    if (state_.step == 0) session_.first_validation = session_.last_validation;
    report_validation(session_);
}

// With a teacher, what is left of its predictions as well.
void Loop::measure_validation() {
    Session::Validation& kept = session_.last_validation;
    kept = {};
    const auto at_a_time = static_cast<uint64_t>(state_.settings.batch * processes().size());
    const auto keep_loss = [&](uint64_t i, const real* losses, const int32_t*, const int32_t*, int64_t P) {
        if (i % at_a_time == 0)
            if (const int signal = signal_to_any()) throw Interrupted{signal};
        kept.losses.push_back(mean_of(losses, P));
    };
    const auto keep_comparison = [&](uint64_t i, const Comparison& c, const int32_t* inputs, const int32_t* targets,
                                     int64_t P) {
        keep_loss(i, c.losses, inputs, targets, P);
        kept.kls.push_back(mean_of(c.kls, P));
        kept.agreements.push_back(static_cast<double>(std::count(c.agree, c.agree + P, 1)) / static_cast<double>(P));
    };
    const Settings& s = state_.settings;
    const auto tokens = static_cast<uint64_t>(session_.options().val_tokens);
    try {
        if (session_.teacher == nullptr) {
            state_.last_val_loss =
                mean_loss(model_, *session_.val, s.seq, s.batch, tokens, false, "validation", keep_loss);
            return;
        }
        const Faithfulness f = mean_faithfulness(model_, *session_.teacher, *session_.val, s.seq, s.batch, tokens,
                                                 false, "validation", keep_comparison);
        state_.last_val_loss = f.loss;
        state_.last_val_kl = f.kl;
        state_.last_val_agreement = f.agreement;
    } catch (const Interrupted& e) {
        stop_for_signal(e.signal);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What goes wrong

void Loop::stop_for_signal(int signal) {
    std::fprintf(session_.screen, "\nstopping: saving the state before step %lld ...\n",
                 static_cast<long long>(before_.step));
    save_checkpoint(session_, before_);
    finish_checkpoint(session_);
    std::fprintf(stderr, "saved; continue with: train_gpt2_lnfree %s --resume --out %s\n",
                 session_.request.command.c_str(), session_.options().out.c_str());
    throw Interrupted{signal};
}

void Loop::stop_for_divergence(const std::string& what) const {
    std::string after = "before any removal";
    if (!state_.events.empty()) {
        const Event& e = state_.events.back();
        const int64_t steps = state_.step - e.step;
        after = std::to_string(steps) + (steps == 1 ? " step after " : " steps after ") +
                site_name(model_.sites.all[static_cast<size_t>(e.site)]) + " was " +
                (e.action == "removed" ? "removed" : "released");
    }
    throw RunFailure("step " + std::to_string(state_.step) + ": the " + what + " is not finite, " + after +
                     "; try a lower --lr or larger gaps");
}

}  // namespace lnfree
