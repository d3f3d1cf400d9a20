#include <cstdio>
#include <filesystem>
#include <string>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "data/story_world.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"

namespace lnfree {

namespace fs = std::filesystem;

int stories_command(const StoriesOptions& o) {
    const bool to_stdout = o.out == "-";
    if (to_stdout && o.json_output) throw BadInput("--out - and --json both want standard output; name a file");
    if (!to_stdout && fs::exists(o.out) && !o.force)
        throw BadInput("--out " + o.out + ": already exists; name another file or give --force");
    StoryWorld world(o.seed);
    std::string text;
    for (uint64_t i = 0; i < o.count; i++) text += Json{{"text", world.next_story()}}.dump() + "\n";
    if (to_stdout) {
        std::fputs(text.c_str(), stdout);
    } else {
        if (fs::path(o.out).has_parent_path()) fs::create_directories(fs::path(o.out).parent_path());
        write_file_atomically(o.out, text);
    }
    print_json(o.json_output, {{"out", o.out}, {"stories", o.count}, {"bytes", text.size()}, {"seed", o.seed}});
    return 0;
}

}  // namespace lnfree
