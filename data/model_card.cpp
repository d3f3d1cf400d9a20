#include "data/model_card.h"

#include <cstdio>

#include "data/stock_layout.h"

namespace lnfree {

const char* norm_of(const ModelConfig& config) {
    return config.centred ? "LayerNorm" : "RMSNorm";
}

namespace {

// sqrt(s^2 + 1e12) is 1e6 (1 + s^2 / 2e12): what is left of a position's own length.
std::string rounding_of_epsilon(const ModelConfig& config, double largest_sigma) {
    const std::string of_norm = config.centred ? "standard deviation" : "root mean square";
    std::string text = "What it divides by is not quite the same: at a position of " + of_norm +
                       " s it is larger than 1e6 by a share of s^2 / 2e12";
    char numbers[100];
    std::snprintf(numbers, sizeof numbers, "; with %.4g, the largest mean s of a site of this model, that is %.1e",
                  largest_sigma, largest_sigma * largest_sigma / 2e12);
    return text + (std::isnan(largest_sigma) ? "" : numbers) + ".\n\n";
}

std::string stock_form(const ModelConfig& config, double largest_sigma) {
    const StockNames& words = stock_names(config.family);
    const std::string epsilon = std::string("`") + words.epsilon + "`", norm = norm_of(config);
    std::string text = "A stock `" + std::string(words.model_class) +
                       ".from_pretrained` loads this folder: " + epsilon +
                       " is 1e12 and every gamma is scaled to match, so that the built-in " + norm +
                       " divides all positions by the same number. " + rounding_of_epsilon(config, largest_sigma);
    text +=
        "What must not be switched on or changed:\n\n"
        "- float16: gammas of the order of 1e6 overflow there. Use float32 or bfloat16.\n"
        "- another " +
        epsilon + ": it must stay at 1e12. Beware of loaders that take it from elsewhere";
    if (config.family != Family::gpt2) return text + ".\n";
    return text +
           ": "
           "`HookedTransformer.from_pretrained(\"gpt2\", hf_model=...)` of TransformerLens 2 and 3, and what is built "
           "on it (`HookedSAETransformer` of SAELens, `ReplacementModel.from_pretrained` of circuit-tracer), uses "
           "GPT-2's 1e-5 and gives another model.\n\n"
           "`TransformerBridge.boot_transformers` of TransformerLens 4, `SAETransformerBridge` of SAELens, nnsight, "
           "nnterp and lm-evaluation-harness read it from here; "
           "`load` of gpt2-lnfree's `scripts/load_in_transformer_lens.py` serves TransformerLens 2 to 4 and, with "
           "`build=HookedSAETransformer` or `build=functools.partial(ReplacementModel.from_config, "
           "transcoders=...)`, the two that are built on it.\n\n";
}

std::string folded_form(const ModelConfig& config) {
    std::string text = "This folder has no norm at all: ";
    text += config.centred ? "centring, gamma, beta" : "gamma";
    text +=
        " and 1/sigma_bar are in `c_attn`, `c_fc` and an `lm_head` of its own (untied, with a bias). Names and shapes "
        "are "
        "GPT-2's otherwise";
    if (config.family != Family::gpt2)
        return text +
               " (data/README.md of gpt2-lnfree has the layout); gpt2-lnfree reads it, and stock loaders do not know "
               "it. "
               "Export the other form for them.\n";
    return text +
           ". Stock loaders do not "
           "know this form; `scripts/load_in_transformer_lens.py` of gpt2-lnfree loads it in TransformerLens 2 to 4 "
           "and in SAELens. circuit-tracer wants norms: export the other form for it.\n\n";
}

// Tried with GPT-2 alone.
constexpr const char* clients_of_gpt2 =
    "In TransformerLens, `center_unembed` (on by default in `enable_compatibility_mode` and in "
    "`load_and_process_state_dict`) subtracts each position's mean logit: losses and log probabilities stay the "
    "same, logits do not. Give `center_unembed=False` where logits matter. Its other processing (`fold_ln`, "
    "`center_writing_weights`, `fold_value_biases`) leaves the logits as they are.\n\n"
    "Some of these programs exclude each other's versions, so give each an environment of its own: SAELens 6.54.12 "
    "was tried with `transformer-lens==3.9.0`, circuit-tracer 0.5.0 with `transformer-lens==3.2.1 "
    "transformers==4.57.3`, nnterp 1.3.0 with `\"nnsight<0.8\"`.\n";

}  // namespace

std::string loading_section(const ModelConfig& config, double largest_sigma) {
    const bool folded = config.form == ModelForm::folded;
    return "## Loading\n\n" + (folded ? folded_form(config) : stock_form(config, largest_sigma)) +
           (config.family == Family::gpt2 ? clients_of_gpt2 : "");
}

std::string card_for_form(std::string card, const ModelConfig& config, double largest_sigma) {
    const size_t begin = card.find("## Loading\n");
    if (card.empty())
        card = "# A " + std::string(stock_names(config.family).model) + " model without " + norm_of(config) + "\n";
    if (begin == std::string::npos)
        return card + (card.back() == '\n' ? "\n" : "\n\n") + loading_section(config, largest_sigma);
    const size_t next = card.find("\n## ", begin);
    const size_t end = next == std::string::npos ? card.size() : next;
    return card.replace(begin, end - begin, loading_section(config, largest_sigma));
}

}  // namespace lnfree
