// What `analyze explain` is asked, read and checked: prompts and the tokens whose logits they are about.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dev/analysis/explain.h"
#include "dev/run/models.h"

namespace lnfree {
namespace analysis {

// What `analyze explain` was asked for.
struct ExplainOptions {
    std::string model;
    std::string prompt, prompts;  // text, or a file with one a line
    bool has_prompt = false;      // an empty prompt is one too
    std::string target, against;  // text of one token, or "#ID"; empty: the likeliest token, none
    int64_t position = -1;        // -1: the last of the prompt
    int64_t top = 20;             // rows of the tables on the screen
    bool bos = false;             // end-of-text in front of every prompt
    bool neurons = false, sources = false, paths = false;
    std::string html, save;  // files to write; empty: none
    bool markdown = false, json_output = false, force = false;
};

// The id that `text` stands for: "#123", or text that is exactly one token. BadInput, beginning with `where`, if it is
// none.
int32_t token_named(const std::string& text, const LoadedModel& loaded, const std::string& folder,
                    const std::string& where);

// From --prompt, or from the lines of --prompts: plain text, or JSON objects, whichever the first line is:
//     {"prompt": TEXT or "tokens": [IDS], "target": TOKEN, "against": TOKEN, "position": N}
// of which all but the first are optional and win over the flags. Blank lines are passed over. BadInput says what is wrong.
std::vector<PromptQuestion> read_questions(const ExplainOptions& o, const LoadedModel& loaded);

}  // namespace analysis
}  // namespace lnfree
