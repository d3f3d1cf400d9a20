// info --memory: what fits into which GPU, from the same layout that allocates.
#include <cstdio>
#include <string>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/json.h"
#include "data/model_config.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"

namespace lnfree {

namespace {

constexpr int kCards[] = {24, 80, 141};  // GB
constexpr double kShare = 0.95;          // of a card; the rest is left to others

int64_t training_bytes(const GPT2Config& c, int64_t batch, bool in_bf16, int recompute) {
    if (backend().device_bytes == nullptr)
        throw BadInput(
            "--memory: the table is that of train_gpt2_lnfree_cuda; on the CPU `remove --dry-run` says what a run "
            "needs");
    return backend().device_bytes(c, batch, c.n_ctx, true, in_bf16, recompute);
}

// The largest micro-batch, in sequences of n_ctx tokens, that trains within `bytes` of device memory; 0: none does.
int64_t largest_batch(const GPT2Config& c, bool in_bf16, int recompute, double bytes) {
    int64_t batch = 0;
    while (batch < 4096 && static_cast<double>(training_bytes(c, batch + 1, in_bf16, recompute)) <= bytes) batch++;
    return batch;
}

Json memory_row(const GPT2Config& c, bool in_bf16, int recompute) {
    Json row{{"precision", in_bf16 ? "bf16" : "fp32"}, {"recompute", recompute}};
    for (const int gigabytes : kCards)
        row["batch_" + std::to_string(gigabytes)] = largest_batch(c, in_bf16, recompute, kShare * 1e9 * gigabytes);
    row["bytes_of_one"] = training_bytes(c, 1, in_bf16, recompute);
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

GPT2Config config_of(const InfoOptions& o) {
    if (o.size.empty()) return read_config(o.model);
    const ModelShape shape(o.size.c_str());
    return shape.config(shape.usual_vocabulary());
}

}  // namespace

int memory_command(const InfoOptions& o) {
    const GPT2Config c = config_of(o);
    Json j;
    j["model"] = o.size.empty() ? o.model : o.size;
    j["rows"] = Json::array();
    for (const bool in_bf16 : {true, false})
        for (const int recompute : {0, 1, 2}) j["rows"].push_back(memory_row(c, in_bf16, recompute));
    if (!o.json_output)
        std::printf("%s: largest micro-batch, in sequences of %lld tokens, that trains on a card\n\n%s",
                    j["model"].get<std::string>().c_str(), static_cast<long long>(c.n_ctx),
                    memory_table(j["rows"]).text().c_str());
    print_json(o.json_output, j);
    return 0;
}

}  // namespace lnfree
