#include "dev/analysis/explain_page.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "data/svg_chart.h"

namespace lnfree {
namespace analysis {

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// The numbers

constexpr size_t kNeuronsOnPage = 30;  // of each layer
constexpr size_t kPathsOnPage = 100;

// Six significant digits: what a page can show, and a third of the characters.
double shortened(double x) {
    char text[40];
    std::snprintf(text, sizeof text, "%.6g", x);
    return std::strtod(text, nullptr);
}

Json shortened(const double* values, int64_t n) {
    std::vector<double> list;
    for (int64_t i = 0; i < n; i++) list.push_back(shortened(values[i]));
    return list;
}

// values (rows,columns)
Json rows_of(const std::vector<double>& values, int64_t rows) {
    const int64_t columns = static_cast<int64_t>(values.size()) / rows;
    Json list = Json::array();
    for (int64_t i = 0; i < rows; i++) list.push_back(shortened(values.data() + i * columns, columns));
    return list;
}

// [number, contribution] of the largest, for each layer.
Json largest_neurons(const Explained& x, const Explanation& e) {
    const int64_t H = x.config.n_inner;
    Json layers = Json::array();
    for (int64_t l = 0; l < x.config.L && !e.neurons.empty(); l++) {
        const double* neurons = e.neurons.data() + l * H;
        Json largest = Json::array();
        for (const int64_t k : largest_first(neurons, H))
            if (largest.size() < kNeuronsOnPage) largest.push_back(Json::array({k, shortened(neurons[k])}));
        layers.push_back(largest);
    }
    return layers;
}

// [from (a component), into (a head as a component), contribution]
Json largest_paths(const Explained& x, const Explanation& e) {
    const ComponentOrder order(x.config);
    Json list = Json::array();
    for (const int64_t i : largest_first(e.paths.data(), static_cast<int64_t>(e.paths.size()))) {
        if (list.size() == kPathsOnPage) break;
        const int64_t head = i / order.count();
        list.push_back(Json::array({i % order.count(), order.head(head / order.NH, head % order.NH),
                                    shortened(e.paths[static_cast<size_t>(i)])}));
    }
    return list;
}

Json numbers_of(const Explained& x, const Explanation& e) {
    const PromptQuestion& q = e.question;
    Json texts = Json::array();
    for (const int32_t token : q.tokens) texts.push_back(x.text_of(token));
    return {{"tokens", texts},
            {"position", q.position},
            {"target", x.text_of(q.target)},
            {"against", q.against < 0 ? Json() : Json(x.text_of(q.against))},
            {"logit", e.logit},
            {"sum", e.sum()},
            {"remainder", e.remainder()},
            {"missed", e.missed()},
            {"contributions", shortened(e.at_position(), e.components())},
            {"effects", shortened(e.direct_effects.data(), static_cast<int64_t>(e.direct_effects.size()))},
            {"attention", rows_of(e.attention, x.config.L * x.config.NH)},
            {"sources", rows_of(e.sources, x.config.L * x.config.NH)},
            {"biases", shortened(e.mlp_biases.data(), x.config.L)},
            {"neurons", largest_neurons(x, e)},
            {"paths", largest_paths(x, e)}};
}

// Inside a script element, so that no text can end it.
std::string script_data(const Explained& x) {
    const ComponentOrder order(x.config);
    Json j{{"model", x.folder},           {"exact", x.exact},
           {"layers", x.config.L},        {"heads", x.config.NH},
           {"first", order.head(0, 0)},   {"perLayer", order.per_layer()},
           {"components", Json::array()}, {"explanations", Json::array()},
           {"all", x.all.size()}};
    for (const Component& c : components_of(x.config)) j["components"].push_back(c.name);
    for (size_t i = 0; i < std::min(kMostOnPage, x.all.size()); i++)
        j["explanations"].push_back(numbers_of(x, x.all[i]));
    std::string text;
    for (const char c : j.dump(-1, true)) text += c == '<' ? std::string("\\u003c") : std::string(1, c);
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// The page

const char* page_style() {
    return R"css(
:root { color-scheme: light dark; --ink: #1d2126; --dim: #59616b; --paper: #fff; --line: #d9dde2; --shade: #f3f5f7;
  --more: 33 102 172; --less: 190 90 10; --mark: #0b5394 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #a3abb5; --paper: #15181c; --line: #3a4048; --shade: #20252b;
    --more: 80 150 225; --less: 235 140 60; --mark: #8ec5ff }
}
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .2rem 0 .6rem; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 0 0 .3rem }
p { margin: .3rem 0 .6rem; max-width: 60rem }
small, .dim { color: var(--dim) }
section { border-top: 1px solid var(--line); padding: .9rem 0 }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); column-gap: 2rem }
@media (max-width: 56rem) { .columns { grid-template-columns: minmax(0, 1fr) } }
button { font: inherit; color: inherit; background: none; border: 1px solid transparent; border-radius: .25rem;
  padding: 0 .2rem; cursor: pointer; user-select: text }
.framed { border-color: var(--line) }
button:hover { border-color: var(--mark) }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 1px }
button[aria-pressed=true] { border-color: var(--mark); box-shadow: inset 0 0 0 1px var(--mark) }
.tokens { font: 1rem/2 ui-monospace, monospace; overflow-wrap: anywhere }
.tokens button { padding: .1rem .02rem; border-width: 0 0 2px; border-radius: 0; min-width: 1ch; white-space: pre }
.tokens .here { text-decoration: underline 2px }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th { font-weight: 500; color: var(--dim) }
th, td { padding: .1rem .3rem; text-align: right; white-space: nowrap }
.map { font-size: .85rem }
.map td { padding: 1px }
.map button { width: 100%; min-width: 3.2rem; text-align: right; padding: .15rem .3rem }
.map tbody th { position: sticky; left: 0; background: var(--paper) }
.bars { width: 100%; table-layout: fixed }
.bars th, .bars td { overflow: hidden; text-overflow: ellipsis }
.bars th:first-child, .bars td:first-child { text-align: left; width: 38% }
.bars .through { text-align: left; width: 7rem }
.bars button { white-space: normal; text-align: left }
@media (max-width: 30rem) { .bars th:first-child, .bars td:first-child { width: 44% } .bars .number { width: 4.6rem }
  .paths th:first-child, .paths td:first-child { width: 30% } .bars .through { width: 5.5rem } }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
