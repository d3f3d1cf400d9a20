// Tests of data/console.h: numbers, column widths, tables, and a progress bar on a clock that the test turns itself.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>

#include "data/console.h"

using namespace lnfree;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A progress bar's stream (an anonymous temporary file) and its clock.
struct Recorder {
    FILE* stream = std::tmpfile();
    double time = 1000;

    Recorder() { REQUIRE(stream != nullptr); }
    Recorder(const Recorder&) = delete;
    Recorder& operator=(const Recorder&) = delete;
    ~Recorder() { std::fclose(stream); }

    ProgressSettings settings(int terminal, int columns = 100) {
        ProgressSettings settings;
        settings.terminal = terminal;
        settings.columns = columns;
        settings.now = [this] { return time; };
        return settings;
    }

    std::string written() {
        std::fflush(stream);
        std::string text((size_t)std::ftell(stream), '\0');
        std::rewind(stream);
        REQUIRE(std::fread(&text[0], 1, text.size(), stream) == text.size());
        return text;
    }
};

size_t occurrences(const std::string& text, const std::string& part) {
    size_t count = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) count++;
    return count;
}

}  // namespace

TEST_CASE("format_count groups digits in threes") {
    CHECK(format_count(0) == "0");
    CHECK(format_count(999) == "999");
    CHECK(format_count(1000) == "1,000");
    CHECK(format_count(12345) == "12,345");
    CHECK(format_count(123456) == "123,456");
    CHECK(format_count(UINT64_MAX) == "18,446,744,073,709,551,615");
}

TEST_CASE("format_rate keeps three digits and moves to the next unit when rounding reaches it") {
    CHECK(format_rate(0) == "0");
    CHECK(format_rate(0.123) == "0.12");
    CHECK(format_rate(7) == "7");
    CHECK(format_rate(8.214) == "8.21");
    CHECK(format_rate(9.996) == "10.0");
    CHECK(format_rate(99.96) == "100");
    CHECK(format_rate(999.4) == "999");
    CHECK(format_rate(999.6) == "1.00k");
    CHECK(format_rate(12345) == "12.3k");
    CHECK(format_rate(999600) == "1.00M");
    CHECK(format_rate(2.5e9) == "2.50G");
    CHECK(format_rate(3e21) == "3000000P");
    CHECK(format_rate(kNan) == "?");
    CHECK(format_rate(kInfinity) == "?");
    CHECK(format_rate(-1) == "?");
}

TEST_CASE("format_bytes uses binary units") {
    CHECK(format_bytes(0) == "0 B");
    CHECK(format_bytes(999) == "999 B");
    CHECK(format_bytes(1000) == "0.98 KiB");
    CHECK(format_bytes(1536) == "1.50 KiB");
    CHECK(format_bytes(1024 * 1024) == "1.00 MiB");
    CHECK(format_bytes(1024ull * 1024 * 1024 * 500) == "500 GiB");
    CHECK(format_bytes(UINT64_MAX) == "16.0 EiB");
}

TEST_CASE("format_duration shows two units and never sixty of one") {
    CHECK(format_duration(0) == "0 ms");
    CHECK(format_duration(0.045) == "45 ms");
    CHECK(format_duration(3.2) == "3.2 s");
    CHECK(format_duration(9.96) == "10 s");
    CHECK(format_duration(59.4) == "59 s");
    CHECK(format_duration(59.6) == "1m 00s");
    CHECK(format_duration(65) == "1m 05s");
    CHECK(format_duration(3599.4) == "59m 59s");
    CHECK(format_duration(3599.7) == "1h 00m");
    CHECK(format_duration(7380) == "2h 03m");
    CHECK(format_duration(86369) == "23h 59m");
    CHECK(format_duration(86399) == "1d 0h");
    CHECK(format_duration(3 * 86400 + 4 * 3600) == "3d 4h");
    CHECK(format_duration(4 * 86400 - 10) == "4d 0h");
    CHECK(format_duration(-1) == "?");
    CHECK(format_duration(kNan) == "?");
    CHECK(format_duration(kInfinity) == "?");
}

