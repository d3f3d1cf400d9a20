// `analyze explain` and `analyze cache`: contributions held against a forward pass in double that takes components away.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "data/error.h"
#include "data/json.h"
#include "data/model_folder.h"
#include "data/safetensors.h"
#include "data/shards.h"
#include "data/story_world.h"
#include "data/tokenizer.h"
#include "dev/analysis/attribution.h"
#include "dev/analysis/cache.h"
#include "dev/analysis/explain.h"
#include "dev/analysis/explain_output.h"
#include "dev/analysis/explain_page.h"
#include "dev/analysis/explain_paths.h"
#include "dev/engine.h"
#include "dev/method.h"
#include "dev/run/models.h"
#include "test/file_helpers.h"
#include "test/test_models.h"

using namespace lnfree;
using namespace lnfree::analysis;

namespace {

typedef std::vector<double> Numbers;

const ModelConfig kExplained = shape_of(3, 3, 15, 37, 13, 22);

enum class Form { frozen, folded, special, layer_norm };

std::unique_ptr<Engine> model_of(Form form, ModelConfig config = kExplained, uint64_t seed = 3) {
    if (form == Form::folded) config.form = ModelForm::folded;
    auto model = random_model(config, seed);
    double sigma = 0.5;
    for (Site& site : model->sites.all) {
        if (form == Form::frozen || form == Form::special) freeze(site, sigma += 0.1);
        site.own_position0 = form == Form::special;
        site.own_end_of_text = form == Form::special && site.kind == SiteKind::v;
        site.sigma_bar_0 = 2 * site.sigma_bar;
    }
    return model;
}

PromptQuestion question_of(int64_t T, int64_t position, int32_t target, int32_t against = -1,
                           const ModelConfig& config = kExplained) {
    PromptQuestion q;
    q.tokens = random_tokens(T, config.V);
    q.tokens[static_cast<size_t>(T / 2)] = config.end_of_text;
    q.position = position;
    q.target = target;
    q.against = against;
    return q;
}

// ---------------------------------------------------------------------------------------------------------------------
// The model once more, in double, slowly, and with every component apart

class Slow {
  public:
    Slow(Engine& model, const std::vector<int32_t>& tokens)
        : model_(model),
          w_(model.weights()),
          tokens_(tokens),
          c_(model.config),
          C(c_.C),
          HS(c_.own_head_size > 0 ? c_.own_head_size : C / c_.NH),
          KH(c_.shared_heads > 0 ? c_.shared_heads : c_.NH),
          Q((c_.NH + 2 * KH) * HS),
          T(tokens.size()),
          order_(model.config),
          parts(static_cast<size_t>(order_.unembedding_bias())) {
        for (std::vector<Numbers>& part : parts) part.assign(T, Numbers(static_cast<size_t>(C), 0.0));
        for (size_t t = 0; t < T; t++)
            for (int64_t i = 0; i < C; i++) {
                parts[0][t][at(i)] = static_cast<double>(w_.wte[tokens[t] * C + i]);
                if (c_.rotary == 0) parts[1][t][at(i)] = static_cast<double>(w_.wpe[static_cast<int64_t>(t) * C + i]);
            }
        for (int64_t l = 0; l < model.config.L; l++) {
            attend(l);
            apply_mlp(l);
        }
    }

    // The target's logit (minus the other's) if ln_f sees this instead of the stream, sigma of the whole stream if it is a
    // LayerNorm's and `held`.
    double logit(const PromptQuestion& q, const Numbers& seen) const {
        const Numbers y = normed(seen, stream(static_cast<size_t>(q.position)), model_.sites.f(), w_.lnf_gamma,
                                 w_.lnf_beta, static_cast<size_t>(q.position));
        const auto of = [&](int32_t token) {
            double z = w_.head_bias == nullptr ? 0 : static_cast<double>(w_.head_bias[token]);
            for (int64_t i = 0; i < C; i++) z += y[at(i)] * static_cast<double>(w_.head[token * C + i]);
            return z;
        };
        return of(q.target) - (q.against < 0 ? 0 : of(q.against));
    }

    Numbers stream(size_t t) const {
        Numbers sum(static_cast<size_t>(C));
        for (const std::vector<Numbers>& part : parts)
            for (size_t i = 0; i < sum.size(); i++) sum[i] += part[t][i];
        return sum;
    }

    // What head h of layer l writes at position t if its values, and nothing else, come from streams without some part.
    Numbers head_without(int64_t l, int64_t h, size_t t, size_t part) const {
        std::vector<Numbers> streams = streams_before(l), values;
        for (size_t s = 0; s < T; s++) {
            const Numbers whole = streams[s];
            for (size_t i = 0; i < streams[s].size(); i++) streams[s][i] -= parts[part][s][i];
            values.push_back(
                value(l, normed(streams[s], whole, model_.sites.v(l), layer(l).ln1_gamma, layer(l).ln1_beta, s)));
        }
        return head_output(l, h, t, values);
    }

    Engine& model_;
    const Weights& w_;
    const std::vector<int32_t>& tokens_;
    const ModelConfig& c_;
    int64_t C, HS, KH, Q;
    size_t T;
    ComponentOrder order_;
    std::vector<std::vector<Numbers>> parts;                // (components - 1)(T)(C)
    std::vector<std::vector<std::vector<Numbers>>> shares;  // (L)(NH)(T)(T)
    std::vector<std::vector<Numbers>> neurons;              // (L)(T)(n_inner)

  private:
    static size_t at(int64_t i) { return static_cast<size_t>(i); }
    const Weights::Layer& layer(int64_t l) const { return w_.layers[at(l)]; }

    static double number(const real* values, size_t i) {
        return values == nullptr ? 0 : static_cast<double>(values[i]);
    }

