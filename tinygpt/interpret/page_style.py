"""Style and script of the page. Colours follow the browser's setting, light or dark; nothing is fetched.

--most: the opacity of a full colour, such that the text on it can be read (a contrast of 4.5, WCAG AA).

Without JavaScript, the page lacks only the attention from tokens other than the last.
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --soft: #5c6773; --line: #d5dbe1; --hot: 214 96 37;
  --good: 25 118 210; --bad: 205 60 60; --mark: 255 214 90; --most: .7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e9ee; --paper: #14181d; --soft: #9aa7b4; --line: #333c46;
  --hot: 255 138 76; --good: 90 170 255; --bad: 255 110 110; --mark: 190 150 20; --most: .5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
p { max-width: 48rem; margin: .3rem 0 .7rem; } .soft { color: var(--soft); }
.tokens { font: 15px/2.1 ui-monospace, Consolas, monospace; overflow-wrap: anywhere; }
.tokens span { border-radius: 4px; padding: .2em 1px; border: 1px solid var(--line); white-space: pre-wrap; }
.tokens span:focus { outline: 2px solid rgb(var(--good)); } .tokens .at { box-shadow: 0 0 0 2px var(--ink); }
.hot { background: rgb(var(--hot) / calc(var(--a, 0) * var(--most))); }
.good { background: rgb(var(--good) / calc(var(--a, 0) * var(--most))); }
.bad { background: rgb(var(--bad) / calc(var(--a, 0) * var(--most))); }
.wide { overflow: auto; width: fit-content; max-width: 100%;
  border: 1px solid var(--line); border-radius: 6px; max-height: 34rem; }
table { border-collapse: collapse; font: 13px/1.35 ui-monospace, Consolas, monospace; }
td, th { border: 1px solid var(--line); padding: .2rem .45rem; text-align: left; white-space: pre; }
th { position: sticky; top: 0; background: var(--paper); z-index: 1; }
tbody th { position: sticky; left: 0; } td.answer { background: rgb(var(--mark) / .45); font-weight: 600; }
td small { color: var(--soft); } td.answer small { color: inherit; } td.number { text-align: right; }
#heads button { all: unset; cursor: pointer; display: block; width: 100%; }
#heads button:focus-visible { outline: 2px solid rgb(var(--good)); }
#heads td.chosen { box-shadow: inset 0 0 0 2px var(--ink); }
.bar { display: inline-block; height: .7em; background: rgb(var(--good)); vertical-align: baseline; }
.legend { font-size: .85rem; color: var(--soft); }
.legend b { color: var(--ink); font-weight: 600; padding: 0 .35em; border-radius: 4px; }
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const T = data.tokens.length, bytes = Uint8Array.from(atob(data.maps), c => c.charCodeAt(0));
const size = T * (T + 1) / 2;                        // a map is its lower triangle, row by row
const weight = (l, h, i, j) => bytes[(l * data.heads + h) * size + i * (i + 1) / 2 + j] / 255;
const spans = [...document.querySelectorAll("#look span")], cells = [...document.querySelectorAll("#heads td")];
let from = T - 1, chosen = null;                     // a token; a head, or null for the mean of all
const mean = (i, j) => {                             // over all heads
  let sum = 0;
  for (let l = 0; l < data.layers; l++) for (let h = 0; h < data.heads; h++) sum += weight(l, h, i, j);
  return sum / data.layers / data.heads;
};
function show() {
  const shares = spans.map((_, j) => j > from ? 0 : chosen ? weight(...chosen, from, j) : mean(from, j));
  const most = Math.max(...shares, 1e-9);
  spans.forEach((span, j) => {
    const a = shares[j];
    span.style.setProperty("--a", (a / most).toFixed(3));
    span.classList.toggle("at", j === from);
    span.title = j > from ? "comes later" : (100 * a).toFixed(1) + " %";
  });
  cells.forEach((cell, k) => {
    const l = Math.floor(k / data.heads), h = k % data.heads;
    let best = 0;
    for (let j = 1; j <= from; j++) if (weight(l, h, from, j) > weight(l, h, from, best)) best = j;
    const button = cell.firstElementChild;
    button.textContent = data.tokens[best] + " " + Math.round(100 * weight(l, h, from, best)) + " %";
    cell.classList.toggle("chosen", !!chosen && chosen[0] === l && chosen[1] === h);
    button.setAttribute("aria-pressed", cell.classList.contains("chosen"));
  });
  const who = chosen ? "block " + chosen[0] + ", head " + chosen[1] : "the mean of all heads";
  document.getElementById("who").textContent = who;
  document.getElementById("which").textContent = data.tokens[from];
}
spans.forEach((span, i) => {
  span.tabIndex = 0;
  for (const event of ["mouseenter", "focus", "click"]) span.addEventListener(event, () => { from = i; show(); });
});
cells.forEach((cell, k) => {
  const button = document.createElement("button");
  button.type = "button";
  cell.replaceChildren(button);
  button.addEventListener("click", () => {
    const head = [Math.floor(k / data.heads), k % data.heads];
    chosen = chosen && chosen[0] === head[0] && chosen[1] === head[1] ? null : head;
    show();
  });
});
document.getElementById("how").hidden = false;
show();
"""
