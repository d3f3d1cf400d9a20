// The laboratory of the matrix product: checks every version of the ladder, times it beside what the processor can do and
// beside other libraries, writes the table.
//
//   make dev/cpu/matmul && dev/cpu/matmul [VERSION] [--seconds S] [--json | --readme]
//
// Exit 0 if every version is right, 1 if one is wrong (it is named), 2 for bad use.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "data/console.h"
#include "data/error.h"
#include "data/files.h"
#include "data/json.h"
#include "dev/cpu/libraries.h"
#include "dev/cpu/machine.h"
#include "dev/cpu/matmul_check.h"
#include "dev/cpu/matmul_versions.h"
#include "dev/cpu/peak.h"

namespace lnfree {
namespace {

constexpr const char* USAGE =
    "Usage: dev/cpu/matmul [VERSION] [--seconds S] [--json | --readme]\n"
    "  VERSION      only this version of the ladder, such as 6 (all of them)\n"
    "  --seconds S  time for each version and shape (1); slow versions take one product, however long\n"
    "  --json       one JSON object on standard output, the rest on standard error\n"
    "  --readme     write the table into dev/cpu/README.md\n";

constexpr const char* README = "dev/cpu/README.md";
constexpr const char* TABLE_BEGIN = "<!-- matmul ladder -->\n";
constexpr const char* TABLE_END = "<!-- end of matmul ladder -->\n";

// ---- what to do -----------------------------------------------------------------------------------------------------

struct Options {
    std::vector<MatmulVersion> versions;
    double seconds = 1.0;
    bool json = false, readme = false, help = false;
};

std::string known_versions() {
    std::string list;
    for (const MatmulVersion& version : matmul_versions) list += " " + std::to_string(version.number);
    return list;
}

// "6" or "v6". BadInput if there is no such version.
MatmulVersion find_version(const std::string& word) {
    for (const MatmulVersion& version : matmul_versions) {
        const std::string number = std::to_string(version.number);
        if (word == number || word == "v" + number) return version;
    }
    throw BadInput("there is no version " + quoted_name(word) + "; choose one of:" + known_versions());
}

double parse_seconds(const std::string& word) {
    char* end = nullptr;
    const double seconds = std::strtod(word.c_str(), &end);
    if (word.empty() || *end != '\0' || !(seconds > 0.0 && seconds <= 3600.0))
        throw BadInput("--seconds needs a number above 0 and up to 3600, not " + quoted_name(word));
    return seconds;
}

Options parse_options(const std::vector<std::string>& words) {
    Options options;
    for (size_t i = 0; i < words.size(); ++i) {
        const std::string& word = words[i];
        if (word == "--help" || word == "-h") {
            options.help = true;
        } else if (word == "--json") {
            options.json = true;
        } else if (word == "--readme") {
            options.readme = true;
        } else if (word == "--seconds") {
            options.seconds = parse_seconds(i + 1 < words.size() ? words[++i] : "");
        } else if (!word.empty() && word[0] == '-') {
            throw BadInput("unknown flag " + quoted_name(word) + "; dev/cpu/matmul --help lists them");
        } else if (options.versions.empty()) {
            options.versions.push_back(find_version(word));
        } else {
            throw BadInput("one version at a time, or none for all of them; not also " + quoted_name(word));
        }
    }
    if (options.readme && options.json) throw BadInput("--readme and --json exclude each other");
    if (options.readme && !options.versions.empty()) throw BadInput("--readme needs all versions; leave VERSION out");
    if (options.versions.empty()) options.versions.assign(std::begin(matmul_versions), std::end(matmul_versions));
    return options;
}

// ---- checking -------------------------------------------------------------------------------------------------------

// RunFailure naming the version and the product if one is wrong or depends on the number of threads.
void check(const std::vector<MatmulVersion>& versions) {
    const auto each = [&](const MatmulShape& shape, const auto& find_fault) {
        for (const Transpose ta : {Transpose::No, Transpose::Yes})
            for (const Transpose tb : {Transpose::No, Transpose::Yes}) {
                const MatmulProblem<float> problem(ta, tb, shape);
                for (const MatmulVersion& version : versions) {
                    const std::string fault = find_fault(version.function, problem);
                    if (!fault.empty()) throw RunFailure("version " + std::to_string(version.number) + ": " + fault);
                }
            }
    };
    for (const MatmulShape& shape : matmul_check_shapes()) each(shape, wrong_product<float, MatmulFunction>);
    for (const MatmulShape& shape : matmul_thread_shapes) each(shape, differs_by_threads<float, MatmulFunction>);
}

// ---- GPT-2's products -----------------------------------------------------------------------------------------------

enum Group { FORWARD, DINP, DWEIGHT, SMALL };
constexpr const char* GROUPS[] = {"forward", "dinp", "dweight", "small"};

struct Shape {
    std::string name;
    Group group;
    Transpose ta, tb;
    int64_t M, N, K;
    bool accumulate;

