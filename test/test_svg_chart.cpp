// Tests of data/svg_chart.h: the XML is well-formed whatever the input, and what is drawn is where the data say.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/svg_chart.h"

using namespace lnfree;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

size_t occurrences(const std::string& text, const std::string& part) {
    size_t count = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) count++;
    return count;
}

// A message when `xml` is not well-formed: unbalanced tags, attributes without quotes or twice, stray < or &.
std::string xml_fault(const std::string& xml) {
    std::vector<std::string> open;
    for (size_t at = 0; at < xml.size();) {
        const unsigned char c = (unsigned char)xml[at];
        if (c < 0x20 && c != '\n' && c != '\t') return "control character";
        if (c == '&') {
            const size_t end = xml.find(';', at);
            const std::string entity = xml.substr(at, end == std::string::npos ? 1 : end - at + 1);
            if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;" && entity != "&quot;") return "bare &";
        }
        if (c != '<') {
            if (open.empty() && c != '\n') return "text outside the root";
            at++;
            continue;
        }
        const size_t end = xml.find('>', at);
        if (end == std::string::npos) return "tag without end";
        const std::string tag = xml.substr(at + 1, end - at - 1);
        at = end + 1;
        if (tag[0] == '/') {
            if (open.empty() || open.back() != tag.substr(1)) return "unexpected </" + tag.substr(1) + ">";
            open.pop_back();
            continue;
        }
        if (tag.find('<') != std::string::npos) return "< inside a tag";
        if (occurrences(tag, "\"") % 2 != 0) return "odd quotes in <" + tag + ">";
        if (occurrences(tag, "=\"") * 2 != occurrences(tag, "\"")) return "attribute without quotes in <" + tag + ">";
        for (const char* name : {" x=", " y=", " stroke=", " fill=", " stroke-opacity=", " stroke-width="}) {
            if (occurrences(tag, name) > 1) return std::string("attribute twice in <") + tag + ">";
        }
        if (tag.back() != '/') open.push_back(tag.substr(0, tag.find(' ')));
    }
    return open.empty() ? "" : "<" + open.back() + "> is not closed";
}

std::vector<double> numbers_in(const std::string& text) {
    std::vector<double> numbers;
    for (const char* at = text.c_str(); *at;) {
        char* end = nullptr;
        const double value = std::strtod(at, &end);
        if (end == at) {
            at++;
        } else {
            numbers.push_back(value);
            at = end;
        }
    }
    return numbers;
}

// The coordinates of the n-th polyline: x, y, x, y, ...
std::vector<double> polyline(const std::string& svg, size_t n) {
    size_t at = 0;
    for (size_t i = 0; i <= n; i++) at = svg.find("points=\"", at) + 8;
    return numbers_in(svg.substr(at, svg.find('"', at) - at));
}

Chart two_lines() {
    Chart chart;
    chart.title = "Loss";
    chart.x_label = "step";
    chart.y_label = "nats";
    chart.series = {{"original", {0, 1, 2, 3}, {4, 3, 2, 1}}, {"LN-free", {0, 1, 2, 3}, {4, 3.5, 3, 2.5}}};
    return chart;
}

std::vector<std::string> labels(const std::vector<svg::Tick>& ticks) {
    std::vector<std::string> out;
    for (const svg::Tick& tick : ticks) out.push_back(tick.label);
    return out;
}

using Labels = std::vector<std::string>;

}  // namespace

TEST_CASE("a chart is well-formed XML with a title, a description, a role and a background of its own") {
    const std::string svg = render_svg(two_lines());
    CHECK(xml_fault(svg) == "");
    CHECK(svg.rfind("<svg ", 0) == 0);
    CHECK(svg.find("role=\"img\"") != std::string::npos);
    CHECK(svg.find(">Loss</title>") != std::string::npos);
    CHECK(svg.find("Line chart of nats against step. original ends at 1. LN-free ends at 2.5.") != std::string::npos);
    CHECK(svg.find("<rect width=\"100%\" height=\"100%\"") != std::string::npos);
    CHECK(svg.find("@import") == std::string::npos);
    CHECK(occurrences(svg, "http") == 1);  // the name space
    CHECK(svg == render_svg(two_lines()));
}

