#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "data/csv_chart.h"
#include "data/error.h"
#include "data/files.h"
#include "data/svg_chart.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/run/report.h"

namespace lnfree {

namespace fs = std::filesystem;

namespace {

Chart runs_chart(const PlotOptions& o) {
    std::vector<std::pair<std::string, std::string>> named;  // name, folder
    for (const std::string& run : o.runs) {
        const size_t equals = run.find('=');
        if (equals == std::string::npos)
            named.emplace_back(fs::path(run).filename().string(), run);
        else
            named.emplace_back(run.substr(0, equals), run.substr(equals + 1));
    }
    return loss_chart(named, o.title);
}

}  // namespace

int plot_command(const PlotOptions& o) {
    if (fs::exists(o.out) && !o.force)
        throw BadInput("--out " + o.out + ": already exists; name another file or give --force");
    if (o.runs.empty() == o.table.empty()) throw BadInput("plot: give either --run or --table");
    Chart chart = o.table.empty() ? runs_chart(o) : csv_chart(o.table);
    chart.title = o.title;
    if (!o.y_label.empty()) chart.y_label = o.y_label;
    chart.log_x = o.log_x;
    chart.log_y = o.log_y;
    write_file_atomically(o.out, render_svg(chart));
    if (!o.json_output) std::printf("wrote %s\n", o.out.c_str());
    print_json(o.json_output, {{"out", o.out}, {"runs", chart.series.size()}});
    return 0;
}

}  // namespace lnfree
