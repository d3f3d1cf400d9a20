// libFuzzer target for lnfree.json, which comes along with weights from anywhere. The first byte says how many layers the
// model beside it has. Every text must be read or refused with BadInput; sites that were read must be fit to compute
// with, and must come back the same from what we write of them.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "data/error.h"
#include "data/json.h"
#include "data/model_folder.h"
#include "dev/engine.h"
#include "dev/run/records.h"
#include "dev/run/settings.h"
#include "dev/run/state.h"

namespace {

using namespace lnfree;

void require(bool condition) {
    if (!condition) std::abort();
}

void read_sites(const Json& record, int L) {
    const Sites sites = sites_from_json(record.at("sites"), L, "file");
    require(sites.all.size() == 3 * static_cast<size_t>(L) + 1);
    for (const Site& site : sites.all) require(site.folded || site.a == 0 || site.sigma_bar > 0);
    require(sites_json(sites_from_json(sites_json(sites), L, "written")) == sites_json(sites));
}

// What --resume reads besides, in parts, and as the state that it makes of them. Values of a wrong type are for its caller
// to report.
template <class Read>
void try_to(const Read& read) try {
    read();
} catch (const JsonError&) {
}

void read_run(const Json& record, int L) {
    try_to([&] {
        for (const Event& e : events_from_json(record.at("events"), Sites(L)))
            require(e.site >= 0 && e.site < 3 * L + 1);
    });
    try_to([&] { check_settings(settings_from_json(record.at("protocol")), L); });
    try_to([&] {
        const Json written = state_json(state_from_json(record, L, "file"));
        require(state_json(state_from_json(written, L, "written")) == written);
    });
    require_checkpoint_version(record, "folder");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const int L = 1 + data[0] % 4;
    try {
        const Json record = parse_lnfree_json(std::string(data + 1, data + size), "file");
        if (record.contains("sites")) read_sites(record, L);
        read_run(record, L);
    } catch (const BadInput& refused) {
        require(std::string(refused.what()).find('\n') == std::string::npos);
    }
    return 0;
}