    // (x - mean) / divisor * gamma + beta, the divisor that of `whole`; of RMSNorm with 0 for means.
    Numbers normed(const Numbers& x, const Numbers& whole, const Site& site, const real* gamma, const real* beta,
                   size_t t) const {
        if (site.folded) return x;
        const double n = static_cast<double>(C);
        const double mean = c_.centred ? std::accumulate(x.begin(), x.end(), 0.0) / n : 0;
        const double centre = c_.centred ? std::accumulate(whole.begin(), whole.end(), 0.0) / n : 0;
        double squares = 0;
        for (const double y : whole) squares += (y - centre) * (y - centre) / n;
        const bool special =
            (site.own_position0 && t == 0) || (site.own_end_of_text && tokens_[t] == model_.config.end_of_text);
        const double divisor = site.a == 0 ? std::sqrt(squares + model_.config.epsilon)
                               : special   ? site.sigma_bar_0
                                           : site.sigma_bar;
        Numbers out(x.size());
        for (size_t i = 0; i < x.size(); i++)
            out[i] = (x[i] - mean) / divisor * static_cast<double>(gamma[i]) + number(beta, i);
        return out;
    }

    static Numbers product(const Numbers& x, const real* weight, const real* bias, int64_t first, int64_t columns,
                           int64_t stride) {
        Numbers out;
        for (int64_t j = first; j < first + columns; j++) {
            double sum = bias == nullptr ? 0 : static_cast<double>(bias[j]);
            for (size_t i = 0; i < x.size(); i++)
                sum += x[i] * static_cast<double>(weight[static_cast<int64_t>(i) * stride + j]);
            out.push_back(sum);
        }
        return out;
    }

    Numbers value(int64_t l, const Numbers& x) const {
        return product(x, layer(l).qkv, layer(l).qkv_bias, (c_.NH + KH) * HS, KH * HS, Q);
    }

    // Rotary positions: numbers i and i + R/2 of each head are a point that turns by t * base^(-2i/R).
    Numbers turned(Numbers x, size_t t) const {
        const int64_t half = c_.rotary / 2;
        for (int64_t first = 0; first < static_cast<int64_t>(x.size()); first += HS)
            for (int64_t i = 0; i < half; i++) {
                const double angle = static_cast<double>(t) *
                                     std::pow(c_.rotary_base, -static_cast<double>(i) / static_cast<double>(half));
                double &a = x[at(first + i)], &b = x[at(first + i + half)];
                const double was = a;
                a = std::cos(angle) * was - std::sin(angle) * b;
                b = std::sin(angle) * was + std::cos(angle) * b;
            }
        return x;
    }

    std::vector<Numbers> streams_before(int64_t l) const {
        std::vector<Numbers> streams(T, Numbers(static_cast<size_t>(C)));
        for (int64_t p = 0; p < order_.head(l, 0); p++)
            for (size_t t = 0; t < T; t++)
                for (size_t i = 0; i < streams[t].size(); i++) streams[t][i] += parts[at(p)][t][i];
        return streams;
    }

    Numbers head_output(int64_t l, int64_t h, size_t t, const std::vector<Numbers>& values) const {
        const int64_t group = c_.NH / KH;  // queries' heads that share keys and values
        Numbers out(static_cast<size_t>(C));
        for (size_t s = 0; s <= t; s++)
            for (int64_t d = 0; d < HS; d++)
                for (int64_t j = 0; j < C; j++)
                    out[at(j)] += shares[at(l)][at(h)][t][s] * values[s][at(h / group * HS + d)] *
                                  static_cast<double>(layer(l).proj[(h * HS + d) * C + j]);
        return out;
    }

    void attend(int64_t l) {
        const int64_t group = c_.NH / KH;
        std::vector<Numbers> streams = streams_before(l), queries, keys, values;
        for (size_t t = 0; t < T; t++) {
            const auto through = [&](const Site& site) {
                return normed(streams[t], streams[t], site, layer(l).ln1_gamma, layer(l).ln1_beta, t);
            };
            const Numbers x = through(model_.sites.qk(l));
            queries.push_back(turned(product(x, layer(l).qkv, layer(l).qkv_bias, 0, c_.NH * HS, Q), t));
            keys.push_back(turned(product(x, layer(l).qkv, layer(l).qkv_bias, c_.NH * HS, KH * HS, Q), t));
            values.push_back(value(l, through(model_.sites.v(l))));
        }
        shares.emplace_back(at(order_.NH), std::vector<Numbers>(T, Numbers(T)));
        for (int64_t h = 0; h < order_.NH; h++)
            for (size_t t = 0; t < T; t++) {
                double sum = 0;
                for (size_t s = 0; s <= t; s++) {
                    double score = 0;
                    for (int64_t d = 0; d < HS; d++)
                        score += queries[t][at(h * HS + d)] * keys[s][at(h / group * HS + d)];
                    sum += shares[at(l)][at(h)][t][s] = std::exp(score / std::sqrt(static_cast<double>(HS)));
                }
                for (size_t s = 0; s <= t; s++) shares[at(l)][at(h)][t][s] /= sum;
                parts[at(order_.head(l, h))][t] = head_output(l, h, t, values);
                for (int64_t i = 0; c_.attention_bias && i < C; i++)
                    parts[at(order_.attention_bias(l))][t][at(i)] = static_cast<double>(layer(l).proj_bias[i]);
            }
    }

    Numbers activated(const Numbers& fc) const {
        Numbers hidden(fc.begin(), fc.begin() + c_.n_inner);
        for (size_t i = 0; i < hidden.size(); i++) {
            const double z = fc[i];
            switch (c_.activation) {
                case Activation::gelu_tanh:
                    hidden[i] = 0.5 * z * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
                    break;
                case Activation::gelu_erf:
                    hidden[i] = 0.5 * z * (1 + std::erf(z / std::sqrt(2.0)));
                    break;
                case Activation::gated_silu:
                    hidden[i] = z / (1 + std::exp(-z)) * fc[i + hidden.size()];
                    break;
            }
        }
        return hidden;
    }

