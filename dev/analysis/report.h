// One page with every measurement: `analyze report`. Self-contained HTML (no script, nothing loaded from elsewhere), readable
// on a phone, in print and with a screen reader; the numbers behind every part can be saved from it.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "data/console.h"

namespace lnfree {
namespace analysis {

std::string base64(const std::string& bytes);

// Of one measurement's result, as HTML.
std::string pictures_of_loss(const nlohmann::ordered_json& j);
std::string pictures_of_attribution(const nlohmann::ordered_json& j);
std::string pictures_of_patching(const nlohmann::ordered_json& j);
std::string pictures_of_norms(const nlohmann::ordered_json& j);
std::string pictures_of_sinks(const nlohmann::ordered_json& j);
std::string pictures_of_confidence(const nlohmann::ordered_json& j);

// Means over a model's sets that count and have the length that most of them have: (L)(T). Empty if none counts. `sets`
// becomes how many those are.
std::vector<std::vector<double>> mean_effects(const nlohmann::ordered_json& model, const char* key, size_t& sets);

// One line per model with the figure that each measurement is about, out of report.json. A part that was not measured
// leaves its cell empty.
Table overview(const nlohmann::ordered_json& report, size_t models);

struct ReportPart {
    std::string name, title, explanation;
    std::vector<Table> tables;
    std::string pictures;
    std::string json;     // the result, as text; empty: it was not measured, and
    std::string missing;  // says why
};

// `summary` stands first; `about` says in one paragraph what was measured.
std::string render_report(const std::string& title, const std::string& about, const Table& summary,
                          const std::vector<ReportPart>& parts);

}  // namespace analysis
}  // namespace lnfree
