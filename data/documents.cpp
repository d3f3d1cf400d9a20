#include "data/documents.h"

#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "data/files.h"
#include "data/json.h"
#include "data/pretokenize.h"

namespace lnfree {

std::string unescape_separator(std::string_view typed) {
    static constexpr char letters[] = "ntr\\";
    static constexpr char meanings[] = "\n\t\r\\";
    std::string bytes;
    for (uint64_t i = 0; i < typed.size(); ++i) {
        const char* known = typed[i] == '\\' && i + 1 < typed.size() ? std::strchr(letters, typed[i + 1]) : nullptr;
        if (known == nullptr || *known == '\0') {
            bytes += typed[i];
        } else {
            bytes += meanings[known - letters];
            ++i;
        }
    }
    return bytes;
}

// The bytes of one input, decompressed: a file, or standard input for "-". Throws BadInput naming the input if it cannot
// be read, is damaged or cut short, or is compressed and its name does not say so, or the other way round.
class InputBytes {
  public:
    explicit InputBytes(const std::string& path) : path_(path), name_(path == "-" ? "standard input" : path) {
        const bool compressed = named_as_gzip(path);
        file_.reset(path == "-" ? gzdopen(::dup(STDIN_FILENO), "rb") : gzopen(path.c_str(), "rb"));
        if (!file_) throw BadInput("cannot open " + name_ + ": " + errno_text(errno));
        gzbuffer(file_.get(), 1 << 18);
        const bool plain = gzdirect(file_.get()) != 0;  // reads the first bytes
        check();
        if (path != "-" && compressed && plain) {
            throw BadInput(name_ + " is not gzip data although its name ends in .gz");
        }
        if (path != "-" && !compressed && !plain) throw BadInput(name_ + " is gzip data; let its name end in .gz");
        beginning_.resize(first_bytes_of_input);
        beginning_.resize(read_file(beginning_.data(), beginning_.size()));
        if (beginning_.compare(0, byte_order_mark.size(), byte_order_mark) == 0) given_ = byte_order_mark.size();
    }

    // Up to n bytes (at most 1 GiB); fewer only at the end.
    uint64_t read(char* buffer, uint64_t n) {
        const uint64_t known = std::min(n, beginning_.size() - given_);
        std::copy_n(beginning_.data() + given_, known, buffer);
        given_ += known;
        return known + (known < n ? read_file(buffer + known, n - known) : 0);
    }

    // The first bytes, without the mark: for input_format.
    InputBeginning beginning() const {
        const std::string_view bytes = beginning_;
        const uint64_t mark = bytes.substr(0, byte_order_mark.size()) == byte_order_mark ? byte_order_mark.size() : 0;
        return {name_, path_ == "-" ? "" : path_, bytes.substr(mark), bytes.size() < first_bytes_of_input};
    }

    // Bytes of the file (not of the text) consumed so far; of the text where the file cannot say (a pipe).
    uint64_t position() const {
        const z_off_t in_file = gzoffset(file_.get());
        return static_cast<uint64_t>(std::max<z_off_t>(in_file >= 0 ? in_file : gztell(file_.get()), 0));
    }

    const std::string& name() const { return name_; }

  private:
    struct Close {
        void operator()(gzFile_s* file) const { gzclose(file); }
    };

    static constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";  // of UTF-8

    uint64_t read_file(char* buffer, uint64_t n) {
        const int got = gzread(file_.get(), buffer, static_cast<unsigned>(n));
        if (got < 0 || static_cast<uint64_t>(got) < n) check();
        return static_cast<uint64_t>(got);
    }

    void check() const {
        int error = Z_OK;
        const char* const message = gzerror(file_.get(), &error);
        if (error == Z_ERRNO) throw BadInput("cannot read " + name_ + ": " + errno_text(errno));
        if (error == Z_BUF_ERROR) throw BadInput(name_ + " is cut short: its gzip data has no end");
        if (error != Z_OK) throw BadInput(name_ + " holds damaged gzip data (" + message + ")");
    }

