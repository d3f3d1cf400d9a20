// What a LayerNorm-free folder's model card (README.md) tells those who load it, for each form of the result.
#pragma once

#include <string>

#include "data/gpt2_config.h"

namespace lnfree {

// The model card's section for those who load a LayerNorm-free model in this form.
std::string loading_section(ModelForm form);

// The card of a LayerNorm-free model with the loading section that fits its form, in place of an earlier one.
std::string card_for_form(std::string card, ModelForm form);

}  // namespace lnfree
