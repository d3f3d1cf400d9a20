#include "data/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <utility>

#include "data/console.h"

namespace lnfree {

namespace svg {

// ---------------------------------------------------------------------------------------------------------------------
// Text

std::string escape(const std::string& text) {
    std::string out;
    for (size_t position = 0; position < text.size();) {
        const size_t start = position;
        const uint32_t code = console_detail::next_code_point(text, position);
        const bool broken = position - start == 1 && code >= 0x80;
        const bool forbidden = (code < 0x20 && code != '\t' && code != '\n' && code != '\r') ||
                               (code >= 0xD800 && code < 0xE000) || code == 0xFFFE || code == 0xFFFF;
        if (broken || forbidden) {
            out += '?';
        } else if (code == '&') {
            out += "&amp;";
        } else if (code == '<') {
            out += "&lt;";
        } else if (code == '>') {
            out += "&gt;";
        } else if (code == '"') {
            out += "&quot;";
        } else {
            out.append(text, start, position - start);
        }
    }
    return out;
}

std::string fixed(double value, int decimals) {
    char text[400];
    std::snprintf(text, sizeof text, "%.*f", decimals, value);
    std::string out = text;
    std::replace(out.begin(), out.end(), ',', '.');
    if (out[0] == '-' && out.find_first_not_of("-0.") == std::string::npos) out.erase(0, 1);
    return out;
}

std::string pixel(double value) {
    return fixed(std::max(-1e5, std::min(1e5, value)), 1);
}

double text_width(const std::string& text, double size) {
    return 0.58 * size * (double)display_width(text);
}

std::string short_number(double value) {
    char text[40];
    std::snprintf(text, sizeof text, "%.4g", value);
    std::string out = text;
    std::replace(out.begin(), out.end(), ',', '.');
    return out[0] == '-' ? "−" + out.substr(1) : out;
}

// ---------------------------------------------------------------------------------------------------------------------
// Axes

namespace {

// Whether a value has a place on an axis. Values near the limits of double are left out: their differences overflow.
bool drawable(double value, bool logarithmic) {
    return std::isfinite(value) && std::fabs(value) <= 1e300 && (!logarithmic || value >= 1e-300);
}

struct Axis {
    double low = 0, high = 1;
    bool logarithmic = false;
    double start = 0, end = 1;  // pixels of low and high
    std::vector<Tick> ticks;

