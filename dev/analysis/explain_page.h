// Explanations as one page: `analyze explain --html`. Self-contained: a style, a script and the numbers, nothing loaded
// from elsewhere. Wide or narrow, light or dark, by mouse or by keyboard; every number is text.
#pragma once

#include <string>

#include "dev/analysis/explain_output.h"

namespace lnfree {
namespace analysis {

// The page of the first kMostOnPage explanations, which are chosen from on it.
constexpr size_t kMostOnPage = 100;
std::string page_of(const Explained& x);

}  // namespace analysis
}  // namespace lnfree
