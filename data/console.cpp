#include "data/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace lnfree {

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

std::string format_count(uint64_t count) {
    std::string digits = std::to_string(count);
    for (size_t position = digits.size(); position > 3;) digits.insert(position -= 3, ",");
    return digits;
}

std::string format_fixed(double x, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, x);
    return text;
}

std::string format_general(double x) {
    char text[64];
    std::snprintf(text, sizeof text, "%.6g", x);
    return text;
}

namespace {

// Three significant digits without an exponent, for 0 <= value < 1000: 1.23, 12.3, 123.
std::string three_digits(double value) {
    return format_fixed(value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

// Scales value by `base` until three digits hold it. A value that rounds up to 1000 moves on to the next unit.
std::string with_unit(double value, double base, const std::vector<const char*>& units) {
    size_t unit = 0;
    while (value >= 999.5 && unit + 1 < units.size()) {
        value /= base;
        unit++;
    }
    return three_digits(value) + units[unit];
}

}  // namespace

std::string format_rate(double per_second) {
    if (!std::isfinite(per_second) || per_second < 0) return "?";
    if (per_second < 999.5 && per_second == std::floor(per_second)) return format_count((uint64_t)per_second);
    return with_unit(per_second, 1000, {"", "k", "M", "G", "T", "P"});
}

std::string format_bytes(uint64_t bytes) {
    if (bytes < 1000) return std::to_string(bytes) + " B";
    return with_unit((double)bytes, 1024, {" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"});
}

std::string format_duration(double seconds) {
    if (!std::isfinite(seconds) || seconds < 0) return "?";
    char text[48];
    if (seconds < 0.0995) {
        std::snprintf(text, sizeof text, "%.0f ms", seconds * 1e3);
    } else if (seconds < 9.95) {
        std::snprintf(text, sizeof text, "%.1f s", seconds);
    } else if (seconds < 59.5) {
        std::snprintf(text, sizeof text, "%.0f s", seconds);
    } else if (seconds < 3599.5) {
        const int whole = (int)std::lround(seconds);
        std::snprintf(text, sizeof text, "%dm %02ds", whole / 60, whole % 60);
    } else if (seconds < 86370) {
        const int minutes = (int)std::lround(seconds / 60);
        std::snprintf(text, sizeof text, "%dh %02dm", minutes / 60, minutes % 60);
    } else {
        const double hours = std::round(seconds / 3600);
        std::snprintf(text, sizeof text, "%.0fd %.0fh", std::floor(hours / 24), std::fmod(hours, 24));
    }
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// Text in columns

namespace console_detail {

uint32_t next_code_point(const std::string& text, size_t& position) {
    const unsigned char lead = (unsigned char)text[position++];
    const int extra = lead < 0xC2 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : lead < 0xF5 ? 3 : 0;
    if (extra == 0) return lead;
    if (position + (size_t)extra > text.size()) return lead;
    uint32_t code = lead & (0x3Fu >> extra);
    for (int i = 0; i < extra; i++) {
        const unsigned char next = (unsigned char)text[position + (size_t)i];
        if ((next & 0xC0) != 0x80) return lead;
        code = code << 6 | (next & 0x3Fu);
    }
    position += (size_t)extra;
    return code;
}

}  // namespace console_detail

namespace {

// Columns that a character takes: 0 for combining marks and zero-width characters, 2 for East Asian wide ones and
// emoji, else 1. The ranges are the large blocks of Unicode's EastAsianWidth table; rare exceptions are not worth a table.
size_t columns_of(uint32_t code) {
    const auto within = [code](uint32_t low, uint32_t high) { return code >= low && code <= high; };
    if (within(0x0300, 0x036F) || within(0x200B, 0x200F) || within(0xFE00, 0xFE0F) || code == 0xFEFF) return 0;
    const bool wide = within(0x1100, 0x115F) || within(0x2E80, 0xA4CF) || within(0xAC00, 0xD7A3) ||
                      within(0xF900, 0xFAFF) || within(0xFE30, 0xFE6F) || within(0xFF00, 0xFF60) ||
                      within(0x1F300, 0x1FAFF) || within(0x20000, 0x3FFFD);
    return wide ? 2 : 1;
}

}  // namespace

size_t display_width(const std::string& text) {
    size_t columns = 0;
    for (size_t position = 0; position < text.size();) {
        columns += columns_of(console_detail::next_code_point(text, position));
    }
    return columns;
}

std::string clip_to_width(const std::string& text, size_t columns) {
    size_t used = 0;
    for (size_t position = 0; position < text.size();) {
        const size_t start = position;
        used += columns_of(console_detail::next_code_point(text, position));
        if (used > columns) return text.substr(0, start);
    }
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables

namespace {

struct Column {
    size_t width = 0;
    bool right = false;
};

// "3.07", "+0.07", "12,345", "1m 05s", "45 %", "3.07 ± 0.02", "<0.01", "nan". U+2212 is the true minus sign.
bool is_number(const std::string& cell) {
    static const std::vector<std::string> words = {"nan", "-nan", "inf", "-inf", "+inf"};
    if (std::find(words.begin(), words.end(), cell) != words.end()) return true;
    size_t position = 0;
    for (const char* prefix : {"<", ">", "~", "≈", "+", "-", "−", "±", "."}) {
        if (cell.compare(position, std::strlen(prefix), prefix) == 0) position += std::strlen(prefix);
    }
    return position < cell.size() && cell[position] >= '0' && cell[position] <= '9';
}

bool is_placeholder(const std::string& cell) {
    return cell.empty() || cell == "-" || cell == "–" || cell == "—" || cell == "n/a" || cell == "?";
}

std::vector<Column> measure(const std::vector<std::string>& headers,
                            const std::vector<std::vector<std::string>>& rows) {
    std::vector<Column> columns(headers.size());
    for (size_t c = 0; c < headers.size(); c++) {
        bool all_numbers = true, any_number = false;
        columns[c].width = display_width(headers[c]);
        for (const auto& row : rows) {
            columns[c].width = std::max(columns[c].width, display_width(row[c]));
            if (is_placeholder(row[c])) continue;
            all_numbers &= is_number(row[c]);
            any_number |= is_number(row[c]);
        }
        columns[c].right = all_numbers && any_number;
    }
    return columns;
}

std::string padded(const Column& column, const std::string& cell) {
    const std::string padding(column.width - std::min(column.width, display_width(cell)), ' ');
    return column.right ? padding + cell : cell + padding;
}

std::string text_line(const std::vector<Column>& columns, const std::vector<std::string>& cells) {
    std::string line;
    for (size_t c = 0; c < columns.size(); c++) line += (c ? "  " : "") + padded(columns[c], cells[c]);
    line.erase(line.find_last_not_of(' ') + 1);
    return line + "\n";
}

std::string markdown_line(const std::vector<Column>& columns, const std::vector<std::string>& cells) {
    std::string line = "|";
    for (size_t c = 0; c < columns.size(); c++) line += " " + padded(columns[c], cells[c]) + " |";
    return line + "\n";
}

std::vector<std::string> escaped(const std::vector<std::string>& cells) {
    std::vector<std::string> out;
    for (const std::string& cell : cells) {
        std::string text;
        for (char c : cell) {
            if (c == '|') text += '\\';
            if (c != '\r') text += c == '\n' ? ' ' : c;
        }
        out.push_back(text);
    }
    return out;
}

}  // namespace

void Table::add_row(std::vector<std::string> cells) {
    if (cells.size() > headers_.size()) {
        throw std::invalid_argument("Table::add_row: " + std::to_string(cells.size()) + " cells for " +
                                    std::to_string(headers_.size()) + " columns");
    }
    cells.resize(headers_.size());
    rows_.push_back(std::move(cells));
}

std::string Table::text() const {
    const std::vector<Column> columns = measure(headers_, rows_);
    std::vector<std::string> rules;
    for (const Column& column : columns) rules.emplace_back(column.width, '-');
    std::string out = text_line(columns, headers_) + text_line(columns, rules);
    for (const auto& row : rows_) out += text_line(columns, row);
    return out;
}

std::string Table::markdown() const {
    std::vector<std::string> headers = escaped(headers_);
    std::vector<std::vector<std::string>> rows;
    for (const auto& row : rows_) rows.push_back(escaped(row));
    std::vector<Column> columns = measure(headers, rows);
    std::vector<std::string> rules;
    for (Column& column : columns) {
        column.width = std::max<size_t>(column.width, 3);
        rules.push_back(std::string(column.width - 1, '-') + (column.right ? ":" : "-"));
    }
    std::string out = markdown_line(columns, headers) + markdown_line(columns, rules);
    for (const auto& row : rows) out += markdown_line(columns, row);
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// Progress

namespace {

bool is_terminal(FILE* stream) {
    const char* kind = std::getenv("TERM");
    return isatty(fileno(stream)) && !(kind && std::strcmp(kind, "dumb") == 0);
}

}  // namespace

double steady_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

ProgressBar::ProgressBar(std::string label, uint64_t total, FILE* stream, uint64_t done_before,
                         ProgressSettings settings)
    : label_(std::move(label)),
      total_(total),
      stream_(stream),
      done_before_(done_before),
      settings_(std::move(settings)),
      start_(settings_.now()) {
    terminal_ = settings_.terminal < 0 ? is_terminal(stream) : settings_.terminal != 0;
    last_drawn_ = start_;
}

ProgressBar::~ProgressBar() {
    try {
        finish();
    } catch (...) {  // out of memory for one line of text: nothing to make a fuss about, least of all here
    }
}

void ProgressBar::update(uint64_t done, const std::string& extra_text) {
    if (finished_) return;
    const double now = settings_.now();
    if (terminal_) {
        if (now - start_ < settings_.show_after) return;
        if (visible_ && now - last_drawn_ < settings_.redraw_every) return;
        draw(done, extra_text, now);
        last_drawn_ = now;
        return;
    }
    done_ = done;
    extra_text_ = extra_text;
    printed_ = false;
    if (now - last_drawn_ >= settings_.plain_every) print_plain(now);
}

void ProgressBar::hide() {
    if (!visible_) return;
    std::fputs("\r\033[K", stream_);
    std::fflush(stream_);
    visible_ = false;
}

void ProgressBar::finish() {
    hide();
    if (finished_) return;
    finished_ = true;
    if (terminal_ || printed_) return;
    const double now = settings_.now();
    if (now - start_ >= settings_.plain_every) print_plain(now);
}

size_t ProgressBar::terminal_columns() const {
    if (settings_.columns > 0) return (size_t)settings_.columns;
    winsize size{};
    return ioctl(fileno(stream_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

double ProgressBar::fraction(uint64_t done) const {
    return total_ ? std::min(1.0, (double)done / (double)total_) : 0;
}

void ProgressBar::draw(uint64_t done, const std::string& extra_text, double now) {
    const size_t columns = std::max<size_t>(terminal_columns(), 2) - 1;  // a full last column would wrap
    std::string line = status(done, extra_text, now, 21);
    if (display_width(line) > columns) line = status(done, extra_text, now, 0);
    std::fprintf(stream_, "\r%s\033[K", clip_to_width(line, columns).c_str());
    std::fflush(stream_);
    visible_ = true;
}

// A log file gets whole lines: nothing in it is erased or drawn over.
void ProgressBar::print_plain(double now) {
    std::fprintf(stream_, "%s\n", status(done_, extra_text_, now, 0).c_str());
    std::fflush(stream_);
    printed_ = true;
    last_drawn_ = now;
}

std::string ProgressBar::status(uint64_t done, const std::string& extra_text, double now, size_t bar_width) const {
    const double elapsed = now - start_;
    const double rate = elapsed > 0 && done > done_before_ ? (double)(done - done_before_) / elapsed : 0;
    std::string line = label_;
    if (total_) {
        char percent[8];
        std::snprintf(percent, sizeof percent, "%3d%%", (int)(fraction(done) * 100));
        line += std::string(" ") + percent;
        if (bar_width) line += " [" + bar(done, bar_width) + "]";
        line += " " + format_count(done) + "/" + format_count(total_);
    } else {
        line += " " + format_count(done);
    }
    line += "  " + format_rate(rate) + "/s";
    if (total_ && rate > 0) line += "  ETA " + format_duration((double)(total_ - std::min(done, total_)) / rate);
    if (!extra_text.empty()) line += "  " + extra_text;
    return line;
}

std::string ProgressBar::bar(uint64_t done, size_t width) const {
    const size_t filled = (size_t)(fraction(done) * (double)width);
    std::string text(filled, '=');
    if (filled < width) text += '>';
    text.resize(width, ' ');
    return text;
}

}  // namespace lnfree
