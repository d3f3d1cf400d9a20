// pretrain, remove, finetune: dev/run does the work.
#include "dev/run/run.h"

#include "data/error.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"

namespace lnfree {

int run_command(const RunRequest& request) {
    const RunSettings& s = request.settings;
    if (!request.resume && request.command != "pretrain" && s.model.empty())
        throw BadInput("--model is required: the folder of the model to start from");
    print_json(request.json_output, run(request));
    return 0;
}

}  // namespace lnfree
