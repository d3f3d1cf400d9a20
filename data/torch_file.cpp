#include "data/torch_file.h"

#include <cstring>
#include <map>

#include "data/pickle.h"
#include "data/zip_archive.h"

namespace lnfree {

namespace {

using Kind = PickleValue::Kind;

bool begins_with(const unsigned char* bytes, uint64_t size, const std::string& magic) {
    return size >= magic.size() && std::memcmp(bytes, magic.data(), magic.size()) == 0;
}

// torch.save before version 1.6 wrote one pickle after another, the first of them a magic number.
bool is_old_format(const unsigned char* bytes, uint64_t size) {
    return begins_with(bytes, size, std::string("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14));
}

void require_zip(const unsigned char* bytes, uint64_t size, const std::string& file) {
    if (begins_as_zip(bytes, size)) return;
    if (begins_with(bytes, size, "version https://git-lfs"))
        throw BadInput(file + " is only a Git LFS pointer to the weights; fetch them with `git lfs pull`");
    if (is_old_format(bytes, size))
        throw BadInput(file +
                       " is in the format of PyTorch before 1.6, which is not read; write it anew: python3 -c \"import "
                       "torch; f = '" +
                       file + "'; torch.save(torch.load(f, map_location='cpu', weights_only=True), f)\"");
    throw BadInput(file + " is not a file of torch.save" + (size == 0 ? ": it is empty" : "") +
                   "; fetch it again, or save the model with save_pretrained");
}

// The archive's files by name, without the folder that all of them lie in.
std::map<std::string, StorageBytes> files_in(const unsigned char* bytes, uint64_t size, const std::string& file) {
    const std::string pickle = "/data.pkl";
    const std::vector<ZipEntry> entries = read_zip_directory(bytes, size, file);
    std::string folder;
    for (const ZipEntry& entry : entries) {
        const size_t slash = entry.name.find('/');
        if (slash != std::string::npos && entry.name.substr(slash) == pickle) folder = entry.name.substr(0, slash + 1);
    }
    if (folder.empty())
        throw BadInput(file + " is a zip archive without a data.pkl: not a file of torch.save; is it the right file?");
    std::map<std::string, StorageBytes> files;
    for (const ZipEntry& entry : entries)
        if (entry.name.compare(0, folder.size(), folder) == 0)
            files[entry.name.substr(folder.size())] = {bytes + entry.offset, entry.size};
    return files;
}

bool holds_tensors(const PickleValue* value) {
    if (value == nullptr || value->kind != Kind::dictionary) return false;
    for (size_t i = 1; i < value->items.size(); i += 2)
        if (value->items[i]->kind == Kind::tensor) return true;
    return false;
}

// The dictionary of tensors: what was saved, or under the name that training scripts give it beside their own state.
const PickleValue& state_dict_in(const PickleValue& saved, const std::string& file) {
    if (holds_tensors(saved.find("model"))) return *saved.find("model");  // nanoGPT's has a tensor beside it
    for (const char* name : {"state_dict", "module", "model_state_dict"})
        if (holds_tensors(saved.find(name))) return *saved.find(name);
    if (holds_tensors(&saved)) return saved;
    throw BadInput(file +
                   " holds no state dict: neither a dictionary of tensors, nor one under \"model\" or \"state_dict\"; "
                   "save it with torch.save(model.state_dict(), ...)");
}

std::vector<TensorView> tensors_in(const Pickle& pickle, const std::string& file) {
    const PickleValue& dictionary = state_dict_in(pickle.root(), file);
    std::vector<TensorView> tensors;
    for (size_t i = 0; i < dictionary.items.size(); i += 2) {
        const PickleValue &key = *dictionary.items[i], &value = *dictionary.items[i + 1];
        if (value.kind != Kind::tensor) continue;
        if (key.kind != Kind::text) throw BadInput(file + " holds a tensor whose name is no text; is it a state dict?");
        TensorView view = pickle.tensor(value);
        view.name = key.text;
        tensors.push_back(std::move(view));
    }
    return tensors;
}

// A plain value; anything else becomes null.
Json plain_json(const PickleValue& value) {
    switch (value.kind) {
        case Kind::boolean:
            return value.integer != 0;
        case Kind::integer:
            return value.integer;
        case Kind::number:
            return value.number;
        case Kind::text:
            return value.text;
        default:
            return nullptr;
    }
}

Json model_args_in(const PickleValue& saved) {
    const PickleValue* const given = saved.find("model_args");
    constexpr size_t most = 100;  // nanoGPT has seven
    if (given == nullptr || given->kind != Kind::dictionary || given->items.size() > 2 * most) return nullptr;
    Json args = Json::object();
    for (size_t i = 0; i < given->items.size(); i += 2)
        if (given->items[i]->kind == Kind::text) args[given->items[i]->text] = plain_json(*given->items[i + 1]);
    return args;
}

}  // namespace

TorchContents parse_torch_file(const unsigned char* bytes, uint64_t size, const std::string& file) {
    require_zip(bytes, size, file);
    const auto files = files_in(bytes, size, file);
    const auto order = files.find("byteorder");
    if (order != files.end() && !begins_with(order->second.data, order->second.size, "little"))
        throw BadInput(file +
                       " was saved by a big-endian machine; load it with torch there or here, and save it again");
    const auto storage = [&](const std::string& key) {
        const auto found = files.find("data/" + key);
        if (found == files.end())
            throw BadInput(file + " lacks the storage " + quoted_name(key) +
                           " that its tensors lie in; fetch it again");
        return found->second;
    };
    const StorageBytes& pickled = files.at("data.pkl");
    const Pickle pickle(pickled.data, pickled.size, storage, file);
    return {tensors_in(pickle, file), model_args_in(pickle.root())};
}

TorchFile::TorchFile(const std::string& path)
    : map_(path), contents_(parse_torch_file(map_.data(), map_.size(), path)) {
    for (TensorView& tensor : contents_.tensors) tensor.mapped = true;
}

}  // namespace lnfree