TEST_CASE("charts on one page have ids of their own") {
    Chart other = two_lines();
    other.series[0].y.back() = 1.5;
    const std::string a = render_svg(two_lines()), b = render_svg(other);
    const size_t at = a.find("id=\"plot-");
    CHECK(b.find(a.substr(at, 18)) == std::string::npos);
}

TEST_CASE("the xml check of these tests finds faults") {
    CHECK(xml_fault("<a><b></a>") != "");
    CHECK(xml_fault("<a>x & y</a>") != "");
    CHECK(xml_fault("<a b=1></a>") == "");  // no quotes at all: not worth more here
    CHECK(xml_fault("<a b=\"1></a>") != "");
    CHECK(xml_fault("<a x=\"1\" x=\"2\"/>") != "");
    CHECK(xml_fault("<a>") != "");
}

TEST_CASE("text is escaped and what XML forbids is replaced") {
    CHECK(svg::escape("a<b & \"c\">") == "a&lt;b &amp; &quot;c&quot;&gt;");
    CHECK(svg::escape("σ̄ ± – 😀") == "σ̄ ± – 😀");
    CHECK(svg::escape(std::string("a\0b\x1b", 4)) == "a?b?");
    CHECK(svg::escape("\xff\xce") == "??");
    CHECK(svg::escape("\xed\xa0\x80") == "?");  // a surrogate
    CHECK(svg::escape("\xef\xbf\xbf") == "?");  // U+FFFF
    Chart chart = two_lines();
    for (std::string* text : {&chart.title, &chart.x_label, &chart.y_label, &chart.series[0].name})
        *text = "<&\">\x01\xff";
    chart.markers = {{1, "<k>", "&"}};
    chart.references = {{2, "\"r\"<"}};
    chart.spans = {{0, 1, "<&"}};
    chart.series[1].colour = "\"/><script>";
    CHECK(xml_fault(render_svg(chart)) == "");
    CHECK(render_svg(chart).find("<script") == std::string::npos);
}

TEST_CASE("a shaded part says what it is: in words if there is room, else when pointed at") {
    Chart chart = two_lines();
    chart.spans = {{0, 3, "wide enough", "#ABCDEF"}, {1, 1.01, "too narrow"}};
    const std::string svg = render_svg(chart);
    CHECK(svg.find(">wide enough</text>") != std::string::npos);
    CHECK(svg.find(">too narrow</text>") == std::string::npos);
    CHECK(svg.find("<title>too narrow</title>") != std::string::npos);
    CHECK(svg.find("#ABCDEF") != std::string::npos);
}

TEST_CASE("points are drawn where their values say") {
    Chart chart = two_lines();
    chart.series.resize(1);
    chart.series[0].y = {1, 3, 2, 5};
    const std::vector<double> points = polyline(render_svg(chart), 0);
    REQUIRE(points.size() == 8);
    CHECK(points[2] - points[0] == doctest::Approx(points[4] - points[2]).epsilon(0.001));
    const double per_unit = (points[1] - points[7]) / 4;  // y grows downwards
    CHECK(per_unit > 20);
    CHECK(points[1] - points[3] == doctest::Approx(2 * per_unit).epsilon(0.003));
    CHECK(points[1] - points[5] == doctest::Approx(1 * per_unit).epsilon(0.003));
}

TEST_CASE("a logarithmic axis gives equal ratios equal lengths") {
    Chart chart = two_lines();
    chart.log_y = chart.log_x = true;
    chart.series = {{"s", {1, 10, 100}, {2, 20, 200}}};
    const std::vector<double> points = polyline(render_svg(chart), 0);
    REQUIRE(points.size() == 6);
    CHECK(points[2] - points[0] == doctest::Approx(points[4] - points[2]).epsilon(0.001));
    CHECK(points[1] - points[3] == doctest::Approx(points[3] - points[5]).epsilon(0.001));
    chart.series[0].y = {2, 0, 200};
    CHECK(occurrences(render_svg(chart), "<circle") == 2);  // zero has no place: two lone points are left
}