.bars .number { width: 5.2rem }
.bar { position: relative; height: 1.1rem;
  background: linear-gradient(var(--line), var(--line)) 50% / 1px 100% no-repeat }
.bar i { position: absolute; top: .15rem; bottom: .15rem }
.more { background: rgb(var(--more)) } .less { background: rgb(var(--less)) }
.sums td:first-child { text-align: left }
select { font: inherit; max-width: 100% }
label { display: block; margin: .4rem 0 }
@media print { button { border: 0 } .columns { display: block } }
)css";
}

// Everything that depends on what is chosen is drawn anew after each click: there is little of it.
const char* page_script() {
    return R"js(
"use strict";
const data = JSON.parse(document.getElementById("numbers").textContent);
const L = data.layers, NH = data.heads, last = data.components.length - 1;
const first = data.first, perLayer = data.perLayer, mlpPlace = perLayer - 1;
const headAt = (l, h) => first + l * perLayer + h, mlpAt = l => headAt(l, mlpPlace);
const inLayers = c => c >= first && c < last;
const layerOf = c => Math.floor((c - first) / perLayer), placeOf = c => (c - first) % perLayer;
const headOf = c => inLayers(c) && placeOf(c) < NH ? layerOf(c) * NH + placeOf(c) : -1;
const mlpOf = c => inLayers(c) && placeOf(c) === mlpPlace ? layerOf(c) : -1;
// Large numbers get fewer digits behind the point: columns are narrow.
const signed = (x, digits = 3) => (x < 0 ? "\u2212" : "+")
  + Math.abs(x).toFixed(Math.max(0, digits - Math.floor(Math.log10(Math.max(1, Math.abs(x))))));
const largest = list => list.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-30);
const bySize = (list, value) => list.sort((a, b) => Math.abs(value(b)) - Math.abs(value(a)));
const quoted = text => "\u201c" + text + "\u201d";
const visible = text => text.replace(/ /g, "\u00b7") || "\u2205";
const place = id => document.getElementById(id);

