#include "dev/analysis/report.h"

#include <algorithm>

#include "data/json.h"
#include "data/svg_chart.h"
#include "data/svg_heat_map.h"
#include "dev/analysis/sample.h"
#include "dev/run/statistics.h"

namespace lnfree {
namespace analysis {

// ---------------------------------------------------------------------------------------------------------------------
// HTML

namespace {

std::string html_table(const Table& table, const std::string& caption) {
    std::string html = "<div class=\"wide\"><table><caption>" + svg::escape(caption) + "</caption><thead><tr>";
    for (const std::string& header : table.headers()) html += "<th scope=\"col\">" + svg::escape(header) + "</th>";
    html += "</tr></thead><tbody>\n";
    for (const std::vector<std::string>& row : table.rows()) {
        html += "<tr>";
        for (size_t i = 0; i < row.size(); i++)
            html += (i == 0 ? "<th scope=\"row\">" : "<td>") + svg::escape(row[i]) + (i == 0 ? "</th>" : "</td>");
        html += "</tr>\n";
    }
    return html + "</tbody></table></div>\n";
}

std::string html_figure(const std::string& picture, const std::string& caption) {
    return "<figure>" + picture + "<figcaption>" + svg::escape(caption) + "</figcaption></figure>\n";
}

}  // namespace

std::string base64(const std::string& bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    for (size_t i = 0; i < bytes.size(); i += 3) {
        uint32_t group = 0;
        for (size_t k = 0; k < 3; k++)
            group = group << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
        for (size_t k = 0; k < 4; k++) out += i + k > bytes.size() ? '=' : digits[group >> (18 - 6 * k) & 63];
    }
    return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// The pictures of each measurement

namespace {

std::string name_of(const Json& model) {
    const std::string path = model["model"].string();
    const size_t slash = path.find_last_of('/', path.find_last_not_of('/'));
    return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::vector<double> counting(size_t n) {
    std::vector<double> x;
    for (size_t i = 0; i < n; i++) x.push_back(static_cast<double>(i));
    return x;
}

std::vector<std::string> labels(size_t n) {
    std::vector<std::string> names;
    for (size_t i = 0; i < n; i++) names.push_back(std::to_string(i));
    return names;
}

const std::string& colour_of(size_t model) {
    return svg::palette()[model % svg::palette().size()];
}

// One line per model through models[...][key], a list of numbers.
Chart lines_of(const Json& j, const char* key, const char* title, const char* x, const char* y) {
    Chart chart;
    chart.title = title;
    chart.x_label = x;
    chart.y_label = y;
    for (const Json& m : j["models"]) {
        if (!m.contains(key) || m[key].is_null()) continue;
        const auto values = m[key].get<std::vector<double>>();
        chart.series.push_back({name_of(m), counting(values.size()), values});
    }
    return chart;
}

Table table_of_sigmas(const Json& j) {
    Table sigmas({"model", "site", "removed", "sigma_bar", "sigma at position 0", "elsewhere"});
    for (const Json& m : j["models"])
        for (const Json& site : m["sites"]) {
            std::vector<std::string> row = {name_of(m), site["site"].string(),
                                            site["removed"].get<bool>() ? "yes" : "no"};
            for (const char* key : {"sigma_bar", "at_0", "elsewhere"})
                row.push_back(site[key].is_null() ? "" : format_general(site[key].number()));
            sigmas.add_row(row);
        }
    return sigmas;
}

}  // namespace

bool is_as_paper(const Json& result) {
    return result.is_object() && result.contains("definitions");
}

std::string pictures_of_loss(const Json& j) {
    return html_figure(
        render_svg(lines_of(j, "per_position", "Loss over positions", "position in the sequence", "mean loss (nats)")),
        "Mean loss of the predictions at every position.");
}

std::string pictures_of_attribution(const Json& j) {
    double highest = 0;
    for (const Json& m : j["models"])
        for (const Json& layer : m["nmae_head"])
            for (const Json& head : layer) highest = std::max(highest, head.number());
    std::string html;
    for (const Json& m : j["models"]) {
        HeatMap map;
        map.title = name_of(m) + ": error of direct logit attribution (NMAE, %)";
        map.x_label = "head";
        map.y_label = "layer";
        map.values = m["nmae_head"].get<std::vector<std::vector<double>>>();
        map.rows = labels(map.values.size());
        map.columns = labels(map.values[0].size());
        map.low = 0;
        map.high = std::max(1.0, highest);
        map.decimals = 1;
        html +=
            html_figure(render_svg(map),
                        name_of(m) + ": how far the linear estimate lies off the direct effect, per head (Fig. 5).");
    }
    return html;
}

std::vector<std::vector<double>> mean_effects(const Json& model, const char* key, size_t& sets) {
    std::map<size_t, std::vector<const Json*>> by_length;
    for (const Json& set : model["sets"])
        if (set["counts"].get<bool>()) by_length[set[key][0].size()].push_back(&set[key]);
    sets = 0;
    const std::vector<const Json*>* most = nullptr;
    for (const auto& [length, found] : by_length)
        if (found.size() > sets) {
            sets = found.size();
            most = &found;
        }
    if (most == nullptr) return {};
    auto mean = (*most)[0]->get<std::vector<std::vector<double>>>();
    for (std::vector<double>& layer : mean) layer.assign(layer.size(), 0);
    for (const Json* effects : *most)
        for (size_t l = 0; l < mean.size(); l++)
            for (size_t t = 0; t < mean[l].size(); t++)
                mean[l][t] += (*effects)[l][t].number() / static_cast<double>(sets);
    return mean;
}

std::string pictures_of_patching(const Json& j) {
    std::string html;
    for (const Json& m : j["models"])
        for (const char* key : {"activation", "attribution"}) {
            size_t sets = 0;
            HeatMap map;
            map.values = mean_effects(m, key, sets);
            if (map.values.empty()) continue;
            map.title = name_of(m) + ": " + key + " patching";
            map.x_label = "position";
            map.y_label = "layer";
            map.rows = labels(map.values.size());
            map.columns = labels(map.values[0].size());
            map.low = 0;
            map.high = 1;
            map.decimals = 2;
            html += html_figure(
                render_svg(map),
                name_of(m) +
                    ": share of the clean behaviour that the clean stream at this layer and position brings back, " +
                    key + " patching, mean over " + std::to_string(sets) + " sets of prompts (Fig. 2).");
        }
    const Chart errors = lines_of(j, "error", "Error of attribution patching", "layer",
                                  "sum over positions of |attribution - activation|");
    if (!errors.series.empty())
        html +=
            html_figure(render_svg(errors), "How far attribution patching lies off activation patching, per layer.");
    return html.empty() ? "<p>No model solves these prompts well enough for an effect to be measured: n/a.</p>\n"
                        : html;
}

std::string pictures_of_norms(const Json& j) {
    Chart chart;
    chart.title = "Norm of the residual stream";
    chart.x_label = "in front of block (the last: in front of ln_f)";
    chart.y_label = "mean L2 norm";
    chart.log_y = true;
    for (size_t i = 0; i < j["models"].size(); i++) {
        const Json& m = j["models"][i];
        const std::string& own = colour_of(i);
        for (const bool first : {true, false}) {
            ChartSeries line{name_of(m) + (first ? ", position 0" : ", elsewhere"), {}, {}, own, !first};
            for (const Json& point : m["residual"]) {
                line.x.push_back(static_cast<double>(line.x.size()));
                line.y.push_back(point[first ? "at_0" : "elsewhere"].number());
            }
            chart.series.push_back(line);
        }
    }
    return html_figure(render_svg(chart),
                       "Norm of the stream at position 0 (solid) and elsewhere (dashed), layer by layer (Fig. 3).") +
           "<details><summary>Sigma of every site</summary>" +
           html_table(table_of_sigmas(j), "Mean sigma of every site, beside the sigma_bar that replaced it") +
           "</details>\n";
}

std::string pictures_of_sinks(const Json& j) {
    const bool as_paper = is_as_paper(j);
    Chart chart = lines_of(j, as_paper ? "per_layer_pairs" : "per_layer_heads", "Attention sinks", "layer",
                           as_paper ? "share of (head, query) pairs" : "share of heads");
    chart.y_min = 0;
    chart.y_max = 1;
    return html_figure(render_svg(chart), std::string("Share of ") + (as_paper ? "(head, query) pairs" : "heads") +
                                              ", per layer, that give position 0 " +
                                              (as_paper ? "more than" : "at least") + " 30 % of their attention.");
}

std::string pictures_of_confidence(const Json& j) {
    Chart neurons;
    neurons.title = "Neurons of the last MLP";
    neurons.x_label = "norm of the weights that a neuron writes with";
    neurons.y_label = "variance of its effect over tokens";
    neurons.log_x = neurons.log_y = true;
    neurons.clip_outliers = false;
    Chart spectrum;
    spectrum.title = "Unembedding: singular values (solid), cosine with the top neuron (dashed)";
    spectrum.x_label = "singular vector";
    spectrum.y_label = "over the largest; cosine";
    spectrum.clip_outliers = false;
    for (size_t i = 0; i < j["models"].size(); i++) {
        const Json& m = j["models"][i];
        const std::string& own = colour_of(i);
        ChartSeries dots{name_of(m), m["norm"].get<std::vector<double>>(), m["logit_var"].get<std::vector<double>>(),
                         own};
        dots.dots = true;
        neurons.series.push_back(dots);
        const auto values = m["singular_values"].get<std::vector<double>>(),
                   cosines = m["cosines"].get<std::vector<double>>();
        spectrum.series.push_back({name_of(m), counting(values.size()), values, own});
        spectrum.series.push_back({name_of(m) + ", cosine", counting(cosines.size()), cosines, own, true});
    }
    return html_figure(
               render_svg(neurons),
               "Confidence neurons lie at the lower right: they write much and change no token's rank (Fig. 6).") +
           html_figure(render_svg(spectrum),
                       "Where the top confidence neuron writes: towards directions that the unembedding hardly reads "
                       "(Fig. 7).");
}

// ---------------------------------------------------------------------------------------------------------------------
// The page

namespace {

double largest_ratio(const Json& norms) {
    double largest = 0;
    for (const Json& point : norms["residual"])
        largest = std::max(largest, point["at_0"].number() / point["elsewhere"].number());
    return largest;
}

// A column of the overview: which part it is from, and what it shows of that part's result for a model; with --paper the
// same under another header, and of the sinks the only rate that there is then.
struct Column {
    const char *part, *header, *header_as_paper;
    std::string (*cell)(const Json& model);
};

std::string sink_rate(const Json& m) {
    return format_fixed(100 * m[m.contains("rate_heads") ? "rate_heads" : "rate_pairs"].number(), 1);
}

const std::vector<Column>& columns() {
    static const std::vector<Column> all = {
        {"loss", "loss (nats)", nullptr, [](const Json& m) { return format_fixed(m["loss"].number(), 4); }},
        {"dla", "DLA error (%)", "DLA error, as the paper's code (%)",
         [](const Json& m) { return format_fixed(m["nmae"].number(), 2); }},
        {"norms", "norm at position 0 / elsewhere, largest", nullptr,
         [](const Json& m) { return format_fixed(largest_ratio(m), 2); }},
        {"sinks", "sinks (%)", "sinks, as the paper's code (%)", sink_rate},
        {"confidence", "entropy without the top neurons (%)", "entropy without the first model's top neurons (%)",
         [](const Json& m) {
             return format_fixed(100 * m["ablations"].back()["entropy_change_relative"].number(), 3);
         }},
        {"patching", "indirect objects solved (%)", "indirect objects solved, end-of-text in front (%)",
         [](const Json& m) { return format_fixed(100 * m["accuracy"].number(), 1); }},
        {"patching", "patching error", "patching error per prompt, as the paper's code",
         [](const Json& m) {
             return m["error"].is_null() ? "n/a" : format_fixed(mean_of(m["error"].get<std::vector<double>>()), 3);
         }},
    };
    return all;
}

}  // namespace

Table overview(const Json& report, size_t models, const std::string& norms) {
    std::vector<std::string> headers = {"model", norms};
    for (const Column& column : columns())
        if (report.contains(column.part)) {
            const bool renamed = column.header_as_paper != nullptr && is_as_paper(report[column.part]);
            headers.emplace_back(renamed ? column.header_as_paper : column.header);
        }
    Table table(headers);
    for (size_t i = 0; i < models; i++) {
        std::vector<std::string> row(2);
        for (const Column& column : columns()) {
            if (!report.contains(column.part)) continue;
            const Json& result = report[column.part];
            row.push_back(result.is_object() ? column.cell(result["models"][i]) : "");
            if (!result.is_object()) continue;
            row[0] = name_of(result["models"][i]);
            row[1] = result["models"][i]["layernorm_free"].get<bool>() ? "none" : "yes";
        }
        table.add_row(row);
    }
    return table;
}

namespace {

const char* report_style() {
    return R"(
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #222; background: #fff }
h1, h2 { line-height: 1.2 }
h2 { border-top: 1px solid #ccc; padding-top: 1rem; margin-top: 2rem }
a { color: #0b5394 }
.wide, figure { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .9rem }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { border: 1px solid #ddd; padding: .25rem .5rem; text-align: right }
th:first-child, td:first-child { text-align: left }
thead th { background: #f3f5f7 }
figure svg { max-width: 100%; min-width: 32rem; height: auto }
figcaption { font-size: .9rem; color: #555 }
@media print {
  body { max-width: none }
  figure, table { break-inside: avoid }
  figure svg { min-width: 0 }
  nav, .save { display: none }
}
)";
}

std::string section_of(const ReportPart& part) {
    std::string html = "<section id=\"" + part.name + "\"><h2>" + svg::escape(part.title) + "</h2>\n<p>" +
                       svg::escape(part.explanation) + "</p>\n";
    if (part.json.empty())
        return html + "<p><strong>Not measured:</strong> " + svg::escape(part.missing) + "</p></section>\n";
    for (const Table& table : part.tables) html += html_table(table, part.title);
    return html + part.pictures + "<p class=\"save\"><a download=\"" + part.name +
           ".json\" href=\"data:application/json;base64," + base64(part.json) + "\">Save these numbers (" + part.name +
           ".json)</a></p></section>\n";
}

}  // namespace

std::string render_report(const std::string& title, const std::string& about, const Table& summary,
                          const std::vector<ReportPart>& parts) {
    std::string html =
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>" +
        svg::escape(title) + "</title><style>" + report_style() + "</style></head><body><main>\n<h1>" +
        svg::escape(title) + "</h1>\n<p>" + svg::escape(about) + "</p>\n" + html_table(summary, "Overview") +
        "<nav aria-label=\"Parts\"><ul>";
    for (const ReportPart& part : parts)
        html += "<li><a href=\"#" + part.name + "\">" + svg::escape(part.title) + "</a></li>";
    html += "</ul></nav>\n";
    for (const ReportPart& part : parts) html += section_of(part);
    return html + "</main></body></html>\n";
}

}  // namespace analysis
}  // namespace lnfree
