// info --settings: the table of settings (dev/run/settings.h) as a list; the one in dev/README.md is made by it.
#include <cstdio>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/json.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/run/report.h"
#include "dev/run/settings.h"

namespace lnfree {

namespace {

constexpr std::pair<Command, const char*> kCommands[] = {
    {kPretrain, "pretrain"}, {kRemove, "remove"}, {kFinetune, "finetune"}};

const char* type_name(const Setting& row) {
    static const char* const names[] = {"int", "uint", "number", "bool", "string", "list of strings"};
    return names[row.field.index()];  // in the order of Setting::Field
}

bool is_number(const Setting& row) {
    return row.field.index() < 3;
}

// The table has bounds of numbers that nobody would reach; they are none.
bool has_low(const Setting& row) {
    return is_number(row) && row.low > -1e15;
}
bool has_high(const Setting& row) {
    return is_number(row) && row.high < 1e15;
}

std::string words_of(bool value) {
    return value ? "on" : "off";
}
std::string words_of(double value) {
    return format_general(value);
}
std::string words_of(const std::string& value) {
    return value;
}
std::string words_of(const std::vector<std::string>&) {
    return "";
}
template <class Integer, class = std::enable_if_t<std::is_integral_v<Integer>>>
std::string words_of(Integer value) {
    return std::to_string(value);
}

// What the setting is unless given, as --help says it.
std::string default_of(const Setting& row) {
    if (*row.fallback != '\0') return row.fallback;
    RunSettings untouched;
    return std::visit([&](const auto& field) { return words_of(field(untouched)); }, row.field);
}

std::vector<std::string> commands_of(const Setting& row) {
    std::vector<std::string> names;
    for (const auto& [bit, name] : kCommands)
        if ((row.commands & bit) != 0) names.emplace_back(name);
    return names;
}

std::string joined(const std::vector<std::string>& words, const char* between) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
    return text;
}

Json row_json(const Setting& row) {
    Json j;
    j["key"] = row.key;
    j["flag"] = row.flag != nullptr ? Json(row.flag) : Json();
    j["type"] = type_name(row);
    j["commands"] = commands_of(row);
    j["default"] = default_of(row);
    j["low"] = has_low(row) ? Json(row.low) : Json();
    j["high"] = has_high(row) ? Json(row.high) : Json();
    j["choices"] = row.choices;
    j["trajectory"] = row.trajectory;
    j["recorded"] = row.recorded;
    j["engine_only"] = row.engine_only;
    j["help"] = row.help;
    return j;
}

// "1 to 65536", "at least 0", "fp32, bf16"
std::string bounds_of(const Setting& row) {
    if (!row.choices.empty()) return joined({row.choices.begin(), row.choices.end()}, ", ");
    const bool any_above_0 = row.low > 0 && row.low < 1e-300;  // the smallest number above 0 is the bound
    const std::string low = any_above_0 ? "above 0" : format_general(row.low);
    if (has_low(row) && has_high(row)) return low + " to " + format_general(row.high);
    if (has_low(row)) return any_above_0 ? low : "at least " + low;
    return has_high(row) ? "at most " + format_general(row.high) : "";
}

Table settings_table() {
    Table table({"flag", "key", "commands", "default", "bounds", "trajectory", "what"});
    for (const Setting& row : setting_table()) {
        const std::string flag = row.flag != nullptr ? row.flag : "";
        const std::string commands = row.commands == kAnyRun ? "all" : joined(commands_of(row), ", ");
        const std::string what = std::string(row.help) + (row.engine_only ? " (CUDA engine)" : "");
        table.add_row({flag, row.key, commands, default_of(row), bounds_of(row), row.trajectory ? "yes" : "no", what});
    }
    return table;
}

}  // namespace

int settings_command(const InfoOptions& o) {
    if (!o.model.empty() || !o.size.empty() || o.memory || !o.data.empty())
        throw BadInput("info --settings is about no model; leave out --model, --size, --memory and --data");
    if (o.json_output) {
        Json rows = Json::array();
        for (const Setting& row : setting_table()) rows.push_back(row_json(row));
        print_json(true, {{"settings", rows}});
        return 0;
    }
    const Table table = settings_table();
    std::printf("%s", o.markdown ? table.markdown().c_str() : table.text().c_str());
    return 0;
}

}  // namespace lnfree