let e, chosen, token, rowsShown = 20;

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  made.append(...children);
  return made;
}
function tint(x, most) {
  const share = Math.min(1, Math.abs(x) / most);
  return share < .02 ? "" : `background: rgb(var(${x > 0 ? "--more" : "--less"}) / ${(.55 * share).toFixed(3)})`;
}
function bar(x, most) {
  const share = 50 * Math.min(1, Math.abs(x) / most);
  return element("div", {className: "bar", "aria-hidden": "true"},
    element("i", {className: x < 0 ? "less" : "more", style: `left: ${x < 0 ? 50 - share : 50}%; width: ${share}%`}));
}
// A button that chooses component c, or token t.
function choice(key, text, pressed, more = {}) {
  const act = key[0] === "c" ? () => choose(Number(key.slice(1))) : () => chooseToken(Number(key.slice(1)));
  const properties = {type: "button", "data-key": key, ariaPressed: String(pressed), onclick: act, ...more};
  return element("button", properties, text);
}
function table(name, caption, heads, rows) {
  const head = ([text, name]) => element("th", {scope: "col", className: name || ""}, text);
  return element("table", {className: name, ariaLabel: caption},
    element("thead", {}, element("tr", {}, ...heads.map(head))), element("tbody", {}, ...rows));
}
const cell = (content, name = "") => element("td", {className: name}, content);

function choose(component) { chosen = component; draw(); }
function chooseToken(t) { token = token === t ? -1 : t; draw(); }

// What a head brings: from everywhere, or from the token that is chosen.
const brought = (l, h) => token < 0 ? e.contributions[headAt(l, h)] : e.sources[l * NH + h][token];

