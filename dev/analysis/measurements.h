// The table of measurements: a row for every word that `analyze` takes.
#pragma once

#include <string>
#include <vector>

#include "data/console.h"
#include "data/json.h"
#include "dev/analysis/subjects.h"

namespace lnfree {
namespace analysis {

struct Measurement {
    const char* name;
    const char* what;
    const char* title;  // in the report, and what it says there
    const char* explanation;
    const char* as_paper;  // what is different with --paper, for the report; null: nothing
    TakenOn on;
    double passes;                 // over the sample, forward, that it costs about; for text
    Json (*measure)(Subjects& s);  // {"models": [...], ...}
    std::vector<Table> (*tables)(const Json& j);
    std::string (*pictures)(const Json& j);
};

const std::vector<Measurement>& measurements();

// Null if there is none of that name.
const Measurement* find_measurement(const std::string& name);

// Of prepared subjects, on a processor whose matrix product does `flops` per second.
double estimated_seconds(const Measurement& m, const Subjects& s, double flops);

}  // namespace analysis
}  // namespace lnfree