    std::string path_;
    std::string name_;
    std::unique_ptr<gzFile_s, Close> file_;
    std::string beginning_;  // the first bytes, which are looked at before they are handed over
    uint64_t given_ = 0;     // of them
};

namespace {

// What save_to_disk of Hugging Face's datasets leaves is a folder as well, but of Arrow tables.
std::string folder_remedy(const std::filesystem::path& folder) {
    for (const char* name : {"dataset_info.json", "dataset_dict.json"})
        if (std::filesystem::exists(folder / name))
            return " is a data set as datasets saves it; write its text as JSON lines: "
                   "load_from_disk(...).to_json(FILE)";
    return " is a folder; name the files in it";
}

constexpr uint64_t longest_separator = 1024;  // bytes

}  // namespace

DocumentReader::DocumentReader(std::vector<std::string> inputs, DocumentOptions options)
    : inputs_(std::move(inputs)), options_(std::move(options)) {
    if (options_.separator.size() > longest_separator) {
        throw BadInput("a document separator has at most " + std::to_string(longest_separator) + " bytes");
    }
    for (const std::string& input : inputs_) check_input(input);
}

DocumentReader::~DocumentReader() = default;

bool DocumentReader::next(DocumentPiece& piece) {
    for (;;) {
        if (!source_ && !open_next_input()) return false;
        if (is_json_ ? next_line(piece) : next_text(piece)) return true;
        bytes_of_finished_inputs_ += source_->position();
        source_.reset();
    }
}

uint64_t DocumentReader::bytes_done() const {
    return bytes_of_finished_inputs_ + (source_ ? source_->position() : 0);
}

void DocumentReader::check_input(const std::string& input) {
    if (input == "-") {
        total_known_ = false;
        return;
    }
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(input, error);
    if (!std::filesystem::exists(status)) throw BadInput("cannot open " + input + ": there is no such file");
    if (std::filesystem::is_directory(status)) throw BadInput(input + folder_remedy(input));
    if (options_.format == InputFormat::automatic) check_input_name(input);
    if (std::filesystem::is_regular_file(status)) format_of(InputBytes(input));
    total_known_ = total_known_ && std::filesystem::is_regular_file(status);
    if (total_known_) bytes_total_ += std::filesystem::file_size(input);
}

InputFormat DocumentReader::format_of(const InputBytes& source) const {
    return input_format(source.beginning(), options_.format);
}

bool DocumentReader::open_next_input() {
    if (next_input_ == inputs_.size()) return false;
    source_ = std::make_unique<InputBytes>(inputs_[next_input_++]);
    is_json_ = format_of(*source_) == InputFormat::json_lines;
    buffer_.clear();
    start_ = 0;
    line_ = 0;
    at_end_ = false;
    inside_document_ = false;
    return true;
}

void DocumentReader::read_more(uint64_t most) {
    buffer_.erase(0, start_);
    start_ = 0;
    const uint64_t had = buffer_.size();
    const uint64_t wanted = std::min(std::max(options_.piece_bytes, 2 * had), most);
    buffer_.resize(wanted);
    const uint64_t got = source_->read(&buffer_[had], wanted - had);
    buffer_.resize(had + got);
    at_end_ = got < wanted - had;
}

void DocumentReader::hand_over(DocumentPiece& piece, uint64_t bytes, uint64_t skip, bool ends_document) {
    piece.bytes.assign(buffer_, start_, bytes);
    piece.is_json = is_json_;
    piece.ends_document = ends_document;
    piece.continues = inside_document_;
    piece.input = source_->name();
    piece.line = line_;
    start_ += bytes + skip;
    inside_document_ = !ends_document;
}

bool DocumentReader::next_line(DocumentPiece& piece) {
    while (find_line_end()) {
        ++line_;
        const uint64_t bytes = line_end_ - start_;
        const bool blank = waiting().substr(0, bytes).find_first_not_of(" \t\r\f\v") == std::string_view::npos;
        const bool has_line_feed = line_end_ < buffer_.size();
        if (!blank) {
            hand_over(piece, bytes, has_line_feed, true);
            return true;
        }
        start_ = line_end_ + has_line_feed;
    }
    return false;
}

bool DocumentReader::find_line_end() {
    for (uint64_t searched = 0;; read_more(options_.max_line_bytes)) {
        const std::string_view text = waiting();
        const uint64_t at = text.find('\n', searched);
        line_end_ = start_ + std::min(at, text.size());
        if (at != std::string_view::npos) return true;
        if (at_end_) return !text.empty();
        if (text.size() >= options_.max_line_bytes) {
            throw BadInput(source_->name() + " line " + std::to_string(line_ + 1) + " is longer than " +
                           std::to_string(options_.max_line_bytes) + " bytes; is it one JSON object per line?");
        }
        searched = text.size();
    }
}

bool DocumentReader::next_text(DocumentPiece& piece) {
    const std::string& separator = options_.separator;
    for (;; read_more(options_.max_piece_bytes)) {
        uint64_t at = find_separator();
        while (at == 0 && !inside_document_) {  // an empty document
            start_ += separator.size();
            at = find_separator();
        }
        const std::string_view text = waiting();
        if (at != std::string_view::npos) {
            hand_over(piece, at, separator.size(), true);
            return true;
        }
        if (at_end_) {
            if (text.empty() && !inside_document_) return false;
            hand_over(piece, text.size(), 0, true);
            return true;
        }
        const uint64_t cut = text.size() < options_.piece_bytes ? 0 : place_to_cut(text);
        if (cut > 0) {
            hand_over(piece, cut, 0, false);
            return true;
        }
    }
}

uint64_t DocumentReader::find_separator() const {
    return options_.separator.empty() ? std::string_view::npos : waiting().find(options_.separator);
}

bool DocumentReader::ends_in_unbroken(std::string_view text, uint64_t cut) const {
    for (const std::string& whole : options_.unbroken) {
        for (uint64_t begin = cut - std::min<uint64_t>(cut, whole.size()); begin < cut; ++begin) {
            const std::string_view there = text.substr(begin, whole.size());  // perhaps only its first bytes
            if (there == std::string_view(whole).substr(0, there.size())) return true;
        }
    }
    return false;
}

uint64_t DocumentReader::place_to_cut(std::string_view text) const {
    const uint64_t kept = options_.separator.empty() ? 0 : options_.separator.size() - 1;
    const std::string_view free = text.substr(0, text.size() - std::min<uint64_t>(kept, text.size()));
    uint64_t cut = last_safe_cut(free, options_.split);
    while (cut > 0 && ends_in_unbroken(text, cut)) cut = last_safe_cut(text.substr(0, cut), options_.split);
    if (cut > 0 || text.size() < options_.max_piece_bytes) return cut;
    uint64_t forced = free.size() - 1;
    while (forced > free.size() - 4 && (free[forced] & 0xC0) == 0x80) --forced;  // not inside a UTF-8 character
    return forced;
}

namespace {

// Takes the string under one key of a JSON object out of a stream of events; nothing else is kept.
class JsonTextHandler : public JsonEvents {
  public:
    explicit JsonTextHandler(std::string key) : key_(std::move(key)) {}