function drawTokens() {
  const head = headOf(chosen);
  const from = e.tokens.map((_, t) => head >= 0 ? e.sources[head][t] : e.sources.reduce((sum, row) => sum + row[t], 0));
  const most = largest(from);
  place("tokens").replaceChildren(...e.tokens.map((text, t) => choice("t" + t, visible(text), t === token, {
    style: tint(from[t], most), className: t === e.position ? "here" : "",
    title: `position ${t}: ${signed(from[t])}`, ariaLabel: `${text}, position ${t}, ${signed(from[t])}`})));
  const who = head >= 0 ? data.components[chosen] + " brings" : "all heads together bring";
  place("tokens-say").textContent = `Shaded: what ${who} from each token. `
    + (token < 0 ? "Choose a token to see which heads draw on it."
                 : `Chosen: ${quoted(e.tokens[token])} at position ${token}; choose it again to let it go.`);
}
function drawMap() {
  const cells = [];
  for (let l = 0; l < L; l++) for (let h = 0; h < NH; h++) cells.push(brought(l, h));
  if (token < 0) for (let l = 0; l < L; l++) cells.push(e.contributions[mlpAt(l)]);
  const most = largest(cells);
  const button = (c, x) => element("td", {}, choice("c" + c, signed(x, 2), c === chosen,
    {style: tint(x, most), ariaLabel: `${data.components[c]}: ${signed(x)}`, title: data.components[c]}));
  const rows = [];
  for (let l = 0; l < L; l++) {
    const row = element("tr", {}, element("th", {scope: "row"}, `layer ${l}`));
    for (let h = 0; h < NH; h++) row.append(button(headAt(l, h), brought(l, h)));
    if (token < 0) row.append(button(mlpAt(l), e.contributions[mlpAt(l)]));
    rows.push(row);
  }
  const heads = [[""], ...Array.from({length: NH}, (_, h) => [`head ${h}`])];
  if (token < 0) heads.push(["MLP"]);
  place("map").replaceChildren(table("map", "Contributions by layer and head", heads, rows));
  place("map-say").textContent = token < 0 ? "What each head and each MLP adds. Choose one to look into it."
    : `What each head brings from ${quoted(e.tokens[token])} at position ${token} alone.`;
}
function drawBars() {
  const all = bySize(e.contributions.map((x, c) => [c, x]), row => row[1]), most = largest(e.contributions);
  const effects = e.effects.length > 0;
  const rows = all.slice(0, rowsShown).map(([c, x]) => element("tr", {},
    cell(choice("c" + c, data.components[c], c === chosen)), cell(bar(x, most)), cell(signed(x), "number"),
    ...(effects ? [cell(signed(e.effects[c]), "number")] : [])));
  place("bars").replaceChildren(table("bars", "Largest contributions",
    [["component"], [""], ["adds", "number"], ...(effects ? [["effect", "number"]] : [])], rows));
  const more = {type: "button", className: "framed", onclick: () => { rowsShown = all.length; draw(); }};
  if (all.length > rowsShown) place("bars").append(element("button", more, `Show all ${all.length}`));
}
function drawHead(head) {
  const weights = e.attention[head], from = e.sources[head], most = largest(from);
  const seen = bySize(e.tokens.map((_, t) => t).filter(t => t <= e.position), t => from[t]);
  const rows = seen.slice(0, 25).map(t => element("tr", {},
    cell(choice("t" + t, `${visible(e.tokens[t])} at ${t}`, t === token)), cell(bar(from[t], most)),
    cell((100 * weights[t]).toFixed(1) + " %", "number"), cell(signed(from[t]), "number")));
  const about = `Where its ${signed(e.contributions[chosen])} comes from: attention times what the value there adds.`
    + (seen.length > 25 ? ` The 25 largest of ${seen.length} positions.` : "");
  const heads = [["token at position"], [""], ["attention", "number"], ["adds", "number"]];
  return [element("p", {}, about), table("bars", "Attention from where", heads, rows)];
}
function drawMlp(layer) {
  const all = signed(e.contributions[chosen]), bias = signed(e.biases[layer]);
  if (e.neurons.length === 0)
    return [element("p", {}, `It adds ${all}, ${bias} of it by its bias. With --neurons its neurons are listed here.`)];
  const most = largest(e.neurons[layer].map(n => n[1]));
  const rows = e.neurons[layer].map(([k, x]) => element("tr", {},
    cell(`neuron ${layer}.${k}`), cell(bar(x, most)), cell(signed(x), "number")));
  return [element("p", {}, `It adds ${all}, ${bias} of it by its bias. The ${rows.length} largest of its neurons:`),
    table("bars", "Neurons", [["neuron"], [""], ["adds", "number"]], rows)];
}
function drawDetail() {
  const head = headOf(chosen), mlp = mlpOf(chosen), name = data.components[chosen];
  place("detail-title").textContent = head >= 0 ? `Attention from where: ${name}` : `Inside ${name}`;
  place("detail").replaceChildren(...(head >= 0 ? drawHead(head) : mlp >= 0 ? drawMlp(mlp)
    : [element("p", {}, `${name} adds ${signed(e.contributions[chosen])}, from nowhere else.`)]));
}
function drawPaths() {
  place("paths-section").hidden = e.paths.length === 0;
  const own = e.paths.filter(p => p[0] === chosen || p[1] === chosen);
  const narrowed = headOf(chosen) >= 0 && own.length > 0, most = largest(e.paths.map(p => p[2]));
  const rows = (narrowed ? own : e.paths).slice(0, 25).map(([from, into, x]) => element("tr", {},
    cell(from === last ? "its own biases" : choice("c" + from, data.components[from], from === chosen)),
    cell(choice("c" + into, data.components[into], into === chosen), "through"),
    cell(bar(x, most)), cell(signed(x), "number")));
  const heads = [["from"], ["through", "through"], [""], ["adds", "number"]];
  place("paths").replaceChildren(table("bars paths", "Largest paths", heads, rows));
  place("paths-say").textContent =
    "What a component wrote, read by a later head as values and brought by it to the logit; attention held."
    + (narrowed ? ` Those with ${data.components[chosen]} among the ${e.paths.length} largest.` : "");
}
function drawSums() {
  const logit = e.against === null ? "logit" : "difference of the logits";
  const rows = [["all contributions", e.sum], [logit + ", by the forward pass", e.logit],
    ["left over: rounding", e.remainder]];
  if (!data.exact) rows.push(["contributions minus direct effects: what linearising misses", e.missed]);
  place("sums").replaceChildren(table("sums", "Sums", [[""], [""]], rows.map(([name, x]) =>
    element("tr", {}, cell(name), cell(Math.abs(x) < 1e-3 && x !== 0 ? x.toExponential(1) : signed(x, 8))))));
}
function draw() {
  drawTokens(); drawMap(); drawBars(); drawDetail(); drawPaths(); drawSums();
  place("status").textContent = `${data.components[chosen]}: ${signed(e.contributions[chosen])}`
    + (token < 0 ? "" : `; token ${quoted(e.tokens[token])}`);
}
function drawPrompt(i) {
  e = data.explanations[i]; token = -1;
  chosen = bySize(e.contributions.map((x, c) => [c, x]).filter(row => headOf(row[0]) >= 0), row => row[1])[0][0];
  const rather = e.against === null ? "" : " rather than " + quoted(visible(e.against));
  place("title").textContent = "Why " + quoted(visible(e.target)) + rather + "?";
  document.title = place("title").textContent;
  place("answer").textContent = (e.against === null ? "The logit of " + quoted(visible(e.target))
    : "The logit of " + quoted(visible(e.target)) + " minus that of " + quoted(visible(e.against)))
    + ` behind position ${e.position} is ${e.logit.toFixed(4)}.`;
  place("heads").textContent = headsInWords();
  draw();
}
// The heads that move the logit most, by name.
function headsInWords() {
  const heads = bySize(e.contributions.map((x, c) => [c, x]).filter(row => headOf(row[0]) >= 0), row => row[1]);
  const said = ([c, x]) => {
    const from = e.sources[headOf(c)], t = bySize(e.tokens.map((_, i) => i), i => from[i])[0];
    return `${data.components[c]} (${signed(x)}, most of it from ${quoted(visible(e.tokens[t]))} at ${t})`;
  };
  const list = rows => rows.slice(0, 3).map(said).join(", ");
  const up = heads.filter(row => row[1] > 0), down = heads.filter(row => row[1] < 0);
  return (up.length ? `Heads for it: ${list(up)}. ` : "") + (down.length ? `Heads against it: ${list(down)}.` : "");
}
if (data.explanations.length > 1) {
  place("prompts").replaceChildren(element("label", {}, `Prompt (${data.explanations.length} of ${data.all}) `,
    element("select", {onchange: event => drawPrompt(event.target.selectedIndex)},
      ...data.explanations.map(x => element("option", {}, x.tokens.join("").slice(0, 80))))));
}
// Redrawing replaces what was clicked: the focus goes to its successor.
let clicked = null;
document.addEventListener("click", event => {
  const button = event.target.closest("button[data-key]");
  clicked = button && {area: button.closest("div[id]").id, key: button.dataset.key};
}, true);
document.addEventListener("click", () => {
  if (clicked) place(clicked.area).querySelector(`[data-key="${clicked.key}"]`)?.focus({preventScroll: true});
});
drawPrompt(0);
)js";
}

