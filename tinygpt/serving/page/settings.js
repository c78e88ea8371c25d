// The settings beside the text, and those of the page itself: language and colors, which the browser remembers.

import { speak } from "./words.js";

const form = document.getElementById("options");
const value = (name) => form.elements[name].value;

// The fields of a request. The server checks them, and says what is wrong with one.
export function options() {
  const stop = value("stop").split("\n").filter((line) => line !== "").map((line) => line.replaceAll("\\n", "\n"));
  return {
    temperature: Number(value("temperature")),
    top_p: Number(value("top_p")),
    frequency_penalty: Number(value("frequency_penalty")),
    presence_penalty: Number(value("presence_penalty")),
    seed: value("seed") === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(value("seed")),
    ...(stop.length && { stop }),
  };
}

// Null: as many as seem right.
export const mostTokens = () => value("max_tokens") === "" ? null : Number(value("max_tokens"));
export const systemMessage = () => value("system").trim();

function showValues() {
  for (const input of form.querySelectorAll("input[type=range]")) {
    input.parentElement.querySelector(".value").textContent = input.value;
  }
  document.body.classList.toggle("plain", !form.elements.colors.checked);
}
form.addEventListener("input", showValues);
form.addEventListener("reset", () => setTimeout(showValues));  // when the fields have their values
form.addEventListener("submit", (event) => event.preventDefault());

// Language and colors ------------------------------------------------------------------------------

function remembered(name) {
  try {
    return localStorage.getItem(`tinygpt-${name}`);
  } catch {
    return null;  // a browser that keeps nothing
  }
}

function remember(name, chosen) {
  try {
    localStorage.setItem(`tinygpt-${name}`, chosen);
  } catch { /* as above */ }
}

// changed(): called after a change of language.
export function start(changed) {
  const language = document.getElementById("language"), theme = document.getElementById("theme");
  const first = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag === "zh" || tag === "en");
  language.value = remembered("language") ?? first ?? "en";
  theme.value = remembered("theme") ?? "auto";
  const apply = () => {
    document.documentElement.dataset.theme = theme.value;
    speak(language.value);
    changed();
  };
  language.addEventListener("change", () => { remember("language", language.value); apply(); });
  theme.addEventListener("change", () => { remember("theme", theme.value); apply(); });
  if (matchMedia("(max-width: 52rem)").matches) document.getElementById("settings").open = false;
  showValues();
  apply();
}