    // Pixel of a value; NaN for what cannot be drawn.
    double at(double value) const {
        if (!drawable(value, logarithmic)) return std::numeric_limits<double>::quiet_NaN();
        const double part = logarithmic ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
        return start + part * (end - start);
    }
};

// The smallest of 1, 2, 2.5, 5 times a power of ten that makes at most `most` steps.
double nice_step(double range, int most) {
    const double raw = range / most;
    const double power = std::pow(10, std::floor(std::log10(raw)));
    for (double factor : {1.0, 2.0, 2.5, 5.0}) {
        if (factor * power >= raw * (1 - 1e-9)) return factor * power;
    }
    return 10 * power;
}

// Decimals that write every multiple of `step` exactly (step as from nice_step).
int decimals_of(double step) {
    int decimals = 0;
    while (decimals < 12 && std::fabs(step - std::round(step)) > 1e-6 * step) {
        step *= 10;
        decimals++;
    }
    return decimals;
}

// "0.25", "−3", "20k", "1.5M", "2e−5": one style for all labels of an axis, chosen from its largest value and its step.
std::string tick_label(double value, double largest, double step) {
    if (std::fabs(value) < step * 1e-6) return "0";
    const std::string sign = value < 0 ? "−" : "";
    const double size = std::fabs(value);
    if (largest >= 1e12 || largest < 1e-3) {
        const int exponent = (int)std::floor(std::log10(size) + 1e-9);
        const double mantissa = size / std::pow(10, exponent);
        const std::string head = fixed(mantissa, decimals_of(std::round(mantissa * 1000) / 1000));
        return sign + head + "e" + (exponent < 0 ? "−" : "") + std::to_string(std::abs(exponent));
    }
    const double unit = largest >= 1e9 ? 1e9 : largest >= 1e6 ? 1e6 : largest >= 1e4 ? 1e3 : 1;
    const char* suffix = unit == 1e9 ? "G" : unit == 1e6 ? "M" : unit == 1e3 ? "k" : "";
    return sign + fixed(size / unit, decimals_of(step / unit)) + suffix;
}

}  // namespace

std::vector<Tick> linear_ticks(double low, double high, int most) {
    const double step = nice_step(high - low, most);
    const double largest = std::max(std::fabs(low), std::fabs(high));
    std::vector<Tick> ticks;
    for (double i = std::ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
        ticks.push_back({i * step, tick_label(i * step, largest, step)});
    }
    return ticks;
}

std::vector<Tick> log_ticks(double low, double high, int most) {
    const double decades = std::log10(high / low);
    if (decades < 0.4) return linear_ticks(low, high, most);
    std::vector<double> factors = {1};
    if (3 * decades <= most) factors = {1, 2, 5};
    if (decades <= 1.1) factors = {1, 1.5, 2, 3, 4, 6, 8};
    const int stride = std::max(1, (int)std::ceil(decades / most));
    std::vector<Tick> ticks;
    for (int exponent = (int)std::floor(std::log10(low)); exponent <= std::log10(high); exponent++) {
        if (exponent % stride != 0) continue;
        for (double factor : factors) {
            const double value = factor * std::pow(10, exponent);
            if (value < low * (1 - 1e-9) || value > high * (1 + 1e-9)) continue;
            ticks.push_back({value, tick_label(value, value, value)});
        }
    }
    return ticks;
}

namespace {

// Gives the axis its limits: `low` and `high` with a margin (a part of the range) at either end, something sensible when
// they coincide, are missing or are unusable.
void set_limits(Axis& axis, double low, double high, double margin) {
    const bool usable = std::isfinite(low) && std::isfinite(high) && low <= high && (!axis.logarithmic || low > 0);
    if (!usable) {
        low = axis.logarithmic ? 1 : 0;
        high = axis.logarithmic ? 10 : 1;
    }
    if (axis.logarithmic) {
        const double factor = high > low ? std::pow(high / low, margin) : 2;
        axis.low = low / factor;
        axis.high = high * factor;
        return;
    }
    const double spare = (high - low) * margin;
    const double least =
        std::max(std::fabs(low), std::fabs(high)) * 1e-9;  // below it the ticks would all read the same
    const double extra = high - low > least ? spare : low == 0 ? 0.5 : std::fabs(low) * 0.05;
    axis.low = low - extra;
    axis.high = high + extra;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Data

namespace {

struct Point {
    double x, y;
};

}  // namespace

std::vector<double> moving_average(const std::vector<double>& values, size_t window, double low, double high) {
    std::vector<double> smooth(values.size(), std::numeric_limits<double>::quiet_NaN());
    const size_t half = window / 2;
    for (size_t begin = 0; begin < values.size();) {
        if (!std::isfinite(values[begin])) {
            begin++;
            continue;
        }
        size_t end = begin;
        std::vector<double> sums = {0};  // prefix sums of this stretch
        while (end < values.size() && std::isfinite(values[end])) {
            sums.push_back(sums.back() + std::max(low, std::min(high, values[end++])));
        }
        for (size_t i = begin; i < end; i++) {
            const size_t from = i - std::min(half, i - begin);
            const size_t to = std::min(end - 1, i + std::min(half, i - begin));
            smooth[i] = (sums[to + 1 - begin] - sums[from - begin]) / (double)(to + 1 - from);
        }
        begin = end;
    }
    return smooth;
}

namespace {

// The stretches of finite pixels of a line.
std::vector<std::vector<Point>> stretches(const std::vector<double>& x, const std::vector<double>& y,
                                          const Axis& x_axis, const Axis& y_axis) {
    std::vector<std::vector<Point>> lines(1);
    for (size_t i = 0; i < x.size(); i++) {
        const Point point = {x_axis.at(x[i]), y_axis.at(y[i])};
        if (std::isfinite(point.x) && std::isfinite(point.y)) {
            lines.back().push_back(point);
        } else if (!lines.back().empty()) {
            lines.emplace_back();
        }
    }
    if (lines.back().empty()) lines.pop_back();
    return lines;
}

// Keeps the first, lowest, highest and last point of every pixel column: the same picture, of bounded size.
std::vector<Point> thinned(const std::vector<Point>& line) {
    std::vector<Point> kept;
    for (size_t begin = 0; begin < line.size();) {
        size_t end = begin, low = begin, high = begin;
        while (end < line.size() && std::floor(line[end].x) == std::floor(line[begin].x)) {
            if (line[end].y < line[low].y) low = end;
            if (line[end].y > line[high].y) high = end;
            end++;
        }
        std::vector<size_t> indices = {begin, low, high, end - 1};
        std::sort(indices.begin(), indices.end());
        indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
        for (size_t i : indices) kept.push_back(line[i]);
        begin = end;
    }
    return kept;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// The picture

const std::vector<std::string>& palette() {
    static const std::vector<std::string> colours = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                     "#56B4E9", "#E69F00", "#555555", "#7A5195"};
    return colours;
}

namespace {

const std::vector<std::string>& marker_palette() {
    static const std::vector<std::string> colours = {"#B8860B", "#3A8FC4", "#3E9B7A", "#A8558A", "#777777"};
    return colours;
}

class Painter {
  public:
    explicit Painter(const Chart& chart) : chart_(chart) {
        for (const ChartSeries& series : chart.series) {
            if (series.x.size() == series.y.size()) continue;
            throw std::invalid_argument("render_svg: series '" + series.name + "' has " +
                                        std::to_string(series.x.size()) + " x and " + std::to_string(series.y.size()) +
                                        " y values");
        }
    }

    std::string paint() {
        lay_out();
        paint_spans();
        paint_grid();
        open_clip();
        paint_marker_lines();
        paint_reference_lines();
        for (size_t i = 0; i < chart_.series.size(); i++) paint_series(chart_.series[i], colour_of(i));
        body_ += "</g>\n";
        for (size_t i = 0; i < chart_.series.size(); i++) paint_clipped(chart_.series[i], colour_of(i));
        paint_axes();
        paint_marker_brackets();
        paint_reference_labels();
        paint_title_and_legend();
        return head() + body_ + "</svg>\n";
    }

  private:
    // ---- Layout

    double left() const { return x_axis_.start; }
    double right() const { return x_axis_.end; }
    double top() const { return y_axis_.end; }
    double bottom() const { return y_axis_.start; }

    const std::string& colour_of(size_t series) const {
        const std::string& own = chart_.series[series].colour;
        return own.empty() ? palette()[series % palette().size()] : own;
    }

    void lay_out() {
        x_axis_.logarithmic = chart_.log_x;
        y_axis_.logarithmic = chart_.log_y;
        set_x_limits();
        set_y_limits();

        y_axis_.start = chart_.height - (chart_.x_label.empty() ? 34 : 54);
        const int y_ticks = (int)std::max(2.0, (y_axis_.start - 60) / 48);
        y_axis_.ticks = ticks_of(y_axis_, y_ticks);
        double widest = 0;
        for (const Tick& tick : y_axis_.ticks) widest = std::max(widest, text_width(tick.label, 11));
        x_axis_.start = 16 + widest + 8 + (chart_.y_label.empty() ? 0 : 20);

        double label_room = 18;
        for (const ChartReference& reference : chart_.references) {
            label_room = std::max(label_room, 12 + text_width(reference.label, 11));
        }
        x_axis_.end = std::max(chart_.width - std::min(label_room, chart_.width * 0.35), x_axis_.start + 20);
        x_axis_.ticks = ticks_of(x_axis_, (int)std::max(2.0, (x_axis_.end - x_axis_.start) / 70));

        const double legend_height = 18.0 * (double)legend_rows();
        const double bracket_height = chart_.markers.empty() ? 10 : 40;
        y_axis_.end = (chart_.title.empty() ? 10 : 36) + legend_height + bracket_height;
        y_axis_.end = std::min(y_axis_.end, y_axis_.start - 20);
    }

    static std::vector<Tick> ticks_of(const Axis& axis, int most) {
        return axis.logarithmic ? log_ticks(axis.low, axis.high, most) : linear_ticks(axis.low, axis.high, most);
    }

    void set_x_limits() {
        double low = kInfinity, high = -kInfinity;
        const auto include = [&](double x) {
            if (!drawable(x, chart_.log_x)) return;
            low = std::min(low, x);
            high = std::max(high, x);
        };
        for (const ChartSeries& series : chart_.series) {
            for (size_t i = 0; i < series.x.size(); i++) {
                if (drawable(series.y[i], chart_.log_y)) include(series.x[i]);
            }
        }
        for (const ChartMarker& marker : chart_.markers) include(marker.x);
        for (const ChartSpan& span : chart_.spans) {
            include(span.from);
            include(span.to);
        }
        set_limits(x_axis_, low, high, 0.015);
    }

    void set_y_limits() {
        std::vector<double> values;
        for (const ChartSeries& series : chart_.series) {
            for (size_t i = 0; i < series.y.size(); i++) {
                if (drawable(series.x[i], chart_.log_x) && drawable(series.y[i], chart_.log_y)) {
                    values.push_back(series.y[i]);
                }
            }
        }
        std::sort(values.begin(), values.end());
        double low = values.empty() ? kInfinity : values.front();
        double high = values.empty() ? -kInfinity : values.back();
        if (chart_.clip_outliers && !chart_.log_x && !chart_.log_y && values.size() >= 20) {
            const double low_usual = values[values.size() / 100],
                         high_usual = values[values.size() - 1 - values.size() / 100];
            const double range = high_usual - low_usual;
            if (low < low_usual - range) low = low_usual - 0.25 * range;
            if (high > high_usual + range) high = high_usual + 0.25 * range;
        }
        for (const ChartReference& reference : chart_.references) {
            if (!drawable(reference.y, chart_.log_y)) continue;
            low = std::min(low, reference.y);
            high = std::max(high, reference.y);
        }
        set_limits(y_axis_, low, high, 0.06);
        if (drawable(chart_.y_min, chart_.log_y) && chart_.y_min < y_axis_.high) y_axis_.low = chart_.y_min;
        if (drawable(chart_.y_max, chart_.log_y) && chart_.y_max > y_axis_.low) y_axis_.high = chart_.y_max;
    }

    // ---- Primitives

    void line(double x1, double y1, double x2, double y2, const std::string& style) {
        body_ += "<line x1=\"" + pixel(x1) + "\" y1=\"" + pixel(y1) + "\" x2=\"" + pixel(x2) + "\" y2=\"" + pixel(y2) +
                 "\" " + style + "/>\n";
    }

    void rectangle(double x1, double y1, double x2, double y2, const std::string& style, const std::string& tip) {
        body_ += "<rect x=\"" + pixel(x1) + "\" y=\"" + pixel(y1) + "\" width=\"" + pixel(x2 - x1) + "\" height=\"" +
                 pixel(y2 - y1) + "\" " + style + ">" + tooltip(tip) + "</rect>\n";
    }

    void text(double x, double y, const std::string& words, double size, const std::string& anchor,
              const std::string& colour, const std::string& more = "") {
        if (words.empty()) return;
        body_ += "<text x=\"" + pixel(x) + "\" y=\"" + pixel(y) + "\" font-size=\"" + fixed(size, 1) +
                 "\" text-anchor=\"" + anchor + "\" fill=\"" + escape(colour) + "\"" +
                 (more.empty() ? "" : " " + more) + ">" + escape(words) + "</text>\n";
    }

    static std::string tooltip(const std::string& words) {
        return words.empty() ? "" : "<title>" + escape(words) + "</title>";
    }

    static std::string stroke(const std::string& colour, double width, const std::string& more = "") {
        return "stroke=\"" + escape(colour) + "\" stroke-width=\"" + fixed(width, 1) + "\"" +
               (more.empty() ? "" : " " + more);
    }

    // ---- Parts

    std::string head() const {
        const std::string id = identity();
        return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + pixel(chart_.width) + " " +
               pixel(chart_.height) + "\" width=\"" + pixel(chart_.width) + "\" height=\"" + pixel(chart_.height) +
               "\" role=\"img\" aria-labelledby=\"title-" + id + " desc-" + id +
               "\" font-family=\"'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif\">\n"
               "<title id=\"title-" +
               id + "\">" + escape(chart_.title.empty() ? "Chart" : chart_.title) +
               "</title>\n"
               "<desc id=\"desc-" +
               id + "\">" + escape(description()) +
               "</desc>\n"
               "<defs><clipPath id=\"plot-" +
               id + "\"><rect x=\"" + pixel(left()) + "\" y=\"" + pixel(top()) + "\" width=\"" +
               pixel(right() - left()) + "\" height=\"" + pixel(bottom() - top()) +
               "\"/></clipPath></defs>\n"
               "<rect width=\"100%\" height=\"100%\" rx=\"4\" fill=\"#FFFFFF\"/>\n";
    }

    // Distinguishes the ids of several charts in one page: FNV-1a over what is drawn.
    std::string identity() const {
        uint32_t hash = 2166136261u;
        for (char c : chart_.title + description()) hash = (hash ^ (unsigned char)c) * 16777619u;
        char text[16];
        std::snprintf(text, sizeof text, "%08x", hash);
        return text;
    }

    std::string description() const {
        if (!chart_.description.empty()) return chart_.description;
        std::string words = chart_.y_label.empty() ? "Line chart." : "Line chart of " + chart_.y_label;
        if (!chart_.y_label.empty()) words += chart_.x_label.empty() ? "." : " against " + chart_.x_label + ".";
        for (const ChartSeries& series : chart_.series) {
            words += " " + (series.name.empty() ? "A series" : series.name);
            size_t last = series.y.size();
            while (last > 0 && !std::isfinite(series.y[last - 1])) last--;
            words += last ? " ends at " + short_number(series.y[last - 1]) + "." : " has no points.";
        }
        for (const ChartReference& reference : chart_.references) {
            if (!std::isfinite(reference.y)) continue;
            words += " Reference " + reference.label + " at " + short_number(reference.y) + ".";
        }
        if (!chart_.markers.empty()) words += " " + std::to_string(chart_.markers.size()) + " marked moments.";
        return words;
    }

    void paint_spans() {
        std::vector<ChartSpan> spans = chart_.spans;
        if (chart_.shade_markers && !chart_.markers.empty()) {
            const auto earlier = [](const ChartMarker& a, const ChartMarker& b) { return a.x < b.x; };
            const auto range = std::minmax_element(chart_.markers.begin(), chart_.markers.end(), earlier);
            spans.insert(spans.begin(), ChartSpan{range.first->x, range.second->x});
        }
        for (const ChartSpan& span : spans) {
            const double x1 = x_axis_.at(std::min(span.from, span.to)), x2 = x_axis_.at(std::max(span.from, span.to));
            if (!std::isfinite(x1) || !std::isfinite(x2)) continue;
            const std::string fill = span.colour.empty() ? "#F3F1EC" : escape(span.colour);
            rectangle(x1, top(), x2, bottom(), "fill=\"" + fill + "\"", span.label);
            if (text_width(span.label, 9) + 8 < x2 - x1) text(x1 + 4, bottom() - 6, span.label, 9, "start", kInk);
        }
    }

    void paint_grid() {
        for (const Tick& tick : y_axis_.ticks) {
            const double y = y_axis_.at(tick.value);
            line(left(), y, right(), y, stroke("#E3E3E3", 1));
            text(left() - 8, y + 4, tick.label, 11, "end", kInk);
        }
        for (const Tick& tick : x_axis_.ticks) {
            const double x = x_axis_.at(tick.value);
            line(x, bottom(), x, bottom() + 4, stroke(kInk, 1));
            text(x, bottom() + 17, tick.label, 11, "middle", kInk);
        }
    }

    void open_clip() { body_ += "<g clip-path=\"url(#plot-" + identity() + ")\">\n"; }

    void paint_axes() {
        line(left(), bottom(), right(), bottom(), stroke(kInk, 1));
        line(left(), top(), left(), bottom(), stroke(kInk, 1));
        text((left() + right()) / 2, chart_.height - 12, chart_.x_label, 12.5, "middle", kInk);
        const double middle = (top() + bottom()) / 2;
        text(18, middle, chart_.y_label, 12.5, "middle", kInk, "transform=\"rotate(-90 18 " + pixel(middle) + ")\"");
    }

    void paint_series(const ChartSeries& series, const std::string& colour) {
        const std::string dash = series.dashed ? "stroke-dasharray=\"6 3\"" : "";
        if (series.dots) {
            paint_dots(series, colour);
        } else if (series.smooth > 1) {
            paint_line(series.x, series.y, stroke(colour, 0.8, "stroke-opacity=\"0.35\""), colour);
            paint_line(series.x, moving_average(series.y, series.smooth, y_axis_.low, y_axis_.high),
                       stroke(colour, 2, dash), colour);
        } else {
            paint_line(series.x, series.y, stroke(colour, 1.6, dash), colour);
        }
    }

    // One path whose strokes have no length and round ends: thousands of dots stay small.
    void paint_dots(const ChartSeries& series, const std::string& colour) {
        std::string path;
        for (size_t i = 0; i < series.x.size(); i++) {
            const double x = x_axis_.at(series.x[i]), y = y_axis_.at(series.y[i]);
            if (std::isfinite(x) && std::isfinite(y)) path += "M" + pixel(x) + " " + pixel(y) + "h0";
        }
        body_ += "<path d=\"" + path + "\" fill=\"none\" stroke-linecap=\"round\" " +
                 stroke(colour, 4, "stroke-opacity=\"0.6\"") + "/>\n";
    }

    void paint_line(const std::vector<double>& x, const std::vector<double>& y, const std::string& style,
                    const std::string& colour) {
        for (const std::vector<Point>& stretch : stretches(x, y, x_axis_, y_axis_)) {
            if (stretch.size() == 1) {
                body_ += "<circle cx=\"" + pixel(stretch[0].x) + "\" cy=\"" + pixel(stretch[0].y) +
                         "\" r=\"2.5\" fill=\"" + escape(colour) + "\"/>\n";
                continue;
            }
            body_ += "<polyline fill=\"none\" stroke-linejoin=\"round\" " + style + " points=\"";
            for (const Point& point : thinned(stretch)) body_ += pixel(point.x) + "," + pixel(point.y) + " ";
            body_.back() = '"';
            body_ += "/>\n";
        }
    }

    // A triangle where a line leaves the picture, at the farthest point of every excursion, with that point's value.
    void paint_clipped(const ChartSeries& series, const std::string& colour) {
        double last_label = -kInfinity;
        for (size_t begin = 0; begin < series.y.size();) {
            const int side = side_of(series.y[begin]);
            size_t end = begin, farthest = begin;
            while (end < series.y.size() && side_of(series.y[end]) == side) {
                if (side * series.y[end] > side * series.y[farthest]) farthest = end;
                end++;
            }
            const double x = x_axis_.at(series.x[farthest]);
            if (side != 0 && std::isfinite(x) && x >= left() - 0.5 && x <= right() + 0.5) {
                paint_triangle(x, side, colour, series.name + ": " + short_number(series.y[farthest]));
                if (x - last_label > 40) {
                    const bool at_edge = x > right() - 40;
                    text(at_edge ? x - 7 : x + 7, side > 0 ? top() + 10 : bottom() - 3,
                         short_number(series.y[farthest]), 9.5, at_edge ? "end" : "start", colour, kHalo);
                    last_label = x;
                }
            }
            begin = end;
        }
    }

    // 1 above the picture, -1 below, 0 inside or not drawable.
    int side_of(double y) const {
        if (!drawable(y, chart_.log_y)) return 0;
        return y > y_axis_.high ? 1 : y < y_axis_.low ? -1 : 0;
    }

    void paint_triangle(double x, int side, const std::string& colour, const std::string& tip) {
        const double tip_y = side > 0 ? top() + 1 : bottom() - 1, base_y = tip_y + side * 7;
        body_ += "<path d=\"M" + pixel(x) + " " + pixel(tip_y) + "L" + pixel(x - 4.5) + " " + pixel(base_y) + "L" +
                 pixel(x + 4.5) + " " + pixel(base_y) + "Z\" fill=\"" + escape(colour) + "\">" + tooltip(tip) +
                 "</path>\n";
    }

    // ---- Markers

    struct MarkerGroup {
        std::string kind, colour;
        std::vector<ChartMarker> markers;  // by x
    };

    std::vector<MarkerGroup> marker_groups() const {
        std::vector<MarkerGroup> groups;
        for (const ChartMarker& marker : chart_.markers) {
            if (!std::isfinite(x_axis_.at(marker.x))) continue;
            const auto same = [&](const MarkerGroup& group) { return group.kind == marker.kind; };
            auto group = std::find_if(groups.begin(), groups.end(), same);
            if (group == groups.end()) {
                groups.push_back({marker.kind, marker_palette()[groups.size() % marker_palette().size()], {}});
                group = groups.end() - 1;
            }
            group->markers.push_back(marker);
        }
        for (MarkerGroup& group : groups) {
            std::stable_sort(group.markers.begin(), group.markers.end(),
                             [](const ChartMarker& a, const ChartMarker& b) { return a.x < b.x; });
        }
        return groups;
    }

    void paint_marker_lines() {
        for (const MarkerGroup& group : marker_groups()) {
            for (const ChartMarker& marker : group.markers) {
                const double x = x_axis_.at(marker.x);
                line(x, top(), x, bottom(), stroke(group.colour, 0.9, opacity_of(group)));
            }
        }
    }

    // Above the plot: a bracket from the first to the last marker of a kind, its name on it, the markers' labels under it.
    void paint_marker_brackets() {
        double name_end = -kInfinity;
        const std::vector<MarkerGroup> groups = marker_groups();
        for (size_t g = 0; g < groups.size(); g++) {
            const MarkerGroup& group = groups[g];
            const double first = x_axis_.at(group.markers.front().x), last = x_axis_.at(group.markers.back().x);
            const double y = top() - 17;
            line(first - 2, y, last + 2, y, stroke(group.colour, 1.6));
            paint_marker_labels(group, g + 1 < groups.size() ? x_axis_.at(groups[g + 1].markers.front().x) : kInfinity);
            const double middle = (first + last) / 2, half = text_width(group.kind, 11) / 2;
            if (middle - half < name_end) continue;
            text(middle, y - 5, group.kind, 11, "middle", group.colour, "font-weight=\"bold\"");
            name_end = middle + half;
        }
    }

    // Labels that would touch the next group's first one are left out.
    void paint_marker_labels(const MarkerGroup& group, double next_group) {
        for (const ChartMarker& marker : group.markers) {
            const double x = x_axis_.at(marker.x);
            line(x, top() - 17, x, top(), stroke(group.colour, 0.9, opacity_of(group)));
        }
        const size_t stride = label_stride(group);
        for (size_t i = 0; i < group.markers.size(); i += stride) {
            const double x = x_axis_.at(group.markers[i].x);
            if (x < next_group && x + text_width(group.markers[i].label, 9) + 3 > next_group) continue;
            text(x, top() - 5, group.markers[i].label, 9, "middle", group.colour, kHalo);
        }
    }

    // Every how many-th label can be written without touching its neighbour.
    size_t label_stride(const MarkerGroup& group) const {
        size_t stride = 1;
        for (size_t i = 0; i + stride < group.markers.size();) {
            const ChartMarker &here = group.markers[i], &next = group.markers[i + stride];
            const double room = x_axis_.at(next.x) - x_axis_.at(here.x);
            const double need = (text_width(here.label, 9) + text_width(next.label, 9)) / 2 + 3;
            if (room < need) {
                stride++;
                i = 0;
            } else {
                i += stride;
            }
        }
        return stride;
    }

    // Many lines close together are drawn lighter, so that the curves stay in front.
    std::string opacity_of(const MarkerGroup& group) const {
        const double extent = x_axis_.at(group.markers.back().x) - x_axis_.at(group.markers.front().x);
        const double gap = group.markers.size() < 2 ? 20 : extent / (double)(group.markers.size() - 1);
        return "stroke-opacity=\"" + fixed(std::max(0.25, std::min(0.65, gap / 16)), 2) + "\"";
    }

    // ---- References

    void paint_reference_lines() {
        for (const ChartReference& reference : chart_.references) {
            const double y = y_axis_.at(reference.y);
            if (!std::isfinite(y)) continue;
            line(left(), y, right(), y, stroke(reference_colour(reference), 1.3, "stroke-dasharray=\"5 4\""));
        }
    }

    // Labels at the right edge, moved apart where their lines are close.
    void paint_reference_labels() {
        std::vector<std::pair<double, const ChartReference*>> labels;
        for (const ChartReference& reference : chart_.references) {
            const double y = y_axis_.at(reference.y);
            if (std::isfinite(y) && y >= top() - 1 && y <= bottom() + 1) labels.emplace_back(y, &reference);
        }
        std::stable_sort(labels.begin(), labels.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
        const double line_height = 14;
        for (size_t i = 1; i < labels.size(); i++) {
            labels[i].first = std::max(labels[i].first, labels[i - 1].first + line_height);
        }
        double limit = bottom();
        for (size_t i = labels.size(); i-- > 0; limit = labels[i].first - line_height) {
            labels[i].first = std::min(labels[i].first, limit);
        }
        for (const auto& label : labels) {
            text(right() + 6, label.first + 4, label.second->label, 11, "start", reference_colour(*label.second));
        }
    }

    static std::string reference_colour(const ChartReference& reference) {
        return reference.colour.empty() ? "#555555" : reference.colour;
    }

    // ---- Title and legend

    struct LegendEntry {
        size_t series, row;
        double x;
    };

    std::vector<LegendEntry> legend() const {
        std::vector<LegendEntry> entries;
        size_t row = 0;
        double x = left();
        for (size_t i = 0; i < chart_.series.size(); i++) {
            if (chart_.series[i].name.empty()) continue;
            const double width = 26 + text_width(chart_.series[i].name, 12) + 18;
            if (x > left() && x + width - 18 > chart_.width - 8) {
                x = left();
                row++;
            }
            entries.push_back({i, row, x});
            x += width;
        }
        return entries;
    }

    size_t legend_rows() const {
        const std::vector<LegendEntry> entries = legend();
        return entries.empty() ? 0 : entries.back().row + 1;
    }

    void paint_title_and_legend() {
        const double room = chart_.width - left() - 8;
        const double size = std::max(9.0, std::min(15.0, 15 * room / std::max(1.0, text_width(chart_.title, 15))));
        text(left(), 26, chart_.title, size, "start", "#111111", "font-weight=\"bold\"");
        for (const LegendEntry& entry : legend()) {
            const double y = (chart_.title.empty() ? 16 : 44) + 18.0 * (double)entry.row;
            const std::string dash = chart_.series[entry.series].dashed ? "stroke-dasharray=\"6 3\"" : "";
            line(entry.x, y - 4, entry.x + 20, y - 4, stroke(colour_of(entry.series), 2.4, dash));
            text(entry.x + 26, y, chart_.series[entry.series].name, 12, "start", kInk);
        }
    }

    static constexpr double kInfinity = std::numeric_limits<double>::infinity();
    static constexpr const char* kInk = "#333333";
    // A white rim that keeps small labels readable on lines.
    static constexpr const char* kHalo = "stroke=\"#FFFFFF\" stroke-width=\"3\" paint-order=\"stroke\"";

    const Chart& chart_;
    Axis x_axis_, y_axis_;
    std::string body_;
};

}  // namespace

}  // namespace svg

std::string render_svg(const Chart& chart) {
    return svg::Painter(chart).paint();
}

}  // namespace lnfree
