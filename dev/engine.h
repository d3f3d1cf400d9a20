// What an engine is, for everything that uses models without being one: plain structs that say what a run is about, and
// one interface. train_gpt2_lnfree.cpp implements it on the processor and explains it; train_gpt2_lnfree.cu on a GPU.
//
// Letters for shapes: B sequences in a micro-batch, T positions in a sequence, C width of the residual stream, V
// vocabulary, L layers, NH heads, N = B * T. "Paper" is arXiv 2507.02559; "precursor" is 2409.13710.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../data/config.h"
#include "buffer.h"

namespace lnfree {

// ---------------------------------------------------------------------------------------------------------------------
// Sites: the LayerNorms of a GPT-2 of L layers, 3L + 1 of them (paper, Sec. 3). A block's first LayerNorm counts twice,
// because the query/key path and the value path can be weaned separately although they share gamma and beta.

enum class SiteKind {
    mlp,  // mlp[l]: in front of the MLP of layer l (ln_2)
    qk,   // qk[l]: in front of the queries and keys of layer l (ln_1)
    v,    // v[l]: in front of the values of layer l (ln_1 as well)
    f     // f: in front of the unembedding (ln_f)
};

// (x - mean) / divisor * gamma + beta, with the divisor  sigma^(1-a) * s^a:  LayerNorm for a = 0, FakeLN for a = 1. s is
// sigma_bar, but at the positions that keep one of their own it is sigma_bar_0. TaperNorm (2602.10408) goes another way
// from one to the other:  1 / divisor = (1-a) / sigma + a / s.
struct Site {
    SiteKind kind = SiteKind::f;
    int layer = 0;
    bool folded = false;     // no norm at all: gamma, beta, sigma_bar and the centring live in the next weights
    bool centred = true;     // LayerNorm; else RMSNorm, the same with 0 for the mean
    double a = 0;            // how far it has gone; the paper knows 0 and 1 only
    bool tapers = false;     // goes TaperNorm's way
    double sigma_bar = NAN;  // frozen at removal
    double running = NAN;    // sigma averaged over the training batches so far, what sigma_bar will be
    double sigma_avg = NAN;  // the last step's average alone; a removed site keeps reporting it
    double sigma_bar_0 = NAN;
    bool own_position0 = false;    // precursor: position 0 uses sigma_bar_0,
    bool own_end_of_text = false;  // and so do end-of-text positions, at v sites

    bool has_layer_norm() const { return !folded && a == 0; }
    bool removed() const { return folded || a == 1; }
    bool has_special_positions() const { return own_position0 || own_end_of_text; }
};

// Whether two sites that read the same stream divide it by the same numbers: then one norm serves both.
inline bool divide_alike(const Site& a, const Site& b) {
    if (a.folded || b.folded || (a.has_layer_norm() && b.has_layer_norm())) return a.folded == b.folded;
    const bool alike = a.a == b.a && a.tapers == b.tapers && a.sigma_bar == b.sigma_bar &&
                       a.own_position0 == b.own_position0 && a.own_end_of_text == b.own_end_of_text;
    return alike && (!a.has_special_positions() || a.sigma_bar_0 == b.sigma_bar_0);
}

// "mlp[3]", "f"
inline std::string site_name(const Site& site) {
    static const char* const names[] = {"mlp", "qk", "v", "f"};
    const std::string name = names[static_cast<int>(site.kind)];
    return site.kind == SiteKind::f ? name : name + "[" + std::to_string(site.layer) + "]";
}

// All sites of an L-layer model in the order of their removal: mlp[0..L-1], qk[0..L-1], v[0..L-1], f.
struct Sites {
    int L = 0;
    std::vector<Site> all;

    explicit Sites(int n_layer = 0) : L(n_layer) {
        for (const SiteKind kind : {SiteKind::mlp, SiteKind::qk, SiteKind::v})
            for (int l = 0; l < L; l++) add(kind, l);
        add(SiteKind::f, L);
    }
    Site& mlp(int64_t l) { return all[l]; }
    Site& qk(int64_t l) { return all[L + l]; }
    Site& v(int64_t l) { return all[2 * L + l]; }
    Site& f() { return all[3 * L]; }
    const Site& mlp(int64_t l) const { return all[l]; }
    const Site& qk(int64_t l) const { return all[L + l]; }
    const Site& v(int64_t l) const { return all[2 * L + l]; }
    const Site& f() const { return all[3 * L]; }