    void apply_mlp(int64_t l) {
        std::vector<Numbers> streams = streams_before(l);
        neurons.emplace_back();
        for (size_t t = 0; t < T; t++) {
            for (int64_t p = order_.head(l, 0); !c_.parallel && p < order_.mlp(l); p++)
                for (size_t i = 0; i < streams[t].size(); i++) streams[t][i] += parts[at(p)][t][i];
            const Numbers x =
                normed(streams[t], streams[t], model_.sites.mlp(l), layer(l).ln2_gamma, layer(l).ln2_beta, t);
            const int64_t F = c_.activation == Activation::gated_silu ? 2 * c_.n_inner : c_.n_inner;
            const Numbers hidden = activated(product(x, layer(l).fc, layer(l).fc_bias, 0, F, F));
            parts[at(order_.mlp(l))][t] = product(hidden, layer(l).fcproj, layer(l).fcproj_bias, 0, C, C);
            neurons.back().push_back(hidden);
        }
    }
};

Numbers minus(Numbers a, const Numbers& b) {
    for (size_t i = 0; i < a.size(); i++) a[i] -= b[i];
    return a;
}

double largest_of(const double* values, int64_t n) {
    double largest = 0;
    for (int64_t i = 0; i < n; i++) largest = std::max(largest, std::abs(values[i]));
    return largest;
}

Explanation explain_one(Engine& model, const PromptQuestion& q, bool paths = true) {
    Depth depth;
    depth.neurons = true;
    depth.paths = paths;
    return explain(model, {q}, depth)[0];
}

// Contributions add up to the logit, and each is what taking the component away takes from it (the sigma of a norm that is
// there held where it is).
void check_contributions(Engine& model, const PromptQuestion& q, const Explanation& e) {
    const Slow slow(model, q.tokens);
    const double most = largest_of(e.at_position(), e.components());
    CHECK(std::abs(e.remainder()) < 1e-5 * most);
    const Numbers r = slow.stream(static_cast<size_t>(q.position));
    CHECK(e.logit == doctest::Approx(slow.logit(q, r)).epsilon(1e-5).scale(most));
    REQUIRE(e.components() == static_cast<int64_t>(slow.parts.size()) + 1);
    REQUIRE(components_of(model.config).size() == slow.parts.size() + 1);
    for (size_t i = 0; i < slow.parts.size(); i++) {
        CAPTURE(i);
        const Numbers& part = slow.parts[i][static_cast<size_t>(q.position)];
        const double effect = slow.logit(q, r) - slow.logit(q, minus(r, part));
        CHECK(e.at_position()[i] == doctest::Approx(effect).epsilon(1e-5).scale(most));
    }
    CHECK(e.at_position()[slow.parts.size()] ==
          doctest::Approx(slow.logit(q, Numbers(r.size(), 0.0))).epsilon(1e-5).scale(most));
}

// A head's contribution is split over positions, an MLP's over its neurons and its bias.
void check_splits(Engine& model, const PromptQuestion& q, const Explanation& e) {
    const Slow slow(model, q.tokens);
    const ComponentOrder order(model.config);
    const double most = largest_of(e.at_position(), e.components());
    const auto T = static_cast<int64_t>(q.tokens.size()), H = model.config.n_inner;
    for (int64_t l = 0; l < order.L; l++) {
        const auto layer = static_cast<size_t>(l);
        for (int64_t h = 0; h < order.NH; h++) {
            const double *sources = e.sources.data() + (l * order.NH + h) * T,
                         *attention = e.attention.data() + (l * order.NH + h) * T;
            CHECK(std::accumulate(sources, sources + T, 0.0) ==
                  doctest::Approx(e.at_position()[order.head(l, h)]).epsilon(1e-5).scale(most));
            const Numbers& shares = slow.shares[layer][static_cast<size_t>(h)][static_cast<size_t>(q.position)];
            for (int64_t t = 0; t < T; t++) {
                CHECK(attention[t] == doctest::Approx(shares[static_cast<size_t>(t)]).epsilon(1e-5).scale(1));
                if (t > q.position) CHECK(sources[t] == 0);
            }
        }
        const double* neurons = e.neurons.data() + l * H;
        CHECK(std::accumulate(neurons, neurons + H, e.mlp_biases[layer]) ==
              doctest::Approx(e.at_position()[order.mlp(l)]).epsilon(1e-5).scale(most));
        for (int64_t k = 0; k < H; k += 3) {
            const Numbers r = slow.stream(static_cast<size_t>(q.position));
            Numbers without = r;
            const double hidden = slow.neurons[layer][static_cast<size_t>(q.position)][static_cast<size_t>(k)];
            for (size_t i = 0; i < r.size(); i++)
                without[i] -=
                    hidden * static_cast<double>(
                                 model.weights().layers[layer].fcproj[k * model.config.C + static_cast<int64_t>(i)]);
            CHECK(neurons[k] == doctest::Approx(slow.logit(q, r) - slow.logit(q, without)).epsilon(1e-5).scale(most));
        }
    }
}

// Paths into a head add up to its contribution, and each is what its values lose without the component.
void check_paths(Engine& model, const PromptQuestion& q, const Explanation& e) {
    const Slow slow(model, q.tokens);
    const ComponentOrder order(model.config);
    const double most = largest_of(e.at_position(), e.components());
    const auto position = static_cast<size_t>(q.position);
    const Numbers r = slow.stream(position);
    for (int64_t l = 0; l < order.L; l++)
        for (int64_t h = 0; h < order.NH; h++) {
            const double* row = e.paths.data() + (l * order.NH + h) * order.count();
            CHECK(std::accumulate(row, row + order.count(), 0.0) ==
                  doctest::Approx(e.at_position()[order.head(l, h)]).epsilon(1e-5).scale(most));
            for (int64_t i = 0; i < order.unembedding_bias(); i++) {
                if (i >= order.head(l, 0)) {
                    CHECK(row[i] == 0);
                    continue;
                }
                const Numbers lost = minus(slow.parts[static_cast<size_t>(order.head(l, h))][position],
                                           slow.head_without(l, h, position, static_cast<size_t>(i)));
                const double path = slow.logit(q, r) - slow.logit(q, minus(r, lost));
                CHECK(row[i] == doctest::Approx(path).epsilon(1e-5).scale(most));
            }
        }
}

}  // namespace

