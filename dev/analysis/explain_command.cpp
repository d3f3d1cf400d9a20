#include "dev/analysis/explain_command.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "data/array_file.h"
#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "dev/analysis/explain_output.h"
#include "dev/analysis/explain_page.h"
#include "dev/analysis/explain_paths.h"
#include "dev/run/models.h"
#include "dev/run/signals.h"

namespace lnfree {
namespace analysis {

namespace {

void require_new(const std::string& flag, const std::string& path, bool force) {
    std::error_code ignored;
    if (path.empty()) return;
    if (std::filesystem::is_directory(path, ignored)) throw BadInput(flag + " " + path + ": is a folder; name a file");
    if (!force && std::filesystem::exists(path, ignored))
        throw BadInput(flag + " " + path + ": already exists; name another file or give --force");
}

void check_files(const ExplainOptions& o) {
    require_new("--html", o.html, o.force);
    require_new("--save", o.save, o.force);
    if (!o.save.empty() && !is_array_file(o.save))
        throw BadInput("--save " + o.save + ": give a name that ends in .safetensors or .npz");
}

Explained explain_all(const ExplainOptions& o, const LoadedModel& loaded) {
    Engine& model = *loaded.model;
    if (o.paths) require_linear_paths(model.sites, o.model);
    Depth depth{o.neurons, o.paths, loaded.tokenizer ? static_cast<int64_t>(loaded.tokenizer->vocab_size()) : 0};
    Explained x;
    x.folder = o.model;
    x.config = model.config;
    x.layernorm_free = model.sites.all_linear_everywhere();
    x.exact = model.sites.f().removed();
    x.tokenizer = loaded.tokenizer.get();
    x.all = explain(model, read_questions(o, loaded), depth, [] {
        if (g_signal != 0) throw Interrupted{g_signal};
    });
    return x;
}

void print(const Table& table, bool markdown) {
    std::printf("%s\n", markdown ? table.markdown().c_str() : table.text().c_str());
}

void print_one(const Explained& x, const Explanation& e, const ExplainOptions& o) {
    const PromptQuestion& q = e.question;
    const std::string last = x.text_of(q.tokens[static_cast<size_t>(q.position)]);
    std::printf("%s at position %lld, behind \"%s\": %.6f\n\n", x.what_of(e).c_str(),
                static_cast<long long>(q.position), last.c_str(), e.logit);
    for (const Table& table : tables_of(x, e, o)) print(table, o.markdown);
    std::printf("the sum lacks %.2g of the logit (rounding)\n", e.remainder());
    if (!x.exact)
        std::printf(
            "ln_f is %s: contributions hold its sigma where it is. What taking components away would take, one at "
            "a time, adds up to %.4f: %+.4f is what linearising misses\n",
            x.norm(), e.sum() - e.missed(), e.missed());
}

void print_result(const Explained& x, const ExplainOptions& o) {
    if (x.all.size() > 1)
        print(overview_of(x), o.markdown);
    else
        print_one(x, x.all[0], o);
    for (const std::string& path : {o.html, o.save})
        if (!path.empty() && !o.markdown) std::printf("wrote %s\n", path.c_str());
}

// What a reader of --save must know to name the numbers.
std::map<std::string, std::string> metadata_of(const Explained& x) {
    Json names = Json::array();
    for (const Component& c : components_of(x.config)) names.push_back(c.name);
    return {{"model", printable(x.folder)}, {"what", "explain"}, {"components", names.dump()}};
}

}  // namespace
}  // namespace analysis

Json explain_command(const analysis::ExplainOptions& o) {
    using namespace analysis;
    stop_on_signals();
    check_files(o);
    const LoadedModel loaded = load_model(o.model);
    const Explained x = explain_all(o, loaded);
    if (!o.html.empty()) write_file_atomically(o.html, page_of(x));
    if (!o.save.empty()) write_arrays(o.save, arrays_of(x, o), metadata_of(x));
    if (!o.json_output) print_result(x, o);
    return o.json_output ? json_of(x, o) : Json();
}

}  // namespace lnfree
