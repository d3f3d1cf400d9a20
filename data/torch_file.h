// Files of torch.save: pytorch_model.bin, nanoGPT's ckpt.pt. A zip archive of NAME/data.pkl, a pickle of what was saved, and
// NAME/data/KEY, the bytes of each storage that tensors lie in. The bytes are mapped and stay where they are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/files.h"
#include "data/json.h"
#include "data/tensor_view.h"

namespace lnfree {

// What a file holds: the tensors of its state dict, in the dictionary's order, and nanoGPT's "model_args", null if there
// are none: an object of numbers, strings, booleans and nulls.
struct TorchContents {
    std::vector<TensorView> tensors;
    Json model_args;
};

// The contents of the `size` bytes of a whole file; the views point into `bytes`. The state dict is what was saved, or its
// member "model", "state_dict", "module" or "model_state_dict". `file` names it in messages. BadInput for everything else,
// naming what is wrong: see pickle.h and zip_archive.h.
TorchContents parse_torch_file(const unsigned char* bytes, uint64_t size, const std::string& file);

// A memory-mapped file of torch.save; move-only, and views stay valid across moves. BadInput if it is not a valid one.
class TorchFile {
  public:
    explicit TorchFile(const std::string& path);

    const std::vector<TensorView>& tensors() const { return contents_.tensors; }
    const Json& model_args() const { return contents_.model_args; }
    const std::string& path() const { return map_.path(); }

  private:
    MappedFile map_;
    TorchContents contents_;
};

}  // namespace lnfree