TEST_CASE("contributions add up to the logit, and each is what taking the component away takes from it") {
    for (const Form form : {Form::frozen, Form::folded, Form::special, Form::layer_norm})
        for (const int32_t against : {-1, 11})
            for (const int64_t position : {0, 6, 9}) {
                CAPTURE(static_cast<int>(form));
                CAPTURE(against);
                CAPTURE(position);
                const auto model = model_of(form);
                const PromptQuestion q = question_of(10, position, 5, against);
                check_contributions(*model, q, explain_one(*model, q, form != Form::layer_norm));
            }
}

TEST_CASE("a contribution is split exactly: a head's over positions, an MLP's over its neurons and its bias") {
    for (const Form form : {Form::frozen, Form::folded}) {
        const auto model = model_of(form);
        const PromptQuestion q = question_of(10, 8, 5, 11);
        check_splits(*model, q, explain_one(*model, q));
    }
}

TEST_CASE("paths into a head add up to its contribution, and each is what its values lose without the component") {
    for (const Form form : {Form::frozen, Form::folded, Form::special}) {
        CAPTURE(static_cast<int>(form));
        const auto model = model_of(form);
        const PromptQuestion q = question_of(10, 8, 5, 11);
        check_paths(*model, q, explain_one(*model, q));
    }
}

TEST_CASE("models of other shapes are taken apart as exactly: contributions, splits and paths, in every form") {
    int shape = 0;
    for (ModelConfig config : other_shapes()) {
        CAPTURE(shape++);
        for (const Form form : {Form::frozen, Form::folded, Form::special, Form::layer_norm}) {
            CAPTURE(static_cast<int>(form));
            const auto model = model_of(form, config);
            const PromptQuestion q = question_of(6, 4, 5, 11, config);
            const Explanation e = explain_one(*model, q, form != Form::layer_norm);
            check_contributions(*model, q, e);
            check_splits(*model, q, e);
            if (form != Form::layer_norm) check_paths(*model, q, e);
        }
    }
}

TEST_CASE("components are those that a model has") {
    const std::vector<ModelConfig> shapes = other_shapes();
    const auto has = [&](const ModelConfig& config, const std::string& name) {
        const std::vector<Component> all = components_of(config);
        return std::any_of(all.begin(), all.end(), [&](const Component& c) { return c.name == name; });
    };
    for (const ModelConfig& config : shapes) {
        CHECK(has(config, "position embedding") == (config.rotary == 0));
        CHECK(has(config, "attention bias 1") == config.attention_bias);
        const ComponentOrder order(config);
        const std::vector<Component> all = components_of(config);
        CHECK(all[static_cast<size_t>(order.head(1, 2))].name == "head 1.2");
        CHECK(all[static_cast<size_t>(order.mlp(1))].name == "mlp 1");
        CHECK(all.size() == static_cast<size_t>(order.count()));
    }
}

TEST_CASE("with a LayerNorm at the end, direct effects are attribution's and add up to something else") {
    const auto model = model_of(Form::layer_norm);
    const PromptQuestion q = question_of(10, 8, 5);
    const Explanation e = explain_one(*model, q, false);
    const Slow slow(*model, q.tokens);
    REQUIRE(e.direct_effects.size() == slow.parts.size() + 1);
    const FinalNorm norm = final_norm_of(*model, q.tokens.data());
    for (size_t i = 0; i < slow.parts.size(); i++) {
        const Numbers& part = slow.parts[i][8];
        const std::vector<real> c(part.begin(), part.end());
        const Attribution a =
            attribute(norm, 8, c.data(), model->weights().head + 5 * model->config.C, model->config.C);
        CHECK(e.at_position()[i] == doctest::Approx(a.dla).epsilon(1e-4).scale(0.1));
        CHECK(e.direct_effects[i] == doctest::Approx(a.direct_effect).epsilon(1e-4).scale(0.1));
    }
    CHECK(std::abs(e.missed()) > 1e-3);
    const auto linear = model_of(Form::frozen);
    const Explanation exact = explain_one(*linear, q);
    CHECK(exact.direct_effects.empty());
    CHECK(exact.missed() == 0);
}

TEST_CASE("the embedded model, with LayerNorm and with its norms frozen, adds up for indirect objects") {
    const LoadedModel loaded = load_model("data/stories_gpt2");
    std::vector<PromptQuestion> questions;
    for (const IndirectObjectPrompt& p : indirect_object_prompts(7, 8)) {
        PromptQuestion q;
        loaded.tokenizer->encode(p.clean, q.tokens);
        q.position = static_cast<int64_t>(q.tokens.size()) - 1;
        q.target = static_cast<unsigned char>(p.correct[0]);
        q.against = static_cast<unsigned char>(p.wrong[0]);
        questions.push_back(q);
    }
    for (const bool frozen : {false, true}) {
        CAPTURE(frozen);
        for (Site& site : loaded.model->sites.all)
            if (frozen) freeze(site, 1.2);
        Depth depth;
        depth.paths = frozen;
        for (const Explanation& e : explain(*loaded.model, questions, depth)) {
            CHECK(std::abs(e.remainder()) < 1e-5 * largest_of(e.at_position(), e.components()));
            CHECK((e.missed() == 0) == frozen);
        }
    }
}

