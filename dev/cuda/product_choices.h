// Which of cuBLASLt's kernels computes which product.
//
// Left alone, cuBLASLt's own first guess does. `bench --products FILE` times its eight best guesses for every product of a
// training step and writes down the fastest; `--products FILE` of a run reads that. A choice timed anew by every run would
// be another one now and then, and with it the order of the sums: then no run would repeat another's bits.
//
// The file is text: a line that names its layout, a line that names what it was made for (GPU and cuBLASLt), and per product
// 15 numbers that say which, 8 in hexadecimal that are cuBLASLt's description of the kernel, and the microseconds it took.
#pragma once

#include <array>
#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>

#include "../../data/error.h"

namespace lnfree::cuda {

class ProductChoices {
  public:
    using Product = std::array<int64_t, 15>;    // product_of in the engine
    using Algorithm = std::array<uint64_t, 8>;  // what cublasLtMatmulAlgo_t holds: made to be stored, not to be read

    std::string made_for;
    bool times_anew = false;  // products that are not in here are timed, and entered

    const Algorithm* find(const Product& product) const {
        const auto found = choices_.find(product);
        return found == choices_.end() ? nullptr : &found->second.algorithm;
    }
    void enter(const Product& product, const Algorithm& algorithm, double microseconds) {
        choices_[product] = {algorithm, microseconds};
    }
    size_t size() const { return choices_.size(); }

    // What write() left in `path`. BadInput if it cannot be read or is something else.
    static ProductChoices read(const std::string& path) {
        std::ifstream in(path);
        if (!in) throw BadInput(path + ": cannot be read; `bench --products " + path + "` makes it");
        ProductChoices choices;
        std::string line;
        if (!std::getline(in, line) || line != kLayout || !std::getline(in, choices.made_for))
            throw BadInput(path +
                           ": is no list of products that this version wrote; delete it and make it anew by `bench " +
                           "--products " + path + "`");
        for (int64_t number = 3; std::getline(in, line); number++)
            if (!choices.enter_line(line))
                throw BadInput(path + ", line " + std::to_string(number) +
                               ": is not a product and its kernel; delete the file and make it anew");
        return choices;
    }

    // The text of the file.
    std::string text() const {
        std::ostringstream out;
        out << kLayout << "\n" << made_for << "\n";
        for (const auto& [product, choice] : choices_) {
            for (const int64_t number : product) out << std::dec << number << ' ';
            for (const uint64_t word : choice.algorithm) out << std::hex << word << ' ';
            out << choice.microseconds << "\n";
        }
        return out.str();
    }

  private:
    struct Choice {
        Algorithm algorithm;
        double microseconds;
    };
    static constexpr const char* kLayout = "gpt2-lnfree products 1";
    std::map<Product, Choice> choices_;

    bool enter_line(const std::string& line) {
        std::istringstream in(line);
        Product product;
        Choice choice;
        for (int64_t& number : product) in >> std::dec >> number;
        for (uint64_t& word : choice.algorithm) in >> std::hex >> word;
        in >> choice.microseconds;
        std::string more;
        if (in.fail() || in >> more) return false;
        choices_[product] = choice;
        return true;
    }
};

}  // namespace lnfree::cuda
