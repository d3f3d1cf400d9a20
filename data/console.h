// What a run prints for people: progress, durations, counts, tables.
//
// Everything here is plain text without colour (so NO_COLOR has nothing to turn off), safe to pipe into a file, and
// measured in columns rather than bytes, so that σ, λ, ± and – line up. Programs read --json instead.
#pragma once

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace lnfree {

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

// 12345 -> "12,345".
inline std::string format_count(uint64_t count) {
    std::string digits = std::to_string(count);
    for (size_t position = digits.size(); position > 3;) digits.insert(position -= 3, ",");
    return digits;
}

// A number with so many digits behind the point.
inline std::string format_fixed(double x, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, x);
    return text;
}

namespace console_detail {

// Three significant digits without an exponent, for 0 <= value < 1000: 1.23, 12.3, 123.
inline std::string three_digits(double value) {
    return format_fixed(value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

// Scales value by `base` until three digits hold it. A value that rounds up to 1000 moves on to the next unit.
inline std::string with_unit(double value, double base, const std::vector<const char*>& units) {
    size_t unit = 0;
    while (value >= 999.5 && unit + 1 < units.size()) {
        value /= base;
        unit++;
    }
    return three_digits(value) + units[unit];
}

}  // namespace console_detail

// A rate or any other positive size at a glance: 0.5 -> "0.50", 12345 -> "12.3k", 2.5e9 -> "2.50G"; "?" when not finite.
inline std::string format_rate(double per_second) {
    if (!std::isfinite(per_second) || per_second < 0) return "?";
    if (per_second < 999.5 && per_second == std::floor(per_second)) return format_count((uint64_t)per_second);
    return console_detail::with_unit(per_second, 1000, {"", "k", "M", "G", "T", "P"});
}

// 1536 -> "1.50 KiB"; below 1000 bytes "512 B".
inline std::string format_bytes(uint64_t bytes) {
    if (bytes < 1000) return std::to_string(bytes) + " B";
    return console_detail::with_unit((double)bytes, 1024, {" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"});
}

// "45 ms", "3.2 s", "42 s", "1m 05s", "2h 03m", "3d 4h": two units at most. "?" for a negative or non-finite time.
inline std::string format_duration(double seconds) {
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

// Reads one UTF-8 character at `position` and moves past it. A malformed byte counts as one character of its own.
inline uint32_t next_code_point(const std::string& text, size_t& position) {
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

// Columns that a character takes: 0 for combining marks and zero-width characters, 2 for East Asian wide ones and
// emoji, else 1. The ranges are the large blocks of Unicode's EastAsianWidth table; rare exceptions are not worth a table.
inline size_t columns_of(uint32_t code) {
    const auto within = [code](uint32_t low, uint32_t high) { return code >= low && code <= high; };
    if (within(0x0300, 0x036F) || within(0x200B, 0x200F) || within(0xFE00, 0xFE0F) || code == 0xFEFF) return 0;
    const bool wide = within(0x1100, 0x115F) || within(0x2E80, 0xA4CF) || within(0xAC00, 0xD7A3) ||
                      within(0xF900, 0xFAFF) || within(0xFE30, 0xFE6F) || within(0xFF00, 0xFF60) ||
                      within(0x1F300, 0x1FAFF) || within(0x20000, 0x3FFFD);
    return wide ? 2 : 1;
}

}  // namespace console_detail

// Terminal columns that UTF-8 `text` takes: display_width("σ = 1 ± 2") is 9.
inline size_t display_width(const std::string& text) {
    size_t columns = 0;
    for (size_t position = 0; position < text.size();) {
        columns += console_detail::columns_of(console_detail::next_code_point(text, position));
    }
    return columns;
}

// The longest beginning of `text` that fits into `columns`, never ending inside a character.
inline std::string clip_to_width(const std::string& text, size_t columns) {
    size_t used = 0;
    for (size_t position = 0; position < text.size();) {
        const size_t start = position;
        used += console_detail::columns_of(console_detail::next_code_point(text, position));
        if (used > columns) return text.substr(0, start);
    }
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables

// A table of text cells. Columns whose filled cells are all numbers are right-aligned, the others left-aligned.
class Table {
  public:
    explicit Table(std::vector<std::string> headers) : headers_(std::move(headers)) {}

    // Missing cells are empty. Throws std::invalid_argument for more cells than headers: a mistake in the program.
    void add_row(std::vector<std::string> cells) {
        if (cells.size() > headers_.size()) {
            throw std::invalid_argument("Table::add_row: " + std::to_string(cells.size()) + " cells for " +
                                        std::to_string(headers_.size()) + " columns");
        }
        cells.resize(headers_.size());
        rows_.push_back(std::move(cells));
    }

    size_t row_count() const { return rows_.size(); }

    // For a terminal: headers, a rule, the rows; columns two spaces apart; no trailing spaces; ends with a newline.
    std::string text() const {
        const std::vector<Column> columns = measure(headers_, rows_);
        std::vector<std::string> rules;
        for (const Column& column : columns) rules.emplace_back(column.width, '-');
        std::string out = text_line(columns, headers_) + text_line(columns, rules);
        for (const auto& row : rows_) out += text_line(columns, row);
        return out;
    }

    // For a README: a GitHub table, padded so that its source reads well too. A pipe inside a cell is escaped and a
    // line break becomes a space.
    std::string markdown() const {
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

    const std::vector<std::string>& headers() const { return headers_; }
    const std::vector<std::vector<std::string>>& rows() const { return rows_; }

  private:
    struct Column {
        size_t width = 0;
        bool right = false;
    };

    // "3.07", "+0.07", "12,345", "1m 05s", "45 %", "3.07 ± 0.02", "<0.01", "nan". U+2212 is the true minus sign.
    static bool is_number(const std::string& cell) {
        static const std::vector<std::string> words = {"nan", "-nan", "inf", "-inf", "+inf"};
        if (std::find(words.begin(), words.end(), cell) != words.end()) return true;
        size_t position = 0;
        for (const char* prefix : {"<", ">", "~", "≈", "+", "-", "−", "±", "."}) {
            if (cell.compare(position, std::strlen(prefix), prefix) == 0) position += std::strlen(prefix);
        }
        return position < cell.size() && cell[position] >= '0' && cell[position] <= '9';
    }

    static bool is_placeholder(const std::string& cell) {
        return cell.empty() || cell == "-" || cell == "–" || cell == "—" || cell == "n/a" || cell == "?";
    }

    static std::vector<Column> measure(const std::vector<std::string>& headers,
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

    static std::string padded(const Column& column, const std::string& cell) {
        const std::string padding(column.width - std::min(column.width, display_width(cell)), ' ');
        return column.right ? padding + cell : cell + padding;
    }

    static std::string text_line(const std::vector<Column>& columns, const std::vector<std::string>& cells) {
        std::string line;
        for (size_t c = 0; c < columns.size(); c++) line += (c ? "  " : "") + padded(columns[c], cells[c]);
        line.erase(line.find_last_not_of(' ') + 1);
        return line + "\n";
    }

    static std::string markdown_line(const std::vector<Column>& columns, const std::vector<std::string>& cells) {
        std::string line = "|";
        for (size_t c = 0; c < columns.size(); c++) line += " " + padded(columns[c], cells[c]) + " |";
        return line + "\n";
    }

    static std::vector<std::string> escaped(const std::vector<std::string>& cells) {
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

    std::vector<std::string> headers_;
    std::vector<std::vector<std::string>> rows_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Progress

// How a ProgressBar behaves; tests replace the clock and the terminal.
struct ProgressSettings {
    double show_after = 2.0;    // seconds of work before anything appears: short jobs stay silent
    double redraw_every = 0.1;  // seconds between two drawings on a terminal
    double plain_every = 60.0;  // seconds between two lines elsewhere, when the total is not known
    int terminal = -1;          // 1: draw a bar, 0: sparse plain lines, -1: ask the stream
    int columns = 0;            // terminal width, 0: ask the terminal
    std::function<double()> now = [] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    };
};

// The progress of one long loop on one line:
//
//     train  45% [=========>           ] 135/300  8.21/s  ETA 20 s  loss 1.234
//
// On a terminal the line is redrawn in place, at most ten times a second, and erased by finish(), so that what is
// printed next starts on a clean line. Elsewhere (a log file, a pipe) one plain line appears per 10 % of the work.
// Nothing appears before two seconds. With total 0 (unknown) it shows the count and the rate alone.
// Writing errors are ignored: a closed standard error must not end a training run.
class ProgressBar {
  public:
    // `done_before` is the part of the total that an earlier run did (resuming): it counts for the percentage and not for the rate.
    ProgressBar(std::string label, uint64_t total, FILE* stream = stderr, uint64_t done_before = 0,
                ProgressSettings settings = {})
        : label_(std::move(label)),
          total_(total),
          stream_(stream),
          done_before_(done_before),
          settings_(std::move(settings)),
          start_(settings_.now()) {
        terminal_ = settings_.terminal < 0 ? is_terminal(stream) : settings_.terminal != 0;
        last_tenth_ = tenth(done_before);
        last_drawn_ = start_;
    }
    ProgressBar(const ProgressBar&) = delete;
    ProgressBar& operator=(const ProgressBar&) = delete;
    ~ProgressBar() { finish(); }

    // `done` of `total` is finished; `extra_text` (a loss, a file name) goes to the end of the line.
    void update(uint64_t done, const std::string& extra_text = "") {
        const double now = settings_.now();
        if (finished_ || now - start_ < settings_.show_after) return;
        if (terminal_) {
            if (visible_ && now - last_drawn_ < settings_.redraw_every) return;
            draw(done, extra_text, now);
        } else if (plain_line_due(done, now)) {
            std::fprintf(stream_, "%s\n", status(done, extra_text, now, 0).c_str());
            std::fflush(stream_);
        } else {
            return;
        }
        last_drawn_ = now;
        last_tenth_ = tenth(done);
    }

    // Erases the line until the next update; call it before printing something else on the same terminal.
    void hide() {
        if (!visible_) return;
        std::fputs("\r\033[K", stream_);
        std::fflush(stream_);
        visible_ = false;
    }

    // Erases the line for good. The destructor does so too, so an exception leaves a clean line for its message.
    void finish() {
        hide();
        finished_ = true;
    }

  private:
    static bool is_terminal(FILE* stream) {
        const char* kind = std::getenv("TERM");
        return isatty(fileno(stream)) && !(kind && std::strcmp(kind, "dumb") == 0);
    }

    size_t terminal_columns() const {
        if (settings_.columns > 0) return (size_t)settings_.columns;
        winsize size{};
        return ioctl(fileno(stream_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
    }

    double fraction(uint64_t done) const { return total_ ? std::min(1.0, (double)done / (double)total_) : 0; }
    int tenth(uint64_t done) const { return (int)(fraction(done) * 10); }

    bool plain_line_due(uint64_t done, double now) const {
        return total_ ? tenth(done) > last_tenth_ : now - last_drawn_ >= settings_.plain_every;
    }

    void draw(uint64_t done, const std::string& extra_text, double now) {
        const size_t columns = std::max<size_t>(terminal_columns(), 2) - 1;  // a full last column would wrap
        std::string line = status(done, extra_text, now, 21);
        if (display_width(line) > columns) line = status(done, extra_text, now, 0);
        std::fprintf(stream_, "\r%s\033[K", clip_to_width(line, columns).c_str());
        std::fflush(stream_);
        visible_ = true;
    }

    std::string status(uint64_t done, const std::string& extra_text, double now, size_t bar_width) const {
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

    std::string bar(uint64_t done, size_t width) const {
        const size_t filled = (size_t)(fraction(done) * (double)width);
        std::string text(filled, '=');
        if (filled < width) text += '>';
        text.resize(width, ' ');
        return text;
    }

    std::string label_;
    uint64_t total_;
    FILE* stream_;
    uint64_t done_before_;
    ProgressSettings settings_;
    double start_;
    double last_drawn_ = 0;
    int last_tenth_ = 0;
    bool terminal_ = false;
    bool visible_ = false;
    bool finished_ = false;
};

}  // namespace lnfree