    double flop() const { return 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K); }
};

struct Layer {
    const char* op;
    int64_t inputs, outputs;
};

// The three products of a layer for so many positions, as train_gpt2_lnfree.cpp takes them.
void add_layer(std::vector<Shape>& shapes, const Layer& l, int64_t rows, std::optional<Group> group = std::nullopt) {
    constexpr auto No = Transpose::No, Yes = Transpose::Yes;
    const std::string name = std::string(l.op) + " " + std::to_string(rows) + " ";
    shapes.push_back({name + "forward", group.value_or(FORWARD), No, No, rows, l.outputs, l.inputs, false});
    shapes.push_back({name + "dinp", group.value_or(DINP), No, Yes, rows, l.inputs, l.outputs, false});
    shapes.push_back({name + "dweight", group.value_or(DWEIGHT), Yes, No, l.inputs, l.outputs, rows, true});
}

// Those of one training step of GPT-2 124M, each once; and of a small model of 128 channels, a group of their own.
std::vector<Shape> gpt2_shapes() {
    constexpr auto No = Transpose::No, Yes = Transpose::Yes;
    std::vector<Shape> shapes;
    for (const int64_t rows : {256, 1024})
        for (const Layer& l : {Layer{"qkv", 768, 2304}, {"proj", 768, 768}, {"fc", 768, 3072}, {"fcproj", 3072, 768}})
            add_layer(shapes, l, rows);
    // The classifier, whose weight is (V,C), takes chunks of rows of at most 2^22 logits.
    constexpr int64_t C = 768, V = 50257, rows = (int64_t{1} << 22) / V;
    shapes.push_back({"classifier 83 forward", FORWARD, No, Yes, rows, V, C, false});
    shapes.push_back({"classifier 83 dinp", DINP, No, No, rows, C, V, false});
    shapes.push_back({"classifier 83 dweight", DWEIGHT, Yes, No, V, C, rows, true});
    for (const Layer& l : {Layer{"qkv", 128, 384}, {"proj", 128, 128}, {"fc", 128, 512}, {"fcproj", 512, 128}})
        add_layer(shapes, l, 4096, SMALL);
    return shapes;
}

// ---- timing ---------------------------------------------------------------------------------------------------------

// Something that multiplies: a version of the ladder, or another library, which may have threads of its own.
struct Candidate {
    std::string name;
    std::function<std::remove_pointer_t<MatmulFunction>> function;
    bool own_threads;
};

std::vector<Candidate> candidates(const std::vector<MatmulVersion>& versions, const std::vector<Library>& libraries) {
    std::vector<Candidate> list;
    for (const MatmulVersion& version : versions)
        list.push_back({"v" + std::to_string(version.number), version.function, false});
    for (const Library& library : libraries)
        list.push_back(
            {library.name,
             [&library](Transpose ta, Transpose tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
                        const float* B, int64_t ldb, float* C, int64_t ldc, bool accumulate,
                        const float* /*bias*/) { library.matmul(ta, tb, M, N, K, A, lda, B, ldb, C, ldc, accumulate); },
             true});
    return list;
}

// One product of GPT-2's with memory of its own.
class Operands {
  public:
    explicit Operands(const Shape& shape)
        : shape_(shape),
          a_(random_values<float>(shape.M * shape.K, 1)),
          b_(random_values<float>(shape.K * shape.N, 2)),
          c_(static_cast<size_t>(shape.M * shape.N)) {}

