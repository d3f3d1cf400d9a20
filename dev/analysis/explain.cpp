#include "dev/analysis/explain.h"

#include <algorithm>
#include <numeric>

#include "data/console.h"
#include "dev/analysis/attribution.h"
#include "dev/analysis/explain_paths.h"
#include "dev/analysis/explain_record.h"
#include "dev/analysis/heads.h"

namespace lnfree {
namespace analysis {

std::vector<Component> components_of(const ModelConfig& c) {
    using Kind = Component::Kind;
    const ComponentOrder order(c);
    std::vector<Component> all = {{Kind::embedding, -1, -1, "embedding", "hook_embed"}};
    if (order.positions) all.push_back({Kind::position_embedding, -1, -1, "position embedding", "hook_pos_embed"});
    for (int64_t l = 0; l < c.L; l++) {
        const std::string layer = std::to_string(l), block = "blocks." + layer + ".";
        for (int64_t h = 0; h < c.NH; h++)
            all.push_back({Kind::head, l, h, "head " + layer + "." + std::to_string(h), block + "attn.hook_result"});
        if (order.biases) all.push_back({Kind::attention_bias, l, -1, "attention bias " + layer, block + "attn.b_O"});
        all.push_back({Kind::mlp, l, -1, "mlp " + layer, block + "hook_mlp_out"});
    }
    all.push_back({Kind::unembedding_bias, -1, -1, "unembedding bias", "unembed.b_U"});
    return all;
}

const double* Explanation::at_position() const {
    return contributions.data() + question.position * components();
}

double Explanation::sum() const {
    return std::accumulate(at_position(), at_position() + components(), 0.0);
}

double Explanation::missed() const {
    if (direct_effects.empty()) return 0;
    return sum() - std::accumulate(direct_effects.begin(), direct_effects.end(), 0.0);
}

namespace {

// Positions of a pass, at most, unless a single prompt is longer.
constexpr int64_t kTokensPerPass = 2048;

// Explains the sequences of one pass.
class Explainer {
  public:
    Explainer(Engine& model, const Depth& depth)
        : model_(model),
          depth_(depth),
          order_(model.config),
          at_(model.config),
          C_(model.config.C),
          L_(model.config.L),
          NH_(model.config.NH) {}

    // Shorter prompts are filled up behind their end, which nothing in front of it sees.
    std::vector<Explanation> explain(const PromptQuestion* questions, int64_t B) {
        int64_t T = 0;
        for (int64_t b = 0; b < B; b++) T = std::max(T, static_cast<int64_t>(questions[b].tokens.size()));
        tokens_.assign(static_cast<size_t>(B * T), 0);
        std::vector<int64_t> positions;
        for (int64_t b = 0; b < B; b++) {
            std::copy(questions[b].tokens.begin(), questions[b].tokens.end(), tokens_.begin() + b * T);
            positions.push_back(questions[b].position);
        }
        record_pass(record_, model_, tokens_.data(), B, T, positions.data());
        std::vector<Explanation> all;
        for (int64_t b = 0; b < B; b++) all.push_back(explain_sequence(b, questions[b]));
        return all;
    }

  private:
    Engine& model_;
    const Depth& depth_;
    const ComponentOrder order_;
    const HeadPlaces at_;
    int64_t C_, L_, NH_;
    std::vector<int32_t> tokens_;  // (B,T) of the pass
    PassRecord record_;
    Direction direction_;

    Explanation explain_sequence(int64_t b, const PromptQuestion& question) {
        Explanation e;
        e.question = question;
        const int64_t n = b * record_.T + question.position;
        if (question.target < 0) e.question.target = likeliest(n);
        direction_ = direction_of(model_, e.question.target, question.against);
        e.logit = logit_at(n, e.question);
        contributions(e, b);
        if (!model_.sites.f().removed()) direct_effects(e, b);
        heads_in_detail(e, b);
        mlps_in_detail(e, b);
        if (depth_.paths)
            e.paths = paths_of(model_, record_, b, tokens_.data() + b * record_.T, direction_,
                               record_.divisors[static_cast<size_t>(n)]);
        return e;
    }

