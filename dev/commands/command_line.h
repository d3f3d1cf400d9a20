// The flags of every command, and their --help.
#pragma once

#include <functional>

namespace lnfree {

// Reads the arguments and returns what they ask for, to be called: the command with its options. After --help, which is
// printed here, that is nothing but success. Throws BadInput for what cannot be understood.
std::function<int()> parse_command_line(int argc, char** argv);

}  // namespace lnfree
