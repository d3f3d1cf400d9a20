// `analyze cache`: what goes on at chosen places of a model, token by token of a data set, for those who train
// dictionaries on it or look at it in other programs. Places have TransformerLens's names (dev/analysis/README.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/config.h"
#include "data/json.h"

namespace lnfree {
namespace analysis {

struct CacheOptions {
    std::string model, out;
    std::vector<std::string> data, hooks;
    uint64_t tokens = 0;  // in whole sequences
    int64_t seq = 0;      // 0: n_ctx
    int64_t batch = 8;    // sequences at a time
    std::string dtype = "f32";
    bool json_output = false, force = false;
};

// A place that can be written.
struct HookPlace {
    enum class What {
        embed,
        pos_embed,
        resid_pre,
        attn_out,
        resid_mid,
        mlp_out,
        resid_post,
        q,
        k,
        rot_q,
        rot_k,
        v,
        z,
        result,
        post
    };
    What what;
    int64_t layer;                // -1: of no layer
    std::string name;             // whole
    std::vector<uint64_t> shape;  // behind (sequences, positions)

    int64_t width() const;
};

// The places of a list of names, in its order: "blocks.3.attn.hook_z", or for every layer "blocks.*.attn.hook_z". BadInput,
// with the names there are, for one that is none, and for one given twice.
std::vector<HookPlace> hook_places(const std::vector<std::string>& names, const ModelConfig& config);

}  // namespace analysis

// Streams them to a .safetensors file, with the tokens: memory is that of one batch. Prints what it wrote unless
// o.json_output, and returns that. BadInput before anything is written; RunFailure when the disk is full; Interrupted after
// a signal, with nothing left behind.
Json cache_command(const analysis::CacheOptions& o);

}  // namespace lnfree