TEST_CASE("values that are not finite are gaps") {
    Chart chart = two_lines();
    chart.series = {{"s", {0, 1, 2, 3, 4, 5, 6, 7}, {1, 2, kNan, 3, 4, kInfinity, 5, -kInfinity}}};
    const std::string svg = render_svg(chart);
    CHECK(xml_fault(svg) == "");
    CHECK(occurrences(svg, "<polyline") == 2);
    CHECK(occurrences(svg, "<circle") == 1);
    CHECK(svg.find("nan") == std::string::npos);
    CHECK(svg.find("inf") == std::string::npos);
}

TEST_CASE("charts of nothing, of one point and of equal values are drawn") {
    Chart chart;
    CHECK(xml_fault(render_svg(chart)) == "");
    chart.title = "t";
    chart.series = {{"empty", {}, {}}};
    CHECK(xml_fault(render_svg(chart)) == "");
    CHECK(render_svg(chart).find("empty has no points.") != std::string::npos);
    chart.series = {{"nothing", {1, 2}, {kNan, kNan}}};
    CHECK(xml_fault(render_svg(chart)) == "");
    chart.series = {{"one", {7}, {3}}};
    CHECK(occurrences(render_svg(chart), "<circle") == 1);
    for (double value : {0.0, 5.0, -2.5, 1e-9, 1e12}) {
        for (bool logarithmic : {false, true}) {
            INFO(value);
            chart.series = {{"constant", {1, 2, 3}, {value, value, value}}};
            chart.log_y = logarithmic;
            const std::string svg = render_svg(chart);
            CHECK(xml_fault(svg) == "");
            const bool drawn = !logarithmic || value > 0;
            CHECK(occurrences(svg, "<polyline") == (drawn ? 1 : 0));
            if (!drawn) continue;
            const std::vector<double> points = polyline(svg, 0);
            CHECK(points[1] == points[5]);
            CHECK(points[1] > 60);
            CHECK(points[1] < 400);
        }
    }
}

TEST_CASE("extreme values do no harm") {
    for (bool logarithmic : {false, true}) {
        Chart chart = two_lines();
        chart.log_x = chart.log_y = logarithmic;
        const double huge = std::numeric_limits<double>::max(), tiny = std::numeric_limits<double>::denorm_min();
        chart.series = {{"s", {huge, -huge, tiny, 1, 2}, {tiny, 1, huge, 1e299, -1e299}}};
        chart.references = {{kNan, "r"}, {huge, "q"}, {-1, "p"}};
        chart.markers = {{kInfinity, "a", "b"}, {-5, "a", "c"}};
        chart.spans = {{kNan, 3, ""}};
        const std::string svg = render_svg(chart);
        CHECK(xml_fault(svg) == "");
        CHECK(svg.find("nan") == std::string::npos);
        CHECK(svg.size() < 20000);
    }
}

TEST_CASE("a series with x and y of different lengths is refused by name") {
    Chart chart = two_lines();
    chart.series[1].x.pop_back();
    CHECK_THROWS_WITH_AS(render_svg(chart), "render_svg: series 'LN-free' has 3 x and 4 y values",
                         std::invalid_argument);
}

TEST_CASE("an outlier is cut off, marked and named") {
    Chart chart = two_lines();
    chart.series.resize(1);
    chart.series[0].x.clear();
    chart.series[0].y.clear();
    for (int i = 0; i < 200; i++) {
        chart.series[0].x.push_back(i);
        chart.series[0].y.push_back(i == 77 ? 123.5 : 3 + 0.01 * (i % 7));
    }
    const std::string svg = render_svg(chart);
    CHECK(xml_fault(svg) == "");
    CHECK(svg.find(">123.5</text>") != std::string::npos);
    CHECK(occurrences(svg, "Z\" fill=\"#0072B2\"") == 1);
    CHECK(svg.find(">3.02</text>") != std::string::npos);  // the axis resolves the rest
    chart.clip_outliers = false;
    CHECK(render_svg(chart).find(">100</text>") != std::string::npos);
    CHECK(occurrences(render_svg(chart), "Z\" fill") == 0);
}

