// log.jsonl: one JSON object per line (keys: data/README.md).
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "data/json.h"

namespace lnfree {

// Appends objects; every line is on its way to the disk before the run goes on. RunFailure when it cannot be written. One
// that was not opened takes lines and writes none: that of a process which does not lead.
class RunLog {
  public:
    // Opens the log; lines of steps from `from_step` on are cut off, which is how a resumed run continues it.
    void open(const std::string& path, int64_t from_step);
    void write(const Json& line);

  private:
    struct Close {
        void operator()(FILE* f) const { std::fclose(f); }
    };
    std::string path_;
    std::unique_ptr<FILE, Close> file_;
};

}  // namespace lnfree
