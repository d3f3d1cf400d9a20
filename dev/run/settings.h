// The one table of settings: a row for every value that pretrain, remove and finetune take. The command line, --help,
// lnfree.json, the checks, --dry-run and the list in dev/README.md all come from it. A new setting is one row.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "dev/engine.h"

namespace lnfree {

// All that the flags of a run set. Settings is the trajectory; the rest changes no number of the trained model.
struct RunSettings {
    Settings values;
    std::string model, out, tokenizer;
    std::string teacher;  // empty: `model`, as it was before the run
    std::vector<std::string> data, val;
    int64_t tokens = 0;            // 0: not given; --steps follow from it
    double hours = 0;              // 0: no such budget
    int64_t eval_every = 0;        // 0: ten times in the run
    int64_t val_tokens = -1;       // -1: eight steps' worth, 16,384 to 131,072; 0: all
    int64_t save_every = -1;       // -1: ten times in the run, at least 50 steps apart; 0: never
    int64_t keep_checkpoints = 0;  // after a finished run
    EngineOptions engine;
    std::set<std::string> given;  // keys of the rows that the command line named: they override the preset

    bool has(const std::string& key) const { return given.count(key) > 0; }
};

enum Command : unsigned { kPretrain = 1, kRemove = 2, kFinetune = 4, kAnyRun = 7 };

struct Setting {
    using Field = std::variant<int64_t& (*)(RunSettings&), uint64_t& (*)(RunSettings&), double& (*)(RunSettings&),
                               bool& (*)(RunSettings&), std::string& (*)(RunSettings&),
                               std::vector<std::string>& (*)(RunSettings&)>;
    const char* key;   // in lnfree.json and in RunSettings::given
    const char* flag;  // "--gap-mlp"; null: not on the command line, follows from others
    Field field;
    double low, high;      // bounds of a number, both allowed
    unsigned commands;     // which take it
    bool trajectory;       // a run goes on with the value that it began with: such a flag is refused with --resume
    bool recorded;         // a field of Settings: a key of "protocol" in lnfree.json
    const char* fallback;  // for --help: what it is unless given, in words; "" if the field's own value says it
    const char* help;
    bool engine_only = false;               // only where backend().use_options is there
    std::vector<const char*> choices = {};  // of a word
};

// In the order of lnfree.json's "protocol" and of --help.
const std::vector<Setting>& setting_table();
// RunFailure for a key that no row has: a mistake in the program.
const Setting& setting_named(const std::string& key);

// What is wrong with this text as the row's value, for a line that begins with the flag; empty: nothing. The command line
// and set() refuse the same texts with the same words.
std::string problem_with(const Setting& row, const std::string& text);

// Sets a value as the command line does: tests use it. Throws BadInput for what the table does not allow.
void set(RunSettings& s, const std::string& key, const std::string& value);

// Presets set, given values override, starts follow from gaps (protocol.md 4). L layers, n_ctx the model's longest
// sequence. Where a preset chooses micro-batches, there are enough of them for each of `processes`. Throws BadInput for an
// unknown preset and for combinations that cannot work.
Settings resolve_settings(const RunSettings& given, bool removes, int L, int64_t n_ctx, int64_t parameters,
                          int64_t processes = 1);

// From scratch the optimiser is the one customary for pretraining GPT-2: beta2 0.95, weight decay 0.1, floor lr / 10, and
// twice auto's warm-up. `resolved` is what resolve_settings made of the same flags. Throws BadInput as check_settings.
Settings pretraining_settings(Settings resolved, const RunSettings& given, int L, int64_t parameters);

// What must hold whatever the values came from: flags, or a checkpoint's lnfree.json. Throws BadInput.
void check_settings(const Settings& s, int L);

}  // namespace lnfree
