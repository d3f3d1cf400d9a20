#include "dev/run/adaptive.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "data/json.h"
#include "dev/run/evaluate.h"
#include "dev/run/experiments.h"
#include "dev/run/state.h"

namespace lnfree {

namespace {

constexpr int64_t kHeldOutSequences = 16;
constexpr double kBack = 0.01;       // nats above the held-out loss before it, within which a removal has been got over
constexpr double kJump = 0.3;        // a spike: so many nats, twice the expected cost and four times the batches' own
                                     // spread above the training loss's trend
constexpr double kRate = 0.05;       // nats per step: what costs more than allowed takes accordingly many steps
constexpr double kDeadline = 0.6;    // of the run's steps: whatever is left then goes
constexpr double kOutlierRatio = 2;  // of sigma at position 0 to sigma elsewhere, from which on it stands out
constexpr double kEvenUntil = 0.25;  // of the run's steps: until then removals wait for a position 0 that stands out
constexpr double kFlat = 0.002;      // nats that the held-out loss must gain in a fifth of the run, or it ends

// ----- what the model is asked

double held_out_loss(Engine& model, const Settings& s, const TokenShards& held_out) {
    return mean_loss(model, held_out, s.seq, std::min(s.batch, kHeldOutSequences),
                     static_cast<uint64_t>(kHeldOutSequences * s.seq), false, "");
}

// What the held-out loss would be without these sites' LayerNorms, right now.
double held_out_loss_without(Engine& model, const Settings& s, const TokenShards& held_out,
                             const std::vector<size_t>& group) {
    const Sites sites = model.sites;
    for (const size_t i : group) {
        model.sites.all[i].a = 1;
        model.sites.all[i].sigma_bar = sites.all[i].running;
    }
    const double loss = held_out_loss(model, s, held_out);
    model.sites = sites;
    return loss;
}

// sigma at position 0 over sigma elsewhere on this step's batch, at the site where that is largest.
double largest_sigma_ratio(Engine& model, const Settings& s, const StepBatches& batches) {
    model.clear_sigma_sums();
    model.measure_sigmas(batches.inputs[0].data(), s.batch, s.seq);
    double largest = 0;
    for (const SigmaSum& sum : model.sigma_sums) largest = std::max(largest, sum.mean_at_0() / sum.mean_elsewhere());
    return largest;
}

// ----- what is decided

// A position 0 that stands out is left out of every sigma_bar and brought down first, while LayerNorm still divides its
// length away: its embedding directly (also where it is little longer than the others: it is what the layers start from),
// what they make of it by the relative auxiliary loss at every norm.
void look_for_outliers(Engine& model, RunState& state, const AdaptiveTools& tools) {
    const double largest = largest_sigma_ratio(model, state.settings, tools.batches);
    if (largest <= kOutlierRatio) return;
    Experiments& e = state.settings.experiment;
    e.sigma_skips_position0 = e.aux_everywhere = e.aux_relative = true;
    e.shrink_steps = state.step + std::max<int64_t>(1, state.settings.stop / 10);
    state.adaptive.uneven_from = state.step;
    tools.decide("position 0 stands out", {{"sigma_ratio", largest}, {"shrink_until", e.shrink_steps}});
}

// Whether removals wait for position 0: until it no longer stands out, or for as long as there is time.
bool still_uneven(Engine& model, const RunState& state, const AdaptiveTools& tools) {
    const double largest = largest_sigma_ratio(model, state.settings, tools.batches);
    const bool even = largest <= kOutlierRatio;
    if (!even && static_cast<double>(state.step) < kEvenUntil * static_cast<double>(state.settings.stop)) return true;
    tools.decide(even ? "position 0 no longer stands out" : "position 0 still stands out, but the steps are needed",
                 {{"sigma_ratio", largest}, {"since", state.adaptive.uneven_from}});
    return false;
}

struct Choice {
    std::vector<size_t> group;  // indices into Sites::all
    double cost = 0;            // nats
};

// The cheapest site, and as many more of the next cheapest as cost no more than the allowance together; late in the run
// all of them. `now` is the held-out loss as things are.
Choice cheapest_sites(Engine& model, const RunState& state, const TokenShards& held_out, double now) {
    const auto cost_of = [&](const std::vector<size_t>& group) {
        return held_out_loss_without(model, state.settings, held_out, group) - now;
    };
    std::vector<std::pair<double, size_t>> costs;
    for (size_t i = 0; i < model.sites.all.size(); i++)
        if (model.sites.all[i].has_layer_norm()) costs.emplace_back(cost_of({i}), i);
    std::sort(costs.begin(), costs.end());
    Choice choice{{costs[0].second}, costs[0].first};
    const bool last_chance = static_cast<double>(state.step) >= kDeadline * static_cast<double>(state.settings.stop);
    for (size_t k = 1; k < costs.size(); k++) {
        std::vector<size_t> more = choice.group;
        more.push_back(costs[k].second);
        const double together = cost_of(more);
        if (together > state.adaptive.allowance && !last_chance) break;
        choice = {more, together};
    }
    return choice;
}

std::vector<size_t> choose(Engine& model, RunState& state, const AdaptiveTools& tools, double now) {
    AdaptiveState& a = state.adaptive;
    tools.take_snapshot();
    a.uneven_from = -1;
    const Choice choice = cheapest_sites(model, state, tools.held_out, now);
    const int64_t slowly =
        choice.cost > a.allowance ? static_cast<int64_t>(std::ceil(std::min(choice.cost, 100.0) / kRate)) : 0;
    int64_t& gradual = state.settings.experiment.gradual;
    gradual = std::min(std::max(slowly, a.gentle), std::max<int64_t>(1, state.settings.stop / 5));
    a.before = now;
    a.expected = std::min(std::max(0.0, choice.cost), 2.0);
    a.chosen_at = state.step;
    Json names = Json::array();
    for (const size_t i : choice.group) names.push_back(site_name(model.sites.all[i]));
    tools.decide("remove", {{"sites", names}, {"held_out", now}, {"cost", choice.cost}, {"gradual", gradual}});
    return choice.group;
}

// All sites are gone: the run ends before its steps are used up if nothing is gained any more. Looked at 20 times a run.
void end_when_flat(Engine& model, RunState& state, const AdaptiveTools& tools) {
    AdaptiveState& a = state.adaptive;
    int64_t& stop = state.settings.stop;
    if (state.step % std::max<int64_t>(1, stop / 20) != 0) return;
    const double now = held_out_loss(model, state.settings, tools.held_out);
    if (!(now > a.level - kFlat)) {
        a.level = now;
        a.level_at = state.step;
    } else if (state.step - a.level_at >= std::max<int64_t>(1, stop / 5)) {
        stop = state.step + 1;
        tools.decide("end", {{"held_out", now}});
    }
}

// False right after going back to before the first step: a removal would freeze what was never measured.
bool sigmas_are_known(const Sites& sites) {
    return std::none_of(sites.all.begin(), sites.all.end(),
                        [](const Site& site) { return site.has_layer_norm() && std::isnan(site.running); });
}

int sites_begun(const Sites& sites) {
    return static_cast<int>(
        std::count_if(sites.all.begin(), sites.all.end(), [](const Site& s) { return !s.has_layer_norm(); }));
}

}  // namespace

std::vector<size_t> adapt(Engine& model, RunState& state, bool has_snapshot, const AdaptiveTools& tools) {
    const Settings& s = state.settings;
    const AdaptiveState& a = state.adaptive;
    if (state.step == 0) look_for_outliers(model, state, tools);
    if (!has_snapshot) tools.take_snapshot();
    const bool under_way = std::any_of(model.sites.all.begin(), model.sites.all.end(), is_under_way);
    if (under_way || state.step < std::max(std::max<int64_t>(1, s.warmup), s.experiment.shrink_steps)) return {};
    if (!sigmas_are_known(model.sites)) return {};
    if (a.uneven_from >= 0 && still_uneven(model, state, tools)) return {};
    if (model.sites.all_removed()) {
        end_when_flat(model, state, tools);
        return {};
    }
    const double now = held_out_loss(model, s, tools.held_out);
    const int64_t patience = std::max<int64_t>(5, s.stop / 15);
    const bool over = std::isnan(a.before) || now <= a.before + kBack || state.step - a.chosen_at >= patience;
    return over ? choose(model, state, tools, now) : std::vector<size_t>();
}

bool is_spike(AdaptiveState& a, double loss) {
    if (loss > a.trend + kJump + 2 * a.expected + 4 * std::sqrt(a.variance)) return true;
    if (!std::isnan(a.mean)) a.variance = 0.9 * a.variance + 0.1 * (loss - a.mean) * (loss - a.mean);
    a.mean = std::isnan(a.mean) ? loss : 0.9 * a.mean + 0.1 * loss;
    a.trend = std::isnan(a.trend) ? a.mean : std::min(a.trend, a.mean);
    return false;
}

RunState after_going_back(const RunState& snapshot, const RunState& now) {
    // What describes the weights goes back with them: sites, events, Adam's count, how slowly divisors move, where the run
    // ends, the training loss's trend and spread, the level that an end would be judged by.
    RunState next = snapshot;
    AdaptiveState& a = next.adaptive;

    // Time goes on, and what was measured stays measured.
    next.step = now.step;
    next.first_val_loss = now.first_val_loss;
    next.last_val_loss = now.last_val_loss;
    next.last_val_kl = now.last_val_kl;
    next.last_val_agreement = now.last_val_agreement;
    a.chosen_at = now.adaptive.chosen_at;
    a.roll_backs = now.adaptive.roll_backs + 1;

    // What was found out about position 0 holds for these weights as well.
    Experiments& e = next.settings.experiment;
    const Experiments& found = now.settings.experiment;
    e.sigma_skips_position0 = found.sigma_skips_position0;
    e.aux_everywhere = found.aux_everywhere;
    e.aux_relative = found.aux_relative;
    e.shrink_steps = found.shrink_steps;
    a.uneven_from = now.adaptive.uneven_from;

    // Slower from here on; removals gentler too, unless none is to blame.
    next.settings.lr = now.settings.lr / 2;
    next.settings.min_lr = now.settings.min_lr / 2;
    const bool removal_undone = sites_begun(snapshot.sites) < sites_begun(now.sites);
    a.allowance = removal_undone ? now.adaptive.allowance / 2 : now.adaptive.allowance;
    a.gentle = removal_undone ? std::max<int64_t>(4, 2 * now.adaptive.gentle) : now.adaptive.gentle;

    // There is no removal left to be got over.
    a.before = NAN;
    a.expected = 0;
    return next;
}

void look_again(Engine& model, RunState& state, const AdaptiveTools& tools) {
    if (model.sites.none_removed()) look_for_outliers(model, state, tools);
}

}  // namespace lnfree
