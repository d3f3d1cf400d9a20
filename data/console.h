// What a run prints for people: progress, durations, counts, tables.
//
// Everything here is plain text without colour (so NO_COLOR has nothing to turn off), safe to pipe into a file, and
// measured in columns rather than bytes, so that σ, λ, ± and – line up. Programs read --json instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace lnfree {

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

// 12345 -> "12,345".
std::string format_count(uint64_t count);

// A number with so many digits behind the point.
std::string format_fixed(double x, int digits);

// A number in as few digits as tell it apart at a glance: 0.0006, 1.3e+06.
std::string format_general(double x);

// A rate or any other positive size at a glance: 0.5 -> "0.50", 12345 -> "12.3k", 2.5e9 -> "2.50G"; "?" when not finite.
std::string format_rate(double per_second);

// 1536 -> "1.50 KiB"; below 1000 bytes "512 B".
std::string format_bytes(uint64_t bytes);

// "45 ms", "3.2 s", "42 s", "1m 05s", "2h 03m", "3d 4h": two units at most. "?" for a negative or non-finite time.
std::string format_duration(double seconds);

// ---------------------------------------------------------------------------------------------------------------------
// Text in columns

namespace console_detail {

// Reads one UTF-8 character at `position` and moves past it. A malformed byte counts as one character of its own.
uint32_t next_code_point(const std::string& text, size_t& position);

}  // namespace console_detail

// Terminal columns that UTF-8 `text` takes: display_width("σ = 1 ± 2") is 9.
size_t display_width(const std::string& text);

// The longest beginning of `text` that fits into `columns`, never ending inside a character.
std::string clip_to_width(const std::string& text, size_t columns);

// ---------------------------------------------------------------------------------------------------------------------
// Tables

// A table of text cells. Columns whose filled cells are all numbers are right-aligned, the others left-aligned.
class Table {
  public:
    explicit Table(std::vector<std::string> headers) : headers_(std::move(headers)) {}

    // Missing cells are empty. Throws std::invalid_argument for more cells than headers: a mistake in the program.
    void add_row(std::vector<std::string> cells);

    size_t row_count() const { return rows_.size(); }

    // For a terminal: headers, a rule, the rows; columns two spaces apart; no trailing spaces; ends with a newline.
    std::string text() const;

    // For a README: a GitHub table, padded so that its source reads well too. A pipe inside a cell is escaped and a
    // line break becomes a space.
    std::string markdown() const;

    const std::vector<std::string>& headers() const { return headers_; }
    const std::vector<std::vector<std::string>>& rows() const { return rows_; }

  private:
    std::vector<std::string> headers_;
    std::vector<std::vector<std::string>> rows_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Progress

// Seconds of a clock that only goes forward; where it begins means nothing.
double steady_seconds();

// How a ProgressBar behaves; tests replace the clock and the terminal.
struct ProgressSettings {
    double show_after = 2.0;    // seconds of work before a terminal shows anything: short jobs stay silent
    double redraw_every = 0.1;  // seconds between two drawings on a terminal
    double plain_every = 60.0;  // elsewhere: seconds before the first line, and between two lines
    int terminal = -1;          // 1: draw a bar, 0: plain lines now and then, -1: ask the stream
    int columns = 0;            // terminal width, 0: ask the terminal
    std::function<double()> now = steady_seconds;
};

// The progress of one long loop on one line:
//
//     train  45% [=========>           ] 135/300  8.21/s  ETA 20 s  loss 1.234
//
// On a terminal the line is redrawn in place, at most ten times a second, and erased by finish(), so that what is
// printed next starts on a clean line; nothing appears before two seconds. Elsewhere (a log file, a pipe) a plain line
// appears at most once a minute, and at the end one for the final state; work of less than a minute leaves no line at
// all. With total 0 (unknown) it shows the count and the rate alone.
// Writing errors are ignored: a closed standard error must not end a training run.
class ProgressBar {
  public:
    // `done_before` is the part of the total that an earlier run did (resuming): it counts for the percentage and not for the rate.
    ProgressBar(std::string label, uint64_t total, FILE* stream = stderr, uint64_t done_before = 0,
                ProgressSettings settings = {});
    ProgressBar(const ProgressBar&) = delete;
    ProgressBar& operator=(const ProgressBar&) = delete;
    ~ProgressBar();

    // `done` of `total` is finished; `extra_text` (a loss, a file name) goes to the end of the line.
    void update(uint64_t done, const std::string& extra_text = "");

    // Erases the line until the next update; call it before printing something else on the same terminal.
    void hide();

    // Erases the line for good; elsewhere than on a terminal, prints the last state if a minute has passed and it is
    // not there yet. The destructor does so too, so an exception leaves a clean line for its message.
    void finish();

  private:
    size_t terminal_columns() const;

    double fraction(uint64_t done) const;
    void draw(uint64_t done, const std::string& extra_text, double now);
    void print_plain(double now);
    std::string status(uint64_t done, const std::string& extra_text, double now, size_t bar_width) const;
    std::string bar(uint64_t done, size_t width) const;

    std::string label_;
    uint64_t total_;
    FILE* stream_;
    uint64_t done_before_;
    ProgressSettings settings_;
    double start_;
    double last_drawn_ = 0;
    uint64_t done_ = 0;  // of the last update away from a terminal, and its extra text
    std::string extra_text_;
    bool printed_ = true;  // they are on a plain line already, or there was no update
    bool terminal_ = false;
    bool visible_ = false;
    bool finished_ = false;
};

}  // namespace lnfree
