// bench --floors: a training step of the CUDA engine, launch by launch, and how fast a GPU could be at the most.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/cuda/step.h"
#include "dev/run/evaluate.h"

namespace lnfree {
namespace {

using cuda::DataSheet;
using cuda::kDataSheets;
using cuda::StepOperation;
using cuda::StepOptions;
using cuda::StepPhase;

struct NamedPhase {
    StepPhase phase;
    const char *flag, *text;
};
constexpr NamedPhase kPhases[] = {{StepPhase::layer_norm, "layernorm", "all LayerNorm"},
                                  {StepPhase::apart, "apart", "mlp and qk removed, v and f not"},
                                  {StepPhase::removed, "removed", "all removed"}};

const NamedPhase& phase_named(const std::string& flag) {
    for (const NamedPhase& phase : kPhases)
        if (flag == phase.flag) return phase;
    throw BadInput("--phase " + flag + ": use layernorm, apart or removed");
}

StepOptions step_options(const BenchOptions& o) {
    if (o.shape.family != "gpt2")
        throw BadInput("bench --floors --family " + quoted_name(o.shape.family) +
                       ": only the launches of a GPT-2's step are listed; leave --family out");
    StepOptions step;
    step.config = o.shape.config(o.shape.usual_vocabulary());
    step.batch = o.batch;
    step.seq = sequence_length(o.seq, step.config, "the model");
    step.recompute = o.recompute;
    step.phase = phase_named(o.phase).phase;
    step.distill = o.distill;
    return step;
}

const char* bound_of(const StepOperation& op, const DataSheet& gpu) {
    return cuda::memory_seconds(op, gpu) >= cuda::arithmetic_seconds(op, gpu) ? "memory" : "arithmetic";
}

struct StepTotal {
    int64_t launches = 0;
    double bytes = 0, flops = 0;
    std::vector<double> seconds;  // of each data sheet

