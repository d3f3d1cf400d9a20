// libFuzzer target for lnfree.json, which comes along with weights from anywhere. The first byte says how many layers the
// model beside it has. Every text must be read or refused with BadInput; sites that were read must be fit to compute
// with, and must come back the same from what we write of them.
#include "train_gpt2_lnfree.cpp"

namespace {

using namespace lnfree;

void require(bool condition) {
    if (!condition) std::abort();
}

void read_sites(const json& record, int L) {
    const Sites sites = sites_from_json(record.at("sites"), L, "file");
    require(sites.all.size() == 3 * static_cast<size_t>(L) + 1);
    for (const Site& site : sites.all) require(site.norm != Norm::fake_ln || site.sigma_bar > 0);
    require(sites_json(sites_from_json(json(sites_json(sites)), L, "written")) == sites_json(sites));
}

// What --resume reads besides. Values of a wrong type are for its caller to report.
void read_run(const json& record, int L) try {
    for (const Event& event : events_from_json(record.at("events"), Sites(L))) require(event.site < 3 * L + 1);
    check_protocol(protocol_from_json(record.at("protocol")), L);
} catch (const json::exception&) {
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const int L = 1 + data[0] % 4;
    try {
        const json record = parse_lnfree_json(std::string(data + 1, data + size), "file");
        read_run(record, L);
        if (record.contains("sites")) read_sites(record, L);
    } catch (const BadInput& refused) {
        require(std::string(refused.what()).find('\n') == std::string::npos);
    }
    return 0;
}