    // Gone; a site on its way is not.
    int removed() const {
        return count([](const Site& s) { return s.removed(); });
    }
    bool none_removed() const {
        return count([](const Site& s) { return s.has_layer_norm(); }) == size();
    }
    bool all_removed() const { return removed() == size(); }
    // The model is finished: linear, and the same at every position.
    bool all_linear_everywhere() const {
        return count([](const Site& s) { return s.removed() && !s.has_special_positions(); }) == size();
    }
    int size() const { return static_cast<int>(all.size()); }

  private:
    template <class Test>
    int count(Test test) const {
        return static_cast<int>(std::count_if(all.begin(), all.end(), test));
    }
    void add(SiteKind kind, int layer) {
        Site site;
        site.kind = kind;
        site.layer = layer;
        all.push_back(site);
    }
};

// What happened to a site, and when. The list of events is what a checkpoint and lnfree.json record.
struct Event {
    int64_t step = 0;
    int site = 0;        // index into Sites::all
    std::string action;  // "removed", "end-of-text released", "position 0 released"
    double sigma_bar = NAN;
};

// A site that is due: at the start of step `step`, before its forward pass.
struct Removal {
    int64_t step = 0;
    int site = 0;  // index into Sites::all
};

// ---------------------------------------------------------------------------------------------------------------------
// Settings: every value that a run's numbers depend on, after presets and flags have been resolved (protocol.md 4, 5, 8).
// dev/run/settings.cpp has a row for each: flag, JSON key, bounds, help.

// Where the auxiliary loss acts: at ln_f as in the paper, or at the input of every norm; on sigma's distance from its
// target, or on that relative to the target. The target of position 0 is `position0` times that of the others.
struct AuxSettings {
    double weight = 0;  // lambda
    bool everywhere = false, relative = false;
    double position0 = 1;
};

// What experiments need and the paper does not: dev/run gives it a meaning, through the seams of the training loop.
struct Experiments {
    bool aux_everywhere = false, aux_relative = false;
    bool sigma_skips_position0 = false;  // sigma statistics leave position 0 out
    int64_t gradual = 0;                 // steps from LayerNorm's divisor to FakeLN's; 0: at once
    bool taper = false;                  // by TaperNorm's mixture, along a cosine
    bool keep_f = false;                 // ln_f stays
    bool own_position0 = false;          // the precursor's special cases, and when they go
    double release_end_of_text = 0, release_position0 = 0;
    int64_t release_steps = 0;   // in which position 0's own sigma becomes sigma_bar, geometrically; 0: at once
    int64_t shrink_steps = 0;    // in which what makes position 0 long comes down to the others' length; 0: left alone
    std::string shrink_neurons;  // what that is in a rotary model: "11:1229 28:678", neurons of blocks counted from 0
    double plant_position0 = 0;  // how much position 0's embedding is lengthened; 0: nothing is planted
    int64_t plant_step = 0;
    double grow_position0 = 1;  // what the auxiliary loss makes of sigma at position 0
};

struct Settings {
    std::string preset = "auto";
    int64_t steps = 300;  // horizon of the learning rate
    int64_t stop = 300;   // the run ends before this step
    int64_t batch = 8, seq = 0, grad_accum = 1;
    double lr = 6e-4, min_lr = 3e-4;
    int64_t warmup = 0;
    double weight_decay = 0.01, beta1 = 0.9, beta2 = 0.999, adam_eps = 1e-8, clip = 1.0;
    double aux_weight = 0.1;  // lambda
    double distill = 0;       // w: the teacher's share of the main loss; 0: there is none, as in the papers
    double sigma_ema = 0.0;   // m: share of the running sigma that survives a step
    bool removes = true;      // false for pretrain and for the vanilla control
    double start_mlp = 0, start_qk = 0, start_v = 0, start_f = 0;
    double gap_mlp = 0, gap_qk = 0, gap_v = 0;
    uint64_t seed = 1;
    std::string precision = "fp32";  // of the operands of matrix products; weights, sums and the optimiser stay fp32
    Experiments experiment;

    std::string norm_scale = "none";  // or depth: norms of block l shrink by 1 / sqrt(l), counted from 1
    int64_t lora = 0;                 // rank of the updates of weight matrices; 0: they are trained whole
    bool lora_embeddings = false;     // embeddings are trained nevertheless

