#include "data/error.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"

namespace lnfree {

int check_command(bool json_output) {
    const auto check = backend().check;
    if (check == nullptr)
        throw BadInput(
            "check: this program is the reference itself, which `make test` checks; `train_gpt2_lnfree_cuda check` "
            "holds a GPU against it");
    return print_report(check(json_output ? stderr : stdout), json_output);
}

}  // namespace lnfree
