#include "dev/analysis/explain_output.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace lnfree {
namespace analysis {

std::string Explained::text_of(int32_t token) const {
    return tokenizer == nullptr ? "#" + std::to_string(token) : tokenizer->token_text(token);
}

std::string Explained::what_of(const Explanation& e) const {
    const auto quoted = [&](int32_t token) { return "\"" + text_of(token) + "\""; };
    const std::string target = "logit of " + quoted(e.question.target);
    return e.question.against < 0 ? target : target + " minus that of " + quoted(e.question.against);
}

std::vector<int64_t> largest_first(const double* values, int64_t n) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < n; i++)
        if (std::abs(values[i]) > 0) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return std::abs(values[a]) > std::abs(values[b]); });
    return order;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables

namespace {

std::string with_sign(double x) {
    char text[40];
    std::snprintf(text, sizeof text, "%+.4f", x);
    return text;
}

// Where a head's contribution comes from most: "Paul" at 5 (attention 0.83): +1.2034
std::string main_source(const Explained& x, const Explanation& e, int64_t head) {
    const int64_t T = static_cast<int64_t>(e.question.tokens.size());
    const double *sources = e.sources.data() + head * T, *attention = e.attention.data() + head * T;
    const std::vector<int64_t> order = largest_first(sources, T);
    if (order.empty()) return "";
    const int64_t t = order[0];
    return "\"" + x.text_of(e.question.tokens[static_cast<size_t>(t)]) + "\" at " + std::to_string(t) + " (attention " +
           format_fixed(attention[t], 2) + "): " + with_sign(sources[t]);
}

Table component_table(const Explained& x, const Explanation& e, int64_t top) {
    const std::vector<Component> components = components_of(x.config);
    const bool effects = !e.direct_effects.empty();
    std::vector<std::string> headers = {"component", "contribution"};
    if (effects) headers.emplace_back("direct effect");
    headers.emplace_back("most of it from");
    Table table(headers);
    const auto add = [&](const std::string& name, double value, const std::string& effect, const std::string& from) {
        table.add_row(effects ? std::vector<std::string>{name, with_sign(value), effect, from}
                              : std::vector<std::string>{name, with_sign(value), from});
    };
    double rest = 0;
    int64_t shown = 0;
    for (const int64_t i : largest_first(e.at_position(), e.components())) {
        const Component& c = components[static_cast<size_t>(i)];
        if (shown++ >= top) {
            rest += e.at_position()[i];
            continue;
        }
        const bool head = c.kind == Component::Kind::head;
        add(c.name, e.at_position()[i], effects ? with_sign(e.direct_effects[static_cast<size_t>(i)]) : "",
            head ? main_source(x, e, c.layer * x.config.NH + c.head) : "");
    }
    if (shown > top) add("the other " + std::to_string(shown - top), rest, "", "");
    add("sum", e.sum(), effects ? with_sign(e.sum() - e.missed()) : "", "");
    return table;
}

// The largest of some numbers, named.
template <class Name>
Table largest_table(const std::string& what, const double* values, int64_t n, int64_t top, Name name) {
    Table table({what, "contribution"});
    for (const int64_t i : largest_first(values, n)) {
        if (static_cast<int64_t>(table.row_count()) == top) break;
        table.add_row({name(i), with_sign(values[i])});
    }
    return table;
}

Table neuron_table(const Explained& x, const Explanation& e, int64_t top) {
    const int64_t H = x.config.n_inner, n = static_cast<int64_t>(e.neurons.size());
    return largest_table("neuron", e.neurons.data(), n, top,
                         [&](int64_t i) { return "neuron " + std::to_string(i / H) + "." + std::to_string(i % H); });
}

// "head 1.0 -> head 3.2"
std::string path_name(const std::vector<Component>& components, const ComponentOrder& order, int64_t i) {
    const int64_t head = i / order.count(), from = i % order.count();
    const std::string into = components[static_cast<size_t>(order.head(head / order.NH, head % order.NH))].name;
    const bool own = from == order.unembedding_bias();
    return (own ? "its own biases" : components[static_cast<size_t>(from)].name) + " -> " + into;
}

Table path_table(const Explained& x, const Explanation& e, int64_t top) {
    const std::vector<Component> components = components_of(x.config);
    const ComponentOrder order(x.config);
    return largest_table("path", e.paths.data(), static_cast<int64_t>(e.paths.size()), top,
                         [&](int64_t i) { return path_name(components, order, i); });
}

}  // namespace

