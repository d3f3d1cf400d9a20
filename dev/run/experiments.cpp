#include "dev/run/experiments.h"

#include <algorithm>
#include <cmath>

#include "data/error.h"
#include "data/json.h"
#include "data/random.h"

namespace lnfree {

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kOutlierRatio = 3;  // of sigma at position 0 to sigma elsewhere, from which on it stands out

// A site sets out or goes on: `steps` such steps bring a from 0 to 1, evenly or along TaperNorm's cosine.
void advance(Site& site, int64_t steps) {
    const double gone = site.tapers ? std::acos(1 - 2 * site.a) / kPi : site.a;
    const double left = steps > 0 ? (1 - gone) - 1 / static_cast<double>(steps) : 0;
    if (left <= 1e-9)
        site.a = 1;
    else
        site.a = site.tapers ? (1 - std::cos(kPi * (1 - left))) / 2 : 1 - left;
}

// Position 0's own sigma becomes sigma_bar, at once or over release_steps steps, geometrically. True if it is gone now.
bool release_position0(Site& site, const Experiments& e, int64_t step) {
    const int64_t left = static_cast<int64_t>(e.release_position0) + e.release_steps - step;
    if (left > 0) {
        site.sigma_bar_0 *= std::pow(site.sigma_bar / site.sigma_bar_0, 1 / static_cast<double>(left + 1));
        return false;
    }
    site.own_position0 = false;
    return true;
}

}  // namespace

bool loop_removes(const Settings& s, const Sites& sites) {
    const bool half_way = std::any_of(sites.all.begin(), sites.all.end(), [](const Site& site) {
        return is_under_way(site) || site.has_special_positions();
    });
    return s.removes && s.experiment.gradual == 0 && !s.experiment.own_position0 && !half_way;
}

std::vector<Removal> removals_left(const Settings& s, const Sites& sites) {
    if (!s.removes) return {};
    std::vector<Removal> left;
    for (const Removal& removal : removal_schedule(s, sites.L)) {
        const Site& site = sites.all[static_cast<size_t>(removal.site)];
        const bool stays = s.experiment.keep_f && site.kind == SiteKind::f;
        if (site.has_layer_norm() && !stays) left.push_back(removal);
    }
    return left;
}

std::vector<size_t> sites_due(const Settings& s, const Sites& sites, int64_t step) {
    std::vector<size_t> due;
    for (const Removal& removal : removals_left(s, sites))
        if (removal.step == step) due.push_back(static_cast<size_t>(removal.site));
    return due;
}

void measure_own_sigmas(Engine& model, const Settings& s, const StepBatches& batches) {
    const std::vector<Removal> left = removals_left(s, model.sites);
    const bool needed = std::any_of(left.begin(), left.end(),
                                    [&](const Removal& r) { return r.step == 0 || s.experiment.own_position0; });
    if (!needed) return;
    measure_sigmas_before_training(model, batches, s.batch, s.seq, s.experiment.sigma_skips_position0);
    if (!s.experiment.own_position0) return;
    for (const Removal& removal : left) {
        const size_t i = static_cast<size_t>(removal.site);
        model.sites.all[i].sigma_bar_0 = model.sigma_sums[i].mean_at_0();
        model.sites.all[i].sigma_bar = model.sigma_sums[i].mean_elsewhere();
    }
}

std::vector<Event> advance_removals(const Settings& s, Sites& sites, int64_t step,
                                    const std::vector<size_t>& setting_out) {
    const Experiments& e = s.experiment;
    std::vector<Event> events;
    if (!s.removes) return events;
    for (size_t i = 0; i < sites.all.size(); i++) {
        Site& site = sites.all[i];
        const auto happened = [&](const char* action) {
            events.push_back({step, static_cast<int>(i), action, site.sigma_bar});
        };
        const bool sets_out = std::find(setting_out.begin(), setting_out.end(), i) != setting_out.end();
        if (sets_out) {
            site.tapers = e.taper;
            site.own_position0 = e.own_position0;
            site.own_end_of_text = e.own_position0 && site.kind == SiteKind::v;
        }
        if (sets_out || is_under_way(site)) {
            if (!e.own_position0) site.sigma_bar = site.running;
            advance(site, e.gradual);
            if (site.removed()) happened("removed");
        }
        if (site.own_end_of_text && step == static_cast<int64_t>(e.release_end_of_text)) {
            site.own_end_of_text = false;
            happened("end-of-text released");
        }
        if (site.own_position0 && step >= static_cast<int64_t>(e.release_position0) && release_position0(site, e, step))
            happened("position 0 released");
    }
    return events;
}

void look_for_outlier(Engine& model, Settings& s, const StepBatches& batches, const Decide& decide) {
    model.clear_sigma_sums();
    model.measure_sigmas(batches.inputs[0].data(), s.batch, s.seq);
    double largest = 0;
    for (const SigmaSum& sum : model.sigma_sums) largest = std::max(largest, sum.mean_at_0() / sum.mean_elsewhere());
    if (largest <= kOutlierRatio) return;
    s.experiment.sigma_skips_position0 = true;
    if (model.config.rotary > 0) {
        decide("position 0 stands out", {{"sigma_ratio", largest}});
        return;
    }
    s.experiment.shrink_steps = std::max<int64_t>(1, s.stop / 10);
    decide("position 0 stands out", {{"sigma_ratio", largest}, {"shrink_until", s.experiment.shrink_steps}});
}

void require_position0(const ModelConfig& c, const Settings& s) {
    if (c.rotary == 0) return;
    const char* const flag = s.experiment.plant_position0 != 0 ? "--plant-position0"
                             : s.experiment.shrink_steps > 0   ? "--shrink-position0"
                                                               : nullptr;
    if (flag != nullptr)
        throw BadInput(
            std::string(flag) +
            ": this model's positions are rotary, so position 0 has no embedding that could be lengthened or "
            "shortened; leave the flag out");
}

void shrink_position0(Engine& model, const Settings& s, int64_t step) {
    const int64_t steps = s.experiment.shrink_steps;
    if (step >= steps) return;
    const SigmaSum& first = model.sigma_sums[static_cast<size_t>(model.sites.L)];  // qk[0]
    const double ratio = first.mean_elsewhere() / first.mean_at_0();
    if (ratio < 1) model.edit_position0(std::pow(ratio, 1 / static_cast<double>(steps - step)), nullptr);
}

void plant_position0(Engine& model, double length, uint64_t seed) {
    const double C = static_cast<double>(model.config.C);
    SplitMix64 random(seed);
    std::vector<double> direction(static_cast<size_t>(model.config.C));
    double mean = 0, squares = 0;
    for (double& x : direction) mean += (x = random.normal()) / C;
    for (const double x : direction) squares += (x - mean) * (x - mean) / C;
    std::vector<real> added;
    for (const double x : direction) added.push_back(static_cast<real>(length * (x - mean) / std::sqrt(squares)));
    model.edit_position0(1, added.data());
}

}  // namespace lnfree
