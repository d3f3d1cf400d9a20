#include "dev/commands/output.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/model_folder.h"

namespace lnfree {

using nlohmann::ordered_json;

void print_json(bool wanted, const ordered_json& j) {
    if (!wanted) return;
    ordered_json output = {{"version", kFormatVersion}};
    output.update(j);
    std::printf("%s\n", output.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

int print_report(const Report& report, bool json_output) {
    print_json(json_output, {{"passed", report.passed}, {"columns", report.columns}, {"rows", report.rows}});
    return report.passed ? 0 : 1;
}

}  // namespace lnfree
