#include "dev/commands/output.h"

#include <cstdio>

#include "data/json.h"
#include "data/model_folder.h"

namespace lnfree {

void print_json(bool wanted, const Json& j) {
    if (!wanted) return;
    Json output = {{"version", kFormatVersion}};
    output.update(j);
    std::printf("%s\n", output.dump(2, true).c_str());
}

int print_report(const Report& report, bool json_output) {
    print_json(json_output, {{"passed", report.passed}, {"columns", report.columns}, {"rows", report.rows}});
    return report.passed ? 0 : 1;
}

}  // namespace lnfree