std::vector<Table> tables_of(const Explained& x, const Explanation& e, const ExplainOptions& o) {
    std::vector<Table> tables = {component_table(x, e, o.top)};
    if (o.neurons) tables.push_back(neuron_table(x, e, o.top));
    if (o.paths) tables.push_back(path_table(x, e, o.top));
    return tables;
}

Table overview_of(const Explained& x) {
    const std::vector<Component> components = components_of(x.config);
    Table table({"prompt", "target", "against", "logit", "largest component", "its contribution", "remainder"});
    for (const Explanation& e : x.all) {
        const PromptQuestion& q = e.question;
        const int64_t largest = largest_first(e.at_position(), e.components())[0];
        const std::string prompt = q.prompt.empty() ? std::to_string(q.tokens.size()) + " tokens" : printable(q.prompt);
        table.add_row({clip_to_width(prompt, 48), x.text_of(q.target), q.against < 0 ? "" : x.text_of(q.against),
                       format_fixed(e.logit, 4), components[static_cast<size_t>(largest)].name,
                       with_sign(e.at_position()[largest]), format_general(e.remainder())});
    }
    return table;
}

// ---------------------------------------------------------------------------------------------------------------------
// JSON

namespace {

// values (rows,columns) as a list of lists.
Json lists(const double* values, int64_t rows, int64_t columns) {
    Json list = Json::array();
    for (int64_t i = 0; i < rows; i++)
        list.push_back(std::vector<double>(values + i * columns, values + (i + 1) * columns));
    return list;
}

// values (L,NH,T)
Json by_head(const std::vector<double>& values, int64_t L, int64_t NH) {
    const int64_t T = static_cast<int64_t>(values.size()) / (L * NH);
    Json layers = Json::array();
    for (int64_t l = 0; l < L; l++) layers.push_back(lists(values.data() + l * NH * T, NH, T));
    return layers;
}

Json token_json(const Explained& x, int32_t token) {
    if (token < 0) return nullptr;
    return {{"token", token}, {"text", x.text_of(token)}};
}

Json components_json(const Explained& x, const Explanation& e) {
    Json list = Json::array();
    const std::vector<Component> components = components_of(x.config);
    for (size_t i = 0; i < components.size(); i++) {
        const Component& c = components[i];
        Json entry{{"name", c.name},
                   {"hook", c.hook},
                   {"layer", c.layer < 0 ? Json() : Json(c.layer)},
                   {"head", c.head < 0 ? Json() : Json(c.head)},
                   {"contribution", e.at_position()[i]}};
        if (!e.direct_effects.empty()) entry["direct_effect"] = e.direct_effects[i];
        list.push_back(entry);
    }
    return list;
}

// A list per head that reads, null for those that are not linear.
Json paths_json(const Explained& x, const Explanation& e) {
    const ComponentOrder order(x.config);
    Json list = Json::array();
    for (int64_t head = 0; head < order.L * order.NH; head++) {
        const double* row = e.paths.data() + head * order.count();
        list.push_back(
            {{"layer", head / order.NH},
             {"head", head % order.NH},
             {"contributions", std::isnan(row[0]) ? Json() : Json(std::vector<double>(row, row + order.count()))}});
    }
    return list;
}

Json explanation_json(const Explained& x, const Explanation& e, const ExplainOptions& o) {
    const int64_t L = x.config.L, NH = x.config.NH;
    const PromptQuestion& q = e.question;
    Json texts = Json::array();
    for (const int32_t token : q.tokens) texts.push_back(x.text_of(token));
    Json j{{"prompt", q.prompt.empty() ? Json() : Json(q.prompt)},
           {"tokens", q.tokens},
           {"texts", texts},
           {"position", q.position},
           {"target", token_json(x, q.target)},
           {"against", token_json(x, q.against)},
           {"logit", e.logit},
           {"sum", e.sum()},
           {"remainder", e.remainder()},
           {"missed", x.exact ? Json() : Json(e.missed())},
           {"components", components_json(x, e)},
           {"mlp_biases", e.mlp_biases}};
    if (o.sources) j["attention"] = by_head(e.attention, L, NH);
    if (o.sources) j["sources"] = by_head(e.sources, L, NH);
    if (o.neurons) j["neurons"] = lists(e.neurons.data(), L, x.config.n_inner);
    if (o.paths) j["paths"] = paths_json(x, e);
    return j;
}

}  // namespace

