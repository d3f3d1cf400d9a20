#include "dev/cpu/bench.h"

#include <cstdio>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/svg_chart.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/cpu/growth.h"
#include "dev/run/evaluate.h"

namespace lnfree {
namespace {

int growth_command(const BenchOptions& o, FILE* screen) {
    backend().use_precision(o.precision);
    Chart chart;
    const Json j = bench::run_growth(o.seconds, screen, chart);
    write_file_atomically(o.growth, render_svg(chart));
    print_json(o.json_output, j);
    return 0;
}

int bench_other_engine(const bench::Options& b, const std::string& products, FILE* screen, bool json_output) {
    const std::string own = backend().training_precision;
    if (b.precision != own)
        throw BadInput("bench --precision " + b.precision + ": on a GPU it times " + own +
                       " only, which training computes in; leave the flag out");
    return print_report(backend().bench(b.config, b.batch, b.seq, b.seconds, products, screen), json_output);
}

}  // namespace

int bench_command(const BenchOptions& o) {
    FILE* const screen = o.json_output ? stderr : stdout;
    if (o.floors) return floors_command(o);
    if (!o.growth.empty()) return growth_command(o, screen);
    bench::Options b;
    b.name = o.shape.name();
    b.config = o.shape.config(o.shape.usual_vocabulary());
    b.batch = o.batch;
    b.seq = sequence_length(o.seq, b.config, "the model");
    b.seconds = o.seconds;
    b.precision = o.precision;
    if (backend().bench != nullptr) return bench_other_engine(b, o.products, screen, o.json_output);
    if (!o.products.empty())
        throw BadInput("--products: train_gpt2_lnfree_cuda alone has such products to choose from");
    backend().use_precision(b.precision);
    print_json(o.json_output, bench::run(b, screen));
    return 0;
}

}  // namespace lnfree
