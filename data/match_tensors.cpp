#include "data/match_tensors.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "data/files.h"
#include "data/json.h"
#include "data/text.h"

namespace lnfree {

namespace {

using ViewsByName = std::map<std::string, const TensorView*>;

BadInput missing(const std::string& folder, const std::string& name) {
    return BadInput(folder + ": tensor " + name +
                    " is missing, but config.json describes a model that has it; take both from one model");
}

using Shape = std::vector<uint64_t>;

void require_shape(const TensorView& view, const Shape& shape, const std::string& folder) {
    if (view.shape != shape)
        throw BadInput(folder + ": tensor " + view.name + " has shape " + Json(view.shape).dump() +
                       ", but config.json asks for " + Json(shape).dump() + "; take both from one model");
}

bool is_adapter(const std::string& name) {
    return name.find("lora") != std::string::npos || name.find("adapter") != std::string::npos;
}

BadInput unknown(const std::string& folder, const std::string& name) {
    if (is_adapter(name))
        return BadInput(folder + ": tensor " + quoted_name(name) +
                        " is part of an adapter; merge it into the model first: model.merge_and_unload() of peft, "
                        "then save_pretrained");
    return BadInput(
        folder + ": tensor " + quoted_name(name) +
        " is not part of the model that config.json describes; adapters and other architectures are not supported");
}

}  // namespace

std::vector<MatchedTensor> match_tensors(const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                         const std::string& folder) {
    ViewsByName by_name;
    for (const TensorView& view : found) by_name.emplace(view.name, &view);
    std::vector<MatchedTensor> matched;
    for (const Tensor& t : table) {
        const auto it = by_name.find(t.name);
        if (it == by_name.end()) throw missing(folder, t.name);
        require_shape(*it->second, t.shape, folder);
        matched.push_back({{*it->second, {t.name, t.shape}}});
        by_name.erase(it);
    }
    if (!by_name.empty()) throw unknown(folder, by_name.begin()->first);
    return matched;
}

bool is_head_or_embedding(const std::string& name) {
    for (const std::string known :
         {"lm_head.weight", "embed_out.weight", "wte.weight", "embed_in.weight", "embed_tokens.weight"})
        if (name == known || ends_with(name, "." + known)) return true;
    return false;
}

// ---------------------------------------------------------------------------------------------------------------------
// Names

namespace {

// Old folders carry attention masks and the speeds of rotary positions as tensors, which config.json gives as well.
bool is_buffer(const std::string& name) {
    for (const char* buffer : {".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias",
                               "rotary_emb.inv_freq", "rotary_emb.original_inv_freq"})
        if (ends_with(name, buffer)) return true;
    return false;
}

// Heads that are saved beside a model without prefix. Beside one with a prefix, whatever else is there is such a head.
bool is_other_head(const std::string& name) {
    for (const char* head : {"score.", "classifier.", "multiple_choice_head.", "v_head.", "value_head.", "qa_outputs."})
        if (begins_with(name, head)) return true;
    return false;
}

// Modules that wrap others in any place put this in front of the names of what they wrap.
std::string without_wrappers(std::string name) {
    for (const std::string wrapper : {"_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."})
        for (size_t at = name.find(wrapper); at != std::string::npos; at = name.find(wrapper, at))
            name.erase(at, wrapper.size());
    return name;
}

// Where a model is among these names: what stands in front of its own, "transformer." for instance, and in front of what
// lies beside it, such as lm_head.weight.
struct Prefixes {
    std::string trunk, beside;
};

Prefixes find_prefixes(const std::vector<std::string>& names, const std::string& anchor, const std::string& folder) {
    std::set<std::string> prefixes;
    for (const std::string& name : names)
        if (name == anchor || ends_with(name, "." + anchor))
            prefixes.insert(name.substr(0, name.size() - anchor.size()));
    if (prefixes.empty()) throw missing(folder, anchor);
    if (prefixes.size() > 1)
        throw BadInput(folder + ": holds two models, of the prefixes " + quoted_name(*prefixes.begin()) + " and " +
                       quoted_name(*std::next(prefixes.begin())) + "; save the one that is meant by itself");
    const std::string trunk = *prefixes.begin();
    const size_t dot = trunk.empty() ? std::string::npos : trunk.rfind('.', trunk.size() - 2);
    return {trunk, dot == std::string::npos ? "" : trunk.substr(0, dot + 1)};
}

// What the table's tensors are made of, in the table's order. A tensor of no pieces is zeros.
using Pieces = std::vector<std::vector<StockPiece>>;

Pieces pieces_of(const ModelConfig& c, const ConfigOptions& options, const std::vector<Tensor>& table) {
    Pieces pieces;
    for (const Tensor& t : table) {
        const bool of_attention = t.name.find(".attn.") != std::string::npos && ends_with(t.name, ".bias");
        pieces.push_back(of_attention && options.no_attention_biases ? std::vector<StockPiece>()
                                                                     : stock_pieces(c, t.name, t.shape));
    }
    return pieces;
}

// The tensors of a file under the names that the family gives them, and what is beside the model.
struct Named {
    Prefixes prefixes;
    ViewsByName trunk, beside;
};

Named names_for(const std::vector<TensorView>& found, const Pieces& pieces, Family family, const std::string& folder) {
    const StockNames& words = stock_names(family);
    std::vector<std::string> names;
    for (const TensorView& view : found) names.push_back(without_wrappers(view.name));
    Named named;
    named.prefixes = find_prefixes(names, words.anchor, folder);
    std::set<std::string> of_trunk;
    for (const auto& of_tensor : pieces)
        for (const StockPiece& piece : of_tensor)
            if (!is_head(piece, family)) of_trunk.insert(piece.name);
    for (size_t i = 0; i < found.size(); i++) {
        const bool inside = begins_with(names[i], named.prefixes.trunk);
        const std::string& prefix = inside ? named.prefixes.trunk : named.prefixes.beside;
        std::string name = begins_with(names[i], prefix) ? names[i].substr(prefix.size()) : names[i];
        if (name == "lm_head.weight") name = words.head;  // as version 5 of transformers calls GPT-NeoX's
        ViewsByName& views = inside && name != words.head ? named.trunk : named.beside;
        if (!views.emplace(name, &found[i]).second || (!inside && of_trunk.count(name) != 0))
            throw BadInput(folder + ": tensor " + quoted_name(name) +
                           " is there twice, with and without a prefix, or in two files; save the model anew");
    }
    return named;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensors that are not as the table has them

// "attn.c_attn.bias" of "h.3.attn.c_attn.bias"; all LayerNorms' are of one kind.
std::string kind_of(const std::string& name, const std::string& block) {
    if (name.find("ln_") != std::string::npos) return "ln_*.bias";
    return begins_with(name, block) ? name.substr(name.find('.', block.size()) + 1) : name;
}

// Kinds of biases of which the file has none.
std::set<std::string> absent_biases(const Pieces& pieces, const ViewsByName& trunk, const std::string& block) {
    std::set<std::string> all, present, absent;
    for (const auto& of_tensor : pieces)
        for (const StockPiece& piece : of_tensor) {
            if (!ends_with(piece.name, ".bias")) continue;
            all.insert(kind_of(piece.name, block));
            if (trunk.count(piece.name) != 0) present.insert(kind_of(piece.name, block));
        }
    std::set_difference(all.begin(), all.end(), present.begin(), present.end(), std::inserter(absent, absent.end()));
    return absent;
}

TensorView zeros_for(const std::string& name, const Shape& shape) {
    static const unsigned char zero[sizeof(float)] = {};
    TensorView view;
    view.name = name;
    view.shape = shape;
    view.data = zero;
    view.bytes = sizeof(zero);
    view.strides = Shape(shape.size(), 0);
    return view;
}

bool is_linear_of_gpt2(const std::string& name) {
    return ends_with(name, ".c_attn.weight") || ends_with(name, ".c_proj.weight") || ends_with(name, ".c_fc.weight");
}

// GPT-2's linear layers hold (in, out), those of nn.Linear (out, in). c_attn shows which, because it is never square.
bool is_transposed(const std::vector<Tensor>& table, const ViewsByName& trunk) {
    const std::string name = "h.0.attn.c_attn.weight";
    const auto entry = std::find_if(table.begin(), table.end(), [&](const Tensor& t) { return t.name == name; });
    const auto view = trunk.find(name);
    if (entry == table.end() || view == trunk.end() || view->second->shape == entry->shape) return false;
    return view->second->shape == Shape(entry->shape.rbegin(), entry->shape.rend());
}

TensorView transposed(TensorView view) {
    if (view.shape.size() != 2) return view;
    if (view.strides.empty()) view.strides = {view.shape[1], 1};
    std::swap(view.shape[0], view.shape[1]);
    std::swap(view.strides[0], view.strides[1]);
    return view;
}

BadInput head_is_missing(const std::string& name, const std::string& folder) {
    return BadInput(folder + ": " + name +
                    " is missing, and config.json says \"tie_word_embeddings\": false; if the head is the embedding, "
                    "set that to true");
}

// The embedding that the head is tied to. One of them is enough.
TensorView tied_embedding(const Shape& shape, Named& named, const StockNames& words, const std::string& folder) {
    const auto own = named.trunk.find(words.embedding), head = named.beside.find(words.head);
    const bool has_own = own != named.trunk.end(), has_head = head != named.beside.end();
    if (!has_own && !has_head) throw missing(folder, named.prefixes.trunk + words.embedding);
    TensorView view = has_own ? *own->second : *head->second;
    require_shape(view, shape, folder);
    if (has_own && has_head && !same_values(view, *head->second))
        throw BadInput(
            folder + ": " + words.head + " differs from " + words.embedding +
            ", and config.json ties them; if the head is one of its own, set \"tie_word_embeddings\" to false "
            "there");
    if (has_own) named.trunk.erase(own);
    if (has_head) named.beside.erase(head);
    return view;
}

// Of a block that config.json does not count.
bool is_of_another_block(const std::string& name, const std::string& block, int64_t L) {
    if (!begins_with(name, block)) return false;
    const std::string number = name.substr(block.size(), name.find('.', block.size()) - block.size());
    const bool digits = !number.empty() && number.find_first_not_of("0123456789") == std::string::npos;
    return digits && (number.size() > 9 || std::stoll(number) >= L);
}

// BadInput unless what is left over can be passed over; the names of other heads.
std::vector<std::string> other_heads(const Named& left, const ModelConfig& c, const std::string& folder) {
    const StockNames& words = stock_names(c.family);
    std::vector<std::string> heads;
    for (const auto& [name, view] : left.trunk) {
        if (is_of_another_block(name, words.block, c.L))
            throw BadInput(folder + ": tensor " + quoted_name(view->name) + " is of a block that config.json's " +
                           words.layers + " does not count; take both from one model");
        if (is_buffer(name)) continue;
        if (!is_other_head(name)) throw unknown(folder, view->name);
        heads.push_back(name);
    }
    for (const auto& [name, view] : left.beside) {
        if (begins_with(name, "lm_head.") || begins_with(name, "embed_out.") || is_adapter(name))
            throw unknown(folder, view->name);
        heads.push_back(name);
    }
    return heads;
}

std::string listed(const std::vector<std::string>& names) {
    constexpr size_t most = 4;
    std::string text;
    for (size_t i = 0; i < names.size() && i < most; i++) text += (i == 0 ? "" : ", ") + quoted_name(names[i]);
    return names.size() > most ? text + " and " + std::to_string(names.size() - most) + " more" : text;
}

}  // namespace

std::vector<MatchedTensor> match_stock_tensors(const ModelConfig& c, const ConfigOptions& options,
                                               const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                               const std::string& folder, std::vector<std::string>& notes) {
    const StockNames& words = stock_names(c.family);
    const Pieces pieces = pieces_of(c, options, table);
    Named named = names_for(found, pieces, c.family, folder);
    std::set<std::string> no_biases = absent_biases(pieces, named.trunk, words.block);
    const bool of_linear = c.family == Family::gpt2 && is_transposed(table, named.trunk);

    const auto view_of = [&](const StockPiece& piece) {
        if (c.tied && piece.name == words.embedding) return tied_embedding(piece.shape, named, words, folder);
        ViewsByName& among = is_head(piece, c.family) ? named.beside : named.trunk;
        const auto it = among.find(piece.name);
        if (it == among.end()) {
            if (!c.tied && (is_head(piece, c.family) || piece.name == words.embedding))
                throw head_is_missing(piece.name, folder);
            const bool no_such =
                ends_with(piece.name, ".bias") && no_biases.count(kind_of(piece.name, words.block)) != 0;
            if (!no_such) throw missing(folder, named.prefixes.trunk + piece.name);
            return zeros_for(piece.name, piece.shape);
        }
        TensorView view = of_linear && is_linear_of_gpt2(piece.name) ? transposed(*it->second) : *it->second;
        require_shape(view, piece.shape, folder);
        among.erase(it);
        return view;
    };
    std::vector<MatchedTensor> matched;
    for (size_t i = 0; i < table.size(); i++) {
        matched.emplace_back();
        for (const StockPiece& piece : pieces[i]) matched.back().push_back({view_of(piece), piece});
        if (!pieces[i].empty()) continue;
        matched.back().push_back({zeros_for(table[i].name, table[i].shape), {table[i].name, table[i].shape}});
        no_biases.insert(kind_of(table[i].name, "h."));
    }
    const std::vector<std::string> heads = other_heads(named, c, folder);
    if (!heads.empty()) notes.push_back(folder + ": passed over, no part of the language model: " + listed(heads));
    if (!no_biases.empty())
        notes.push_back(folder + ": it has no biases of the kinds " + listed({no_biases.begin(), no_biases.end()}) +
                        ", which are taken as zeros");
    return matched;
}

}  // namespace lnfree
