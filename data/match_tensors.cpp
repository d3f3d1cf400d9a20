#include "data/match_tensors.h"

#include <algorithm>
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

void require_shape(const TensorView& view, const Tensor& t, const std::string& folder) {
    if (view.shape != t.shape)
        throw BadInput(folder + ": tensor " + t.name + " has shape " + Json(view.shape).dump() +
                       ", but config.json asks for " + Json(t.shape).dump() + "; take both from one model");
}

bool is_adapter(const std::string& name) {
    return name.find("lora") != std::string::npos || name.find("adapter") != std::string::npos;
}

BadInput unknown(const std::string& folder, const std::string& name) {
    if (is_adapter(name))
        return BadInput(folder + ": tensor " + quoted_name(name) +
                        " is part of an adapter; merge it into the model first: model.merge_and_unload() of peft, "
                        "then save_pretrained");
    return BadInput(folder + ": tensor " + quoted_name(name) +
                    " is not part of a GPT-2 model; adapters and other architectures are not supported");
}

}  // namespace

std::vector<TensorView> match_tensors(const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                      const std::string& folder) {
    ViewsByName by_name;
    for (const TensorView& view : found) by_name.emplace(view.name, &view);
    std::vector<TensorView> matched;
    for (const Tensor& t : table) {
        const auto it = by_name.find(t.name);
        if (it == by_name.end()) throw missing(folder, t.name);
        require_shape(*it->second, t, folder);
        matched.push_back(*it->second);
        by_name.erase(it);
    }
    if (!by_name.empty()) throw unknown(folder, by_name.begin()->first);
    return matched;
}

bool is_head_or_embedding(const std::string& name) {
    for (const std::string known : {"lm_head.weight", "wte.weight"})
        if (name == known || ends_with(name, "." + known)) return true;
    return false;
}

// ---------------------------------------------------------------------------------------------------------------------
// Names