TEST_CASE("prompts explained together, of unequal lengths, are those explained alone") {
    const auto model = model_of(Form::frozen);
    const std::vector<PromptQuestion> questions = {question_of(4, 3, 5), question_of(13, 6, -1, 3),
                                                   question_of(9, 8, 5, 11)};
    Depth depth;
    depth.neurons = depth.paths = true;
    const std::vector<Explanation> together = explain(*model, questions, depth);
    REQUIRE(together.size() == 3);
    for (size_t i = 0; i < questions.size(); i++) {
        const Explanation alone = explain_one(*model, questions[i]);
        const auto same = [](const Numbers& a, const Numbers& b) {
            REQUIRE(a.size() == b.size());
            for (size_t k = 0; k < a.size(); k++) CHECK(a[k] == doctest::Approx(b[k]).epsilon(1e-5).scale(1));
        };
        CHECK(together[i].question.target == alone.question.target);
        same(together[i].contributions, alone.contributions);
        same(together[i].sources, alone.sources);
        same(together[i].neurons, alone.neurons);
        same(together[i].paths, alone.paths);
    }
}

TEST_CASE("every position has its own contributions, and the target unless named is the likeliest token there is") {
    const auto model = model_of(Form::special);
    const int64_t V = model->config.V;
    PromptQuestion q = question_of(10, 9, 5);
    const Explanation whole = explain_one(*model, q);
    for (q.position = 0; q.position < 9; q.position++) {
        const Explanation e = explain_one(*model, q);
        for (int64_t i = 0; i < e.components(); i++)
            CHECK(whole.contributions[static_cast<size_t>(q.position * e.components() + i)] == e.at_position()[i]);
    }
    std::vector<real> logits(static_cast<size_t>(10 * V));
    model->logits(logits.data(), q.tokens.data(), 1, 10);
    const real* z = logits.data() + 9 * V;
    const auto likeliest = static_cast<int32_t>(std::max_element(z, z + V) - z);
    q.target = -1;
    CHECK(explain_one(*model, q).question.target == likeliest);
    CHECK(explain_one(*model, q).logit == doctest::Approx(static_cast<double>(z[likeliest])).epsilon(1e-5));
    Depth depth;
    depth.vocabulary = likeliest;  // the rest is padding
    CHECK(explain(*model, {q}, depth)[0].question.target == std::max_element(z, z + likeliest) - z);
}

TEST_CASE("paths are refused where a LayerNorm is in their way, and left out for its layer alone") {
    const auto model = model_of(Form::frozen);
    const auto refused = [&] { return message_of<BadInput>([&] { require_linear_paths(model->sites, "folder"); }); };
    CHECK(refused().empty());
    model->sites.v(1).a = 0;
    CHECK(refused().empty());
    const Explanation e = explain_one(*model, question_of(10, 9, 5));
    const ComponentOrder order(model->config);
    for (int64_t head = 0; head < order.L * order.NH; head++)
        CHECK(std::isnan(e.paths[static_cast<size_t>(head * order.count())]) == (head / order.NH == 1));
    model->sites.v(0).a = model->sites.v(2).a = 0;
    CHECK(contains(refused(), "site v"));
    model->sites.f().a = 0;
    CHECK(contains(refused(), "folder: site f"));
}

// ---------------------------------------------------------------------------------------------------------------------
// What is shown and saved

namespace {

Explained explained(Engine& model, const std::vector<PromptQuestion>& questions, const Tokenizer* tokenizer = nullptr) {
    Depth depth;
    depth.neurons = true;
    depth.paths = model.sites.f().removed();
    Explained x;
    x.folder = "models/</script><b>";
    x.config = model.config;
    x.exact = x.layernorm_free = model.sites.f().removed();
    x.tokenizer = tokenizer;
    x.all = explain(model, questions, depth);
    return x;
}

const Array& array_named(const std::vector<Array>& arrays, const std::string& name) {
    for (const Array& array : arrays)
        if (array.info.name == name) return array;
    throw std::runtime_error("no array is called " + name);
}

double number_in(const Array& array, size_t i) {
    double x = 0;
    std::memcpy(&x, array.bytes.data() + i * sizeof(x), sizeof(x));
    return x;
}

}  // namespace

TEST_CASE("saved contributions stand under TransformerLens's names, NaN behind the end of a prompt") {
    const auto model = model_of(Form::frozen);
    const Explained x = explained(*model, {question_of(4, 3, 5), question_of(7, 6, 5, 11)});
    ExplainOptions o;
    o.sources = o.neurons = o.paths = true;
    const std::vector<Array> arrays = arrays_of(x, o);
    typedef std::vector<uint64_t> Shape;
    CHECK(array_named(arrays, "hook_embed").info.shape == Shape{2, 7});
    CHECK(array_named(arrays, "blocks.2.attn.hook_result").info.shape == Shape{2, 7, 3});
    CHECK(array_named(arrays, "blocks.2.attn.hook_v").info.shape == Shape{2, 7, 3});
    CHECK(array_named(arrays, "blocks.2.mlp.hook_post").info.shape == Shape{2, 22});
    CHECK(array_named(arrays, "paths").info.shape == Shape{2, 3, 3, 18});
    CHECK(array_named(arrays, "unembed.b_U").info.shape == Shape{2});
    CHECK(std::isnan(number_in(array_named(arrays, "hook_embed"), 4)));
    // the last position of the second prompt, summed over everything
    double sum = number_in(array_named(arrays, "unembed.b_U"), 1) + number_in(array_named(arrays, "hook_embed"), 13) +
                 number_in(array_named(arrays, "hook_pos_embed"), 13);
    for (const std::string block : {"blocks.0.", "blocks.1.", "blocks.2."}) {
        for (size_t h = 0; h < 3; h++) sum += number_in(array_named(arrays, block + "attn.hook_result"), 39 + h);
        sum += number_in(array_named(arrays, block + "attn.b_O"), 13) +
               number_in(array_named(arrays, block + "hook_mlp_out"), 13);
    }
    CHECK(sum == doctest::Approx(x.all[1].sum()).epsilon(1e-12));
    CHECK(sum == doctest::Approx(number_in(array_named(arrays, "logit"), 1)).epsilon(1e-4));
    const double head = number_in(array_named(arrays, "blocks.1.attn.hook_result"), 39 + 2);
    double from = 0;
    for (size_t t = 7; t < 14; t++) from += number_in(array_named(arrays, "blocks.1.attn.hook_v"), 3 * t + 2);
    CHECK(from == doctest::Approx(head).epsilon(1e-4));
}

