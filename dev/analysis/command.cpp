#include "dev/analysis/command.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/model_folder.h"
#include "dev/analysis/report.h"
#include "dev/processes.h"
#include "dev/run/evaluate.h"
#include "dev/run/launch.h"
#include "dev/run/records.h"
#include "dev/run/signals.h"

namespace lnfree {
namespace analysis {

namespace fs = std::filesystem;

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// One measurement

// Whether --paper changes this measurement.
bool is_as_paper(const Measurement& m, const Options& o) {
    return o.paper && m.as_paper != nullptr;
}

// All that a result depends on, contents by their fingerprints: a folder or a file may hold something else by now. The
// same request need not be measured again.
Json request_of(const Measurement& m, const Options& o, const Subjects& s) {
    Json j{{"models", o.models}, {"model_fingerprints", Json::array()}};
    if (is_as_paper(m, o)) j["definitions"] = "paper";
    for (const uint64_t fingerprint : s.model_fingerprints) j["model_fingerprints"].push_back(hex(fingerprint));
    if (m.on == TakenOn::prompts)
        j.update({{"prompts", o.prompts}, {"prompts_fingerprint", hex(s.prompts_fingerprint)}});
    if (m.on == TakenOn::questions)
        j.update({{"evals", o.benchmarks.evals},
                  {"evals_fingerprint", hex(s.questions_fingerprint)},
                  {"tasks", o.benchmarks.tasks},
                  {"limit", o.benchmarks.limit},
                  {"choices", o.benchmarks.choices}});
    if (m.on == TakenOn::text)
        j.update({{"data", o.data},
                  {"data_fingerprint", hex(s.sample.data_fingerprint)},
                  {"seq", o.seq},
                  {"sequences", o.sequences},
                  {"seed", o.seed}});
    return j;
}

// What this machine's matrix product does, measured once.
double flops_of(const Subjects& s) {
    static const double flops = measure_flops(s.model(0).config);
    return flops;
}

// Of prepared subjects.
Json run_measurement(const Measurement& m, const Options& o, Subjects& s) {
    if (m.on == TakenOn::questions) prepare_tasks(s);
    const bool here = backend().make == make_reference;  // what is estimated is this processor's time
    std::fprintf(stderr, "%s: %s%s%s\n", m.name, m.what, is_as_paper(m, o) ? ", as the paper's code" : "",
                 here ? ("; about " + format_duration(estimated_seconds(m, s, flops_of(s)))).c_str() : "");
    s.procedure.label = m.name;
    Json measured = m.measure(s), j;
    j["version"] = kFormatVersion;
    j["what"] = m.name;
    if (is_as_paper(m, o)) j["definitions"] = "paper";
    j["request"] = request_of(m, o, s);
    if (m.on == TakenOn::text) {
        j["seq"] = s.sample.T;
        j["sequences"] = s.sample.sequences;
    }
    for (size_t i = 0; i < s.loaded.size(); i++) {
        Json model{{"model", s.folders[i]}, {"layernorm_free", s.model(i).sites.all_linear_everywhere()}};
        model.update(measured["models"][i]);
        measured["models"][i] = model;
    }
    j.update(measured);
    return j;
}

std::string result_file(const Measurement& m, const Options& o) {
    return o.out + "/" + m.name + ".json";
}

void save_result(const Json& j, const Measurement& m, const Options& o) {
    fs::create_directories(o.out);
    write_file_atomically(result_file(m, o), j.dump(1) + "\n");
}

void print_table(const Table& table, bool markdown) {
    std::printf("%s", markdown ? table.markdown().c_str() : table.text().c_str());
}

// ---------------------------------------------------------------------------------------------------------------------
// The report

// The result of an earlier run in --out, if it was of the same request; null otherwise.
Json earlier_result(const Measurement& m, const Options& o, const Subjects& s) {
    if (o.force || !fs::exists(result_file(m, o))) return nullptr;
    const bool lacks_choices = !o.benchmarks.choices.empty() && !fs::exists(o.benchmarks.choices);
    if (m.on == TakenOn::questions && lacks_choices) return nullptr;
    const Json j = json_in(read_file(result_file(m, o), uint64_t{1} << 30)).value_or(Json());
    if (!j.is_object() || !j.contains("version") || !j.contains("request")) return nullptr;
    const bool same = j["version"] == kFormatVersion && j["request"] == request_of(m, o, s);
    return same ? j : Json();
}

// Taken from an earlier run, or measured and saved.
Json result_of(const Measurement& m, const Options& o, Subjects& s) {
    prepare(s, m.on, o);
    Json j = earlier_result(m, o, s);
    if (!j.is_null()) return j;
    j = run_measurement(m, o, s);
    save_result(j, m, o);
    return j;
}

// What the models have, or had, for norms.
std::string norms_of(const Subjects& s) {
    const auto centred = std::count_if(s.loaded.begin(), s.loaded.end(),
                                       [](const LoadedModel& loaded) { return loaded.model->config.centred; });
    if (centred == 0) return "RMSNorm";
    return centred == static_cast<std::ptrdiff_t>(s.loaded.size()) ? "LayerNorm" : "norms";
}

void write_report(const Options& o, const Subjects& s, const Table& summary, const std::vector<ReportPart>& parts,
                  const Json& all) {
    const std::string about =
        std::to_string(s.sample.sequences) + " sequences of " + std::to_string(s.sample.T) +
        " tokens, spread evenly over the data; the measurements of 2507.02559, made by train_gpt2_lnfree analyze.";
    write_file_atomically(o.out + "/report.html",
                          render_report("Models with and without " + norms_of(s), about, summary, parts));
    write_file_atomically(o.out + "/report.json", all.dump(1) + "\n");
}

// What stands above a part's numbers.
ReportPart part_of(const Measurement& m, const Options& o) {
    ReportPart part{m.name, m.title, m.explanation, {}, "", "", ""};
    if (!is_as_paper(m, o)) return part;
    part.title += ", as the paper's code measures";
    part.explanation += std::string(" Here as the paper's code measures (--paper): ") + m.as_paper;
    return part;
}

bool is_asked_for(const Measurement& m, const Options& o) {
    return o.parts.empty() || std::find(o.parts.begin(), o.parts.end(), m.name) != o.parts.end();
}

Json report(const Options& o) {
    if (o.out.empty()) throw BadInput("--out is required: the folder for report.html, report.json and the parts");
    for (const std::string& part : o.parts)
        if (find_measurement(part) == nullptr)
            throw BadInput("--parts " + quoted_name(part) + ": there is no such measurement; see --help");
    Subjects subjects = load_subjects(o);
    prepare(subjects, TakenOn::text, o);
    std::vector<ReportPart> parts;
    Json all{{"version", kFormatVersion}, {"what", "report"}};
    for (const Measurement& m : measurements()) {
        if (!is_asked_for(m, o)) continue;
        ReportPart part = part_of(m, o);
        try {
            const Json result = result_of(m, o, subjects);
            part.json = result.dump();
            part.tables = m.tables(result);
            part.pictures = m.pictures(result);
            all[m.name] = result;
        } catch (const BadInput& e) {  // the other parts can be measured
            part.missing = e.what();
            all[m.name] = nullptr;
        }
        parts.push_back(part);
    }
    const Table summary = overview(all, o.models.size(), norms_of(subjects));
    write_report(o, subjects, summary, parts, all);
    if (o.json_output) return all;
    print_table(summary, o.markdown);
    if (!o.markdown) std::printf("\nwrote %s/report.html and report.json\n", o.out.c_str());
    return all;
}

Json measure(const Measurement& m, const Options& o) {
    if (!o.out.empty() && fs::exists(result_file(m, o)) && !o.force)
        throw BadInput("--out " + result_file(m, o) + ": already exists; name another folder or give --force");
    Subjects subjects = load_subjects(o);
    prepare(subjects, m.on, o);
    require_alike([&] {
        std::vector<Common> same = {{"other --data", subjects.sample.data_fingerprint}};
        for (const uint64_t model : subjects.model_fingerprints) same.push_back({"another --model", model});
        return same;
    });
    Json j = run_measurement(m, o, subjects);
    if (!o.out.empty() && processes().leads()) save_result(j, m, o);
    if (o.json_output) return j;
    for (const Table& table : m.tables(j)) {
        print_table(table, o.markdown);
        std::printf("\n");
    }
    return j;
}

}  // namespace
}  // namespace analysis

Json analyze_command(const std::string& what, const analysis::Options& o) {
    const analysis::Measurement* measurement = analysis::find_measurement(what);
    if (measurement == nullptr && what != "report")
        throw BadInput("analyze " + quoted_name(what) + ": there is no such measurement; see --help");
    stop_on_signals();
    return measurement == nullptr ? analysis::report(o) : analysis::measure(*measurement, o);
}

}  // namespace lnfree