namespace {

// Old GPT-2 folders carry attention masks as tensors; they hold no information.
bool is_attention_mask(const std::string& name) {
    return begins_with(name, "h.") && (ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias"));
}

// Heads that are saved beside a GPT-2 without prefix. Beside one with a prefix, whatever else is there is such a head.
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

// Where a GPT-2 is among these names: what stands in front of its own, "transformer." for instance, and in front of what
// lies beside it, such as lm_head.weight.
struct Prefixes {
    std::string trunk, beside;
};

// Every GPT-2 has position embeddings, and only one of them.
Prefixes find_prefixes(const std::vector<std::string>& names, const std::string& folder) {
    const std::string positions = "wpe.weight";
    std::set<std::string> prefixes;
    for (const std::string& name : names)
        if (name == positions || ends_with(name, "." + positions))
            prefixes.insert(name.substr(0, name.size() - positions.size()));
    if (prefixes.empty()) throw missing(folder, positions);
    if (prefixes.size() > 1)
        throw BadInput(folder + ": holds two models, of the prefixes " + quoted_name(*prefixes.begin()) + " and " +
                       quoted_name(*std::next(prefixes.begin())) + "; save the one that is meant by itself");
    const std::string trunk = *prefixes.begin();
    const size_t dot = trunk.empty() ? std::string::npos : trunk.rfind('.', trunk.size() - 2);
    return {trunk, dot == std::string::npos ? "" : trunk.substr(0, dot + 1)};
}

// The tensors of a file under the names that the table gives them, and what is beside the model.
struct Named {
    ViewsByName trunk, beside;
};

Named names_for(const std::vector<TensorView>& found, const std::vector<Tensor>& table, const std::string& folder) {
    std::vector<std::string> names;
    for (const TensorView& view : found) names.push_back(without_wrappers(view.name));
    const Prefixes prefixes = find_prefixes(names, folder);
    std::set<std::string> of_table;
    for (const Tensor& t : table) of_table.insert(t.name);
    Named named;
    for (size_t i = 0; i < found.size(); i++) {
        const bool inside = begins_with(names[i], prefixes.trunk);
        const std::string& prefix = inside ? prefixes.trunk : prefixes.beside;
        const std::string name = begins_with(names[i], prefix) ? names[i].substr(prefix.size()) : names[i];
        const bool head = name == "lm_head.weight";
        ViewsByName& views = inside && !head ? named.trunk : named.beside;
        if (!views.emplace(name, &found[i]).second || (!inside && of_table.count(name) != 0))
            throw BadInput(folder + ": tensor " + quoted_name(name) +
                           " is there twice, with and without a prefix, or in two files; save the model anew");
    }
    return named;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensors that are not as the table has them

// "attn.c_attn.bias" of "h.3.attn.c_attn.bias"; all LayerNorms' are of one kind.
std::string kind_of(const std::string& name) {
    if (name.find("ln_") != std::string::npos) return "ln_*.bias";
    return begins_with(name, "h.") ? name.substr(name.find('.', 2) + 1) : name;
}

// Kinds of biases of which the file has none.
std::set<std::string> absent_biases(const std::vector<Tensor>& table, const ViewsByName& trunk) {
    std::set<std::string> absent;
    for (const Tensor& t : table)
        if (ends_with(t.name, ".bias")) absent.insert(kind_of(t.name));
    for (const Tensor& t : table)
        if (ends_with(t.name, ".bias") && trunk.count(t.name) != 0) absent.erase(kind_of(t.name));
    return absent;
}

TensorView zeros_for(const Tensor& t) {
    static const unsigned char zero[sizeof(float)] = {};
    TensorView view;
    view.name = t.name;
    view.shape = t.shape;
    view.data = zero;
    view.bytes = sizeof(zero);
    view.strides = std::vector<uint64_t>(t.shape.size(), 0);
    return view;
}

bool is_linear(const std::string& name) {
    return ends_with(name, ".c_attn.weight") || ends_with(name, ".c_proj.weight") || ends_with(name, ".c_fc.weight");
}

// GPT-2's linear layers hold (in, out), those of nn.Linear (out, in). c_attn shows which, because it is never square.
bool is_transposed(const std::vector<Tensor>& table, const ViewsByName& trunk) {
    const std::string name = "h.0.attn.c_attn.weight";
    const auto entry = std::find_if(table.begin(), table.end(), [&](const Tensor& t) { return t.name == name; });
    const auto view = trunk.find(name);
    if (entry == table.end() || view == trunk.end() || view->second->shape == entry->shape) return false;
    return view->second->shape == std::vector<uint64_t>(entry->shape.rbegin(), entry->shape.rend());
}

TensorView transposed(TensorView view) {
    if (view.shape.size() != 2) return view;
    if (view.strides.empty()) view.strides = {view.shape[1], 1};
    std::swap(view.shape[0], view.shape[1]);
    std::swap(view.strides[0], view.strides[1]);
    return view;
}

// The embedding that the head is tied to. One of them is enough where config.json ties them.
TensorView embedding(const Tensor& wte, Named& named, bool tied_head, const std::string& folder) {
    const auto own = named.trunk.find(wte.name), head = named.beside.find("lm_head.weight");
    const bool has_own = own != named.trunk.end(), has_head = head != named.beside.end();
    if (!has_own && !has_head) throw missing(folder, wte.name);
    if (!tied_head && !(has_own && has_head))
        throw BadInput(
            folder + ": " + (has_own ? "lm_head.weight" : wte.name) +
            " is missing, and config.json says \"tie_word_embeddings\": false; if the head is the embedding, "
            "set that to true");
    TensorView view = has_own ? *own->second : *head->second;
    require_shape(view, wte, folder);
    if (has_own && has_head && !same_values(view, *head->second))
        throw BadInput(folder +
                       ": lm_head.weight differs from wte.weight; models with an untied head are not supported");
    if (has_own) named.trunk.erase(own);
    if (has_head) named.beside.erase(head);
    return view;
}

// Of a block that the table does not have.
bool is_of_another_block(const std::string& name, const std::vector<Tensor>& table) {
    const std::string block = name.substr(0, name.find('.', 2) + 1);
    return begins_with(name, "h.") &&
           std::none_of(table.begin(), table.end(), [&](const Tensor& t) { return begins_with(t.name, block); });
}

// BadInput unless what is left over can be passed over; the names of other heads.
std::vector<std::string> other_heads(const Named& left, const std::vector<Tensor>& table, const std::string& folder) {
    std::vector<std::string> heads;
    for (const auto& [name, view] : left.trunk) {
        if (is_of_another_block(name, table))
            throw BadInput(folder + ": tensor " + quoted_name(view->name) +
                           " is of a block that config.json's n_layer does not count; take both from one model");
        if (is_attention_mask(name)) continue;
        if (!is_other_head(name)) throw unknown(folder, view->name);
        heads.push_back(name);
    }
    for (const auto& [name, view] : left.beside) {
        if (begins_with(name, "lm_head.") || is_adapter(name)) throw unknown(folder, view->name);
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

std::vector<TensorView> match_gpt2_tensors(const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                           bool tied_head, const std::string& folder, std::vector<std::string>& notes) {
    Named named = names_for(found, table, folder);
    const std::set<std::string> no_biases = absent_biases(table, named.trunk);
    const bool of_linear = is_transposed(table, named.trunk);
    std::vector<TensorView> matched;
    for (const Tensor& t : table) {
        if (t.name == "wte.weight") {
            matched.push_back(embedding(t, named, tied_head, folder));
            continue;
        }
        const auto it = named.trunk.find(t.name);
        if (it == named.trunk.end()) {
            if (no_biases.count(kind_of(t.name)) == 0 || !ends_with(t.name, ".bias")) throw missing(folder, t.name);
            matched.push_back(zeros_for(t));
            continue;
        }
        matched.push_back(of_linear && is_linear(t.name) ? transposed(*it->second) : *it->second);
        require_shape(matched.back(), t, folder);
        named.trunk.erase(it);
    }
    const std::vector<std::string> heads = other_heads(named, table, folder);
    if (!heads.empty()) notes.push_back(folder + ": passed over, no part of the language model: " + listed(heads));
    if (!no_biases.empty())
        notes.push_back(folder + ": it has no biases of the kinds " + listed({no_biases.begin(), no_biases.end()}) +
                        ", which are taken as zeros");
    return matched;
}

}  // namespace lnfree
