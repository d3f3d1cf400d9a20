#include "data/csv_chart.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <system_error>
#include <vector>

#include "data/error.h"
#include "data/files.h"

namespace lnfree {

namespace {

std::vector<std::string> csv_cells(const std::string& line) {
    std::vector<std::string> cells;
    std::istringstream in(line + ",");
    for (std::string cell; std::getline(in, cell, ',');) cells.push_back(cell);
    return cells;
}

// NaN for an empty cell. `place` is the file and line for the error.
double csv_number(const std::string& cell, const std::string& place) {
    if (cell.empty()) return NAN;
    double x = 0;
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), x);
    if (error != std::errc() || end != cell.data() + cell.size())
        throw BadInput(place + ": " + quoted_name(cell) + " is not a number; leave the cell empty where there is none");
    return x;
}

}  // namespace

Chart csv_chart(const std::string& file) {
    Chart chart;
    std::istringstream lines(read_file(file, int64_t(1) << 26));
    int64_t number = 0;
    for (std::string line; std::getline(lines, line);) {
        const std::string place = file + ", line " + std::to_string(++number);
        const std::vector<std::string> cells = csv_cells(line);
        if (number == 1) {
            chart.x_label = cells[0];
            for (size_t i = 1; i < cells.size(); i++) chart.series.push_back({cells[i], {}, {}});
            continue;
        }
        if (cells.size() != chart.series.size() + 1)
            throw BadInput(place + ": " + std::to_string(cells.size()) + " cells, but the first line names " +
                           std::to_string(chart.series.size() + 1));
        const double x = csv_number(cells[0], place);
        for (size_t i = 1; i < cells.size(); i++) {
            chart.series[i - 1].x.push_back(x);
            chart.series[i - 1].y.push_back(csv_number(cells[i], place));
        }
    }
    if (chart.series.empty() || number < 2)
        throw BadInput(file + ": no table; its first line names the columns, two of them at least");
    return chart;
}

}  // namespace lnfree