    explicit StepTotal(const std::vector<StepOperation>& step) : seconds(std::size(kDataSheets), 0) {
        for (const StepOperation& op : step) {
            const double calls = static_cast<double>(op.calls);
            launches += op.calls * static_cast<int64_t>(op.launches.size());
            bytes += calls * op.bytes;
            flops += calls * op.flops;
            for (size_t g = 0; g < seconds.size(); g++) seconds[g] += calls * cuda::floor_seconds(op, kDataSheets[g]);
        }
    }
};

std::string short_name(const DataSheet& gpu) {  // "H100"
    const std::string name = gpu.name;
    return name.substr(0, name.find(' '));
}

Table launch_table(const std::vector<StepOperation>& step) {
    std::vector<std::string> headers = {"part", "operation", "launch", "times", "shape", "MB", "GFLOP"};
    for (const DataSheet& gpu : kDataSheets) {
        headers.push_back(short_name(gpu) + " us");
        headers.emplace_back("bound by");
    }
    Table table(headers);
    std::string part;
    for (const StepOperation& op : step) {
        const std::string times = std::to_string(op.calls);
        std::vector<std::string> row = {op.part == part ? "" : op.part,
                                        op.name,
                                        op.launches[0],
                                        times,
                                        op.shape,
                                        format_fixed(op.bytes * 1e-6, 2),
                                        op.flops > 0 ? format_fixed(op.flops * 1e-9, 2) : ""};
        for (const DataSheet& gpu : kDataSheets) {
            row.push_back(format_fixed(1e6 * cuda::floor_seconds(op, gpu), 1));
            row.emplace_back(bound_of(op, gpu));
        }
        table.add_row(row);
        part = op.part;
        for (size_t i = 1; i < op.launches.size(); i++) table.add_row({"", "", op.launches[i], times});
    }
    return table;
}

Table total_table(const StepOptions& o) {
    std::vector<std::string> headers = {"training step", "launches", "GB", "TFLOP"};
    for (const DataSheet& gpu : kDataSheets) {
        headers.push_back(short_name(gpu) + " ms");
        headers.emplace_back("tokens/s");
    }
    Table table(headers);
    for (const NamedPhase& phase : kPhases) {
        StepOptions of_phase = o;
        of_phase.phase = phase.phase;
        const StepTotal total(training_step(of_phase));
        std::vector<std::string> row = {phase.text, std::to_string(total.launches), format_fixed(total.bytes * 1e-9, 2),
                                        format_fixed(total.flops * 1e-12, 2)};
        for (const double seconds : total.seconds) {
            row.push_back(format_fixed(1e3 * seconds, 2));
            row.push_back(format_count(static_cast<uint64_t>(static_cast<double>(o.batch * o.seq) / seconds)));
        }
        table.add_row(row);
    }
    return table;
}

std::string explanation(const BenchOptions& b, const StepOptions& o) {
    std::string sheets;
    for (const DataSheet& gpu : kDataSheets)
        sheets += (sheets.empty() ? "" : "; ") + std::string(gpu.name) + " " + format_general(gpu.tbytes_per_s) +
                  " TB/s and " + format_general(gpu.tflops) + " TFLOP/s";
    return "GPT-2 " + b.shape.size + ", " + std::to_string(o.batch) + " x " +
           format_count(static_cast<uint64_t>(o.seq)) + " tokens, bf16, " + phase_named(b.phase).text + ", recompute " +
           std::to_string(o.recompute) + (o.distill ? ", beside a teacher" : "") +
           ".\n"
           "Computed, not measured: a floor is a call's bytes or its flops, whichever takes longer at the "
           "manufacturer's\n"
           "figures, which no program reaches: " +
           sheets +
           " (bf16, dense).\n"
           "MB, GFLOP and us are of one call, and stand beside its first launch.\n\n";
}

Json json_of(const StepOperation& op) {
    Json floors = Json::array();
    for (const DataSheet& gpu : kDataSheets)
        floors.push_back({{"seconds", cuda::floor_seconds(op, gpu)}, {"bound_by", bound_of(op, gpu)}});
    return {{"part", op.part},   {"op", op.name},     {"launches", op.launches}, {"calls", op.calls},
            {"shape", op.shape}, {"bytes", op.bytes}, {"flops", op.flops},       {"floors", floors}};
}

Json json_of(const BenchOptions& b, const StepOptions& o) {
    Json gpus = Json::array(), ops = Json::array(), steps = Json::array();
    for (const DataSheet& gpu : kDataSheets)
        gpus.push_back({{"gpu", gpu.name}, {"tbytes_per_s", gpu.tbytes_per_s}, {"tflops", gpu.tflops}});
    for (const StepOperation& op : training_step(o)) ops.push_back(json_of(op));
    for (const NamedPhase& phase : kPhases) {
        StepOptions of_phase = o;
        of_phase.phase = phase.phase;
        const StepTotal total(training_step(of_phase));
        steps.push_back({{"phase", phase.flag},
                         {"launches", total.launches},
                         {"bytes", total.bytes},
                         {"flops", total.flops},
                         {"seconds", total.seconds}});
    }
    return {{"model", b.shape.size}, {"batch", o.batch},     {"seq", o.seq},  {"precision", "bf16"},
            {"phase", b.phase},      {"distill", o.distill}, {"gpus", gpus},  {"recompute", o.recompute},
            {"measured", false},     {"ops", ops},           {"steps", steps}};
}

}  // namespace

int floors_command(const BenchOptions& b) {
    const StepOptions o = step_options(b);
    if (b.json_output) {
        print_json(true, json_of(b, o));
        return 0;
    }
    const Table launches = launch_table(training_step(o)), totals = total_table(o);
    std::printf("%s%s\n%s", explanation(b, o).c_str(), (b.markdown ? launches.markdown() : launches.text()).c_str(),
                (b.markdown ? totals.markdown() : totals.text()).c_str());
    return 0;
}

}  // namespace lnfree
