#include "dev/run/experiments.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/random.h"

namespace lnfree {

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kOutlierRatio = 3;  // of sigma at position 0 to sigma elsewhere, from which on it stands out
// A neuron makes it so that brings position 0 more than ten times what sigma is elsewhere. When those have come down, the
// first ratio is 1.5: what they bring is there, and as much of other things as elsewhere.
constexpr double kNeuronRatio = 10, kLeftByNeurons = 1.5;

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

int64_t offset_of(Engine& model, const std::string& tensor) {
    return model.tensor(tensor) - model.params.data();
}

// Its embedding.
Slice position0(Engine& model) {
    return {offset_of(model, "wpe.weight"), model.config.C};
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

namespace {

// Sigma of the stream in front of block `layer`; L: in front of ln_f.
const SigmaSum& sigma_in_front(const Engine& model, int64_t layer) {
    return model.sigma_sums[static_cast<size_t>(layer < model.config.L ? model.config.L + layer : 3 * model.config.L)];
}

// Of position 0 to elsewhere.
double ratio_of(const SigmaSum& sum) {
    return sum.mean_at_0() / sum.mean_elsewhere();
}

double root_mean_square(const real* x, int64_t n) {
    double squares = 0;
    for (int64_t i = 0; i < n; i++) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return std::sqrt(squares / static_cast<double>(n));
}

// A neuron of an MLP, as --shrink-neurons names it: "11:1229", block and neuron counted from 0.
struct Neuron {
    int64_t layer, number;
};

std::vector<Neuron> neurons_in(const std::string& text) {
    std::vector<Neuron> neurons;
    std::istringstream words(text);
    Neuron next;
    char colon = 0;
    while (words >> next.layer >> colon >> next.number && colon == ':') neurons.push_back(next);
    if (!words.eof() || (words && colon != ':') || neurons.empty())
        throw BadInput("--shrink-neurons " + quoted_name(text) + ": expected BLOCK:NEURON, several between blanks");
    return neurons;
}

// Those whose mean contribution to the stream at position 0 is far longer than the stream elsewhere, behind their block.
std::string neurons_of_position0(Engine& model, const StepBatches& batches, int64_t B, int64_t T) {
    const ModelConfig& c = model.config;
    std::string found;
    Probe probe;
    probe.mlp = [&](int64_t layer, const real* hidden, const real*) {
        const double elsewhere = sigma_in_front(model, layer + 1).mean_elsewhere();
        for (int64_t n = 0; n < c.n_inner; n++) {
            double active = 0;
            for (int64_t b = 0; b < B; b++)
                active += std::abs(static_cast<double>(hidden[b * T * c.n_inner + n])) / static_cast<double>(B);
            const real* const row = model.weights().layers[static_cast<size_t>(layer)].fcproj + n * c.C;
            const double ratio = active * root_mean_square(row, c.C) / elsewhere;
            if (ratio > kNeuronRatio)
                found += (found.empty() ? "" : " ") + std::to_string(layer) + ":" + std::to_string(n);
        }
    };
    model.trace(batches.inputs[0].data(), B, T, probe, false);
    return found;
}

}  // namespace

void look_for_outlier(Engine& model, Settings& s, const StepBatches& batches, const Decide& decide) {
    model.clear_sigma_sums();
    model.measure_sigmas(batches.inputs[0].data(), s.batch, s.seq);
    double largest = 0;
    for (const SigmaSum& sum : model.sigma_sums) largest = std::max(largest, ratio_of(sum));
    if (largest <= kOutlierRatio) return;
    Json why = {{"sigma_ratio", largest}};
    s.experiment.sigma_skips_position0 = true;
    if (model.config.rotary > 0) {
        if (s.experiment.shrink_neurons.empty())
            s.experiment.shrink_neurons = neurons_of_position0(model, batches, s.batch, s.seq);
        if (s.experiment.shrink_neurons.empty()) return decide("position 0 stands out", why);
        why["neurons"] = s.experiment.shrink_neurons;
    }
    s.experiment.shrink_steps = std::max<int64_t>(1, s.stop / 10);
    why["shrink_until"] = s.experiment.shrink_steps;
    decide("position 0 stands out", why);
}

static void require_neurons(const ModelConfig& c, const Settings& s) {
    if (s.experiment.shrink_steps == 0 && s.preset != "auto")
        throw BadInput("--shrink-neurons: nothing would come down; give --shrink-position0 STEPS as well");
    for (const Neuron& neuron : neurons_in(s.experiment.shrink_neurons))
        if (neuron.layer < 0 || neuron.layer >= c.L || neuron.number < 0 || neuron.number >= c.n_inner)
            throw BadInput("--shrink-neurons " + std::to_string(neuron.layer) + ":" + std::to_string(neuron.number) +
                           ": the model has " + std::to_string(c.L) + " blocks of " + std::to_string(c.n_inner) +
                           " neurons, counted from 0");
}

void require_position0(const ModelConfig& c, const Settings& s) {
    if (!s.experiment.shrink_neurons.empty()) require_neurons(c, s);
    if (c.rotary == 0) return;
    const bool planted = s.experiment.plant_position0 != 0;
    if (planted || (s.experiment.shrink_steps > 0 && s.experiment.shrink_neurons.empty()))
        throw BadInput(
            std::string(planted ? "--plant-position0" : "--shrink-position0") +
            ": this model's positions are rotary, so position 0 has no embedding that could be lengthened or "
            "shortened; " +
            (planted ? "leave the flag out" : "name the neurons that make it long by --shrink-neurons"));
}

namespace {

void shrink_neuron(Engine& model, const Neuron& neuron, double factor) {
    const ModelConfig& c = model.config;
    const std::string mlp = "h." + std::to_string(neuron.layer) + ".mlp.";
    if (!c.gated())
        return model.edit_parameters({offset_of(model, mlp + "c_proj.weight") + neuron.number * c.C, c.C}, factor,
                                     nullptr);
    const int64_t F = c.fc_width(), value = c.n_inner + neuron.number;  // a gate's, then what it lets through
    model.edit_parameters({offset_of(model, mlp + "c_fc.weight") + value, c.C, F}, factor, nullptr);
    if (c.mlp_bias) model.edit_parameters({offset_of(model, mlp + "c_fc.bias") + value, 1}, factor, nullptr);
}

}  // namespace

void shrink_position0(Engine& model, const Settings& s, int64_t step) {
    const int64_t left = s.experiment.shrink_steps - step;
    if (left <= 0) return;
    const auto factor = [&](double ratio) { return std::pow(std::max(ratio, 1.0), -1 / static_cast<double>(left)); };
    if (s.experiment.shrink_neurons.empty())
        return model.edit_parameters(position0(model), factor(ratio_of(sigma_in_front(model, 0))), nullptr);
    const std::vector<Neuron> neurons = neurons_in(s.experiment.shrink_neurons);
    const double ratio = ratio_of(sigma_in_front(model, neurons[0].layer + 1)) / kLeftByNeurons;
    for (const Neuron& neuron : neurons) shrink_neuron(model, neuron, factor(ratio));
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
    model.edit_parameters(position0(model), 1, added.data());
}

}  // namespace lnfree
