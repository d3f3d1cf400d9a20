#include "dev/analysis/explain_paths.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "data/error.h"
#include "dev/analysis/explain.h"
#include "dev/analysis/heads.h"

namespace lnfree {
namespace analysis {

void require_linear_paths(const Sites& sites, const std::string& folder) {
    const std::string remedy = std::string(" is still ") + (sites.f().centred ? "a LayerNorm" : "an RMSNorm") +
                               ", and paths are sums only where it is none; take a model from "
                               "which `remove` has taken them, or leave --paths out";
    if (!sites.f().removed()) throw BadInput("--paths: " + folder + ": site f" + remedy);
    for (int64_t l = 0; l < sites.L; l++)
        if (sites.v(l).removed()) return;
    throw BadInput("--paths: " + folder + ": site v of every layer" + remedy);
}

namespace {

// One head that reads, and how.
class Reader {
  public:
    Reader(Engine& model, const PassRecord& record, int64_t b, const int32_t* tokens)
        : model_(model),
          record_(record),
          order_(model.config),
          at_(model.config),
          b_(b),
          tokens_(tokens),
          C_(model.config.C),
          T_(record.T) {}

    // What comes into head h of layer l, over ln_f's divisor; out (components).
    void read(int64_t l, int64_t h, const Direction& direction, double divisor, double* out) {
        aim(l, h, direction, divisor);
        weigh(l, h);
        const Weights& w = model_.weights();
        out[0] = weighted([&](int64_t t) { return w.wte + tokens_[t] * C_; });
        if (order_.positions) out[order_.position_embedding()] = weighted([&](int64_t t) { return w.wpe + t * C_; });
        for (int64_t from = 0; from < l; from++) {
            const Weights::Layer& y = w.layers[static_cast<size_t>(from)];
            read_heads(from, out + order_.head(from, 0));
            if (order_.biases) out[order_.attention_bias(from)] = weight_ * dot(y.proj_bias, direction_.data(), C_);
            out[order_.mlp(from)] = weighted([&](int64_t t) { return record_.row(record_.outputs, from, b_, t, C_); });
        }
        out[order_.unembedding_bias()] = constant_;
    }

  private:
    Engine& model_;
    const PassRecord& record_;
    const ComponentOrder order_;
    const HeadPlaces at_;
    int64_t b_;
    const int32_t* tokens_;
    int64_t C_, T_;
    std::vector<double> direction_;  // (C) in the stream, but for the value site's division
    double constant_ = 0;
    std::vector<double> weights_;  // (T): attention over the value site's divisor
    double weight_ = 0;            // their sum

    // From the logit back through c_proj, the values and their norm.
    void aim(int64_t l, int64_t h, const Direction& direction, double divisor) {
        const Weights::Layer& y = model_.weights().layers[static_cast<size_t>(l)];
        const int64_t HS = at_.HS, first = at_.value_in_row(h);
        const double* value = direction.heads.data() + l * at_.A() + at_.brought(h);
        direction_.resize(static_cast<size_t>(C_));
        constant_ = y.qkv_bias == nullptr ? 0 : dot(y.qkv_bias + first, value, HS) / divisor;
        double mean = 0;
        for (int64_t i = 0; i < C_; i++) {
            const double g = dot(y.qkv + i * at_.Q() + first, value, HS) / divisor;
            if (y.ln1_beta != nullptr) constant_ += g * static_cast<double>(y.ln1_beta[i]);
            direction_[static_cast<size_t>(i)] = y.ln1_gamma == nullptr ? g : g * static_cast<double>(y.ln1_gamma[i]);
            mean += direction_[static_cast<size_t>(i)] / static_cast<double>(C_);
        }
        if (model_.config.centred && !model_.sites.v(l).folded)
            for (double& g : direction_) g -= mean;
    }

    void weigh(int64_t l, int64_t h) {
        const Site& site = model_.sites.v(l);
        const double* shares = record_.attention.data() + ((l * record_.B + b_) * at_.NH + h) * T_;
        weights_.assign(shares, shares + T_);
        weight_ = 0;
        for (int64_t t = 0; t < T_; t++) weight_ += weights_[static_cast<size_t>(t)] /= divisor_at(site, t);
    }

    double divisor_at(const Site& site, int64_t t) const {
        if (site.folded) return 1;
        const bool special =
            (site.own_position0 && t == 0) || (site.own_end_of_text && tokens_[t] == model_.config.end_of_text);
        return special ? site.sigma_bar_0 : site.sigma_bar;
    }

    template <class Row>
    double weighted(Row row) const {
        double sum = 0;
        for (int64_t t = 0; t < T_; t++)
            if (const double weight = weights_[static_cast<size_t>(t)]; weight != 0)
                sum += weight * dot(row(t), direction_.data(), C_);
        return sum;
    }

    // out (NH): of all heads of an earlier layer at once. What they bring is averaged first, then goes through c_proj.
    void read_heads(int64_t from, double* out) const {
        const int64_t A = at_.A();
        std::vector<double> brought(static_cast<size_t>(A)), projected(brought.size());
        for (int64_t t = 0; t < T_; t++) {
            const double weight = weights_[static_cast<size_t>(t)];
            if (weight == 0) continue;
            const real* row = record_.row(record_.heads, from, b_, t, A);
            for (int64_t i = 0; i < A; i++) brought[static_cast<size_t>(i)] += weight * static_cast<double>(row[i]);
        }
        times(model_.weights().layers[static_cast<size_t>(from)].proj, direction_.data(), A, C_, projected.data());
        for (int64_t h = 0; h < at_.NH; h++) {
            out[h] = 0;
            for (int64_t i = at_.brought(h); i < at_.brought(h) + at_.HS; i++)
                out[h] += brought[static_cast<size_t>(i)] * projected[static_cast<size_t>(i)];
        }
    }
};

}  // namespace

std::vector<double> paths_of(Engine& model, const PassRecord& record, int64_t b, const int32_t* tokens,
                             const Direction& direction, double divisor) {
    const int64_t NH = model.config.NH, count = ComponentOrder(model.config).count();
    std::vector<double> paths(static_cast<size_t>(model.config.L * NH * count));
    Reader reader(model, record, b, tokens);
    for (int64_t l = 0; l < model.config.L; l++)
        for (int64_t h = 0; h < NH; h++) {
            double* row = paths.data() + (l * NH + h) * count;
            if (model.sites.v(l).removed())
                reader.read(l, h, direction, divisor, row);
            else
                std::fill(row, row + count, NAN);
        }
    return paths;
}

}  // namespace analysis
}  // namespace lnfree
