// Pickles, as torch.save writes them into its files: of Python's small stack machine what a dictionary of tensors needs,
// and of all the names that a pickle can call the few that PyTorch writes for one. Nothing is ever called: a name stands
// for what its result is known to look like, and any other name is refused when it is read. Untrusted input: memory
// grows with the pickle's own bytes, nothing recurses, and every tensor is checked to lie within its storage.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/tensor_view.h"

namespace lnfree {

// One value of a pickle. Lists and dictionaries may hold themselves.
struct PickleValue {
    enum class Kind { none, boolean, integer, number, text, tuple, list, dictionary, name, storage, tensor };

    Kind kind = Kind::none;
    int64_t integer = 0;                    // integer, boolean; of a storage its elements; of a tensor its index
    double number = 0;                      // number
    std::string text;                       // text, bytes too; of a name "module.name"; of a storage its key
    std::vector<const PickleValue*> items;  // of a tuple or a list; of a dictionary keys and values in turn

    // The value of a dictionary's key, the last one if it is repeated; null if this is none or has none.
    const PickleValue* find(const std::string& key) const;
};

// The bytes that tensors lie in.
struct StorageBytes {
    const unsigned char* data = nullptr;
    uint64_t size = 0;
};

class Pickle {
  public:
    // Where the bytes of a storage are, by its key. Throws BadInput if there are none.
    using Storages = std::function<StorageBytes(const std::string& key)>;

    // Reads a pickle of `size` bytes. Views of its tensors point into the storages. `file` names it in messages. BadInput,
    // with the name, where it asks for a name that a state dict does not need; or if it is damaged or too large.
    Pickle(const unsigned char* bytes, uint64_t size, const Storages& storages, const std::string& file);

    const PickleValue& root() const { return *root_; }

    // The view of a value of kind tensor; its name is empty.
    const TensorView& tensor(const PickleValue& value) const { return tensors_[static_cast<size_t>(value.integer)]; }

  private:
    friend class PickleMachine;

    std::deque<PickleValue> values_;
    std::deque<TensorView> tensors_;
    const PickleValue* root_ = nullptr;
};

}  // namespace lnfree