TEST_CASE("limits given by the caller hold, and points beyond them are marked") {
    Chart chart = two_lines();
    chart.y_min = 2;
    chart.y_max = 3.75;
    const std::string svg = render_svg(chart);
    CHECK(occurrences(svg, "Z\" fill") == 3);
    CHECK(svg.find(">2.0</text>") != std::string::npos);
    chart.y_min = 100;  // above everything: ignored rather than drawn upside down
    CHECK(xml_fault(render_svg(chart)) == "");
}

TEST_CASE("a long run gives a small picture that keeps its extremes") {
    Chart chart = two_lines();
    chart.clip_outliers = false;
    chart.series = {{"s", {}, {}}};
    for (int i = 0; i < 300000; i++) {
        chart.series[0].x.push_back(i);
        chart.series[0].y.push_back(i == 123456 ? 9.0 : i == 222222 ? -9.0 : std::sin(i));
    }
    const std::string svg = render_svg(chart);
    CHECK(svg.size() < 60000);
    const std::vector<double> points = polyline(svg, 0);
    double low = kInfinity, high = -kInfinity;
    for (size_t i = 1; i < points.size(); i += 2) {
        low = std::min(low, points[i]);
        high = std::max(high, points[i]);
    }
    const double per_unit = (high - low) / 18;
    CHECK(per_unit > 10);
    CHECK(std::count(points.begin(), points.end(), low) == 1);
    CHECK(std::count(points.begin(), points.end(), high) == 1);
}

TEST_CASE("smoothing draws a thick line over thin points") {
    Chart chart = two_lines();
    chart.series[0].smooth = 3;
    const std::string svg = render_svg(chart);
    CHECK(occurrences(svg, "<polyline") == 3);
    CHECK(occurrences(svg, "stroke-opacity=\"0.35\"") == 1);
}

TEST_CASE("moving_average is centred, starts at the first value and never crosses a gap") {
    const std::vector<double> smooth = svg::moving_average({1, 2, 6, 3, 10}, 3, -100, 100);
    CHECK(smooth[0] == 1);
    CHECK(smooth[1] == 3);
    CHECK(smooth[2] == doctest::Approx(11.0 / 3));
    CHECK(smooth[3] == doctest::Approx(19.0 / 3));
    CHECK(smooth[4] == doctest::Approx(13.0 / 2));
    const std::vector<double> gap = svg::moving_average({1, 3, kNan, 5, 5, 8}, 5, -100, 6);
    CHECK(gap[0] == 1);
    CHECK(gap[1] == 2);
    CHECK(std::isnan(gap[2]));
    CHECK(gap[3] == 5);
    CHECK(gap[5] == doctest::Approx(16.0 / 3));  // the 8 counts as 6
    CHECK(svg::moving_average({}, 9, 0, 1).empty());
}

