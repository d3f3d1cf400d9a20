#include "dev/run/report.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "data/console.h"
#include "data/files.h"
#include "data/json.h"
#include "data/model_card.h"
#include "data/model_folder.h"
#include "data/stock_layout.h"
#include "dev/cpu/machine.h"
#include "dev/processes.h"
#include "dev/run/evaluate.h"
#include "dev/run/experiments.h"
#include "dev/run/memory.h"
#include "dev/run/records.h"
#include "dev/run/samples.h"
#include "dev/run/session.h"
#include "dev/run/statistics.h"

namespace lnfree {

// ---------------------------------------------------------------------------------------------------------------------
// As it goes

namespace {

constexpr int64_t kMostLines = 300;  // about a run's steps on the screen; log.jsonl has them all

// "  removed mlp[0] mlp[1]": what there is room for behind a step's line; "" if nothing happened.
std::string in_words(const std::vector<Event>& events, const Sites& sites) {
    if (events.empty()) return "";
    std::string names;
    for (const Event& e : events)
        if (names.size() < 60) names += " " + site_name(sites.all[static_cast<size_t>(e.site)]);
    if (events.size() > 1 && names.size() >= 60) names = " " + std::to_string(events.size()) + " sites";
    return "  " + events[0].action + names;
}

std::string in_percent(double share) {
    return format_fixed(100 * share, 1) + " %";
}

}  // namespace

void report_step(Session& session, const StepReport& r, const std::vector<Event>& events, double tokens_per_s,
                 double communication_s) {
    const Sites& sites = session.model->sites;
    Json line;
    line["step"] = r.step;
    line["loss"] = r.loss.loss;
    if (session.teacher) line["kl"] = r.loss.kl;
    line["aux_loss"] = r.loss.aux;
    line["grad_norm"] = r.gradient_norm;
    line["lr"] = r.lr;
    line["tokens_per_s"] = tokens_per_s;
    if (processes().size() > 1) line["communication_s"] = communication_s;
    line["removed"] = Json::array();
    for (const Event& e : events)
        line[e.action == "removed" ? "removed" : "released"].push_back(
            site_name(sites.all[static_cast<size_t>(e.site)]));
    session.log.write(line);

    const int64_t stop = session.settings().stop;
    const int64_t every = (stop + kMostLines - 1) / kMostLines;
    if (events.empty() && r.step % every != 0 && r.step + 1 < stop) return;
    const std::string kl = session.teacher ? "  kl " + format_fixed(r.loss.kl, 4) : "";
    const double per_step = (seconds_now() - session.started) / static_cast<double>(r.step - session.first_step + 1);
    std::fprintf(
        session.screen, "step %*lld/%lld  loss %.4f%s  aux %.5f  grad %7.3f  lr %.2e  %s tok/s  ETA %s%s\n",
        static_cast<int>(std::to_string(stop).size()), static_cast<long long>(r.step), static_cast<long long>(stop),
        r.loss.loss, kl.c_str(), r.loss.aux, r.gradient_norm, r.lr, format_rate(tokens_per_s).c_str(),
        format_duration(per_step * static_cast<double>(stop - r.step - 1)).c_str(), in_words(events, sites).c_str());
    std::fflush(session.screen);
}

void report_validation(Session& session) {
    const RunState& state = session.state;
    Json line{{"step", state.step}, {"val_loss", state.last_val_loss}};
    if (session.teacher) {
        line["val_kl"] = number_or_null(state.last_val_kl);
        line["val_agreement"] = state.last_val_agreement;
    }
    session.log.write(line);
    std::string kept;
    if (session.teacher)
        kept = "  KL to the teacher " + format_fixed(state.last_val_kl, 4) + "  same likeliest token " +
               in_percent(state.last_val_agreement);
    std::fprintf(session.screen, "step %lld  validation loss %.4f%s\n", static_cast<long long>(state.step),
                 state.last_val_loss, kept.c_str());
    std::fflush(session.screen);
}

void report_decision(Session& session, const std::string& what, const Json& why) {
    Json line{{"step", session.state.step}, {"decision", what}};
    line.update(why);
    session.log.write(line);
    std::fprintf(session.screen, "step %lld  %s  %s\n", static_cast<long long>(session.state.step), what.c_str(),
                 why.dump().c_str());
    std::fflush(session.screen);
}

void warn_if_untrained(const Session& session, double loss) {
    const double uniform = std::log(static_cast<double>(session.model->config.V));
    if (loss > uniform - 0.5)
        std::fprintf(stderr,
                     "warning: the starting loss %.3f is close to ln V = %.3f, that of guessing: was this text "
                     "tokenised with this model's tokenizer?\n",
                     loss, uniform);
}

// ---------------------------------------------------------------------------------------------------------------------
// The picture

namespace {

// What auto found before step 0, as a shaded part of the axis that says what it is. `per_step`: units of the axis.
void show_decision(Chart& chart, const Json& j, double per_step) {
    if (j.contains("shrink_until"))
        chart.spans.push_back(
            {per_step * j["step"].number(), per_step * j["shrink_until"].number(), "position 0 comes down", "#E9EEF3"});
}

// Sites of one step: a line each, by kind; where many go at once, one line for all.
void show_removals(Chart& chart, const Json& sites, double x) {
    constexpr size_t kMany = 4;
    if (sites.size() >= kMany) {
        chart.markers.push_back({x, "removed", std::to_string(sites.size()) + " sites"});
        return;
    }
    for (const Json& site : sites) {
        const std::string name = site.get<std::string>();
        chart.markers.push_back({x, name.substr(0, name.find('[')), name});
    }
}

// Of a finished run; NaN if its folder does not say.
double tokens_per_step(const std::string& folder) {
    const Json record = read_lnfree_json(folder);
    const Json* const protocol = record.is_object() ? record.find("protocol") : nullptr;
    if (protocol == nullptr) return NAN;
    return number_or_nan(*protocol, "batch") * number_or_nan(*protocol, "seq") * number_or_nan(*protocol, "grad_accum");
}

// What a step of this run is on the axis: runs whose steps are not alike are drawn over tokens, others over steps.
double units_per_step(const std::vector<std::pair<std::string, std::string>>& runs, const std::string& folder) {
    const double here = tokens_per_step(folder);
    for (const auto& run : runs)
        if (std::abs(tokens_per_step(run.second) - here) > 0) return here;
    return 1;
}

// One run's line, and what its log says besides.
ChartSeries loss_series(Chart& chart, const std::string& name, const std::string& folder, double per_step) {
    ChartSeries series;
    series.name = name;
    bool first_validation = chart.references.empty();
    const bool marks_removals = chart.markers.empty();  // those of two schedules would lie on each other
    std::istringstream lines(read_file(folder + "/log.jsonl", uint64_t{1} << 31));
    for (std::string line; std::getline(lines, line);) {
        const Json j = json_in(line).value_or(Json());
        if (!j.is_object() || !j.contains("step")) continue;
        const double step = j["step"].get<double>();
        if (j.contains("loss")) {
            series.x.push_back(per_step * step);
            series.y.push_back(number_or_nan(j, "loss"));
        }
        if (j.contains("decision")) show_decision(chart, j, per_step);
        if (first_validation && j.contains("val_loss") && step == 0) {
            chart.references.push_back({number_or_nan(j, "val_loss"), "original, validation"});
            first_validation = false;
        }
        if (marks_removals) show_removals(chart, j.value("removed", Json::array()), per_step * step);
    }
    constexpr size_t kLong = 300;  // steps, from which on a line of single ones is a band
    if (series.x.size() > kLong) series.smooth = series.x.size() / 40;
    return series;
}

}  // namespace

Chart loss_chart(const std::vector<std::pair<std::string, std::string>>& runs, const std::string& title) {
    Chart chart;
    chart.title = title;
    chart.y_label = "training loss (nats per token)";
    bool over_tokens = false;
    for (const auto& [name, folder] : runs) {
        const double per_step = units_per_step(runs, folder);
        over_tokens |= per_step != 1;
        chart.series.push_back(loss_series(chart, name, folder, per_step));
    }
    chart.x_label = over_tokens ? "tokens" : "step";
    return chart;
}

// ---------------------------------------------------------------------------------------------------------------------
// At the end

namespace {

constexpr uint64_t kSeed = 1;  // of the bootstrap

// Sequence by sequence what the run changed in its validation loss; none for a run that an earlier process began.
std::vector<double> changes_of_loss(const Session& session) {
    const std::vector<double>&first = session.first_validation.losses, &last = session.last_validation.losses;
    std::vector<double> changes;
    for (size_t i = 0; i < std::min(first.size(), last.size()); i++) changes.push_back(last[i] - first[i]);
    return changes;
}

// Behind a number: its 95 % interval, if there is one.
std::string interval_in(const Json& summary, const char* key, int digits, double unit = 1) {
    const Json* const ends = summary.find(key);
    if (ends == nullptr) return "";
    return " (" + format_fixed(unit * (*ends)[0].number(), digits) + " to " +
           format_fixed(unit * (*ends)[1].number(), digits) + ")";
}

}  // namespace

std::string model_card(const Session& session) {
    const Sites& sites = session.model->sites;
    const ModelConfig& config = session.model->config;
    const std::string norm = norm_of(config);
    const bool free = sites.all_linear_everywhere();
    std::string card =
        "# A " + std::string(stock_names(config.family).model) + " model" + (free ? " without " + norm : "") + "\n\n";
    if (free)
        card += "Every " + norm +
                " of this model has been replaced by a fixed linear map while it was fine-tuned (arXiv "
                "2409.13710, 2507.02559).\n\n";
    Table results({"", "on held-out text"});
    results.add_row({"loss before this run, nats per token", format_fixed(session.state.first_val_loss, 4)});
    results.add_row({"loss after this run", format_fixed(session.state.last_val_loss, 4)});
    if (session.teacher) {
        const Json summary = summary_of(session);
        results.add_row({"KL(teacher, this model), nats per token (95 % interval)",
                         format_fixed(session.state.last_val_kl, 4) + interval_in(summary, "val_kl_interval", 4)});
        results.add_row(
            {"same likeliest token as the teacher",
             in_percent(session.state.last_val_agreement) + interval_in(summary, "val_agreement_interval", 2, 100)});
    }
    card += results.markdown() + "\n";
    if (free) card += loading_section(config, largest_sigma(sites)) + "\n";
    card += "## Protocol\n\n";
    Table protocol({"setting", "value"});
    const Json settings = settings_json(session.settings());
    for (const auto& [key, value] : settings.items()) protocol.add_row({key, value.dump()});
    card += protocol.markdown();
    if (sites.removed() == 0) return card;
    Table table({"site", "sigma_bar", "mean sigma at the end"});
    for (const Site& site : sites.all)
        table.add_row({site_name(site), format_general(site.sigma_bar), format_general(site.sigma_avg)});
    return card + "\n## Sites\n\n" + table.markdown();
}

Json summary_of(const Session& session) {
    const RunState& state = session.state;
    const Sites& sites = session.model->sites;
    Json j;
    j["out"] = session.options().out;
    j["steps"] = state.step;
    j["tokens"] = state.step * state.settings.tokens_per_step();
    j["val_loss_first"] = number_or_null(state.first_val_loss);
    j["val_loss_last"] = number_or_null(state.last_val_loss);
    if (session.teacher) {
        j["val_kl"] = number_or_null(state.last_val_kl);
        j["val_agreement"] = number_or_null(state.last_val_agreement);
        j["val_kl_interval"] = interval_of_mean(session.last_validation.kls, kSeed);
        j["val_agreement_interval"] = interval_of_mean(session.last_validation.agreements, kSeed);
    }
    const std::vector<double> changes = changes_of_loss(session);
    if (!changes.empty()) j["val_loss_change_interval"] = interval_of_mean(changes, kSeed);
    j["sites"] = sites.size();
    j["sites_removed"] = sites.removed();
    j["layernorm_free"] = sites.all_linear_everywhere();
    j["seconds"] = seconds_now() - session.started;
    j["peak_memory_bytes"] = peak_memory_bytes();
    return j;
}

void print_summary(const Session& session, const Json& s) {
    const RunState& state = session.state;
    Table table({session.request.command, session.options().out});
    table.add_row({"steps", std::to_string(state.step)});
    table.add_row({"tokens", format_count(s["tokens"].get<uint64_t>())});
    table.add_row({"time", format_duration(s["seconds"].get<double>())});
    table.add_row({"peak memory", format_bytes(s["peak_memory_bytes"].get<uint64_t>())});
    table.add_row({"validation loss, first", format_fixed(state.first_val_loss, 4)});
    table.add_row({"validation loss, last", format_fixed(state.last_val_loss, 4)});
    table.add_row({"difference (95 % interval)", format_fixed(state.last_val_loss - state.first_val_loss, 4) +
                                                     interval_in(s, "val_loss_change_interval", 4)});
    if (session.teacher) {
        table.add_row({"KL to the teacher, nats per token",
                       format_fixed(state.last_val_kl, 4) + interval_in(s, "val_kl_interval", 4)});
        table.add_row({"same likeliest token as the teacher",
                       in_percent(state.last_val_agreement) + interval_in(s, "val_agreement_interval", 2, 100)});
    }
    table.add_row({"LayerNorm sites removed", s["sites_removed"].dump() + " of " + s["sites"].dump()});
    std::fprintf(session.screen, "\n%s", table.text().c_str());
}

// ---------------------------------------------------------------------------------------------------------------------
// Instead of a run

namespace {

// Its weights, the activations of passes that train nothing, and its logits beside the model's.
int64_t teacher_bytes(const Session& session) {
    if (session.teacher == nullptr) return 0;
    const Settings& s = session.settings();
    const ModelConfig& c = session.teacher->config;
    if (backend().device_bytes != nullptr)
        return backend().device_bytes(c, s.batch, s.seq, false, s.precision == "bf16", 0);
    const int64_t values = session.teacher->parameters() + classifier_rows(s.batch * s.seq, c.V) * c.V;
    return values * static_cast<int64_t>(sizeof(real)) + reference_activation_bytes(c, s.batch, s.seq, false);
}

// As many as were started, or as --processes says.
int64_t processes_of(const Session& session) {
    return session.request.processes > 0 ? session.request.processes : processes().size();
}

StepShape step_shape(const Session& session) {
    const Settings& s = session.settings();
    return {s.batch, s.seq, s.grad_accum, processes_of(session), s.lora, s.lora_embeddings};
}

// Of a process: weights, gradients and two moments, activations.
int64_t training_bytes(const Session& session) {
    const Settings& s = session.settings();
    const ModelConfig& c = session.model->config;
    if (backend().device_bytes != nullptr)
        return backend().device_bytes(c, s.batch, s.seq, true, s.precision == "bf16",
                                      static_cast<int>(std::max<int64_t>(0, session.options().engine.recompute))) +
               teacher_bytes(session) - bytes_saved(c, step_shape(session));
    return training_memory(c, step_shape(session)).all() + teacher_bytes(session);
}

// While a model writes its own text it holds the keys and values of so many sequences (on the processor also the queries),
// and nothing for training yet.
int64_t sampling_bytes(const Session& session) {
    if (session.train != nullptr) return 0;
    const ModelConfig& c = session.model->config;
    const int64_t B = SampleRequest().batch, positions = B * c.L * c.n_ctx;
    const bool in_bf16 = session.settings().precision == "bf16";
    if (backend().device_bytes != nullptr)
        return backend().device_bytes(c, B, 1, false, in_bf16, 0) + positions * 2 * c.C * (in_bf16 ? 2 : 4);
    return (session.model->parameters() + positions * 3 * c.C) * static_cast<int64_t>(sizeof(real));
}

// Products of matrices are most of a step, not all of it, and not all are as fast as the one measured: whole steps of GPT-2
// Small reached 0.79 (T = 64) and 0.88 (T = 1024) of it on two cores with AVX-512.
double estimated_seconds(const Session& session, double tokens) {
    const ModelConfig& c = session.model->config;
    double flops = training_flops_per_token(c, session.model->parameters(), session.settings().seq);
    if (session.teacher)  // forward alone
        flops +=
            training_flops_per_token(session.teacher->config, session.teacher->parameters(), session.settings().seq) /
            3;
    // Processes that share a machine measure at the same time.
    const int64_t n = processes().size();
    std::vector<double> speeds(static_cast<size_t>(n));
    speeds[static_cast<size_t>(processes().rank())] = measure_flops(c);
    processes().all_gather(speeds.data(), sizeof speeds[0], processes().shares(n));
    double speed = 0;
    for (const double each : speeds) speed += each;
    return flops * tokens / (0.8 * speed) * static_cast<double>(n) / static_cast<double>(processes_of(session));
}

void print_dry_run(const Session& session, const Json& j) {
    const Settings& s = session.settings();
    const auto count = [](const Json& n) { return format_count(n.get<uint64_t>()); };
    Table table({session.request.command, "dry run, nothing is written"});
    table.add_row({"parameters", count(j["parameters"])});
    table.add_row({"tokens per step", format_count(static_cast<uint64_t>(s.tokens_per_step())) + " = " +
                                          std::to_string(s.batch) + " x " + std::to_string(s.seq) + " x " +
                                          std::to_string(s.grad_accum)});
    table.add_row(
        {"tokens in all", count(j["tokens"]) + " (" + format_general(j["epochs"].get<double>()) + " epochs)"});
    const bool several = processes_of(session) > 1, elsewhere = session.request.processes > 0;
    table.add_row(
        {several ? "memory of each process, about" : "memory, about", format_bytes(j["memory_bytes"].get<uint64_t>())});
    if (several) table.add_row({"each sends per step", format_bytes(j["traffic_bytes"].get<uint64_t>())});
    table.add_row({elsewhere ? "time on " + std::to_string(processes_of(session)) +
                                   " machines like this, their network apart, about"
                             : "time on this machine, about",
                   format_duration(j["estimated_seconds"].get<double>())});
    for (const auto& [key, value] : j["protocol"].items()) table.add_row({key, value.dump()});
    std::fprintf(session.screen, "%s", table.text().c_str());
    if (!s.removes) return;
    std::fprintf(session.screen, "\nremovals:");
    for (const Json& removal : j["schedule"])
        std::fprintf(session.screen, " %s@%s", removal["site"].get<std::string>().c_str(),
                     removal["step"].dump().c_str());
    std::fprintf(session.screen, "\n");
}

}  // namespace

Json dry_run(const Session& session) {
    const Settings& s = session.settings();
    const double tokens = static_cast<double>((s.stop - session.state.step) * s.tokens_per_step());
    Json j;
    j["protocol"] = settings_json(s);
    j["parameters"] = session.model->parameters();
    j["tokens"] = static_cast<int64_t>(tokens);
    j["epochs"] = session.train == nullptr ? 1 : tokens / static_cast<double>(session.train->tokens());
    j["memory_bytes"] = std::max(training_bytes(session), sampling_bytes(session));
    if (processes_of(session) > 1) {
        j["processes"] = processes_of(session);
        j["traffic_bytes"] = traffic_per_step(session.model->config, step_shape(session));
    }
    j["estimated_seconds"] = estimated_seconds(session, tokens);
    if (s.removes) {
        const Sites& sites = session.model->sites;
        j["schedule"] = Json::array();
        for (const Removal& removal : removals_left(s, sites))
            j["schedule"].push_back(
                {{"step", removal.step}, {"site", site_name(sites.all[static_cast<size_t>(removal.site)])}});
    }
    print_dry_run(session, j);
    return j;
}

}  // namespace lnfree
