// What people name as a model: a model folder, or something near one. And what to say where it is none.
#pragma once

#include <string>
#include <vector>

#include "data/error.h"

namespace lnfree {

// What to read for `--model NAME`: a folder with a config.json, or a file of torch.save, as nanoGPT's ckpt.pt is: itself, or
// in a folder without config.json. Of a folder of Hugging Face's cache (models--NAME) that is the snapshot that its refs/main names, or the
// only one, and `notes` gets a line that says so. BadInput for everything else, with what it is and what helps.
std::string find_model(const std::string& name, std::vector<std::string>& notes);

}  // namespace lnfree
