// What the page tells the reader beside the text: how it went, and errors, as sentences.

import { hasKey } from "./api.js";
import { keepSaying, say } from "./words.js";

const $ = (id) => document.getElementById(id);

export const tell = (write) => keepSaying($("status"), write);

const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1) + (/[.?!]$/.test(words) ? "" : ".");

// block: the size of the model's context.
export function showError(error, block) {
  if (error.status === 401) {
    $("unlock").hidden = false;
    $("key").focus();
  }
  const kind = error.status === 401 ? (hasKey() ? "wrongKey" : "needsKey") : error.kind;
  if (!kind) throw error;  // a mistake of this page's
  keepSaying($("error"), () => say(kind, { message: sentence(error.message), block }));
  $("error").hidden = false;
}

export const hideError = () => { $("error").hidden = true; };