Json json_of(const Explained& x, const ExplainOptions& o) {
    Json j{{"what", "explain"},
           {"model", x.folder},
           {"layernorm_free", x.layernorm_free},
           {"exact", x.exact},
           {"explanations", Json::array()}};
    for (const Explanation& e : x.all) j["explanations"].push_back(explanation_json(x, e, o));
    return j;
}

// ---------------------------------------------------------------------------------------------------------------------
// Arrays

namespace {

// Collects what every prompt has of some quantity. What is behind a shorter prompt's end stays NaN (of tokens -1), so that
// a mean which forgets about lengths shows it.
class Arrays {
  public:
    explicit Arrays(const Explained& x) : x_(x), P_(x.all.size()) {
        for (const Explanation& e : x.all) T_ = std::max(T_, e.question.tokens.size());
    }

    // One integer of each prompt.
    template <class Of>
    void add_integers(const std::string& name, Of of) {
        std::vector<int32_t> values;
        for (const Explanation& e : x_.all) values.push_back(static_cast<int32_t>(of(e)));
        arrays.push_back(array_of(name, {P_}, values));
    }

    void add_tokens() {
        std::vector<int32_t> values(P_ * T_, -1);
        for (size_t p = 0; p < P_; p++) {
            const std::vector<int32_t>& tokens = x_.all[p].question.tokens;
            std::copy(tokens.begin(), tokens.end(), values.begin() + static_cast<std::ptrdiff_t>(p * T_));
        }
        arrays.push_back(array_of("tokens", {P_, T_}, values));
    }

    // (P,T,width...): of(explanation, position, index in `width`).
    template <class Of>
    void add_by_position(const std::string& name, const std::vector<uint64_t>& width, Of of) {
        const uint64_t n = product(width);
        std::vector<double> values(P_ * T_ * n, NAN);
        for (size_t p = 0; p < P_; p++)
            for (uint64_t t = 0; t < x_.all[p].question.tokens.size(); t++)
                for (uint64_t i = 0; i < n; i++)
                    values[(p * T_ + t) * n + i] = of(x_.all[p], static_cast<int64_t>(t), static_cast<int64_t>(i));
        add(name, P_, {T_}, width, values);
    }

    // (P,width...): of(explanation, index in `width`).
    template <class Of>
    void add_by_prompt(const std::string& name, const std::vector<uint64_t>& width, Of of) {
        std::vector<double> values;
        for (const Explanation& e : x_.all)
            for (uint64_t i = 0; i < product(width); i++) values.push_back(of(e, static_cast<int64_t>(i)));
        add(name, P_, {}, width, values);
    }

    uint64_t longest() const { return T_; }
    std::vector<Array> arrays;

  private:
    const Explained& x_;
    uint64_t P_, T_ = 0;

