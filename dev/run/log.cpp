#include "dev/run/log.h"

#include <cerrno>
#include <filesystem>
#include <sstream>

#include "data/error.h"
#include "data/files.h"
#include "data/json.h"

namespace lnfree {

namespace {

constexpr uint64_t kLargestLog = uint64_t{1} << 31;

// The lines of steps before `step`. Half a line, from a machine that lost power, is no line.
std::string lines_before(const std::string& path, int64_t step) {
    std::string kept;
    std::istringstream lines(read_file(path, kLargestLog));
    for (std::string line; std::getline(lines, line);) {
        const Json j = json_in(line).value_or(Json());
        const bool of_a_step = j.is_object() && j.contains("step") && j["step"].is_number_integer();
        if (of_a_step && j["step"].get<int64_t>() < step) kept += line + "\n";
    }
    return kept;
}

}  // namespace

void RunLog::open(const std::string& path, int64_t from_step) {
    const bool continues = from_step > 0 && std::filesystem::exists(path);
    write_file_atomically(path, continues ? lines_before(path, from_step) : "");
    path_ = path;
    file_.reset(std::fopen(path.c_str(), "ab"));
    if (!file_) throw RunFailure(path + ": cannot be written: " + errno_text(errno));
}

void RunLog::write(const Json& j) {
    if (file_ == nullptr) return;
    const std::string line = j.dump() + "\n";
    if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() || std::fflush(file_.get()) != 0)
        throw RunFailure(path_ + ": cannot be written: " + errno_text(errno) + "; make room or write to another disk");
}

}  // namespace lnfree