TEST_CASE("the page loads nothing, no text breaks out of its numbers, and a LayerNorm at the end is said") {
    ModelConfig config = kExplained;
    config.V = 257;
    config.n_ctx = 40;
    auto model = random_model(config, 3);
    const ByteTokenizer tokenizer;
    PromptQuestion q;
    q.prompt = "</script><script>alert(1)</script>";
    tokenizer.encode(q.prompt, q.tokens);
    q.position = 5;
    for (const bool linear : {false, true}) {
        for (Site& site : model->sites.all)
            if (linear) freeze(site, 1.5);
        const Explained x = explained(*model, {q, q}, &tokenizer);
        const std::string page = page_of(x);
        for (const char* outside : {"http:", "https:", "//cdn", " src=", "@import", "url("}) {
            CAPTURE(outside);
            CHECK_FALSE(contains(page, outside));
        }
        const size_t data = page.find("id=\"numbers\">");
        REQUIRE(data != std::string::npos);
        const std::string numbers = page.substr(data + 13, page.find("</script>", data) - data - 13);
        CHECK_FALSE(contains(numbers, "<"));
        const Json j = parse_json(numbers, "the page");
        CHECK(j["explanations"].size() == 2);
        CHECK(j["explanations"][0]["tokens"][0] == "<");
        CHECK(j["explanations"][0]["contributions"].size() == static_cast<size_t>(x.all[0].components()));
        CHECK(contains(page, "The last norm is a LayerNorm") == !linear);
        CHECK(j["explanations"][0]["effects"].empty() == linear);
        CHECK_FALSE(contains(page.substr(0, data), "<b>"));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// analyze cache

namespace {

struct Cached {
    TemporaryFolder folder;
    CacheOptions options;
    std::unique_ptr<Engine> model = model_of(Form::layer_norm);
    std::vector<int32_t> text = random_tokens(70, kExplained.V);

    Cached() {
        ModelConfig config = kExplained;
        write_model(folder / "model", config, plain_recipes(*model), WeightType::f32, {{"version", kFormatVersion}},
                    nullptr, "");
        ShardWriter writer(folder / "x", static_cast<uint32_t>(kExplained.V), 1000);
        writer.append(text.data(), text.size());
        writer.finish();
        options.model = folder / "model";
        options.data = {folder / "x_000000.bin"};
        options.out = folder / "cache.safetensors";
        options.tokens = 59;  // five sequences of 11, and a rest
        options.seq = 11;
        options.batch = 2;
        options.json_output = true;
    }
    std::vector<float> read(const std::string& name) const {
        const SafetensorsFile file(options.out);
        const TensorView* tensor = file.find(name);
        REQUIRE(tensor != nullptr);
        std::vector<float> values(tensor->count());
        copy_tensor(*tensor, values.data());
        return values;
    }
};

void check_close(const std::vector<float>& a, const std::vector<float>& b, double allowed = 1e-5) {
    REQUIRE(a.size() == b.size());
    for (size_t i = 0; i < a.size(); i++)
        CHECK(static_cast<double>(a[i]) == doctest::Approx(static_cast<double>(b[i])).epsilon(allowed).scale(1));
}

std::vector<float> plus(std::vector<float> a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); i++) a[i] += b[i];
    return a;
}

}  // namespace