    static uint64_t product(const std::vector<uint64_t>& width) {
        return std::accumulate(width.begin(), width.end(), uint64_t{1}, std::multiplies<>());
    }
    void add(const std::string& name, uint64_t P, std::vector<uint64_t> shape, const std::vector<uint64_t>& width,
             const std::vector<double>& values) {
        shape.insert(shape.begin(), P);
        shape.insert(shape.end(), width.begin(), width.end());
        arrays.push_back(array_of(name, shape, values));
    }
};

// A component's contribution, or those of a layer's heads from the first on, at every position.
void add_components(Arrays& a, const Explained& x) {
    const std::vector<Component> components = components_of(x.config);
    for (size_t first = 0; first < components.size(); first++) {
        const Component& c = components[first];
        const bool heads = c.kind == Component::Kind::head;
        if (heads && c.head > 0) continue;
        if (c.kind == Component::Kind::unembedding_bias)
            a.add_by_prompt(c.hook, {}, [&](const Explanation& e, int64_t) { return e.at_position()[first]; });
        else
            a.add_by_position(
                c.hook, heads ? std::vector<uint64_t>{static_cast<uint64_t>(x.config.NH)} : std::vector<uint64_t>{},
                [&](const Explanation& e, int64_t t, int64_t h) {
                    return e.contributions[static_cast<size_t>(t * e.components() + h) + first];
                });
    }
}

void add_sources(Arrays& a, const Explained& x) {
    const int64_t NH = x.config.NH;
    for (int64_t l = 0; l < x.config.L; l++) {
        const std::string attention = "blocks." + std::to_string(l) + ".attn.";
        const auto of_head = [=](const std::vector<double>& values, const Explanation& e, int64_t t, int64_t h) {
            return values[(l * NH + h) * e.question.tokens.size() + t];
        };
        a.add_by_position(attention + "hook_pattern", {static_cast<uint64_t>(NH)},
                          [&](const Explanation& e, int64_t t, int64_t h) { return of_head(e.attention, e, t, h); });
        a.add_by_position(attention + "hook_v", {static_cast<uint64_t>(NH)},
                          [&](const Explanation& e, int64_t t, int64_t h) { return of_head(e.sources, e, t, h); });
    }
}

void add_neurons(Arrays& a, const Explained& x) {
    const int64_t H = x.config.n_inner;
    for (int64_t l = 0; l < x.config.L; l++) {
        const std::string block = "blocks." + std::to_string(l) + ".mlp.";
        a.add_by_prompt(block + "hook_post", {static_cast<uint64_t>(H)},
                        [=](const Explanation& e, int64_t k) { return e.neurons[static_cast<size_t>(l * H + k)]; });
        a.add_by_prompt(block + "b_out", {},
                        [=](const Explanation& e, int64_t) { return e.mlp_biases[static_cast<size_t>(l)]; });
    }
}

}  // namespace

std::vector<Array> arrays_of(const Explained& x, const ExplainOptions& o) {
    Arrays a(x);
    a.add_tokens();
    a.add_integers("length", [](const Explanation& e) { return e.question.tokens.size(); });
    a.add_integers("position", [](const Explanation& e) { return e.question.position; });
    a.add_integers("target", [](const Explanation& e) { return e.question.target; });
    a.add_integers("against", [](const Explanation& e) { return e.question.against; });
    a.add_by_prompt("logit", {}, [](const Explanation& e, int64_t) { return e.logit; });
    add_components(a, x);
    if (o.sources) add_sources(a, x);
    if (o.neurons) add_neurons(a, x);
    if (o.paths) {
        const ComponentOrder order(x.config);
        a.add_by_prompt(
            "paths",
            {static_cast<uint64_t>(order.L), static_cast<uint64_t>(order.NH), static_cast<uint64_t>(order.count())},
            [](const Explanation& e, int64_t i) { return e.paths[static_cast<size_t>(i)]; });
    }
    return std::move(a.arrays);
}

}  // namespace analysis
}  // namespace lnfree