TEST_CASE("display_width counts columns, not bytes") {
    CHECK(display_width("") == 0);
    CHECK(display_width("plain") == 5);
    CHECK(display_width("σ = 1 ± 2") == 9);
    CHECK(display_width("λ – −") == 5);
    CHECK(display_width("e\u0301") == 1);
    CHECK(display_width("日本") == 4);
    CHECK(display_width("😀") == 2);
    CHECK(display_width("\xff\xfe") == 2);
    CHECK(display_width("a\xce") == 2);
    CHECK(display_width("\xe2\x82 ") == 3);
}

TEST_CASE("clip_to_width never cuts a character in two") {
    CHECK(clip_to_width("abc", 5) == "abc");
    CHECK(clip_to_width("abc", 2) == "ab");
    CHECK(clip_to_width("σλ±", 2) == "σλ");
    CHECK(clip_to_width("日本", 3) == "日");
    CHECK(clip_to_width("abc", 0).empty());
}

TEST_CASE("a table aligns numbers to the right and words to the left") {
    Table table({"model", "loss", "±", "time"});
    table.add_row({"original", "0.731", "0.002", "1m 05s"});
    table.add_row({"LN-free (σ̄)", "+10.75", "–", "3.2 s"});
    table.add_row({"λ"});
    CHECK(table.row_count() == 3);
    CHECK(table.text() ==
          "model          loss      ±    time\n"
          "-----------  ------  -----  ------\n"
          "original      0.731  0.002  1m 05s\n"
          "LN-free (σ̄)  +10.75      –   3.2 s\n"
          "λ\n");
}

TEST_CASE("a column with one word among numbers is a column of words") {
    Table table({"a", "b"});
    table.add_row({"1", "22"});
    table.add_row({"x1", "3"});
    CHECK(table.text() ==
          "a    b\n"
          "--  --\n"
          "1   22\n"
          "x1   3\n");
}

TEST_CASE("a table without rows shows its headers") {
    CHECK(Table({"a", "long"}).text() == "a  long\n-  ----\n");
    CHECK(Table({"a"}).markdown() == "| a   |\n| --- |\n");
}

TEST_CASE("a row longer than the headers is refused") {
    Table table({"a"});
    CHECK_THROWS_AS(table.add_row({"1", "2"}), std::invalid_argument);
}

TEST_CASE("markdown escapes pipes, joins lines and marks right-aligned columns") {
    Table table({"op|name", "GFLOP/s"});
    table.add_row({"a|b\nc", "12.5"});
    table.add_row({"σ", "nan"});
    CHECK(table.markdown() ==
          "| op\\|name | GFLOP/s |\n"
          "| -------- | ------: |\n"
          "| a\\|b c   |    12.5 |\n"
          "| σ        |     nan |\n");
}

TEST_CASE("a progress bar is silent for two seconds, then drawn ten times a second at most, then erased") {
    Recorder recorder;
    {
        ProgressBar progress("train", 1000, recorder.stream, 0, recorder.settings(1));
        for (int i = 0; i < 19; i++) {
            recorder.time += 0.1;
            progress.update((uint64_t)i);
        }
        CHECK(recorder.written().empty());
        recorder.time += 0.6;  // 2.5 s
        progress.update(500, "loss 1.25");
        recorder.time += 0.05;
        progress.update(501);
        recorder.time += 0.06;
        progress.update(502);
        progress.hide();
        progress.finish();
        recorder.time += 10;
        progress.update(600);
    }
    CHECK(recorder.written() ==
          "\rtrain  50% [==========>          ] 500/1,000  200/s  ETA 2.5 s  loss 1.25\033[K"
          "\rtrain  50% [==========>          ] 502/1,000  192/s  ETA 2.6 s\033[K"
          "\r\033[K");
}

TEST_CASE("a progress bar erases its line when an exception passes") {
    Recorder recorder;
    try {
        ProgressBar progress("train", 10, recorder.stream, 0, recorder.settings(1));
        recorder.time += 3;
        progress.update(5);
        throw std::runtime_error("stop");
    } catch (const std::runtime_error&) {
    }
    const std::string text = recorder.written();
    REQUIRE(text.size() > 4);
    CHECK(text.substr(text.size() - 4) == "\r\033[K");
}

