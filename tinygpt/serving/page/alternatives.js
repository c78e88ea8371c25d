// The window beside a piece of text: for each of its tokens, what the model found likely there. Choosing one of these
// goes on from there.

import { alone, probability } from "./pieces.js";
import { percent, say } from "./words.js";

const box = document.getElementById("alternatives");
let opener = null;

export const isOpen = () => !box.hidden;

// choose(number of the token within the piece, alternative) is called once, if the reader chooses.
export function open(piece, choose) {
  close();
  opener = piece.element;
  opener.setAttribute("aria-expanded", "true");
  const parts = piece.tokens.length;
  box.replaceChildren(...piece.tokens.flatMap((token, i) => [
    heading(token, i + 1, parts),
    ...candidates(token).map((candidate) => row(candidate, candidate.id === token.id, () => {
      close();
      choose(i, candidate);
    })),
    rest(token),
  ]));
  box.hidden = false;
  place(opener.getClientRects()[0] ?? opener.getBoundingClientRect());
  box.querySelector("button").focus({ preventScroll: true });
}

export function close() {
  if (box.hidden) return;
  const inside = box.contains(document.activeElement);
  box.hidden = true;
  opener.removeAttribute("aria-expanded");
  if (inside && opener.isConnected) opener.focus({ preventScroll: true });
}

// The likeliest tokens, and the one that was taken, wherever it stands.
export function candidates(token) {
  const top = token.top_logprobs;
  return top.some(({ id }) => id === token.id) ? top : [...top, token];
}

function heading(token, part, parts) {
  const found = document.createElement("h3"), values = { token: alone(token), share: percent(probability([token])) };
  found.textContent = say(parts > 1 ? "partHead" : "tokenHead", { ...values, part, parts });
  return found;
}

function row(candidate, taken, choose) {
  const button = document.createElement("button"), share = probability([candidate]);
  const cells = ["code", "span", "span"].map((tag) => document.createElement(tag));
  button.type = "button";
  cells[0].textContent = alone(candidate);
  cells[1].className = "bar";
  cells[1].style.width = `${100 * share}%`;
  cells[2].className = "share";
  cells[2].textContent = percent(share);
  button.append(...cells);
  button.setAttribute("aria-label", say("go", { token: alone(candidate), share: percent(share) }));
  if (taken) button.setAttribute("aria-current", "true");
  button.addEventListener("click", choose);
  return button;
}

function rest(token) {
  const found = document.createElement("p"), known = candidates(token).map((c) => probability([c]));
  found.className = "soft";
  found.textContent = say("rest", { share: percent(Math.max(0, 1 - known.reduce((a, b) => a + b, 0))) });
  return found;
}

// Below the piece, or above it where there is more room; never beyond the edges.
function place(at) {
  const below = innerHeight - at.bottom, height = box.offsetHeight;
  const top = below < height + 8 && at.top > below ? at.top - height - 4 : at.bottom + 4;
  box.style.top = `${Math.max(0, top + scrollY)}px`;
  box.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - box.offsetWidth - 8))}px`;
}

box.addEventListener("keydown", (event) => {
  const buttons = [...box.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
  const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  buttons.at(to % buttons.length).focus();
});
box.addEventListener("focusout", (event) => {
  if (event.relatedTarget && !box.contains(event.relatedTarget)) close();
});
document.addEventListener("pointerdown", (event) => {
  if (isOpen() && !box.contains(event.target)) close();
});