    std::string text;     // the value
    std::string problem;  // empty if `text` is it

    bool key(std::string& name) override {
        at_value_ = depth_ == 1 && name == key_;
        if (at_value_ && found_) problem = "holds the key " + quoted_name(key_) + " twice";
        return problem.empty();
    }
    bool string(std::string& value) override {
        if (depth_ == 0) return not_a_string();
        if (at_value_) text = std::move(value);
        found_ = found_ || at_value_;
        at_value_ = false;
        return true;
    }
    bool start_object() override {
        if (at_value_) return not_a_string();
        ++depth_;
        return true;
    }
    bool end_object() override {
        if (--depth_ == 0 && !found_) {
            problem = "has no key " + quoted_name(key_) + "; name the key that holds the text with --text-key";
        }
        return problem.empty();
    }
    bool start_array() override {
        if (at_value_ || depth_ == 0) return not_a_string();
        ++depth_;
        return true;
    }
    bool end_array() override {
        --depth_;
        return true;
    }
    bool null() override { return other_value(); }
    bool boolean(bool) override { return other_value(); }
    bool number_integer(int64_t) override { return other_value(); }
    bool number_unsigned(uint64_t) override { return other_value(); }
    bool number_float(double, const std::string&) override { return other_value(); }
    bool parse_error(size_t position, bool) override {
        problem = "is not valid JSON: wrong at byte " + std::to_string(position);
        return false;
    }

