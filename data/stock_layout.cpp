#include "data/stock_layout.h"

#include <algorithm>
#include <functional>
#include <map>

#include "data/error.h"
#include "data/parallel.h"
#include "data/text.h"

namespace lnfree {

// As transformers has them: modeling_gpt2.py, modeling_gpt_neox.py, modeling_llama.py. GPT-NeoX's head is called embed_out
// in folders, by every version, and lm_head in version 5's classes.
const StockNames& stock_names(Family family) {
    static const StockNames all[] = {
        {"GPT-2", "GPT2LMHeadModel", "transformer.", "wpe.weight", "h.", "n_layer", "layer_norm_epsilon", "wte.weight",
         "lm_head.weight"},
        {"GPT-NeoX", "GPTNeoXForCausalLM", "gpt_neox.", "layers.0.input_layernorm.weight", "layers.",
         "num_hidden_layers", "layer_norm_eps", "embed_in.weight", "embed_out.weight"},
        {"Llama", "LlamaForCausalLM", "model.", "layers.0.input_layernorm.weight", "layers.", "num_hidden_layers",
         "rms_norm_eps", "embed_tokens.weight", "lm_head.weight"},
    };
    return all[static_cast<int>(family)];
}

bool is_head(const StockPiece& piece, Family family) {
    return piece.name == stock_names(family).head;
}

namespace {

// A tensor's name in the table: "h.3.", "attn.c_attn", ".weight". Those outside of blocks have no first part.
struct TableName {
    std::string block, module, kind;
};

TableName parts_of(const std::string& name) {
    const size_t begin = begins_with(name, "h.") ? name.find('.', 2) + 1 : 0, end = name.rfind('.');
    return {name.substr(0, begin), name.substr(begin, end - begin), name.substr(end)};
}

using Modules = std::map<std::string, std::string>;

const Modules& modules_of(Family family) {
    static const Modules neox = {{"wte", "embed_in"},
                                 {"ln_1", "input_layernorm"},
                                 {"attn.c_attn", "attention.query_key_value"},
                                 {"attn.c_proj", "attention.dense"},
                                 {"ln_2", "post_attention_layernorm"},
                                 {"mlp.c_fc", "mlp.dense_h_to_4h"},
                                 {"mlp.c_proj", "mlp.dense_4h_to_h"},
                                 {"ln_f", "final_layer_norm"},
                                 {"lm_head", "embed_out"}};
    static const Modules llama = {{"wte", "embed_tokens"},
                                  {"ln_1", "input_layernorm"},
                                  {"attn.c_proj", "self_attn.o_proj"},
                                  {"ln_2", "post_attention_layernorm"},
                                  {"mlp.c_proj", "mlp.down_proj"},
                                  {"ln_f", "norm"},
                                  {"lm_head", "lm_head"}};
    return family == Family::neox ? neox : llama;
}

// `columns` columns of a linear layer, of which column j is row row_of(j) of the file.
StockPiece linear_piece(const std::string& name, const std::vector<uint64_t>& canonical, uint64_t first,
                        uint64_t columns, const std::function<uint64_t(uint64_t)>& row_of) {
    StockPiece piece{name, {columns}, first};
    if (canonical.size() == 2) piece.shape.push_back(canonical[0]);
    for (uint64_t j = 0; j < columns; j++) piece.rows.push_back(row_of(j));
    return piece;
}

uint64_t same_row(uint64_t j) {
    return j;
}

// Modules side by side, each with so many columns.
struct Beside {
    const char* module;
    int64_t columns;
};

std::vector<StockPiece> side_by_side(const std::vector<Beside>& modules, const std::string& block,
                                     const std::string& kind, const std::vector<uint64_t>& canonical) {
    std::vector<StockPiece> pieces;
    uint64_t first = 0;
    for (const Beside& m : modules) {
        const auto columns = static_cast<uint64_t>(m.columns);
        pieces.push_back(linear_piece(block + m.module + kind, canonical, first, columns, same_row));
        first += columns;
    }
    return pieces;
}

// GPT-NeoX has the query, the key and the value of one head one after the other, then those of the next head.
uint64_t neox_row(uint64_t j, uint64_t heads_width, uint64_t head_size) {
    const uint64_t part = j / heads_width, head = j % heads_width / head_size, number = j % head_size;
    return (3 * head + part) * head_size + number;
}

}  // namespace

std::vector<StockPiece> stock_pieces(const ModelConfig& c, const std::string& name,
                                     const std::vector<uint64_t>& shape) {
    if (c.family == Family::gpt2) return {{name, shape}};
    TableName t = parts_of(name);
    if (!t.block.empty()) t.block = stock_names(c.family).block + t.block.substr(2);
    const bool llama = c.family == Family::llama;
    const int64_t of_queries = c.heads_width(), of_keys = c.key_heads() * c.head_size(), H = c.n_inner;
    if (llama && t.module == "attn.c_attn")
        return side_by_side(
            {{"self_attn.q_proj", of_queries}, {"self_attn.k_proj", of_keys}, {"self_attn.v_proj", of_keys}}, t.block,
            t.kind, shape);
    if (llama && t.module == "mlp.c_fc")
        return side_by_side({{"mlp.gate_proj", H}, {"mlp.up_proj", H}}, t.block, t.kind, shape);

    const auto module = modules_of(c.family).find(t.module);
    if (module == modules_of(c.family).end())
        throw RunFailure("internal error: no tensor of " + std::string(stock_names(c.family).model) + " is " + name);
    const std::string stock = t.block + module->second + t.kind;
    if (t.module.find("c_") == std::string::npos) return {{stock, shape}};
    const auto A = static_cast<uint64_t>(c.heads_width()), HS = static_cast<uint64_t>(c.head_size());
    if (t.module == "attn.c_attn")
        return {linear_piece(stock, shape, 0, shape.back(), [=](uint64_t j) { return neox_row(j, A, HS); })};
    return {linear_piece(stock, shape, 0, shape.back(), same_row)};
}

namespace {

// Calls move(place in the file, place in the canonical tensor) for every number of the piece. A task has a few rows of the
// canonical tensor, so that both sides stay in the cache.
template <class Move>
void for_each_number(const StockPiece& piece, const std::vector<uint64_t>& canonical_shape, const Move& move) {
    constexpr uint64_t rows_per_task = 16;
    const uint64_t in = canonical_shape.size() == 2 ? canonical_shape[0] : 1, width = canonical_shape.back();
    parallel_for((in + rows_per_task - 1) / rows_per_task, [&](uint64_t task) {
        const uint64_t begin = task * rows_per_task, end = std::min(in, begin + rows_per_task);
        for (uint64_t j = 0; j < piece.rows.size(); j++)
            for (uint64_t i = begin; i < end; i++) move(piece.rows[j] * in + i, i * width + piece.first_column + j);
    });
}

}  // namespace

template <class T>
void put_piece(const StockPiece& piece, const T* file, T* canonical, const std::vector<uint64_t>& canonical_shape) {
    for_each_number(piece, canonical_shape, [=](uint64_t of_file, uint64_t at) { canonical[at] = file[of_file]; });
}

template <class T>
void take_piece(const StockPiece& piece, T* file, const T* canonical, const std::vector<uint64_t>& canonical_shape) {
    for_each_number(piece, canonical_shape, [=](uint64_t of_file, uint64_t at) { file[of_file] = canonical[at]; });
}

template void put_piece(const StockPiece&, const float*, float*, const std::vector<uint64_t>&);
template void put_piece(const StockPiece&, const double*, double*, const std::vector<uint64_t>&);
template void take_piece(const StockPiece&, float*, const float*, const std::vector<uint64_t>&);
template void take_piece(const StockPiece&, double*, const double*, const std::vector<uint64_t>&);

}  // namespace lnfree
