// Sites, events and settings as JSON: lnfree.json's parts (keys: data/README.md).
#pragma once

#include <string>
#include <vector>

#include "data/json.h"
#include "dev/engine.h"

namespace lnfree {

// What a checkpoint says of its own layout. Those of unfinished runs from before version 2 say nothing.
constexpr int kCheckpointVersion = 2;

// Throws BadInput, naming it, for a checkpoint's lnfree.json of a version that this program cannot go on from.
void require_checkpoint_version(const Json& record, const std::string& folder);

// "layernorm", "fakeln", "folded"; "gradual" for a site on its way
const char* norm_name(const Site& site);

Json number_or_null(double x);                         // null unless finite
double number_or_nan(const Json& j, const char* key);  // NaN if absent or no number

// 16 hexadecimal digits: how fingerprints are written.
std::string hex(uint64_t x);

Json sites_json(const Sites& sites);
// Makes these the model's sites. Whether norms are centred is no record's to say: it stays as the model's config has it.
void set_sites(Engine& model, const Sites& sites);
// The largest mean sigma of a site that they say, measured or frozen; NaN if they say none.
double largest_sigma(const Sites& sites);
// Throws BadInput unless the list names exactly the sites of an L-layer model, in order, with usable sigma_bars.
Sites sites_from_json(const Json& list, int L, const std::string& path);

Json events_json(const std::vector<Event>& events, const Sites& sites);
std::vector<Event> events_from_json(const Json& list, const Sites& sites);

// Every row of the table of settings (dev/run/settings.h) that is a field of Settings, in the table's order.
Json settings_json(const Settings& s);
// Throws JsonError if a key lacks; but runs from before --distill had no teacher.
Settings settings_from_json(const Json& j);

}  // namespace lnfree