    // Seconds for one product.
    double time(const Candidate& candidate) {
        const double begin = seconds_now();
        candidate.function(shape_.ta, shape_.tb, shape_.M, shape_.N, shape_.K, a_.data(),
                           shape_.ta == Transpose::Yes ? shape_.M : shape_.K, b_.data(),
                           shape_.tb == Transpose::Yes ? shape_.K : shape_.N, c_.data(), shape_.N, shape_.accumulate,
                           nullptr);
        return seconds_now() - begin;
    }

  private:
    Shape shape_;
    std::vector<float> a_, b_, c_;
};

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t half = values.size() / 2;
    return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// Threads that have run out of work spin for some milliseconds, in the hope of more: the other library's would be
// disturbed. (OpenBLAS's wait for 2^26 ticks of the clock.)
void let_threads_sleep() {
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
}

// The median seconds per product of each candidate. They take turns, several rounds of them, so that whatever else the
// machine does falls on all alike; each has `seconds` in all, and one product at least.
std::vector<double> time_shape(const Shape& shape, const std::vector<Candidate>& list, double seconds) {
    constexpr int ROUNDS = 5;
    Operands operands(shape);
    std::vector<std::vector<double>> times(list.size());
    std::vector<double> spent(list.size(), 0.0);
    for (int round = 1; round <= ROUNDS; ++round)
        for (size_t i = 0; i < list.size(); ++i) {
            if (list[i].own_threads) let_threads_sleep();
            while (spent[i] < seconds * round / ROUNDS) {
                times[i].push_back(operands.time(list[i]));
                spent[i] += times[i].back();
            }
            if (list[i].own_threads) let_threads_sleep();
        }
    std::vector<double> medians;
    for (const std::vector<double>& all : times) medians.push_back(median(all));
    return medians;
}

// Seconds by shape, then by candidate.
using Timings = std::vector<std::vector<double>>;

std::string gigaflops(double flop, double seconds) {
    return format_fixed(flop / seconds * 1e-9, 1);
}

// Times everything, a line per shape as it goes.
Timings time_all(const std::vector<Shape>& shapes, const std::vector<Candidate>& list, double seconds, std::FILE* out) {
    std::fprintf(out, "%-24s %6s %6s %6s ", "GFLOP/s", "M", "N", "K");
    for (const Candidate& candidate : list) std::fprintf(out, " %8s", candidate.name.c_str());
    std::fprintf(out, "\n");
    Timings timings;
    for (const Shape& shape : shapes) {
        timings.push_back(time_shape(shape, list, seconds));
        std::fprintf(out, "%-24s %6lld %6lld %6lld ", shape.name.c_str(), static_cast<long long>(shape.M),
                     static_cast<long long>(shape.N), static_cast<long long>(shape.K));
        for (const double time : timings.back()) std::fprintf(out, " %8s", gigaflops(shape.flop(), time).c_str());
        std::fprintf(out, "\n");
        std::fflush(out);
    }
    return timings;
}

// ---- reports --------------------------------------------------------------------------------------------------------

// Over the shapes of a group, or of all of GPT-2 124M's: all their operations by all their time.
struct Total {
    double flop = 0.0, seconds = 0.0;
    double gflops() const { return flop / seconds * 1e-9; }
};

Total total(const std::vector<Shape>& shapes, const Timings& timings, size_t candidate,
            std::optional<Group> group = std::nullopt) {
    Total sum;
    for (size_t s = 0; s < shapes.size(); ++s) {
        if (group ? shapes[s].group != *group : shapes[s].group == SMALL) continue;
        sum.flop += shapes[s].flop();
        sum.seconds += timings[s][candidate];
    }
    return sum;
}

struct Machine {
    std::string processor, isa, compiler;
    unsigned cores;
    int threads;
    double peak;  // FLOP/s
};

Machine this_machine() {
    Machine machine;
    machine.processor = processor_name();
    machine.cores = std::thread::hardware_concurrency();
    machine.threads = thread_count();
#if defined(__AVX512F__)
    machine.isa = "AVX-512";
#elif defined(__AVX2__)
    machine.isa = "AVX2";
#elif defined(__aarch64__)
    machine.isa = "NEON";
#else
    machine.isa = "the portable instruction set";
#endif
#ifdef __clang__
    machine.compiler = "clang++ " __clang_version__;
#else
    machine.compiler = "g++ " __VERSION__;
#endif
    machine.peak = fastest_multiply_adds(multiply_adds, 0.2);
    return machine;
}

std::string describe(const Machine& machine) {
    return machine.processor + ", " + std::to_string(machine.cores) + " cores, " + std::to_string(machine.threads) +
           " threads, " + machine.isa + ", " + machine.compiler + "; " + format_fixed(machine.peak * 1e-9, 1) +
           " GFLOP/s of multiply-adds in registers";
}

struct Report {
    Options options;
    Machine machine;
    std::vector<Library> libraries;  // which come after the versions
    std::vector<Shape> shapes;
    Timings timings;

