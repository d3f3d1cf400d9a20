#include <string>

#include "dev/analysis/cache.h"
#include "dev/analysis/command.h"
#include "dev/analysis/explain_command.h"
#include "dev/analysis/measurements.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"

namespace lnfree {

int analyze_and_print(const std::string& what, const analysis::Options& o) {
    print_json(o.json_output, analyze_command(what, o));
    return 0;
}

std::string measurement_list() {
    std::string list;
    for (const analysis::Measurement& m : analysis::measurements())
        list += std::string("\n  ") + m.name + ": " + m.what;
    return list + "\n  report: all of them on one page, report.html in --out; one that was stopped goes on";
}

int explain_and_print(const analysis::ExplainOptions& o) {
    print_json(o.json_output, explain_command(o));
    return 0;
}

int cache_and_print(const analysis::CacheOptions& o) {
    print_json(o.json_output, cache_command(o));
    return 0;
}

}  // namespace lnfree