TEST_CASE("cached activations are those of a pass, sequence by sequence, and fit together") {
    Cached c;
    c.options.hooks = {"blocks.*.hook_resid_pre",
                       "blocks.*.hook_attn_out",
                       "blocks.*.hook_resid_mid",
                       "blocks.*.hook_mlp_out",
                       "blocks.*.hook_resid_post",
                       "blocks.1.attn.hook_result",
                       "blocks.1.attn.hook_z",
                       "blocks.1.attn.hook_q",
                       "blocks.1.attn.hook_v",
                       "blocks.2.mlp.hook_post",
                       "hook_embed",
                       "hook_pos_embed"};
    const Json j = cache_command(c.options);
    CHECK(j["sequences"].get<int>() == 5);
    CHECK(j["arrays"].size() == 1 + 5 * 3 + 7);
    const int64_t C = kExplained.C, T = 11;
    check_close(plus(c.read("hook_embed"), c.read("hook_pos_embed")), c.read("blocks.0.hook_resid_pre"));
    for (const std::string block : {"blocks.0.", "blocks.1.", "blocks.2."}) {
        check_close(plus(c.read(block + "hook_resid_pre"), c.read(block + "hook_attn_out")),
                    c.read(block + "hook_resid_mid"));
        check_close(plus(c.read(block + "hook_resid_mid"), c.read(block + "hook_mlp_out")),
                    c.read(block + "hook_resid_post"));
    }
    CHECK(c.read("blocks.0.hook_resid_post") == c.read("blocks.1.hook_resid_pre"));
    const std::vector<float> results = c.read("blocks.1.attn.hook_result"), out = c.read("blocks.1.hook_attn_out");
    for (size_t i = 0; i < out.size(); i++) {
        const size_t n = i / static_cast<size_t>(C), k = i % static_cast<size_t>(C);
        float sum = static_cast<float>(c.model->weights().layers[1].proj_bias[k]);
        for (size_t h = 0; h < 3; h++) sum += results[(n * 3 + h) * static_cast<size_t>(C) + k];
        CHECK(sum == doctest::Approx(out[i]).epsilon(1e-5).scale(1));
    }
    // the fourth sequence by itself
    std::vector<float> streams, neurons, queries, values, heads;
    Probe probe;
    probe.residual = [&](int64_t l, const real* x) {
        if (l == 2) streams.assign(x, x + T * C);
    };
    probe.attention = [&](int64_t l, const real* z, const real* qkv, const real*) {
        if (l != 1) return;
        heads.assign(z, z + T * C);
        for (int64_t t = 0; t < T; t++) {
            queries.insert(queries.end(), qkv + 3 * t * C, qkv + (3 * t + 1) * C);
            values.insert(values.end(), qkv + (3 * t + 2) * C, qkv + (3 * t + 3) * C);
        }
    };
    probe.mlp = [&](int64_t l, const real* hidden, const real*) {
        if (l == 2) neurons.assign(hidden, hidden + T * kExplained.n_inner);
    };
    c.model->trace(c.text.data() + 3 * T, 1, T, probe);
    const auto fourth = [&](const std::string& name, int64_t width) {
        const std::vector<float> all = c.read(name);
        return std::vector<float>(all.begin() + 3 * T * width, all.begin() + 4 * T * width);
    };
    check_close(fourth("blocks.2.hook_resid_pre", C), streams);
    check_close(fourth("blocks.1.attn.hook_z", C), heads);
    check_close(fourth("blocks.1.attn.hook_q", C), queries);
    check_close(fourth("blocks.1.attn.hook_v", C), values);
    check_close(fourth("blocks.2.mlp.hook_post", kExplained.n_inner), neurons);
    const SafetensorsFile file(c.options.out);
    CHECK(file.find("tokens")->shape == std::vector<uint64_t>{5, 11});
    CHECK(std::memcmp(file.find("tokens")->data, c.text.data(), 55 * sizeof(int32_t)) == 0);
    CHECK(file.find("blocks.1.attn.hook_z")->shape == std::vector<uint64_t>{5, 11, 3, 5});
}

TEST_CASE("cached activations of a Llama and of a GPT-NeoX fit together: heads that share values, parallel blocks") {
    for (const std::string name : {"llama", "neox"}) {
        CAPTURE(name);
        const std::string path = "test/fixtures/hf/" + name;
        const LoadedModel loaded = load_model(path);
        const ModelConfig& config = loaded.model->config;
        const Weights::Layer& y = loaded.model->weights().layers[1];
        const TemporaryFolder folder;
        CacheOptions o;
        o.model = path;
        o.data = {folder / "x_000000.bin"};
        o.out = folder / "cache.safetensors";
        o.tokens = 33;
        o.seq = 11;
        o.json_output = true;
        o.hooks = {"hook_embed",
                   "blocks.0.hook_resid_pre",
                   "blocks.1.hook_resid_pre",
                   "blocks.1.hook_attn_out",
                   "blocks.1.hook_mlp_out",
                   "blocks.1.hook_resid_post",
                   "blocks.1.attn.hook_rot_q",
                   "blocks.1.attn.hook_rot_k",
                   "blocks.1.attn.hook_v",
                   "blocks.1.attn.hook_z",
                   "blocks.1.attn.hook_result",
                   "blocks.1.mlp.hook_post"};
        const std::vector<int32_t> text = random_tokens(40, config.V);
        ShardWriter writer(folder / "x", static_cast<uint32_t>(config.V), 1000);
        writer.append(text.data(), text.size());
        writer.finish();
        cache_command(o);
        const auto read = [&](const std::string& place) {
            const SafetensorsFile file(o.out);
            std::vector<float> values(file.find(place)->count());
            copy_tensor(*file.find(place), values.data());
            return values;
        };
        check_close(read("hook_embed"), read("blocks.0.hook_resid_pre"));
        const std::vector<float> out = read("blocks.1.hook_attn_out");
        check_close(plus(plus(read("blocks.1.hook_resid_pre"), out), read("blocks.1.hook_mlp_out")),
                    read("blocks.1.hook_resid_post"));
        const std::vector<float> results = read("blocks.1.attn.hook_result");
        const auto C = static_cast<size_t>(config.C), NH = static_cast<size_t>(config.NH);
        for (size_t i = 0; i < out.size(); i++) {
            float sum = y.proj_bias == nullptr ? 0 : static_cast<float>(y.proj_bias[i % C]);
            for (size_t h = 0; h < NH; h++) sum += results[(i / C * NH + h) * C + i % C];
            CHECK(sum == doctest::Approx(out[i]).epsilon(1e-5).scale(1));
        }
        // Position 0 sees itself alone: every head brings the value that it shares.
        const std::vector<float> values = read("blocks.1.attn.hook_v"), brought = read("blocks.1.attn.hook_z");
        const auto KH = static_cast<size_t>(config.key_heads()), HS = static_cast<size_t>(config.head_size());
        for (size_t i = 0; i < NH * HS; i++)
            CHECK(brought[i] == doctest::Approx(values[i / HS / (NH / KH) * HS + i % HS]).epsilon(1e-5));
        // The third sequence's neurons, queries and keys by themselves.
        std::vector<float> neurons, queries, keys;
        const int64_t T = 11, A = config.heads_width(), QK = config.qk_width(), Q = config.qkv_width();
        Probe probe;
        probe.attention = [&](int64_t l, const real*, const real* qkv, const real*) {
            for (int64_t t = 0; l == 1 && t < T; t++) {
                queries.insert(queries.end(), qkv + t * Q, qkv + t * Q + A);
                keys.insert(keys.end(), qkv + t * Q + A, qkv + t * Q + QK);
            }
        };
        probe.mlp = [&](int64_t l, const real* hidden, const real*) {
            if (l == 1) neurons.assign(hidden, hidden + T * config.n_inner);
        };
        loaded.model->trace(text.data() + 2 * T, 1, T, probe);
        const auto third = [&](const std::string& place) {
            const std::vector<float> all = read(place);
            return std::vector<float>(all.begin() + static_cast<std::ptrdiff_t>(all.size() / 3 * 2), all.end());
        };
        check_close(third("blocks.1.mlp.hook_post"), neurons);
        check_close(third("blocks.1.attn.hook_rot_q"), queries);
        check_close(third("blocks.1.attn.hook_rot_k"), keys);
    }
}