std::string about(const Explained& x) {
    const std::string model = "Model: " + svg::escape(x.folder) + ". ";
    if (x.exact)
        return model +
               "The last norm is linear, so that the logit is exactly the sum of what the components add, and what "
               "a component adds is what taking it away would take.";
    return model + "<strong>The last norm is " + x.norm() +
           ".</strong> What the components add holds its sigma where it is. "
           "The sum is still the logit; but taking a component away would also move sigma, and do what stands "
           "under <em>effect</em>.";
}

}  // namespace

std::string page_of(const Explained& x) {
    return std::string(
               "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
               "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
               "<title>Why this token?</title><style>") +
           page_style() +
           "</style></head><body><main>\n<h1 id=\"title\">Why this token?</h1>\n<div id=\"prompts\"></div>"
           "<p id=\"answer\"></p>\n<p id=\"heads\"></p>\n<p class=\"dim\">" +
           about(x) +
           "</p>\n<noscript><p>This page draws its numbers with a script of its own; allow it, or read them with "
           "<code>analyze explain --json</code>.</p></noscript>\n"
           "<p id=\"status\" role=\"status\" class=\"unseen\"></p>\n"
           "<section><h2>Prompt</h2><div id=\"tokens\" class=\"tokens\"></div>"
           "<p class=\"dim\" id=\"tokens-say\"></p></section>\n"
           "<section><h2>Layers and heads</h2><p class=\"dim\" id=\"map-say\"></p><div class=\"wide\" "
           "id=\"map\"></div></section>\n"
           "<div class=\"columns\"><section><h2>Largest contributions</h2><div id=\"bars\"></div></section>\n"
           "<section><h2 id=\"detail-title\">Attention from where</h2><div id=\"detail\"></div></section></div>\n"
           "<section id=\"paths-section\" hidden><h2>Paths of length two</h2><p class=\"dim\" id=\"paths-say\"></p>"
           "<div id=\"paths\"></div></section>\n"
           "<section><h2>Does it add up?</h2><div class=\"wide\" id=\"sums\"></div></section>\n"
           "</main>\n<script type=\"application/json\" id=\"numbers\">" +
           script_data(x) + "</script>\n<script>" + page_script() + "</script></body></html>\n";
}

}  // namespace analysis
}  // namespace lnfree
