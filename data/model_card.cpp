#include "data/model_card.h"

namespace lnfree {

std::string loading_section(ModelForm form) {
    std::string text = "## Loading\n\n";
    if (form == ModelForm::folded) {
        text +=
            "This folder has no norm at all: centring, gamma, beta and 1/sigma_bar are in `c_attn`, `c_fc` and an "
            "`lm_head` of its own (untied, with a bias). Names and shapes are GPT-2's otherwise. Stock loaders do not "
            "know this form; `scripts/load_in_transformer_lens.py` of gpt2-lnfree loads it in TransformerLens 2 to 4 "
            "and in SAELens. circuit-tracer wants norms: export the other form for it.\n\n";
    } else {
        text +=
            "A stock `GPT2LMHeadModel.from_pretrained` loads this folder: `layer_norm_epsilon` is 1e12 and every gamma "
            "is scaled to match, so that the built-in LayerNorm divides all positions by the same number. What must "
            "not be switched on or changed:\n\n"
            "- float16: gammas of the order of 1e6 overflow there. Use float32 or bfloat16.\n"
            "- another `layer_norm_epsilon`: it must stay at 1e12. Beware of loaders that take it from elsewhere: "
            "`HookedTransformer.from_pretrained(\"gpt2\", hf_model=...)` of TransformerLens 2 and 3, and what is built "
            "on it (`HookedSAETransformer` of SAELens, `ReplacementModel.from_pretrained` of circuit-tracer), uses "
            "GPT-2's 1e-5 and gives another model.\n\n"
            "`TransformerBridge.boot_transformers` of TransformerLens 4, `SAETransformerBridge` of SAELens, nnsight, "
            "nnterp and lm-evaluation-harness read it from here; "
            "`load` of gpt2-lnfree's `scripts/load_in_transformer_lens.py` serves TransformerLens 2 to 4 and, with "
            "`build=HookedSAETransformer` or `build=functools.partial(ReplacementModel.from_config, "
            "transcoders=...)`, the two that are built on it.\n\n";
    }
    text +=
        "In TransformerLens, `center_unembed` (on by default in `enable_compatibility_mode` and in "
        "`load_and_process_state_dict`) subtracts each position's mean logit: losses and log probabilities stay the "
        "same, logits do not. Give `center_unembed=False` where logits matter. Its other processing (`fold_ln`, "
        "`center_writing_weights`, `fold_value_biases`) leaves the logits as they are.\n\n"
        "Some of these programs exclude each other's versions, so give each an environment of its own: SAELens 6.54.12 "
        "was tried with `transformer-lens==3.9.0`, circuit-tracer 0.5.0 with `transformer-lens==3.2.1 "
        "transformers==4.57.3`, nnterp 1.3.0 with `\"nnsight<0.8\"`.\n";
    return text;
}

std::string card_for_form(std::string card, ModelForm form) {
    const size_t begin = card.find("## Loading\n");
    if (card.empty()) card = "# A GPT-2 model without LayerNorm\n";
    if (begin == std::string::npos) return card + (card.back() == '\n' ? "\n" : "\n\n") + loading_section(form);
    const size_t next = card.find("\n## ", begin);
    const size_t end = next == std::string::npos ? card.size() : next;
    return card.replace(begin, end - begin, loading_section(form));
}

}  // namespace lnfree