TEST_CASE("a progress bar never fills the last column of its terminal") {
    for (int columns : {1, 2, 7, 20, 33, 60, 80}) {
        Recorder recorder;
        ProgressBar progress("σλ±", 1000, recorder.stream, 0, recorder.settings(1, columns));
        recorder.time += 3;
        progress.update(999, "lösung");
        const std::string text = recorder.written();
        const std::string line = text.substr(1, text.size() - 4);
        CHECK(display_width(line) < (size_t)std::max(columns, 2));
        progress.finish();
    }
}

TEST_CASE("away from a terminal a progress bar prints one plain line a minute") {
    Recorder recorder;
    ProgressBar progress("eval", 300, recorder.stream, 0, recorder.settings(0));
    for (uint64_t done = 1; done <= 300; done++) {
        recorder.time += 1;
        progress.update(done, "x");
    }
    progress.finish();
    const std::string text = recorder.written();
    CHECK(occurrences(text, "\n") == 5);
    CHECK(occurrences(text, "\r") + occurrences(text, "\033") == 0);
    CHECK(text.rfind("eval  20% 60/300  1/s  ETA 4m 00s  x\n", 0) == 0);
    CHECK(occurrences(text, "eval 100% 300/300  1/s  ETA 0 ms  x\n") == 1);
}

TEST_CASE("away from a terminal a progress bar of less than a minute prints nothing") {
    Recorder recorder;
    {
        ProgressBar progress("eval", 59, recorder.stream, 0, recorder.settings(0));
        for (uint64_t done = 1; done <= 59; done++) {
            recorder.time += 1;
            progress.update(done);
        }
        progress.hide();
    }
    CHECK(recorder.written().empty());
}

TEST_CASE("away from a terminal a progress bar that took longer prints its final state once") {
    Recorder recorder;
    {
        ProgressBar progress("train", 90, recorder.stream, 0, recorder.settings(0));
        for (uint64_t done = 1; done <= 90; done++) {
            recorder.time += 1;
            progress.update(done, "loss " + std::to_string(done));
        }
        progress.finish();
        recorder.time += 100;
        progress.update(91);
        progress.finish();
    }
    CHECK(recorder.written() ==
          "train  66% 60/90  1/s  ETA 30 s  loss 60\n"
          "train 100% 90/90  1/s  ETA 0 ms  loss 90\n");
}

TEST_CASE("away from a terminal a progress bar without any update prints nothing, however long it lives") {
    Recorder recorder;
    {
        ProgressBar progress("train", 90, recorder.stream, 0, recorder.settings(0));
        recorder.time += 1000;
    }
    CHECK(recorder.written().empty());
}

TEST_CASE("a resumed progress bar counts only this run's work in its rate") {
    Recorder recorder;
    ProgressBar progress("train", 500, recorder.stream, 100, recorder.settings(0));
    recorder.time += 60;
    progress.update(400);
    CHECK(recorder.written() == "train  80% 400/500  5/s  ETA 20 s\n");
}

TEST_CASE("a progress bar without a total shows the count and the rate") {
    Recorder recorder;
    ProgressBar progress("read", 0, recorder.stream, 0, recorder.settings(0));
    for (int second = 1; second <= 150; second++) {
        recorder.time += 1;
        progress.update((uint64_t)second * 1000);
    }
    CHECK(recorder.written() == "read 60,000  1.00k/s\nread 120,000  1.00k/s\n");
}

TEST_CASE("a progress bar survives counts beyond its total and a clock that stands still") {
    Recorder recorder;
    ProgressSettings settings = recorder.settings(1);
    settings.show_after = 0;
    ProgressBar progress("odd", 10, recorder.stream, 0, settings);
    progress.update(25);
    CHECK(recorder.written() == "\rodd 100% [=====================] 25/10  0/s\033[K");
}
