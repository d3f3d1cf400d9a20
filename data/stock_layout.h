// How each family of models names its tensors in a stock folder and lays them out there. The table of tensors
// (config.h) has one canonical layout for all; what is here leads from the one to the other, in both directions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/config.h"

namespace lnfree {

// The words of a family's folders.
struct StockNames {
    const char* model;        // for messages
    const char* model_class;  // of transformers
    const char* trunk;        // prefix of all names but the head's
    const char* anchor;       // a tensor that every such model has once: its prefix is that of all
    const char* block;        // how the names of a block begin, before its number
    const char* layers;       // config.json's key for the number of blocks
    const char* epsilon;      // and for the epsilon of its norms
    const char* embedding;    // wte.weight
    const char* head;         // lm_head.weight
};
const StockNames& stock_names(Family family);

// A tensor of a stock folder. It is a canonical tensor as it is, or some of its columns: numbers of its last axis.
struct StockPiece {
    std::string name;             // without the trunk's prefix
    std::vector<uint64_t> shape;  // in the file
    // Of a linear layer of NeoX or Llama, whose weight is (out,in) in the file and (in,out) in the table: column
    // first_column + j is row rows[j] of the file. Empty: the tensor is the canonical one as it is.
    uint64_t first_column = 0;
    std::vector<uint64_t> rows = {};

    bool is_whole() const { return rows.empty(); }
    uint64_t count() const {
        uint64_t elements = 1;
        for (const uint64_t extent : shape) elements *= extent;
        return elements;
    }
};

// The tensors of a stock folder that one of the table of `c` is made of, in the order of their columns. `name` and `shape`
// are the table's. Throws RunFailure for a name that no table has.
std::vector<StockPiece> stock_pieces(const ModelConfig& c, const std::string& name, const std::vector<uint64_t>& shape);

// Whether the tensor lies beside the trunk, without its prefix.
bool is_head(const StockPiece& piece, Family family);

// Copies a piece that is not whole, as it is in the file (piece.count() numbers, row-major), into the canonical tensor of
// this shape, and back. T is float or double.
template <class T>
void put_piece(const StockPiece& piece, const T* file, T* canonical, const std::vector<uint64_t>& canonical_shape);
template <class T>
void take_piece(const StockPiece& piece, T* file, const T* canonical, const std::vector<uint64_t>& canonical_shape);

}  // namespace lnfree
