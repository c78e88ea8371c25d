// A text on the page, token by token. One piece of it is in the order of the Tab key; arrow keys move to the others.
// Texts get into the page as text (textContent), never as HTML.

import { inText, isWhole, probability, surprise } from "./pieces.js";
import { percent, say } from "./words.js";

export class Written {
  // given: a text before the tokens, shown without color. open(piece element): called for a piece that is selected.
  constructor(given, open) {
    this.element = document.createElement("div");
    this.element.className = "written";
    this.given = document.createElement("span");
    this.given.className = "given";
    this.given.textContent = given;
    this.element.append(this.given);
    this.open = open;
    this.element.addEventListener("click", (event) => this.clicked(event));
    this.element.addEventListener("keydown", (event) => this.pressed(event));
    this.show([]);
  }

  // Show these tokens and no others.
  show(tokens) {
    this.pieces = [];  // {tokens, element, first: the number of its first token}
    this.tokens = [];
    this.element.replaceChildren(this.given);
    for (const token of tokens) this.append(token);
  }

  append(token) {
    let piece = this.pieces.at(-1);
    if (!piece || isWhole(piece.tokens)) piece = this.add();
    piece.tokens.push(token);
    this.tokens.push(token);
    this.fill(piece);
  }

  add() {
    const element = document.createElement("span");
    element.className = "token";
    element.setAttribute("role", "button");
    element.setAttribute("aria-haspopup", "dialog");
    element.tabIndex = this.pieces.length ? -1 : 0;
    const piece = { tokens: [], element, first: this.tokens.length };
    this.pieces.push(piece);
    this.element.append(element);
    return piece;
  }

  fill({ tokens, element }) {
    const share = percent(probability(tokens));
    element.textContent = isWhole(tokens) ? inText(tokens) : "\u2026";
    element.title = share;
    element.setAttribute("aria-label", say("token", { token: inText(tokens).trimEnd(), share }));
    element.style.setProperty("--strength", surprise(tokens).toFixed(3));
    element.classList.toggle("chosen", tokens.some((token) => token.chosen));
  }

  // After a change of language.
  rename() {
    for (const piece of this.pieces) this.fill(piece);
  }

  set writing(on) {
    this.element.classList.toggle("writing", on);
    this.element.setAttribute("aria-busy", on);
  }

  pieceOf(element) {
    return this.pieces.find((piece) => piece.element === element);
  }

  clicked(event) {
    const piece = this.pieceOf(event.target);
    if (!piece || !getSelection().isCollapsed) return;  // the reader selects text to copy it
    this.focus(piece);
    this.open(piece);
  }

  pressed(event) {
    const at = this.pieces.indexOf(this.pieceOf(event.target));
    if (at < 0) return;
    const last = this.pieces.length - 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (to !== undefined) this.focus(this.pieces[Math.max(0, Math.min(last, to))]);
    else if (event.key === "Enter" || event.key === " ") this.open(this.pieces[at]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  focus(piece) {
    for (const { element } of this.pieces) element.tabIndex = -1;
    piece.element.tabIndex = 0;
    piece.element.focus();
  }
}
