// info --memory: what training holds on the processor, in one process or each of several; with the CUDA engine, what fits
// into which GPU. Both from the same layouts that allocate.
#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/json.h"
#include "data/model_config.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/run/evaluate.h"
#include "dev/run/memory.h"

namespace lnfree {

namespace {

constexpr int kCards[] = {24, 80, 141};  // GB
constexpr double kShare = 0.95;          // of a card; the rest is left to others

// Of each of so many processes, a GPU each.
int64_t training_bytes(const ModelConfig& c, const StepShape& step, int64_t batch, bool in_bf16, int recompute) {
    return backend().device_bytes(c, batch, c.n_ctx, true, in_bf16, recompute) - bytes_saved(c, step);
}

// The largest micro-batch, in sequences of n_ctx tokens, that trains within `bytes` of device memory; 0: none does.
int64_t largest_batch(const ModelConfig& c, const StepShape& step, bool in_bf16, int recompute, double bytes) {
    int64_t batch = 0;
    while (batch < 4096 && static_cast<double>(training_bytes(c, step, batch + 1, in_bf16, recompute)) <= bytes)
        batch++;
    return batch;
}

Json memory_row(const ModelConfig& c, const StepShape& step, bool in_bf16, int recompute) {
    Json row{{"precision", in_bf16 ? "bf16" : "fp32"}, {"recompute", recompute}};
    for (const int gigabytes : kCards)
        row["batch_" + std::to_string(gigabytes)] =
            largest_batch(c, step, in_bf16, recompute, kShare * 1e9 * gigabytes);
    row["bytes_of_one"] = training_bytes(c, step, 1, in_bf16, recompute);
    return row;
}

Table memory_table(const Json& rows) {
    Table table({"precision", "recompute", "24 GB", "80 GB", "141 GB", "one sequence needs"});
    for (const Json& row : rows) {
        std::vector<std::string> cells = {row["precision"].get<std::string>(), row["recompute"].dump()};
        for (const int gigabytes : kCards) {
            const int64_t batch = row["batch_" + std::to_string(gigabytes)].get<int64_t>();
            cells.push_back(batch > 0 ? std::to_string(batch) : "none");
        }
        cells.push_back(format_bytes(row["bytes_of_one"].get<uint64_t>()));
        table.add_row(cells);
    }
    return table;
}

ModelShape shape_of(const InfoOptions& o) {
    ModelShape shape(o.size.c_str());
    shape.family = o.family;
    return shape;
}

ModelConfig config_of(const InfoOptions& o) {
    if (o.size.empty()) return read_config(o.model);
    const ModelShape shape = shape_of(o);
    return shape.config(shape.usual_vocabulary());
}

std::string name_of(const InfoOptions& o) {
    return o.size.empty() ? o.model : shape_of(o).name();
}

// ----- on the processor

Json process_row(const ModelConfig& c, const InfoOptions& o, int64_t T, int64_t grad_accum, int64_t processes) {
    const StepShape step{o.batch, T, grad_accum, processes, o.lora, o.lora_embeddings};
    const TrainingMemory m = training_memory(c, step);
    return {{"processes", processes},   {"weights", m.weights},
            {"gradients", m.gradients}, {"moments", m.moments},
            {"exchange", m.exchange},   {"activations", m.activations},
            {"all", m.all()},           {"sent_per_step", processes > 1 ? traffic_per_step(c, step) : 0}};
}

Table process_table(const Json& rows) {
    std::vector<std::string> columns = {"bytes of each process"};
    for (const Json& row : rows)
        columns.push_back(row["processes"].dump() + (row["processes"] == 1 ? " process" : " processes"));
    Table table(columns);
    const std::pair<const char*, const char*> kinds[] = {{"weights", "weights"},
                                                         {"gradients", "gradients, and sums of them that wait"},
                                                         {"moments", "AdamW's moments"},
                                                         {"exchange", "others' gradients, at a time"},
                                                         {"activations", "activations of a micro-batch"},
                                                         {"all", "together"},
                                                         {"sent_per_step", "sent per step"}};
    for (const auto& [key, words] : kinds) {
        std::vector<std::string> cells = {words};
        for (const Json& row : rows) cells.push_back(format_bytes(row[key].get<uint64_t>()));
        table.add_row(cells);
    }
    return table;
}

Json memory_of_processes(const ModelConfig& c, const InfoOptions& o) {
    const int64_t T = sequence_length(o.seq, c, "the model");
    const int64_t grad_accum = o.grad_accum > 0 ? o.grad_accum : std::max<int64_t>(16, o.processes);
    if (o.processes > grad_accum)
        throw BadInput("--processes " + std::to_string(o.processes) + " for " + std::to_string(grad_accum) +
                       " micro-batches (--grad-accum): some would have none");
    Json j{{"batch", o.batch}, {"seq", T}, {"grad_accum", grad_accum}, {"rows", Json::array()}};
    if (o.processes > 1) j["rows"].push_back(process_row(c, o, T, grad_accum, 1));
    j["rows"].push_back(process_row(c, o, T, grad_accum, o.processes));
    if (!o.json_output)
        std::printf("%s: training with a step of %lld micro-batches of %lld x %lld tokens\n\n%s", name_of(o).c_str(),
                    static_cast<long long>(grad_accum), static_cast<long long>(o.batch), static_cast<long long>(T),
                    process_table(j["rows"]).text().c_str());
    return j;
}

}  // namespace

int memory_command(const InfoOptions& o) {
    const ModelConfig c = config_of(o);
    Json j;
    j["model"] = name_of(o);
    if (backend().device_bytes == nullptr) {
        j.update(memory_of_processes(c, o));
        print_json(o.json_output, j);
        return 0;
    }
    j["processes"] = o.processes;
    j["rows"] = Json::array();
    StepShape step;
    step.processes = o.processes;
    step.lora = o.lora;
    step.lora_embeddings = o.lora_embeddings;
    for (const bool in_bf16 : {true, false})
        for (const int recompute : {0, 1, 2}) j["rows"].push_back(memory_row(c, step, in_bf16, recompute));
    if (!o.json_output)
        std::printf("%s: largest micro-batch, in sequences of %lld tokens, that trains on %s\n\n%s",
                    j["model"].get<std::string>().c_str(), static_cast<long long>(c.n_ctx),
                    o.processes == 1 ? "a card" : ("each of " + std::to_string(o.processes) + " cards").c_str(),
                    memory_table(j["rows"]).text().c_str());
    print_json(o.json_output, j);
    return 0;
}

}  // namespace lnfree
