// dev/cpu/growth.h explains what is measured.
#include "dev/cpu/growth.h"

#include <algorithm>
#include <string>
#include <vector>

#include "data/console.h"
#include "data/json.h"
#include "dev/cpu/bench.h"
#include "dev/cpu/machine.h"
#include "dev/cpu/operations.h"

namespace lnfree {
namespace bench {

namespace {

struct Roofline {
    double flops_per_s, bytes_per_s;
};

Roofline measure_roofline(double budget) {
    Ceiling ceiling;
    ceiling.measure_flops(budget, false);
    return {ceiling.flops_per_s, ceiling.memory_bytes_per_s(budget)};
}

struct GrowthPoint {
    int64_t width, seq, batch;
    double tokens_per_s, roofline;
};

// A step of a model of two layers on 1,024 tokens, one token per byte.
GrowthPoint measure_growth_point(int64_t width, int64_t seq, const Roofline& roofline, double budget) {
    ModelConfig c;
    c.L = 2;
    c.C = width;
    c.NH = width / 64;
    c.n_inner = 4 * width;
    c.n_ctx = 1024;
    c.V = 257;
    GrowthPoint point{width, seq, 1024 / seq, 0, 0};
    const double tokens = static_cast<double>(point.batch * seq);
    double flops = 0, bytes = 0;
    for (const Op& op : OpList(c, point.batch, seq).ops) {
        flops += op.calls * op.flops;
        bytes += op.calls * op.bytes;
    }
    point.roofline = tokens / std::max(flops / roofline.flops_per_s, bytes / roofline.bytes_per_s);
    point.tokens_per_s = tokens / time_steps(c, point.batch, seq, budget, false).median;
    return point;
}

Chart growth_chart(const std::vector<GrowthPoint>& points, const std::string& machine) {
    Chart chart;
    chart.title = "A training step of two layers: tokens per second";
    chart.x_label = "width of the residual stream (n_embd); " + machine;
    chart.y_label = "tokens per second";
    chart.log_x = chart.log_y = true;
    for (const GrowthPoint& point : points) {
        const std::string name = "T = " + std::to_string(point.seq);
        if (chart.series.empty() || chart.series[chart.series.size() - 2].name != name) {
            static const char* colours[] = {"#0072B2", "#D55E00", "#009E73"};
            const std::string colour = colours[chart.series.size() / 2 % 3];
            chart.series.push_back({name, {}, {}, colour, false, 0});
            chart.series.push_back({name + ", roofline", {}, {}, colour, true, 0});
        }
        ChartSeries &measured = chart.series[chart.series.size() - 2], &roofline = chart.series.back();
        measured.x.push_back(static_cast<double>(point.width));
        measured.y.push_back(point.tokens_per_s);
        roofline.x.push_back(static_cast<double>(point.width));
        roofline.y.push_back(point.roofline);
    }
    return chart;
}

}  // namespace

Json run_growth(double seconds, FILE* screen, Chart& chart) {
    const Roofline roofline = measure_roofline(seconds);
    std::vector<GrowthPoint> points;
    Table table({"n_embd", "T", "B", "tokens/s", "% of roofline"});
    Json j;
    j["machine"] = {{"processor", processor_name()}, {"threads", thread_count()}, {"isa", operations().isa}};
    j["ceiling"] = {{"gflops", roofline.flops_per_s / 1e9}, {"gbytes_per_s", roofline.bytes_per_s / 1e9}};
    ProgressBar progress("bench", 21);
    for (const int64_t seq : {64, 256, 1024})
        for (const int64_t width : {128, 256, 512, 768, 1024, 1280, 1600}) {
            const GrowthPoint p = measure_growth_point(width, seq, roofline, seconds);
            points.push_back(p);
            table.add_row({std::to_string(width), std::to_string(seq), std::to_string(p.batch),
                           format_fixed(p.tokens_per_s, 0), format_fixed(100 * p.tokens_per_s / p.roofline, 0)});
            j["points"].push_back({{"n_embd", width},
                                   {"seq", seq},
                                   {"batch", p.batch},
                                   {"tokens_per_s", p.tokens_per_s},
                                   {"roofline_tokens_per_s", p.roofline}});
            progress.update(points.size());
        }
    progress.hide();
    const std::string machine =
        processor_name() + ", " + std::to_string(thread_count()) + " threads, " + operations().isa;
    std::fprintf(screen, "%s\nroofline: %s GFLOP/s, %s GB/s\n\n%s", machine.c_str(),
                 format_fixed(roofline.flops_per_s / 1e9, 0).c_str(),
                 format_fixed(roofline.bytes_per_s / 1e9, 1).c_str(), table.text().c_str());
    chart = growth_chart(points, machine);
    return j;
}

}  // namespace bench
}  // namespace lnfree
