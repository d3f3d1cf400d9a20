// The page that `analyze report` writes, and its pictures.
#include <doctest/doctest.h>

#define LNFREE_LIBRARY_ONLY
#include "train_gpt2_lnfree.cpp"

using namespace lnfree;
using namespace lnfree::analysis;

TEST_CASE("base64 of any length") {
    CHECK(base64("").empty());
    CHECK(base64("f") == "Zg==");
    CHECK(base64("fo") == "Zm8=");
    CHECK(base64("foo") == "Zm9v");
    CHECK(base64("foob\xff") == "Zm9vYv8=");
}

TEST_CASE("a heat map shows a number in every cell and leaves out what is not finite") {
    HeatMap map;
    map.title = "a < b";
    map.rows = {"0", "1"};
    map.columns = {"x", "y", "z"};
    map.values = {{0, 0.5, 1}, {NAN, 2.25, INFINITY}};
    map.decimals = 2;
    const std::string svg = render_svg(map);
    CHECK(svg.find("<title>a &lt; b</title>") != std::string::npos);
    CHECK(svg.find(">2.25</text>") != std::string::npos);
    CHECK(svg.find("1, y: 2.25") != std::string::npos);
    CHECK(svg.find("1, x:") == std::string::npos);
    CHECK(svg.find("nan") == std::string::npos);
    CHECK(svg.find("inf") == std::string::npos);
    map.values.pop_back();
    CHECK_THROWS_AS(render_svg(map), std::invalid_argument);
}

TEST_CASE("shades go from light to dark") {
    CHECK(svg::shade(0) == "#F7FBFF");
    CHECK(svg::shade(1) == "#08306B");
    CHECK(svg::shade(-5) == svg::shade(0));
    CHECK(svg::shade(7) == svg::shade(1));
}

TEST_CASE("a chart draws dots without a line") {
    Chart chart;
    chart.series.push_back({"neurons", {1, 2, 3}, {3, 1, 2}});
    CHECK(render_svg(chart).find("<polyline") != std::string::npos);
    chart.series[0].dots = true;
    const std::string dots = render_svg(chart);
    CHECK(dots.find("<polyline") == std::string::npos);
    CHECK(dots.find("h0M") != std::string::npos);
}

TEST_CASE("patching pictures average the sets that count, of the commonest length") {
    const ordered_json model = ordered_json::parse(R"({"sets": [
        {"counts": true, "activation": [[0, 1]]}, {"counts": true, "activation": [[1, 1]]},
        {"counts": true, "activation": [[5, 5, 5]]}, {"counts": false}]})");
    size_t sets = 0;
    CHECK(mean_effects(model, "activation", sets) == std::vector<std::vector<double>>{{0.5, 1}});
    CHECK(sets == 2);
    CHECK(mean_effects(ordered_json::parse(R"({"sets": [{"counts": false}]})"), "activation", sets).empty());
}

TEST_CASE("a page holds its parts, says what was not measured, and can be saved from") {
    Table table({"model", "value"});
    table.add_row({"a & b", "1.5"});
    ReportPart measured{"loss", "Loss", "What it is.", {{table, "A caption"}}, "", {{"loss", 1.5}}, ""};
    ReportPart missing{"patching", "Patching", "What it is.", {}, "", nullptr, "--prompts is required"};
    const std::string page = render_report("A title", "About.", table, {measured, missing});
    CHECK(page.find("a &amp; b") != std::string::npos);
    CHECK(page.find("<th scope=\"row\">") != std::string::npos);
    CHECK(page.find(base64(R"({"loss":1.5})")) != std::string::npos);
    CHECK(page.find("<strong>Not measured:</strong> --prompts is required") != std::string::npos);
    CHECK(page.find("<script") == std::string::npos);
    CHECK(page.find("href=\"http") == std::string::npos);
}
