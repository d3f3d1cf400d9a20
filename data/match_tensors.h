// Which tensor of a file is which entry of a model's table: exactly, for what this program writes, and as transformers and
// the people who train GPT-2s write it.
#pragma once

#include <string>
#include <vector>

#include "data/error.h"
#include "data/gpt2_config.h"
#include "data/tensor_view.h"

namespace lnfree {

// Matches the tensors found in `folder` with the table: one view for every entry, in the table's order. For files of this
// program: names are the table's own. BadInput for missing, unknown and misshapen tensors.
std::vector<TensorView> match_tensors(const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                      const std::string& folder);

// The same for files that others wrote, with what they do to a GPT-2's names and tensors:
//
//   prefixes     transformer., and what wraps a model: module., model., _orig_mod. (torch.compile), ...
//   head         lm_head.weight may be there too, if it equals wte.weight in value, or, where `tied_head` says that
//                config.json ties the two, be there alone
//   biases       of a kind that the model does not have at all (nanoGPT's bias=False) are zeros
//   orientation  weights of nn.Linear (nanoGPT) are read transposed
//   masks        attention masks, which hold no information, are passed over
//   other heads  (score.weight, v_head...) are passed over, with a line in `notes` that names them
//
// BadInput, with what helps, for missing, unknown and misshapen tensors, an untied head, adapters, two models in one.
std::vector<TensorView> match_gpt2_tensors(const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                           bool tied_head, const std::string& folder, std::vector<std::string>& notes);

// Whether this is a tied head's name, or the embedding's that it is tied to, with any prefix: of the two, one may be
// missing.
bool is_head_or_embedding(const std::string& name);

}  // namespace lnfree