    int64_t tokens_per_step() const { return batch * seq * grad_accum; }
    AuxSettings aux() const {
        return {aux_weight, experiment.aux_everywhere, experiment.aux_relative, experiment.grow_position0};
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// What passes between an engine and who uses it

// One step's data: grad_accum micro-batches of B sequences of T tokens; targets are the tokens one further on.
struct StepBatches {
    std::vector<std::vector<int32_t>> inputs, targets;  // (grad_accum)(B,T)
};

// What is trained is (1 - w) loss + w kl + aux.
struct BatchLoss {
    double loss = 0;  // mean cross-entropy with the targets, nats per predicted token
    double aux = 0;   // auxiliary loss, lambda included
    double kl = 0;    // mean KL(teacher || model), nats per predicted token; 0 without a teacher
};

class Engine;

// Who a model learns from beside the text: another one of the same vocabulary, which is only read, and its share w of the
// main loss (train_gpt2_lnfree.cpp, section 1).
struct Distillation {
    double share = 0;
    Engine* teacher = nullptr;  // null: the text alone
};

// A model beside the one that it was made from, prediction by prediction, (B,T) each.
struct Comparison {
    const real* losses;    // cross-entropy of the model
    const real* kls;       // KL(original || model)
    const uint8_t* agree;  // whether both find the same token likeliest (the first of equals)
};

// sigma summed over positions for one site, position 0 apart (the precursor needs the two means separately)
struct SigmaSum {
    double at_0 = 0, elsewhere = 0;
    int64_t n_at_0 = 0, n_elsewhere = 0;

    double mean_at_0() const { return at_0 / static_cast<double>(n_at_0); }
    double mean_elsewhere() const {
        return n_elsewhere > 0 ? elsewhere / static_cast<double>(n_elsewhere) : mean_at_0();
    }
    double mean(bool without_position0 = false) const {
        return without_position0 ? mean_elsewhere() : (at_0 + elsewhere) / static_cast<double>(n_at_0 + n_elsewhere);
    }
    void add(const real* sigma, int64_t B, int64_t T) {
        for (int64_t n = 0; n < B * T; n++) (n % T == 0 ? at_0 : elsewhere) += static_cast<double>(sigma[n]);
        n_at_0 += B;
        n_elsewhere += B * (T - 1);
    }
};

// What an analysis sees of a forward pass, layer by layer, and may change; a function that is empty is not called.
struct Probe {
    // The stream (B,T,C) in front of block `layer`, or in front of ln_f for layer L. What is written to it counts.
    std::function<void(int64_t layer, real* residual)> residual;
    // What the heads bring, side by side and before c_proj: heads (B,T,A); and what they were made from: qkv (B,T,Q), with
    // rotary queries and keys turned, lse (B,NH,T).
    std::function<void(int64_t layer, const real* heads, const real* qkv, const real* lse)> attention;
    // The MLP's neurons after GELU or its like, hidden (B,T,n_inner), and what it adds to the stream, output (B,T,C).
    std::function<void(int64_t layer, const real* hidden, const real* output)> mlp;
};

// Some of the parameters: n from the index `first` of the flat buffer on, `stride` apart.
struct Slice {
    int64_t first, n, stride = 1;

    // In all (flat), each becomes factor * itself + added (n); null: nothing is added.
    void edit(real* all, double factor, const real* added) const {
        for (int64_t i = 0; i < n; i++) {
            real& x = all[first + i * stride];
            x = static_cast<real>(factor) * x + (added == nullptr ? real(0) : added[i]);
        }
    }
};

// One update of AdamW (section 4 of the reference). beta1, beta2, eps, weight decay as in Settings.
struct AdamWStep {
    double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
    double gradient_scale = 1;  // what gradients are multiplied by: clipping
    uint64_t seed = 1;          // of stochastic rounding, where an engine has it
};

// Pointers into a flat buffer of parameters, or of their gradients, as tensor_table lays them out; null for what the model
// does not have: norms in the folded form, whose unembedding is its own tensor with a bias, wpe in a rotary model, ...
// A, Q, F are the widths of heads, c_attn and c_fc (ModelConfig): C, 3C, n_inner in a GPT-2.
template <class Number>
struct WeightsOf {
    struct Layer {
        Number *ln1_gamma, *ln1_beta;  // (C), (C)
        Number *qkv, *qkv_bias;        // (C,Q), (Q)
        Number *proj, *proj_bias;      // (A,C), (C)
        Number *ln2_gamma, *ln2_beta;  // (C), (C)
        Number *fc, *fc_bias;          // (C,F), (F)
        Number *fcproj, *fcproj_bias;  // (n_inner,C), (C)
    };
    Number *wte = nullptr, *wpe = nullptr;  // (V,C), (n_ctx,C)
    std::vector<Layer> layers;
    Number *lnf_gamma = nullptr, *lnf_beta = nullptr;  // (C), (C)
    Number *head = nullptr, *head_bias = nullptr;      // (V,C), (V)

    WeightsOf() = default;
    WeightsOf(Number* base, const std::vector<Tensor>& table, const ModelConfig& c) {
        size_t next = 0;
        const auto take = [&](bool there) { return there ? base + table[next++].offset : nullptr; };
        const bool norms = c.has_norms(), betas = norms && c.norm_bias, folded = !norms;
        wte = take(true);
        wpe = take(c.rotary == 0);
        layers.resize(static_cast<size_t>(c.L));
        for (Layer& y : layers) {
            y.ln1_gamma = take(norms);
            y.ln1_beta = take(betas);
            y.qkv = take(true);
            y.qkv_bias = take(c.attention_bias);
            y.proj = take(true);
            y.proj_bias = take(c.attention_bias);
            y.ln2_gamma = take(norms);
            y.ln2_beta = take(betas);
            y.fc = take(true);
            y.fc_bias = take(c.mlp_bias);
            y.fcproj = take(true);
            y.fcproj_bias = take(c.mlp_bias);
        }
        lnf_gamma = take(norms);
        lnf_beta = take(betas);
        head = c.has_own_head() ? take(true) : wte;
        head_bias = take(folded);
    }
};
using Weights = WeightsOf<real>;

// Rows of logits that are made at a time: at most 2^24 values, so that a vocabulary of 50,257 gets 333 rows in 64 MiB. With
// fewer, the gradient of the whole unembedding matrix would be read and written again for too little work.
inline int64_t classifier_rows(int64_t N, int64_t V) {
    return std::max<int64_t>(1, std::min(N, (int64_t{1} << 24) / V));
}

// The tensors of a model of this shape, in the order of the flat buffers (train_gpt2_lnfree.cpp, section 3).
std::vector<Tensor> tensor_table(const ModelConfig& c);

inline int64_t parameter_count(const std::vector<Tensor>& table) {
    return table.back().offset + table.back().size;
}

// Low-rank updates (LoRA, arXiv 2106.09685): of a weight matrix W (K,M) only a product of two thin ones is trained, which
// starts at 0: W + A B with A (K,R), B (R,M). The norms' gamma and beta are trained as they are, and embeddings if asked. Weights
// always hold the product; what AdamW works on is here, in buffers of its own (start_low_rank in low_rank.h).
struct LowRank {
    int64_t R = 0;  // 0: there are none, and the parameters themselves are trained
    std::vector<Tensor> table;
    Buffer values, grads;
};

// ---------------------------------------------------------------------------------------------------------------------
// The interface

// A model, its optimiser, and the passes over a micro-batch: inputs and targets are (B,T), tokens within the vocabulary,
// T at most n_ctx. What fails throws RunFailure (data/error.h).
class Engine {
  public:
    ModelConfig config;
    Sites sites;
    std::vector<Tensor> tensors;
    // Parameters, gradients and AdamW's moments in the host's memory, laid out by `tensors`. An engine that works on other
    // copies brings them here in fetch_parameters, fetch_moments. Of several processes each has its part of the moments
    // alone (processes.h).
    Buffer params, grads, m, v;
    LowRank low_rank;                  // m and v are laid out by its table where there is one
    int64_t updates = 0;               // that AdamW has made
    std::vector<SigmaSum> sigma_sums;  // of the micro-batches since the last clear, one per site

    explicit Engine(const ModelConfig& c) : config(c), sites(static_cast<int>(c.L)), tensors(tensor_table(c)) {
        params.allocate(parameter_count(tensors));
        for (Site& site : sites.all) {
            site.folded = !c.has_norms();
            site.centred = c.centred;
        }
        clear_sigma_sums();
    }
    virtual ~Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    int64_t parameters() const { return params.size(); }
    // What AdamW trains.
    const std::vector<Tensor>& trained() const { return low_rank.R > 0 ? low_rank.table : tensors; }
    int64_t trained_numbers() const { return parameter_count(trained()); }
    // Null if there is none of that name.
    real* tensor(const std::string& name) {
        for (const Tensor& t : tensors)
            if (t.name == name) return params.data() + t.offset;
        return nullptr;
    }
    void clear_sigma_sums() { sigma_sums.assign(sites.all.size(), SigmaSum()); }

    // ----- training

    // Memory for gradients and, if B and T are given, for the activations of such micro-batches, so that the first step is
    // no slower than the others.
    virtual void prepare_training(int64_t B = 0, int64_t T = 0) = 0;
    // LayerNorm Scaling (arXiv 2502.05795) multiplies what the norms of block l = 1, 2, ... bring by 1 / sqrt(l). Here gamma and
    // beta hold that factor, so that the model is an ordinary one, and AdamW trains them as if they did not.
    void scale_norms_by_depth() {
        for (Tensor& t : tensors)
            if (t.name.compare(0, 2, "h.") == 0 && t.name.find(".ln_") != std::string::npos)
                t.unit = 1 / std::sqrt(1 + std::stod(t.name.substr(2)));
    }
    // AdamW's moments become 0, as before its first update.
    virtual void prepare_optimiser() = 0;
    virtual void zero_gradients() = 0;
    // Adds the gradients of (main loss + auxiliary loss) / grad_accum to the gradients and this micro-batch's sigmas to
    // sigma_sums. The main loss is cross-entropy, or with a teacher partly the distance from its predictions. Of a step of
    // grad_accum > 1 the gradients are there after the last one.
    virtual BatchLoss forward_backward(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T,
                                       const AuxSettings& aux, int64_t grad_accum,
                                       const Distillation& distillation = {}) = 0;
    // Euclidean norm of the whole gradient, to which all processes' micro-batches belong.
    virtual double gradient_norm() = 0;
    // One update, after gradient_norm; what is left in the gradients is of no use.
    virtual void update(const AdamWStep& step) = 0;
    // After `params`, `m`, `v` and `updates` have been read from a checkpoint: what an engine derives from them becomes what
    // it was when that was written. `seed` as in AdamWStep.
    virtual void resume(uint64_t seed) = 0;
    // Some parameters become factor * themselves + added (n), as Slice::edit says, in all copies that the engine has.
    virtual void edit_parameters(Slice slice, double factor, const real* added) = 0;
    virtual void fetch_parameters() = 0;
    virtual void fetch_moments() = 0;
    // Whether training leaves `params`, `m` and `v` alone until they are fetched: then they can be written meanwhile.
    virtual bool has_copies() const { return false; }

    // ----- passes that train nothing

    // Adds the sigmas of every site on this micro-batch to sigma_sums.
    virtual void measure_sigmas(const int32_t* inputs, int64_t B, int64_t T) = 0;
    // Cross-entropy of every prediction, (B,T), valid until the next call.
    virtual const real* token_losses(const int32_t* inputs, const int32_t* targets, int64_t B, int64_t T) = 0;
    // The same beside another model of the same vocabulary, valid until the next call.
    virtual Comparison compare(Engine& original, const int32_t* inputs, const int32_t* targets, int64_t B,
                               int64_t T) = 0;
    // Logits of positions t >= from, out (B, T - from, V).
    virtual void logits(real* out, const int32_t* inputs, int64_t B, int64_t T, int64_t from = 0) = 0;

    // ----- generation

    // B sequences begin at position 0, with memory for the keys and values of n_ctx positions each; 0 gives it back.
    virtual void start_decoding(int64_t B) = 0;
    // The T tokens (B,T) that come next in each; out (B,V): logits of what follows them. At most n_ctx positions in all, and
    // no other pass in between changes what was decoded. Batches keep the B that they were started with.
    virtual void decode(real* out, const int32_t* tokens, int64_t B, int64_t T) = 0;

    // ----- for analyses (dev/analysis)

    // Pointers to the parameters in the host's memory.
    virtual const Weights& weights() const = 0;
    // A forward pass that `probe` watches; what it leaves can be read with the functions below. With `keep`, for
    // stream_gradients.
    virtual void trace(const int32_t* inputs, int64_t B, int64_t T, const Probe& probe, bool keep = false) = 0;
    // The part of a pass behind `layer` (0..L), from the stream in front of it, residual (B,T,C).
    virtual void trace_from(int64_t layer, const real* residual, const int32_t* inputs, int64_t B, int64_t T) = 0;
    // Of the last pass: logits of `count` positions from `first` on, counted through the batch; out (count,V).
    virtual void final_logits(real* out, int64_t first, int64_t count) = 0;
    // Cross-entropy of some predictions, losses (n), and whether each target is the likeliest token (the first of equals):
    // at position rows[i] = b * T + t token targets[i] follows. No other logits are made.
    virtual void score(real* losses, uint8_t* likeliest, const int32_t* inputs, int64_t B, int64_t T,
                       const std::vector<int64_t>& rows, const int32_t* targets) = 0;
    // Of the last pass: the stream in front of ln_f and behind it (B,T,C), its means in front (B,T), what ln_f divides by
    // (B,T), and sigma at a site's input (B,T), where the pass kept every layer's.
    virtual const real* final_residual() const = 0;
    virtual const real* final_normed() const = 0;
    virtual const real* final_means() const = 0;
    virtual const real* final_divisors(const int32_t* inputs) = 0;
    virtual const real* sigmas_at(const Site& site) const = 0;
    // Gradients of the stream in front of every block, last layer first, after a trace that was kept: see(layer,
    // gradient (B,T,C)). dnormed (B,T,C) is the gradient of ln_f's output. What is added to the gradients has no meaning.
    virtual void stream_gradients(const real* dnormed, const int32_t* inputs,
                                  const std::function<void(int64_t layer, const real* gradient)>& see) = 0;
    // What ln_f and the unembedding make of given residual vectors: residual (n,C) -> out (n,V).
    virtual void unembed_residual(real* out, const real* residual, int64_t n) = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Who does the arithmetic in this program: the reference, unless main() puts another engine in its place.

struct EngineOptions {
    int64_t recompute = -1;            // what backward remakes: 0 nothing, 1 GELU, 2 norms too; -1: the least that fits
    bool stochastic_rounding = false;  // of the bf16 copies of the weights
    std::string attention = "flash";   // or plain, cudnn
    bool cuda_graphs = false;          // a micro-batch's kernels in one call
    std::string products;              // file that says which kernels of cuBLASLt's; "": its own first choices
};

// A table, and whether all that it says is as it should be.
struct Report {
    std::vector<std::string> columns;
    std::vector<std::vector<std::string>> rows;
    bool passed = true;
};

// The reference engine (train_gpt2_lnfree.cpp), and what --precision asks of it: fp32, or bf16, which is refused (BadInput)
// where it would be slower. Bytes for its activations of micro-batches of B sequences of T positions.
std::unique_ptr<Engine> make_reference(const ModelConfig& c);
void use_reference_precision(const std::string& precision);
int64_t reference_activation_bytes(const ModelConfig& c, int64_t B, int64_t T, bool training);

struct Backend {
    const char* training_precision = "fp32";                 // unless --precision says otherwise
    const char* evaluation_precision = "fp32";               // of commands that run a finished model
    std::vector<std::string> precisions = {"fp32", "bf16"};  // of those
    bool trains_together = true;                             // several processes can train one model (processes.h)
    void (*use_device)(int number) = nullptr;                // of this machine's, for one of several processes on it
    std::unique_ptr<Engine> (*make)(const ModelConfig&) = make_reference;
    void (*use_precision)(const std::string&) = use_reference_precision;
    void (*use_options)(const EngineOptions&) = nullptr;  // null: the engine has no such choices
    // `check` and `bench` of another engine; they print their tables to `screen`.
    Report (*check)(FILE* screen) = nullptr;
    // `products`: file for the fastest kernel of each product, which are then found by timing; "": none.
    Report (*bench)(const ModelConfig& config, int64_t B, int64_t T, double seconds, const std::string& products,
                    FILE* screen) = nullptr;
    // Bytes on the device for micro-batches of B sequences of T positions.
    int64_t (*device_bytes)(const ModelConfig& config, int64_t B, int64_t T, bool training, bool in_bf16,
                            int recompute) = nullptr;
};

inline Backend& backend() {
    static Backend the_backend;
    return the_backend;
}

}  // namespace lnfree
