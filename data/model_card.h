// What the model card (README.md) of a folder without norms tells those who load it, for each form of the result.
#pragma once

#include <cmath>
#include <string>

#include "data/config.h"

namespace lnfree {

// "LayerNorm" or "RMSNorm".
const char* norm_of(const ModelConfig& config);

// The card's section for those who load a model without norms, of config's family, in config's form. `largest_sigma`: the
// largest mean sigma of a site that is known; NaN: none is.
std::string loading_section(const ModelConfig& config, double largest_sigma = NAN);

// The card of such a model with the loading section that fits it, in place of an earlier one.
std::string card_for_form(std::string card, const ModelConfig& config, double largest_sigma = NAN);

}  // namespace lnfree