TEST_CASE("places to cache are those of the model's shape, and what it does not have is refused by name") {
    typedef std::vector<uint64_t> Shape;
    const std::vector<ModelConfig> shapes = other_shapes();
    const ModelConfig &pythia = shapes[0], &llama = shapes[1], &wide = shapes[2], &rms = shapes[3];
    const auto shape_at = [](const std::string& name, const ModelConfig& c) { return hook_places({name}, c)[0].shape; };
    CHECK(shape_at("blocks.1.attn.hook_rot_q", llama) == Shape{6, 2});
    CHECK(shape_at("blocks.1.attn.hook_rot_k", llama) == Shape{2, 2});
    CHECK(shape_at("blocks.1.attn.hook_v", wide) == Shape{1, 4});
    CHECK(shape_at("blocks.1.attn.hook_z", wide) == Shape{6, 4});
    CHECK(shape_at("blocks.1.attn.hook_result", wide) == Shape{6, 12});
    CHECK(shape_at("blocks.1.mlp.hook_post", llama) == Shape{10});
    CHECK(shape_at("blocks.1.attn.hook_k", rms) == Shape{4, 3});
    const auto refusal = [](const std::string& name, const ModelConfig& c) {
        return message_of<BadInput>([&] { hook_places({name}, c); });
    };
    CHECK(contains(refusal("hook_pos_embed", llama), "\"hook_pos_embed\": the model has no such place: positions"));
    CHECK(contains(refusal("blocks.*.hook_resid_mid", pythia), "the same stream"));
    CHECK(refusal("blocks.*.hook_resid_mid", llama).empty());
    CHECK(contains(refusal("blocks.0.attn.hook_q", pythia), "attn.hook_rot_q"));
    CHECK(contains(refusal("blocks.0.attn.hook_rot_k", rms), "attn.hook_k"));
    CHECK(contains(refusal("hook_nothing", llama), "hook_rot_k"));
    CHECK_FALSE(contains(refusal("hook_nothing", llama), "hook_pos_embed"));
}

TEST_CASE("activations in bf16 are the float ones rounded, and the batch changes nothing") {
    Cached c;
    c.options.hooks = {"blocks.2.hook_resid_post"};
    cache_command(c.options);
    const std::vector<float> whole = c.read("blocks.2.hook_resid_post");
    c.options.force = true;
    c.options.batch = 5;
    cache_command(c.options);
    check_close(c.read("blocks.2.hook_resid_post"), whole);
    c.options.dtype = "bf16";
    cache_command(c.options);
    check_close(c.read("blocks.2.hook_resid_post"), whole, 1.0 / 256);
    CHECK(SafetensorsFile(c.options.out).find("blocks.2.hook_resid_post")->dtype == DType::BF16);
}

TEST_CASE("what cannot be cached is refused by name, and a full disk leaves nothing behind") {
    Cached c;
    const auto refused = [&](const std::vector<std::string>& hooks) {
        c.options.hooks = hooks;
        return message_of<BadInput>([&] { cache_command(c.options); });
    };
    CHECK(contains(refused({"blocks.0.hook_nothing"}), "\"blocks.0.hook_nothing\": there is no such place"));
    CHECK(contains(refused({"hook_resid_pre"}), "blocks.L.hook_resid_pre"));
    CHECK(contains(refused({"blocks.3.hook_resid_pre"}), "layers 0 to 2"));
    CHECK(contains(refused({"blocks.x.hook_resid_pre"}), "layers 0 to 2"));
    CHECK(contains(refused({"blocks.*.hook_mlp_out", "blocks.1.hook_mlp_out"}), "named twice"));
    c.options.tokens = 10;
    CHECK(contains(refused({"hook_embed"}), "--tokens 10"));
    c.options.tokens = 1000;
    CHECK(contains(refused({"hook_embed"}), "hold 66"));
    c.options.tokens = 55;
    c.options.dtype = "f16";
    CHECK(contains(refused({"hook_embed"}), "\"f16\""));
    c.options.dtype = "f32";
    {
        const FileSizeLimit full(500);
        c.options.hooks = {"hook_embed"};
        CHECK(contains(message_of<RunFailure>([&] { cache_command(c.options); }), "cache.safetensors"));
    }
    CHECK_FALSE(c.folder.names().count("cache.safetensors"));
    for (const std::string& name : c.folder.names()) CHECK_FALSE(contains(name, ".tmp-"));
    c.options.out = c.folder / "cache.npz";
    CHECK(contains(refused({"hook_embed"}), ".safetensors"));
}