    int32_t likeliest(int64_t n) {
        const int64_t V = model_.config.V, below = depth_.vocabulary > 0 ? std::min(depth_.vocabulary, V) : V;
        std::vector<real> logits(static_cast<size_t>(V));
        model_.final_logits(logits.data(), n, 1);
        return static_cast<int32_t>(std::max_element(logits.begin(), logits.begin() + below) - logits.begin());
    }

    // The forward pass's own: what ln_f gave, times the unembedding, which is the only part in double.
    double logit_at(int64_t n, const PromptQuestion& q) const {
        const Weights& w = model_.weights();
        const real* normed = model_.final_normed() + n * C_;
        const auto logit_of = [&](int32_t token) {
            double sum = w.head_bias == nullptr ? 0 : static_cast<double>(w.head_bias[token]);
            for (int64_t i = 0; i < C_; i++)
                sum += static_cast<double>(normed[i]) * static_cast<double>(w.head[token * C_ + i]);
            return sum;
        };
        return logit_of(q.target) - (q.against < 0 ? 0 : logit_of(q.against));
    }

    const double* head_direction(int64_t l, int64_t h) const {
        return direction_.heads.data() + l * at_.A() + at_.brought(h);
    }
    double over_divisor(int64_t b, int64_t t) const {
        return 1 / record_.divisors[static_cast<size_t>(b * record_.T + t)];
    }

    void contributions(Explanation& e, int64_t b) const {
        const Weights& w = model_.weights();
        const double* g = direction_.stream.data();
        const int64_t T = static_cast<int64_t>(e.question.tokens.size());
        std::vector<double> biases;
        for (const Weights::Layer& y : w.layers) biases.push_back(dot(y.proj_bias, g, C_));
        e.contributions.resize(static_cast<size_t>(T * order_.count()));
#pragma omp parallel for schedule(static)
        for (int64_t t = 0; t < T; t++) {
            double* out = e.contributions.data() + t * order_.count();
            const double scale = over_divisor(b, t);
            out[0] = scale * dot(w.wte + tokens_[static_cast<size_t>(b * record_.T + t)] * C_, g, C_);
            if (order_.positions) out[order_.position_embedding()] = scale * dot(w.wpe + t * C_, g, C_);
            for (int64_t l = 0; l < L_; l++) {
                const real* heads = record_.row(record_.heads, l, b, t, at_.A());
                for (int64_t h = 0; h < NH_; h++)
                    out[order_.head(l, h)] = scale * dot(heads + at_.brought(h), head_direction(l, h), at_.HS);
                if (order_.biases) out[order_.attention_bias(l)] = scale * biases[static_cast<size_t>(l)];
                out[order_.mlp(l)] = scale * dot(record_.row(record_.outputs, l, b, t, C_), g, C_);
            }
            out[order_.unembedding_bias()] = direction_.constant;
        }
    }

    // What each component adds to the stream at the question's position, (components - 1, C): all but the last write to it.
    std::vector<real> written(int64_t b, int64_t t) const {
        const Weights& w = model_.weights();
        std::vector<real> rows(static_cast<size_t>(order_.unembedding_bias() * C_));
        const auto put = [&](int64_t i, const real* row) { std::copy(row, row + C_, rows.data() + i * C_); };
        put(0, w.wte + tokens_[static_cast<size_t>(b * record_.T + t)] * C_);
        if (order_.positions) put(order_.position_embedding(), w.wpe + t * C_);
        for (int64_t l = 0; l < L_; l++) {
            const real* heads = record_.row(record_.heads, l, b, t, at_.A());
            for (int64_t h = 0; h < NH_; h++)
                head_output(model_, l, h, heads, 1, rows.data() + order_.head(l, h) * C_, C_);
            if (order_.biases) put(order_.attention_bias(l), w.layers[static_cast<size_t>(l)].proj_bias);
            put(order_.mlp(l), record_.row(record_.outputs, l, b, t, C_));
        }
        return rows;
    }

