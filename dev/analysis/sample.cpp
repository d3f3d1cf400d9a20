#include "dev/analysis/sample.h"

#include <algorithm>
#include <cstdio>

#include "data/console.h"
#include "data/error.h"
#include "data/random.h"
#include "dev/run/evaluate.h"

namespace lnfree {
namespace analysis {

Sample take_sample(const TokenShards& shards, int64_t T, int64_t wanted) {
    const uint64_t length = static_cast<uint64_t>(T), available = shards.sequences(length);
    if (available == 0)
        throw BadInput("--data " + shards.paths()[0] + ": fewer than " + std::to_string(T + 1) +
                       " tokens; use more text or a smaller --seq");
    Sample s;
    s.T = T;
    s.data_fingerprint = shards.fingerprint();
    s.sequences = std::min(wanted, static_cast<int64_t>(available));
    s.inputs.resize(static_cast<size_t>(s.sequences * T));
    s.targets.resize(s.inputs.size());
    for (int64_t i = 0; i < s.sequences; i++) {
        s.windows.push_back(static_cast<uint64_t>(i) * available / static_cast<uint64_t>(s.sequences));
        shards.read(s.windows.back(), length, s.inputs.data() + i * T, s.targets.data() + i * T);
    }
    return s;
}

void for_each_batch(const Sample& sample, const Procedure& procedure,
                    const std::function<void(int64_t first, int64_t B)>& f) {
    ProgressBar bar(procedure.label, static_cast<uint64_t>(sample.sequences), stderr);
    for (int64_t i = 0; i < sample.sequences; i += procedure.batch) {
        if (procedure.pause) procedure.pause();
        f(i, std::min(procedure.batch, sample.sequences - i));
        bar.update(static_cast<uint64_t>(std::min(sample.sequences, i + procedure.batch)));
    }
}

}  // namespace analysis
}  // namespace lnfree
