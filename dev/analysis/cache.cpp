#include "dev/analysis/cache.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <numeric>
#include <set>

#include "data/array_file.h"
#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "data/float_formats.h"
#include "data/shards.h"
#include "dev/analysis/heads.h"
#include "dev/analysis/subjects.h"
#include "dev/cpu/operations.h"
#include "dev/run/evaluate.h"
#include "dev/run/models.h"
#include "dev/run/records.h"
#include "dev/run/signals.h"

namespace lnfree {
namespace analysis {

// ---------------------------------------------------------------------------------------------------------------------
// Places

namespace {

using What = HookPlace::What;

struct PlaceName {
    What what;
    const char* name;  // of every layer's: behind "blocks.L."
    bool in_layers;
};

constexpr PlaceName kPlaces[] = {
    {What::embed, "hook_embed", false},
    {What::pos_embed, "hook_pos_embed", false},
    {What::resid_pre, "hook_resid_pre", true},
    {What::q, "attn.hook_q", true},
    {What::k, "attn.hook_k", true},
    {What::rot_q, "attn.hook_rot_q", true},
    {What::rot_k, "attn.hook_rot_k", true},
    {What::v, "attn.hook_v", true},
    {What::z, "attn.hook_z", true},
    {What::result, "attn.hook_result", true},
    {What::attn_out, "hook_attn_out", true},
    {What::resid_mid, "hook_resid_mid", true},
    {What::post, "mlp.hook_post", true},
    {What::mlp_out, "hook_mlp_out", true},
    {What::resid_post, "hook_resid_post", true},
};

std::vector<uint64_t> shape_at(What what, const ModelConfig& c) {
    const auto C = static_cast<uint64_t>(c.C), NH = static_cast<uint64_t>(c.NH);
    const auto KH = static_cast<uint64_t>(c.key_heads()), HS = static_cast<uint64_t>(c.head_size());
    switch (what) {
        case What::q:
        case What::rot_q:
        case What::z:
            return {NH, HS};
        case What::k:
        case What::rot_k:
        case What::v:
            return {KH, HS};
        case What::result:
            return {NH, C};
        case What::post:
            return {static_cast<uint64_t>(c.n_inner)};
        default:
            return {C};
    }
}

// Why a model has no such place; empty: it has.
std::string absence_of(What what, const ModelConfig& c) {
    if (what == What::pos_embed && c.rotary > 0) return "positions are rotary, and nothing is added for them";
    if (what == What::resid_mid && c.parallel)
        return "attention and MLP read the same stream, and nothing lies between them";
    if ((what == What::q || what == What::k) && c.rotary > 0)
        return "queries and keys are seen when they are turned, as attn.hook_rot_q and attn.hook_rot_k";
    if ((what == What::rot_q || what == What::rot_k) && c.rotary == 0)
        return "positions are learned, and queries and keys are not turned: attn.hook_q and attn.hook_k";
    return "";
}

std::string known_names(const ModelConfig& c) {
    std::string names;
    for (const PlaceName& place : kPlaces)
        if (absence_of(place.what, c).empty())
            names += std::string(names.empty() ? "" : ", ") + (place.in_layers ? "blocks.L." : "") + place.name;
    return names;
}

// "blocks.3.hook_mlp_out" -> {"3", "hook_mlp_out"}; no layer: {"", name}
std::pair<std::string, std::string> split_name(const std::string& name) {
    const std::string front = "blocks.";
    const size_t dot = name.find('.', front.size());
    if (name.compare(0, front.size(), front) != 0 || dot == std::string::npos) return {"", name};
    return {name.substr(front.size(), dot - front.size()), name.substr(dot + 1)};
}

// The layers that a name asks for. BadInput if the model has none such.
std::vector<int64_t> layers_named(const std::string& layer, const std::string& name, int64_t L) {
    std::vector<int64_t> layers;
    if (layer == "*") {
        layers.resize(static_cast<size_t>(L));
        std::iota(layers.begin(), layers.end(), 0);
        return layers;
    }
    const bool number =
        !layer.empty() && layer.size() < 10 && layer.find_first_not_of("0123456789") == std::string::npos;
    if (!number || std::stoll(layer) >= L)
        throw BadInput("--hooks " + quoted_name(name) + ": the model has layers 0 to " + std::to_string(L - 1) +
                       "; name one, or * for all");
    return {std::stoll(layer)};
}

}  // namespace

int64_t HookPlace::width() const {
    return static_cast<int64_t>(std::accumulate(shape.begin(), shape.end(), uint64_t{1}, std::multiplies<>()));
}

std::vector<HookPlace> hook_places(const std::vector<std::string>& names, const ModelConfig& config) {
    std::vector<HookPlace> places;
    std::set<std::string> taken;
    const auto add = [&](const PlaceName& place, int64_t layer) {
        const std::string front = layer < 0 ? "" : "blocks." + std::to_string(layer) + ".";
        places.push_back({place.what, layer, front + place.name, shape_at(place.what, config)});
        if (!taken.insert(places.back().name).second)
            throw BadInput("--hooks: " + places.back().name + " is named twice; name it once");
    };
    for (const std::string& name : names) {
        const auto [layer, rest] = split_name(name);
        const bool in_layers = rest.size() != name.size();
        const auto* place = std::find_if(std::begin(kPlaces), std::end(kPlaces), [&, rest = rest](const PlaceName& p) {
            return rest == p.name && in_layers == p.in_layers;
        });
        if (place == std::end(kPlaces))
            throw BadInput("--hooks " + quoted_name(name) + ": there is no such place; there are " +
                           known_names(config));
        if (const std::string absence = absence_of(place->what, config); !absence.empty())
            throw BadInput("--hooks " + quoted_name(name) + ": the model has no such place: " + absence);
        if (!in_layers)
            add(*place, -1);
        else
            for (const int64_t l : layers_named(layer, name, config.L)) add(*place, l);
    }
    return places;
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

namespace {

// Runs batches through the model and appends what is wanted of each to the file.
class Cache {
  public:
    // Array 0 of the file holds the tokens, array 1 + i place i.
    Cache(Engine& model, const std::vector<HookPlace>& places, ArrayStream& file, bool bf16)
        : model_(model), places_(places), file_(file), bf16_(bf16), at_(model.config), C_(model.config.C) {}

    // tokens (B,T)
    void add(const int32_t* tokens, int64_t B, int64_t T) {
        N_ = B * T;
        file_.append(0, tokens, static_cast<uint64_t>(N_) * sizeof(int32_t));
        const Weights& w = model_.weights();
        put_rows(What::embed, -1, C_, [&](int64_t n) { return w.wte + tokens[n] * C_; });
        put_rows(What::pos_embed, -1, C_, [&](int64_t n) { return w.wpe + n % T * C_; });
        Probe probe;
        probe.residual = [&](int64_t l, const real* x) { see_stream(l, x); };
        probe.attention = [&](int64_t l, const real* heads, const real* qkv, const real*) {
            see_attention(l, heads, qkv);
        };
        probe.mlp = [&](int64_t l, const real* hidden, const real* output) {
            put(What::post, l, hidden, N_ * model_.config.n_inner);
            put(What::mlp_out, l, output, N_ * C_);
        };
        model_.trace(tokens, B, T, probe);
    }

  private:
    Engine& model_;
    const std::vector<HookPlace>& places_;
    ArrayStream& file_;
    bool bf16_;
    const HeadPlaces at_;
    int64_t C_, N_ = 0;
    std::vector<real> stream_, made_;  // in front of the block; where results are made
    std::vector<float> floats_;
    std::vector<uint16_t> halves_;

    bool wants(What what, int64_t l) const {
        return std::any_of(places_.begin(), places_.end(),
                           [&](const HookPlace& p) { return p.what == what && p.layer == l; });
    }

    void see_stream(int64_t l, const real* x) {
        put(What::resid_post, l - 1, x, N_ * C_);
        put(What::resid_pre, l, x, N_ * C_);
        if (wants(What::resid_mid, l)) stream_.assign(x, x + N_ * C_);
    }

    void see_attention(int64_t l, const real* heads, const real* qkv) {
        const auto put_part = [&](What what, int64_t first, int64_t width) {
            put_rows(what, l, width, [&](int64_t n) { return qkv + n * at_.Q() + first; });
        };
        for (const What what : {What::q, What::rot_q}) put_part(what, at_.query(0), at_.A());
        for (const What what : {What::k, What::rot_k}) put_part(what, at_.key(0), at_.values_width());
        put_part(What::v, at_.first_value(), at_.values_width());
        put(What::z, l, heads, N_ * at_.A());
        if (wants(What::result, l)) put_results(l, heads);
        if (wants(What::attn_out, l) || wants(What::resid_mid, l)) put_output(l, heads);
    }

    // What each head adds to the stream.
    void put_results(int64_t l, const real* heads) {
        const int64_t row = at_.NH * C_;
        made_.resize(static_cast<size_t>(N_ * row));
        for (int64_t h = 0; h < at_.NH; h++) head_output(model_, l, h, heads, N_, made_.data() + h * C_, row);
        put(What::result, l, made_.data(), N_ * row);
    }

    // What they add together, and the stream behind that, by the engine's own operations.
    void put_output(int64_t l, const real* heads) {
        const Weights::Layer& y = model_.weights().layers[static_cast<size_t>(l)];
        made_.resize(static_cast<size_t>(N_ * C_));
        operations().matmul_forward(made_.data(), heads, y.proj, y.proj_bias, N_, at_.A(), C_, C_);
        put(What::attn_out, l, made_.data(), N_ * C_);
        if (!wants(What::resid_mid, l)) return;
        operations().residual_forward(made_.data(), stream_.data(), made_.data(), N_ * C_);
        put(What::resid_mid, l, made_.data(), N_ * C_);
    }

    // Row n of N_, wherever it lies.
    template <class Row>
    void put_rows(What what, int64_t l, int64_t width, Row row) {
        if (!wants(what, l)) return;
        made_.resize(static_cast<size_t>(N_ * width));
        for (int64_t n = 0; n < N_; n++) std::copy(row(n), row(n) + width, made_.data() + n * width);
        put(what, l, made_.data(), N_ * width);
    }

    void put(What what, int64_t l, const real* values, int64_t n) {
        for (size_t i = 0; i < places_.size(); i++)
            if (places_[i].what == what && places_[i].layer == l) append(1 + i, values, n);
    }

    void append(size_t array, const real* values, int64_t n) {
        if (bf16_) {
            halves_.resize(static_cast<size_t>(n));
#pragma omp parallel for schedule(static)
            for (int64_t i = 0; i < n; i++)
                halves_[static_cast<size_t>(i)] = bfloat_from_double(static_cast<double>(values[i]));
            file_.append(array, halves_.data(), static_cast<uint64_t>(n) * sizeof(uint16_t));
        } else {
            floats_.assign(values, values + n);
            file_.append(array, floats_.data(), static_cast<uint64_t>(n) * sizeof(float));
        }
    }
};

void check(const CacheOptions& o) {
    std::error_code ignored;
    const std::string end = ".safetensors";
    if (o.out.size() <= end.size() || o.out.compare(o.out.size() - end.size(), end.size(), end) != 0)
        throw BadInput("--out " + o.out + ": give a name that ends in .safetensors");
    if (!o.force && std::filesystem::exists(o.out, ignored))
        throw BadInput("--out " + o.out + ": already exists; name another file or give --force");
    if (o.dtype != "f32" && o.dtype != "bf16")
        throw BadInput("--dtype " + quoted_name(o.dtype) + ": activations are written as f32 or bf16");
}

// How many sequences of T tokens `tokens` are. BadInput if that is none, or more than there are.
uint64_t sequences_of(const CacheOptions& o, const TokenShards& shards, int64_t T) {
    const auto length = static_cast<uint64_t>(T);
    const uint64_t wanted = o.tokens / length, there = shards.sequences(length);
    if (wanted == 0)
        throw BadInput("--tokens " + std::to_string(o.tokens) + ": is less than one sequence of " + std::to_string(T) +
                       " tokens; ask for more, or for shorter ones with --seq");
    if (wanted > there)
        throw BadInput("--tokens " + std::to_string(o.tokens) + ": the shards hold " + std::to_string(there * length) +
                       " in sequences of " + std::to_string(T) + "; ask for no more than that");
    return wanted;
}

std::vector<ArrayInfo> arrays_of(const std::vector<HookPlace>& places, uint64_t S, uint64_t T, DType dtype) {
    std::vector<ArrayInfo> arrays = {{"tokens", DType::I32, {S, T}}};
    for (const HookPlace& place : places) {
        arrays.push_back({place.name, dtype, {S, T}});
        arrays.back().shape.insert(arrays.back().shape.end(), place.shape.begin(), place.shape.end());
    }
    return arrays;
}

Json result_of(const CacheOptions& o, const std::vector<ArrayInfo>& arrays, uint64_t bytes) {
    Json j{{"what", "cache"},           {"model", o.model}, {"out", o.out},   {"sequences", arrays[0].shape[0]},
           {"seq", arrays[0].shape[1]}, {"dtype", o.dtype}, {"bytes", bytes}, {"arrays", Json::array()}};
    for (const ArrayInfo& array : arrays)
        j["arrays"].push_back({{"name", array.name}, {"dtype", dtype_name(array.dtype)}, {"shape", array.shape}});
    return j;
}

void print_result(const CacheOptions& o, const std::vector<ArrayInfo>& arrays, uint64_t bytes) {
    Table table({"array", "dtype", "shape"});
    for (const ArrayInfo& array : arrays) {
        std::string shape;
        for (const uint64_t extent : array.shape) shape += (shape.empty() ? "" : " x ") + std::to_string(extent);
        table.add_row({array.name, dtype_name(array.dtype), shape});
    }
    std::printf("%s\nwrote %s, %s\n", table.text().c_str(), o.out.c_str(), format_bytes(bytes).c_str());
}

}  // namespace
}  // namespace analysis

Json cache_command(const analysis::CacheOptions& o) {
    using namespace analysis;
    stop_on_signals();
    check(o);
    const LoadedModel loaded = load_model(o.model);
    Engine& model = *loaded.model;
    const std::vector<HookPlace> places = hook_places(o.hooks, model.config);
    const int64_t T = sequence_length(o.seq, model.config, o.model);
    const TokenShards shards(o.data);
    shards.check_vocabulary(static_cast<uint32_t>(model.config.V));
    require_same_tokenizer(shards, loaded.tokenizer.get(), "--data");
    const uint64_t S = sequences_of(o, shards, T);
    const bool bf16 = o.dtype == "bf16";
    const std::vector<ArrayInfo> arrays =
        arrays_of(places, S, static_cast<uint64_t>(T), bf16 ? DType::BF16 : DType::F32);

    ArrayStream file(o.out, arrays,
                     {{"what", "cache"},
                      {"model_fingerprint", hex(fingerprint_of(loaded))},
                      {"data_fingerprint", hex(shards.fingerprint())}});
    Cache cache(model, places, file, bf16);
    std::vector<int32_t> tokens(static_cast<size_t>(o.batch * T)), targets(tokens.size());
    ProgressBar bar("cache", S, stderr);
    for (uint64_t first = 0; first < S; first += static_cast<uint64_t>(o.batch)) {
        if (g_signal != 0) throw Interrupted{g_signal};
        const auto B = static_cast<int64_t>(std::min<uint64_t>(static_cast<uint64_t>(o.batch), S - first));
        for (int64_t b = 0; b < B; b++)
            shards.read(first + static_cast<uint64_t>(b), static_cast<uint64_t>(T), tokens.data() + b * T,
                        targets.data() + b * T);
        cache.add(tokens.data(), B, T);
        bar.update(first + static_cast<uint64_t>(B));
    }
    bar.finish();
    file.publish();
    if (!o.json_output) print_result(o, arrays, file.bytes());
    return result_of(o, arrays, file.bytes());
}

}  // namespace lnfree