    double gflops(size_t candidate, std::optional<Group> group = std::nullopt) const {
        return total(shapes, timings, candidate, group).gflops();
    }
    double of_peak(size_t candidate) const { return gflops(candidate) * 1e9 / machine.peak; }
    size_t index(size_t library) const { return options.versions.size() + library; }
    bool counts(size_t library) const { return is_yardstick(gflops(index(library)) * 1e9, machine.peak); }
};

// A row per version, and one per library that is a yardstick.
Table summary(const Report& report) {
    Table table({"version", "GFLOP/s", "% of peak", "times the one above", "forward", "dinp", "dweight", "small model",
                 "the idea"});
    const auto add = [&](size_t i, const std::string& name, const std::string& gain, const std::string& idea) {
        const auto rate = [&](auto... group) { return format_fixed(report.gflops(i, group...), 1); };
        table.add_row({name, rate(), format_fixed(100 * report.of_peak(i), 1), gain, rate(FORWARD), rate(DINP),
                       rate(DWEIGHT), rate(SMALL), idea});
    };
    const std::vector<MatmulVersion>& versions = report.options.versions;
    for (size_t i = 0; i < versions.size(); ++i)
        add(i, "v" + std::to_string(versions[i].number) + " " + versions[i].name,
            i == 0 ? "-" : format_fixed(report.gflops(i) / report.gflops(i - 1), 2), versions[i].idea);
    for (size_t i = 0; i < report.libraries.size(); ++i)
        if (report.counts(i)) add(report.index(i), report.libraries[i].name, "-", report.libraries[i].kernel);
    return table;
}

// The libraries that are none, each with a word.
std::string left_out(const Report& report) {
    std::string text;
    for (size_t i = 0; i < report.libraries.size(); ++i)
        if (!report.counts(i))
            text += " Left out, below half of the peak: " + report.libraries[i].kernel + ", " +
                    format_fixed(report.gflops(report.index(i)), 1) + " GFLOP/s.";
    return text;
}

Json rates_json(const Report& report, size_t candidate) {
    Json json;
    json["gflops"] = report.gflops(candidate);
    json["of_peak"] = report.of_peak(candidate);
    for (const Group g : {FORWARD, DINP, DWEIGHT, SMALL})
        json[std::string(GROUPS[g]) + "_gflops"] = report.gflops(candidate, g);
    return json;
}

Json to_json(const Report& report) {
    Json json, versions = Json::array(), libraries = Json::array(), shapes = Json::array();
    for (size_t i = 0; i < report.options.versions.size(); ++i) {
        Json version = rates_json(report, i);
        version["version"] = report.options.versions[i].number;
        version["name"] = report.options.versions[i].name;
        version["idea"] = report.options.versions[i].idea;
        versions.push_back(version);
    }
    for (size_t i = 0; i < report.libraries.size(); ++i) {
        Json library = rates_json(report, report.index(i));
        library["name"] = report.libraries[i].name;
        library["kernel"] = report.libraries[i].kernel;
        library["left_out"] = !report.counts(i);
        libraries.push_back(library);
    }
    for (size_t s = 0; s < report.shapes.size(); ++s) {
        const Shape& shape = report.shapes[s];
        Json seconds;
        for (size_t i = 0; i < report.options.versions.size(); ++i)
            seconds["v" + std::to_string(report.options.versions[i].number)] = report.timings[s][i];
        for (size_t i = 0; i < report.libraries.size(); ++i)
            seconds[report.libraries[i].name] = report.timings[s][report.index(i)];
        shapes.push_back({{"name", shape.name},
                          {"group", GROUPS[shape.group]},
                          {"m", shape.M},
                          {"n", shape.N},
                          {"k", shape.K},
                          {"seconds", seconds}});
    }
    json["format"] = 2;
    json["machine"] = {{"processor", report.machine.processor}, {"cores", report.machine.cores},
                       {"threads", report.machine.threads},     {"isa", report.machine.isa},
                       {"compiler", report.machine.compiler},   {"peak_gflops", report.machine.peak * 1e-9}};
    json["versions"] = versions;
    json["libraries"] = libraries;
    json["shapes"] = shapes;
    return json;
}

// `text` with `table` between the markers. BadInput if they are not there.
std::string with_table(const std::string& text, const std::string& table) {
    const size_t begin = text.find(TABLE_BEGIN), end = text.find(TABLE_END);
    if (begin == std::string::npos || end == std::string::npos || end < begin)
        throw BadInput(std::string(README) + " has lost the two marker lines of the ladder's table; put back " +
                       std::string(TABLE_BEGIN, std::strlen(TABLE_BEGIN) - 1) + " and " +
                       std::string(TABLE_END, std::strlen(TABLE_END) - 1));
    return text.substr(0, begin) + TABLE_BEGIN + table + text.substr(end);
}

std::string read_readme() {
    return read_file(README, 1 << 20);
}

void write_readme(const Report& report) {
    const std::string table =
        summary(report).markdown() + "\nMeasured on " + describe(report.machine) + "." + left_out(report) + "\n";
    write_file_atomically(README, with_table(read_readme(), table));
    std::printf("%s: table written\n", README);
}

void run(const Options& options) {
    if (options.readme) with_table(read_readme(), "");  // fail before the minutes of timing, not after
    std::FILE* const out = options.json ? stderr : stdout;
    check(options.versions);
    std::fprintf(out, "%s: right on odd sizes, same bits for 1, 2, 3 and 5 threads\n",
                 options.versions.size() == 1 ? "the version" : "all versions");
    Report report{options, this_machine(), find_libraries(), gpt2_shapes(), {}};
    std::fprintf(out, "%s\n", describe(report.machine).c_str());
    report.timings = time_all(report.shapes, candidates(options.versions, report.libraries), options.seconds, out);
    report.machine.peak = std::max(report.machine.peak, fastest_multiply_adds(multiply_adds, 0.2));
    if (options.json)
        std::printf("%s\n", to_json(report).dump(2).c_str());
    else
        std::printf("\n%s%s\n", summary(report).text().c_str(), left_out(report).c_str());
    if (options.readme) write_readme(report);
}

}  // namespace
}  // namespace lnfree

int main(int argc, char** argv) {
    try {
        const lnfree::Options options = lnfree::parse_options({argv + 1, argv + argc});
        if (options.help)
            std::printf("%s", lnfree::USAGE);
        else
            lnfree::run(options);
        return 0;
    } catch (const lnfree::BadInput& error) {
        std::fprintf(stderr, "dev/cpu/matmul: %s\n", error.what());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "dev/cpu/matmul: %s\n", error.what());
        return 1;
    }
}
