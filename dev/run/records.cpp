#include "dev/run/records.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "dev/run/settings.h"

namespace lnfree {

void require_checkpoint_version(const Json& record, const std::string& folder) {
    const Json* const version = record.find("checkpoint_version");
    if (version == nullptr)
        throw BadInput(folder +
                       ": a checkpoint of an earlier version of this program; start the run anew, or finish it with "
                       "that version");
    if (*version != kCheckpointVersion)
        throw BadInput(folder + ": checkpoint_version " + quoted_name(version->dump()) +
                       " is not supported; this program goes on from version " + std::to_string(kCheckpointVersion));
}

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

Json number_or_null(double x) {
    return std::isfinite(x) ? Json(x) : Json();
}

double number_or_nan(const Json& j, const char* key) {
    const Json* const found = j.find(key);
    return found != nullptr && found->is_number() ? found->number() : NAN;
}

std::string hex(uint64_t x) {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(x));
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// Sites

const char* norm_name(const Site& site) {
    if (site.folded) return "folded";
    return site.has_layer_norm() ? "layernorm" : site.removed() ? "fakeln" : "gradual";
}

void set_sites(Engine& model, const Sites& sites) {
    model.sites = sites;
    for (Site& site : model.sites.all) site.centred = model.config.centred;
}

double largest_sigma(const Sites& sites) {
    double largest = NAN;
    for (const Site& site : sites.all) largest = std::fmax(largest, std::fmax(site.sigma_bar, site.sigma_avg));
    return largest;
}

Json sites_json(const Sites& sites) {
    Json list = Json::array();
    for (const Site& site : sites.all) {
        Json j;
        j["site"] = site_name(site);
        j["norm"] = norm_name(site);
        if (norm_name(site) == std::string("gradual")) {
            j["a"] = site.a;
            if (site.tapers) j["tapers"] = true;
        }
        j["sigma_bar"] = number_or_null(site.sigma_bar);
        j["sigma_avg"] = number_or_null(site.sigma_avg);
        j["running"] = number_or_null(site.running);
        if (std::isfinite(site.sigma_bar_0)) {
            j["sigma_bar_0"] = site.sigma_bar_0;
            j["own_position0"] = site.own_position0;
            j["own_end_of_text"] = site.own_end_of_text;
        }
        list.push_back(j);
    }
    return list;
}

namespace {

// How far the site has gone, from "norm" and, on the way, "a". `where` begins messages.
void read_norm(Site& site, const Json& j, const std::string& where) {
    const std::string norm = j.value("norm", "");
    if (norm != "layernorm" && norm != "gradual" && norm != "fakeln" && norm != "folded")
        throw BadInput(where + " has norm " + quoted_name(norm) + "; expected layernorm, gradual, fakeln or folded");
    if (j.contains("own_share") && j["own_share"] != 0)
        throw BadInput(where +
                       " has an own_share, which an earlier version of this program wrote half-way through a removal; "
                       "let that version finish it");
    site.folded = norm == "folded";
    site.a = norm == "layernorm" || site.folded ? 0 : norm == "fakeln" ? 1 : number_or_nan(j, "a");
    site.tapers = j.value("tapers", false);
    if (norm == "gradual" && !(site.a > 0 && site.a < 1))
        throw BadInput(where + " is gradual but its a is not between 0 and 1");
}

void read_site(Site& site, const Json& j, const std::string& where) {
    read_norm(site, j, where);
    site.sigma_bar = number_or_nan(j, "sigma_bar");
    site.sigma_avg = number_or_nan(j, "sigma_avg");
    site.running = number_or_nan(j, "running");
    site.sigma_bar_0 = number_or_nan(j, "sigma_bar_0");
    site.own_position0 = j.value("own_position0", false);
    site.own_end_of_text = j.value("own_end_of_text", false);
    const bool uses_sigma_bar = !site.folded && !site.has_layer_norm();
    if (uses_sigma_bar && (!(site.sigma_bar > 0) || (site.has_special_positions() && !(site.sigma_bar_0 > 0))))
        throw BadInput(where + " is " + norm_name(site) + " but has no positive sigma_bar");
}

}  // namespace

Sites sites_from_json(const Json& list, int L, const std::string& path) try {
    Sites sites(L);
    if (!list.is_array() || list.size() != sites.all.size())
        throw BadInput(path + ": \"sites\" must list the " + std::to_string(sites.all.size()) +
                       " sites of a model with " + std::to_string(L) + " layers");
    for (size_t i = 0; i < sites.all.size(); i++) {
        const std::string expected = site_name(sites.all[i]);
        if (!list[i].is_object() || list[i].value("site", "") != expected)
            throw BadInput(path + ": entry " + std::to_string(i) + " of \"sites\" must be site " + expected);
        read_site(sites.all[i], list[i], path + ": site " + expected);
    }
    return sites;
} catch (const JsonError&) {
    throw BadInput(path +
                   ": \"sites\" holds a value of the wrong type; take the file from the same folder as the weights");
}

// ---------------------------------------------------------------------------------------------------------------------
// Events

Json events_json(const std::vector<Event>& events, const Sites& sites) {
    Json list = Json::array();
    for (const Event& e : events) {
        Json j;
        j["step"] = e.step;
        j["site"] = site_name(sites.all[static_cast<size_t>(e.site)]);
        j["action"] = e.action;
        j["sigma_bar"] = number_or_null(e.sigma_bar);
        list.push_back(j);
    }
    return list;
}

std::vector<Event> events_from_json(const Json& list, const Sites& sites) {
    std::vector<Event> events;
    for (const Json& j : list)
        for (size_t i = 0; i < sites.all.size(); i++)
            if (j.at("site") == site_name(sites.all[i]))
                events.push_back({j.at("step").get<int64_t>(), static_cast<int>(i), j.at("action").get<std::string>(),
                                  number_or_nan(j, "sigma_bar")});
    return events;
}

// ---------------------------------------------------------------------------------------------------------------------
// Settings

Json settings_json(const Settings& s) {
    RunSettings all;
    all.values = s;
    Json j;
    for (const Setting& row : setting_table())
        if (row.recorded) std::visit([&](auto field) { j[row.key] = field(all); }, row.field);
    return j;
}

Settings settings_from_json(const Json& j) {
    RunSettings all;
    const auto came_later = [&](const std::string& key) {
        const auto later = {"distill", "taper", "keep_f", "lora", "lora_embeddings", "norm_scale", "shrink_neurons"};
        return !j.contains(key) && std::find(later.begin(), later.end(), key) != later.end();
    };
    for (const Setting& row : setting_table())
        if (row.recorded && !came_later(row.key))
            std::visit([&](auto field) { j.at(row.key).get_to(field(all)); }, row.field);
    return all.values;
}

}  // namespace lnfree