  private:
    bool other_value() { return !at_value_ && depth_ > 0 ? true : not_a_string(); }
    bool not_a_string() {
        problem = depth_ == 0 ? "is not a JSON object" : "has something else than a string under " + quoted_name(key_);
        return false;
    }

    std::string key_;
    uint64_t depth_ = 0;  // of open objects and arrays
    bool at_value_ = false;
    bool found_ = false;
};

}  // namespace

std::string replace_lone_surrogates(std::string line) {
    const auto surrogate_at = [&line](uint64_t i) {  // the low 16 bits of \uDxxx at i, or 0
        const bool escape = i + 6 <= line.size() && line[i] == '\\' && line[i + 1] == 'u' &&
                            line.find_first_not_of("0123456789abcdefABCDEF", i + 2) >= i + 6;
        const unsigned long value = escape ? std::stoul(line.substr(i + 2, 4), nullptr, 16) : 0;
        return value >= 0xD800 && value < 0xE000 ? value : 0;
    };
    for (uint64_t i = 0; i < line.size(); ++i) {
        if (line[i] != '\\') continue;
        const unsigned long first = surrogate_at(i);
        if (first == 0) {
            ++i;  // whatever is escaped
        } else if (first < 0xDC00 && surrogate_at(i + 6) >= 0xDC00) {
            i += 11;
        } else {
            line.replace(i, 6, "\\uFFFD");
            i += 5;
        }
    }
    return line;
}

namespace {

// Whether Python's json reads this as a number that JSON does not know, or that no double holds.
bool is_nonfinite_number(const std::string& word) {
    if (word == "NaN" || word == "Infinity" || word == "-Infinity") return true;
    if (word.find_first_not_of("+-.0123456789eE") != std::string::npos) return false;
    char* end = nullptr;
    return std::isinf(std::strtod(word.c_str(), &end)) && *end == '\0';
}

}  // namespace

std::string replace_nonfinite_numbers(std::string line) {
    static constexpr char of_words[] = "+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    for (uint64_t i = 0; i < line.size(); ++i) {
        if (line[i] == '"') {  // to the end of the string
            for (++i; i < line.size() && line[i] != '"'; ++i) i += line[i] == '\\';
            continue;
        }
        const uint64_t end = std::min(line.find_first_not_of(of_words, i), line.size());
        if (end == i) continue;
        if (is_nonfinite_number(line.substr(i, end - i))) {
            line.replace(i, end - i, "null");
            i += 3;
        } else {
            i = end - 1;
        }
    }
    return line;
}

std::string piece_text(DocumentPiece&& piece, const std::string& key) {
    if (!piece.is_json) return std::move(piece.bytes);
    const std::string where = piece.input + " line " + std::to_string(piece.line) + " ";
    if (piece.bytes.find('\0') != std::string::npos) {  // nlohmann-json would take it for the end
        throw BadLine(where + "is not valid JSON: it holds a zero byte");
    }
    JsonTextHandler strict(key);
    if (read_json_events(piece.bytes, strict)) return std::move(strict.text);
    JsonTextHandler lenient(key);
    const std::string mended = replace_nonfinite_numbers(replace_lone_surrogates(std::move(piece.bytes)));
    if (read_json_events(mended, lenient)) return std::move(lenient.text);
    throw BadLine(where + lenient.problem);
}

}  // namespace lnfree
