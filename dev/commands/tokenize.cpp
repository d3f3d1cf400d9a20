#include "data/tokenize.h"

#include <algorithm>
#include <cstdio>
#include <memory>

#include "data/console.h"
#include "dev/commands/commands.h"
#include "dev/commands/output.h"
#include "dev/run/signals.h"

namespace lnfree {
namespace {

// With a progress bar; Ctrl-C and SIGTERM end it with nothing written.
TokenizeResult tokenize_watched(const TokenizeOptions& o) {
    stop_on_signals();
    std::unique_ptr<ProgressBar> bar;
    return tokenize_files(o, [&](uint64_t done, uint64_t total) {
        if (!bar) bar = std::make_unique<ProgressBar>("tokenize", total, stderr);
        bar->update(done);
        if (g_signal == 0) return;
        bar.reset();
        std::fprintf(stderr, "stopped; nothing was written\n");
        throw Interrupted{g_signal};
    });
}

void print_result(const TokenizeResult& r) {
    Table table({"split", "documents", "tokens"});
    table.add_row({"train", format_count(r.documents_train), format_count(r.tokens_train)});
    table.add_row({"val", format_count(r.documents_val), format_count(r.tokens_val)});
    const double bytes_per_s = static_cast<double>(r.bytes) / std::max(r.seconds, 1e-9);
    std::printf("%s%s of text in %s, %s/s\n", table.text().c_str(), format_bytes(r.bytes).c_str(),
                format_duration(r.seconds).c_str(), format_bytes(static_cast<uint64_t>(bytes_per_s)).c_str());
    if (r.special_as_text > 0) {
        std::printf(
            "special tokens such as <|endoftext|> stand in the text %s times and were taken for ordinary text "
            "(--allow-special makes them tokens)\n",
            format_count(r.special_as_text).c_str());
    }
    if (r.skipped_lines > 0) {
        std::printf("%s bad lines were passed over, the first: %s\n", format_count(r.skipped_lines).c_str(),
                    r.first_skipped_line.c_str());
    }
}

}  // namespace

int tokenize_command(const TokenizeOptions& o, bool json_output) {
    const TokenizeResult r = tokenize_watched(o);
    if (!json_output) print_result(r);
    print_json(json_output, {{"documents", {{"train", r.documents_train}, {"val", r.documents_val}}},
                             {"tokens", {{"train", r.tokens_train}, {"val", r.tokens_val}}},
                             {"files", r.paths},
                             {"bytes", r.bytes},
                             {"special_as_text", r.special_as_text},
                             {"skipped_lines", r.skipped_lines},
                             {"seconds", r.seconds}});
    return 0;
}

}  // namespace lnfree