    // Where ln_f is a LayerNorm, or on its way to FakeLN.
    void direct_effects(Explanation& e, int64_t b) {
        const FinalNorm norm = final_norm_of(model_, tokens_.data());
        const PromptQuestion& q = e.question;
        const int64_t n = b * record_.T + q.position;
        const real* head = model_.weights().head;
        const std::vector<real> rows = written(b, q.position);
        for (int64_t i = 0; i * C_ < static_cast<int64_t>(rows.size()); i++) {
            const auto effect = [&](int32_t token) {
                return attribute(norm, n, rows.data() + i * C_, head + token * C_, C_).direct_effect;
            };
            e.direct_effects.push_back(effect(q.target) - (q.against < 0 ? 0 : effect(q.against)));
        }
        e.direct_effects.push_back(direction_.constant);
    }

    void heads_in_detail(Explanation& e, int64_t b) const {
        const int64_t T = static_cast<int64_t>(e.question.tokens.size());
        const double scale = over_divisor(b, e.question.position);
        e.attention.resize(static_cast<size_t>(L_ * NH_ * T));
        e.sources.resize(e.attention.size());
        for (int64_t l = 0; l < L_; l++)
            for (int64_t h = 0; h < NH_; h++) {
                const double* shares = record_.attention.data() + ((l * record_.B + b) * NH_ + h) * record_.T;
                const int64_t at = (l * NH_ + h) * T;
                std::copy(shares, shares + T, e.attention.data() + at);
                for (int64_t t = 0; t <= e.question.position; t++)
                    e.sources[static_cast<size_t>(at + t)] =
                        shares[t] * scale *
                        dot(record_.row(record_.values, l, b, t, at_.values_width()) + at_.value(h),
                            head_direction(l, h), at_.HS);
            }
    }

    void mlps_in_detail(Explanation& e, int64_t b) const {
        const int64_t H = model_.config.n_inner;
        const double scale = over_divisor(b, e.question.position);
        const double* g = direction_.stream.data();
        for (const Weights::Layer& y : model_.weights().layers)
            e.mlp_biases.push_back(scale * dot(y.fcproj_bias, g, C_));
        if (!depth_.neurons) return;
        e.neurons.resize(static_cast<size_t>(L_ * H));
        for (int64_t l = 0; l < L_; l++) {
            double* neurons = e.neurons.data() + l * H;
            times(model_.weights().layers[static_cast<size_t>(l)].fcproj, g, H, C_, neurons);
            const real* hidden = record_.hidden.data() + (l * record_.B + b) * H;
            for (int64_t k = 0; k < H; k++) neurons[k] *= scale * static_cast<double>(hidden[k]);
        }
    }
};

// How many of the questions from `first` on go through the model together.
int64_t fitting(const std::vector<PromptQuestion>& questions, size_t first) {
    int64_t B = 0, T = 0;
    for (size_t i = first; i < questions.size(); i++) {
        T = std::max(T, static_cast<int64_t>(questions[i].tokens.size()));
        if (B > 0 && (B + 1) * T > kTokensPerPass) break;
        B++;
    }
    return B;
}

}  // namespace

std::vector<Explanation> explain(Engine& model, const std::vector<PromptQuestion>& questions, const Depth& depth,
                                 const Pause& pause) {
    if (depth.paths) require_linear_paths(model.sites, "the model");
    Explainer explainer(model, depth);
    std::vector<Explanation> all;
    ProgressBar bar("explain", questions.size(), stderr);
    while (all.size() < questions.size()) {
        if (pause) pause();
        const int64_t B = fitting(questions, all.size());
        for (Explanation& e : explainer.explain(questions.data() + all.size(), B)) all.push_back(std::move(e));
        bar.update(all.size());
    }
    return all;
}

}  // namespace analysis
}  // namespace lnfree
