// Two JSON results of the same thing, which may differ by rounding.
#pragma once

#include <doctest/doctest.h>

#include <string>

#include "data/json.h"

namespace lnfree {

// Fails for numbers that differ by allowed * (scale + the larger) or more, and for anything else that differs.
inline void check_alike(const Json& a, const Json& b, double allowed, double scale) {
    if (a.is_number() && b.is_number()) {
        CHECK(a.get<double>() == doctest::Approx(b.get<double>()).epsilon(allowed).scale(scale));
        return;
    }
    if (!a.is_array() && !a.is_object()) {
        CHECK(a == b);
        return;
    }
    REQUIRE(a.size() == b.size());
    if (a.is_array())
        for (size_t i = 0; i < a.size(); i++) check_alike(a[i], b[i], allowed, scale);
    else
        for (const auto& [key, value] : a.items()) {
            const std::string name = key;  // a binding cannot be captured
            CAPTURE(name);
            check_alike(value, b.at(key), allowed, scale);
        }
}

}  // namespace lnfree
