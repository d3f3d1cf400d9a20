// Which tensor of a file is which entry of a model's table: exactly, for what this program writes, and as transformers and
// the people who train such models write it.
#pragma once

#include <string>
#include <vector>

#include "data/config.h"
#include "data/error.h"
#include "data/model_config.h"
#include "data/stock_layout.h"
#include "data/tensor_view.h"

namespace lnfree {

// A tensor of a file, and what it is of the table's tensor.
struct MatchedPiece {
    TensorView view;
    StockPiece piece;
};

// Where the numbers of one of the table's tensors are: in one piece, or in several side by side.
using MatchedTensor = std::vector<MatchedPiece>;

// Matches the tensors found in `folder` with the table: one for every entry, in the table's order. For files of this
// program: names are the table's own. BadInput for missing, unknown and misshapen tensors.
std::vector<MatchedTensor> match_tensors(const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                         const std::string& folder);

// The same for files that others wrote, of `c`'s family (stock_layout.h), with what they do to names and tensors:
//
//   prefixes     transformer., and what wraps a model: module., model., _orig_mod. (torch.compile), ...
//   head         where it is tied, lm_head.weight may be there too, if it equals the embedding in value, or be there alone
//   biases       of a kind that the model does not have at all (nanoGPT's bias=False) are zeros; so are attention's where
//                `options` say that the folder has none
//   orientation  weights of nn.Linear in a GPT-2 (nanoGPT) are read transposed
//   buffers      attention masks and the speeds of rotary positions, which say nothing new, are passed over
//   other heads  (score.weight, v_head...) are passed over, with a line in `notes` that names them
//
// BadInput, with what helps, for missing, unknown and misshapen tensors, a tied head with values of its own, adapters, two
// models in one.
std::vector<MatchedTensor> match_stock_tensors(const ModelConfig& c, const ConfigOptions& options,
                                               const std::vector<Tensor>& table, const std::vector<TensorView>& found,
                                               const std::string& folder, std::vector<std::string>& notes);

// Whether this is a head's name, or the embedding's that it may be tied to, with any prefix: of the two, one may be missing.
bool is_head_or_embedding(const std::string& name);

}  // namespace lnfree
