#include "data/svg_heat_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>

#include "data/svg_chart.h"

namespace lnfree {

namespace svg {

std::string shade(double share) {
    constexpr std::array<std::array<double, 3>, 5> colours = {
        {{247, 251, 255}, {198, 219, 239}, {107, 174, 214}, {33, 113, 181}, {8, 48, 107}}};
    const double at = std::max(0.0, std::min(1.0, share)) * 4;
    const size_t below = std::min<size_t>(3, static_cast<size_t>(at));
    char text[8];
    int parts[3];
    for (size_t i = 0; i < 3; i++)
        parts[i] = static_cast<int>(std::lround(colours[below][i] + (at - static_cast<double>(below)) *
                                                                        (colours[below + 1][i] - colours[below][i])));
    std::snprintf(text, sizeof text, "#%02X%02X%02X", parts[0] & 255, parts[1] & 255, parts[2] & 255);
    return text;
}

namespace {

class HeatMapPainter {
  public:
    explicit HeatMapPainter(const HeatMap& map) : map_(map) {
        for (const std::vector<double>& row : map.values)
            if (row.size() != map.columns.size() || map.values.size() != map.rows.size())
                throw std::invalid_argument("render_svg: heat map '" + map.title + "' has not a value for every cell");
        for (const std::string& label : map.rows) left_ = std::max(left_, 30 + text_width(label, 11));
        cell_width_ = (map.width - left_ - 90) / static_cast<double>(std::max<size_t>(1, map.columns.size()));
        cell_height_ = std::max(14.0, std::min(34.0, cell_width_));
        height_ = kTop + cell_height_ * static_cast<double>(map.rows.size()) + 52;
        find_limits();
    }

    std::string paint() {
        for (size_t r = 0; r < map_.rows.size(); r++)
            for (size_t c = 0; c < map_.columns.size(); c++) paint_cell(r, c);
        paint_labels();
        paint_scale();
        const std::string size = pixel(map_.width) + " " + pixel(height_);
        return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + size + "\" width=\"" + pixel(map_.width) +
               "\" height=\"" + pixel(height_) + "\" role=\"img\" font-family=\"sans-serif\">\n<title>" +
               escape(map_.title) + "</title>\n<desc>" + escape(description()) +
               "</desc>\n<rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>\n" + body_ + "</svg>\n";
    }

  private:
    static constexpr double kTop = 46;
    const HeatMap& map_;
    double left_ = 40, cell_width_ = 0, cell_height_ = 0, height_ = 0, low_ = 0, high_ = 1;
    std::string body_;

    void find_limits() {
        double low = std::numeric_limits<double>::infinity(), high = -low;
        for (const std::vector<double>& row : map_.values)
            for (const double value : row) {
                if (!std::isfinite(value)) continue;
                low = std::min(low, value);
                high = std::max(high, value);
            }
        low_ = std::isfinite(map_.low) ? map_.low : std::isfinite(low) ? low : 0;
        high_ = std::isfinite(map_.high) ? map_.high : std::isfinite(high) ? high : 1;
    }

    std::string number_of(double value) const {
        return map_.decimals < 0 ? short_number(value) : fixed(value, map_.decimals);
    }
    double share_of(double value) const { return high_ > low_ ? (value - low_) / (high_ - low_) : 0; }

    void write(double x, double y, const std::string& words, double size, const char* anchor,
               const char* colour = "#333333") {
        body_ += "<text x=\"" + pixel(x) + "\" y=\"" + pixel(y) + "\" font-size=\"" + pixel(size) +
                 "\" text-anchor=\"" + anchor + "\" fill=\"" + colour + "\">" + escape(words) + "</text>\n";
    }

    void paint_cell(size_t r, size_t c) {
        const double value = map_.values[r][c];
        if (!std::isfinite(value)) return;
        const double x = left_ + cell_width_ * static_cast<double>(c), y = kTop + cell_height_ * static_cast<double>(r);
        body_ += "<rect x=\"" + pixel(x) + "\" y=\"" + pixel(y) + "\" width=\"" + pixel(cell_width_) + "\" height=\"" +
                 pixel(cell_height_) + "\" fill=\"" + shade(share_of(value)) +
                 "\" stroke=\"#FFFFFF\" stroke-width=\"0.5\"><title>" +
                 escape(map_.rows[r] + ", " + map_.columns[c] + ": " + short_number(value)) + "</title></rect>\n";
        const std::string number = number_of(value);
        if (text_width(number, 10) < cell_width_ - 4)
            write(x + cell_width_ / 2, y + cell_height_ / 2 + 3.5, number, 10, "middle",
                  share_of(value) > 0.55 ? "#FFFFFF" : "#333333");
    }

    void paint_labels() {
        write(10, 20, map_.title, 14, "start", "#111111");
        for (size_t r = 0; r < map_.rows.size(); r++)
            write(left_ - 6, kTop + cell_height_ * (static_cast<double>(r) + 0.5) + 4, map_.rows[r], 11, "end");
        double widest = 0;
        for (const std::string& label : map_.columns) widest = std::max(widest, text_width(label, 11) + 4);
        const size_t every = static_cast<size_t>(std::max(1.0, std::ceil(widest / std::max(1.0, cell_width_))));
        const double y = kTop + cell_height_ * static_cast<double>(map_.rows.size());
        for (size_t c = 0; c < map_.columns.size(); c += every)
            write(left_ + cell_width_ * (static_cast<double>(c) + 0.5), y + 15, map_.columns[c], 11, "middle");
        write(left_ + cell_width_ * static_cast<double>(map_.columns.size()) / 2, y + 36, map_.x_label, 12, "middle");
        write(10, kTop - 4, map_.y_label, 11, "start");
    }

    void paint_scale() {
        const double x = map_.width - 70, height = std::max(60.0, cell_height_ * static_cast<double>(map_.rows.size()));
        constexpr int steps = 24;
        for (int i = 0; i < steps; i++)
            body_ += "<rect x=\"" + pixel(x) + "\" y=\"" + pixel(kTop + height * i / steps) +
                     "\" width=\"12\" height=\"" + pixel(height / steps + 0.5) + "\" fill=\"" +
                     shade(1 - (i + 0.5) / steps) + "\"/>\n";
        write(x + 16, kTop + 9, number_of(high_), 10, "start");
        write(x + 16, kTop + height, number_of(low_), 10, "start");
    }

    std::string description() const {
        if (!map_.description.empty()) return map_.description;
        return std::to_string(map_.rows.size()) + " rows by " + std::to_string(map_.columns.size()) +
               " columns, values from " + short_number(low_) + " to " + short_number(high_) + ".";
    }
};

}  // namespace

}  // namespace svg

std::string render_svg(const HeatMap& map) {
    return svg::HeatMapPainter(map).paint();
}

}  // namespace lnfree
