// What every version of the matrix product shares: the name of an orientation, and nothing else.
#pragma once

namespace lnfree {

// Whether an operand enters the product as it lies in memory or transposed.
enum class Transpose : bool { No, Yes };

}  // namespace lnfree