TEST_CASE("ticks are round numbers inside the axis") {
    CHECK(labels(svg::linear_ticks(0, 300, 6)) == Labels{"0", "50", "100", "150", "200", "250", "300"});
    CHECK(labels(svg::linear_ticks(2.97, 3.43, 6)) == Labels{"3.0", "3.1", "3.2", "3.3", "3.4"});
    CHECK(labels(svg::linear_ticks(-1, 1, 4)) == Labels{"−1.0", "−0.5", "0", "0.5", "1.0"});
    CHECK(labels(svg::linear_ticks(0, 12000, 5)) == Labels{"0", "2.5k", "5.0k", "7.5k", "10.0k"});
    CHECK(labels(svg::linear_ticks(0, 4.1e6, 5)) == Labels{"0", "1M", "2M", "3M", "4M"});
    CHECK(labels(svg::linear_ticks(0, 5e-5, 5)) == Labels{"0", "1e−5", "2e−5", "3e−5", "4e−5", "5e−5"});
    CHECK(labels(svg::log_ticks(1, 1000, 5)) == Labels{"1", "10", "100", "1000"});
    CHECK(labels(svg::log_ticks(0.7, 6.5, 8)) == Labels{"0.8", "1", "1.5", "2", "3", "4", "6"});
    CHECK(labels(svg::log_ticks(3, 150, 6)) == Labels{"5", "10", "20", "50", "100"});
    CHECK(labels(svg::log_ticks(3.0, 3.3, 4)) == Labels{"3.0", "3.1", "3.2", "3.3"});
    for (double low : {-7.3e8, -0.02, 0.0, 1.7, 9.99e5}) {
        for (double range : {1e-6, 0.37, 42.0, 8.1e9}) {
            for (int most : {2, 5, 9}) {
                const auto ticks = svg::linear_ticks(low, low + range, most);
                INFO(low, " ", range, " ", most);
                CHECK(ticks.size() >= 1);
                CHECK((int)ticks.size() <= most + 1);
                CHECK(ticks.front().value >= low - range * 1e-6);
                CHECK(ticks.back().value <= low + range * (1 + 1e-6));
            }
        }
    }
}

TEST_CASE("numbers are written with a point whatever the locale, and never as minus zero") {
    CHECK(svg::fixed(1.25, 1) == "1.2");
    CHECK(svg::fixed(-0.04, 1) == "0.0");
    CHECK(svg::fixed(-3.16, 1) == "-3.2");
    CHECK(svg::pixel(1e300) == "100000.0");
    CHECK(svg::short_number(-3.07654) == "−3.077");
}

TEST_CASE("markers are bracketed by kind, labelled where there is room, and shaded together") {
    Chart chart = two_lines();
    chart.series[0].x = chart.series[1].x = {0, 100, 200, 300};
    for (int layer = 0; layer < 4; layer++) {
        chart.markers.push_back({15.0 + 8 * layer, "mlp", std::to_string(layer)});
        chart.markers.push_back({50.0 + 8 * layer, "qk", std::to_string(layer)});
    }
    chart.markers.push_back({140, "f", ""});
    const std::string svg = render_svg(chart);
    CHECK(xml_fault(svg) == "");
    for (const char* kind : {">mlp</text>", ">qk</text>", ">f</text>"}) CHECK(occurrences(svg, kind) == 1);
    CHECK(occurrences(svg, "font-size=\"9.0\"") == 8);
    CHECK(occurrences(svg, "fill=\"#F3F1EC\"") == 1);

    chart.markers.clear();
    for (int layer = 0; layer < 48; layer++) chart.markers.push_back({10.0 + layer, "mlp", std::to_string(layer)});
    const size_t crowded = occurrences(render_svg(chart), "font-size=\"9.0\"");
    CHECK(crowded > 2);
    CHECK(crowded < 20);
}

TEST_CASE("labels of close references are moved apart and stay inside the picture") {
    Chart chart = two_lines();
    chart.references = {{1.0, "lowest"}, {1.01, "next"}, {1.02, "third"}, {4.0, "highest"}};
    const std::string svg = render_svg(chart);
    std::vector<double> heights;
    for (const char* label : {">highest<", ">third<", ">next<", ">lowest<"}) {
        const size_t end = svg.find(label, svg.find("<g "));
        const size_t start = svg.rfind(" y=\"", end);
        heights.push_back(std::strtod(svg.c_str() + start + 4, nullptr));
    }
    for (size_t i = 1; i < heights.size(); i++) CHECK(heights[i] - heights[i - 1] > 13);
    CHECK(heights.back() < 440 - 40);
}

TEST_CASE("a legend that is too wide goes on in another row") {
    Chart chart = two_lines();
    const double before = polyline(render_svg(chart), 0)[1];
    for (int i = 0; i < 12; i++) chart.series.push_back({"a series with a long name", {0, 3}, {4, 1}});
    const std::string svg = render_svg(chart);
    CHECK(xml_fault(svg) == "");
    CHECK(polyline(svg, 0)[1] > before + 30);
}
