// One page with every measurement: `analyze report`. Self-contained HTML (no script, nothing loaded from elsewhere), readable
// on a phone, in print and with a screen reader; the numbers behind every part can be saved from it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "data/console.h"
#include "data/json.h"

namespace lnfree {
namespace analysis {

std::string base64(const std::string& bytes);

// Whether a result was measured as the paper's code does (--paper).
bool is_as_paper(const Json& result);

// Of one measurement's result, as HTML.
std::string pictures_of_loss(const Json& j);
std::string pictures_of_attribution(const Json& j);
std::string pictures_of_patching(const Json& j);
std::string pictures_of_norms(const Json& j);
std::string pictures_of_sinks(const Json& j);
std::string pictures_of_confidence(const Json& j);

// Means over a model's sets that count and have the length that most of them have: (L)(T). Empty if none counts. `sets`
// becomes how many those are.
std::vector<std::vector<double>> mean_effects(const Json& model, const char* key, size_t& sets);

// One line per model with the figure that each measurement is about, out of report.json. A part that was not measured
// leaves its cell empty.
Table overview(const Json& report, size_t models, const std::string& norms = "LayerNorm");

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
