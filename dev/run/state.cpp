#include "dev/run/state.h"

#include <algorithm>
#include <type_traits>

#include "data/json.h"
#include "dev/run/records.h"
#include "dev/run/settings.h"

namespace lnfree {

RunState captured(const RunState& now, const Engine& model) {
    RunState state = now;
    state.sites = model.sites;
    state.adam_updates = model.updates;
    return state;
}

void restore_engine(Engine& model, const RunState& state) {
    set_sites(model, state.sites);
    model.updates = state.adam_updates;
}

// ---------------------------------------------------------------------------------------------------------------------
// JSON

Json state_json(const RunState& state) {
    Json j;
    j["step"] = state.step;
    j["protocol"] = settings_json(state.settings);
    j["sites"] = sites_json(state.sites);
    j["events"] = events_json(state.events, state.sites);
    j["results"]["val_loss_first"] = number_or_null(state.first_val_loss);
    j["results"]["val_loss_last"] = number_or_null(state.last_val_loss);
    if (state.settings.distill > 0) {
        j["results"]["val_kl"] = number_or_null(state.last_val_kl);
        j["results"]["val_agreement"] = number_or_null(state.last_val_agreement);
    }
    j["resume"]["adam_updates"] = state.adam_updates;
    return j;
}

RunState state_from_json(const Json& record, int L, const std::string& path) {
    RunState state;
    record.at("step").get_to(state.step);
    state.settings = settings_from_json(record.at("protocol"));
    check_settings(state.settings, L);
    state.sites = sites_from_json(record.at("sites"), L, path);
    state.events = events_from_json(record.at("events"), state.sites);
    state.first_val_loss = number_or_nan(record.at("results"), "val_loss_first");
    state.last_val_loss = number_or_nan(record.at("results"), "val_loss_last");
    state.last_val_kl = number_or_nan(record["results"], "val_kl");
    state.last_val_agreement = number_or_nan(record["results"], "val_agreement");
    const Json& resume = record.at("resume");
    resume.at("adam_updates").get_to(state.adam_updates);
    return state;
}

}  // namespace lnfree
