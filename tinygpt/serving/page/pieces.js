// Tokens and characters. A token is some bytes: often a word, sometimes a part of a character. What the reader sees
// and selects is a piece: a token, or the tokens that make up a character together.

const bytesOf = (tokens) => Uint8Array.from(tokens.flatMap((token) => token.bytes));
export const textOf = (tokens) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytesOf(tokens));

// Whether the bytes end in the middle of a character (UTF-8).
export function unfinished(bytes) {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes.at(-back);
    if (byte < 0x80) return false;
    if (byte >= 0xc0) return byte < 0xf8 && back < (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2);
  }
  return false;
}

export const isWhole = (piece) => !unfinished(piece.flatMap((token) => token.bytes));

// The probability of all tokens of a piece, and the share of full color that it gets: 8 bits of surprise or more have all.
export const probability = (piece) => Math.exp(piece.reduce((sum, token) => sum + token.logprob, 0));
export const surprise = (piece) => Math.min(1, Math.max(0, -Math.log2(probability(piece)) / 8));

// Control characters as pictures, so that every token can be seen; a line break also breaks the line.
const pictures = (text) => text.replace(/[\0-\x08\x0b-\x1f\x7f]/g, (c) =>
  String.fromCharCode(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0)));
export const inText = (piece) => pictures(textOf(piece)).replaceAll("\n", "\u23ce\n") || "\u2205";

// A token by itself, its white space visible and the bytes of a part of a character as numbers.
export function alone(token) {
  const text = textOf([token]);
  if (token.bytes.length && text.includes("\ufffd")) {
    return token.bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
  }
  return pictures(text).replaceAll("\n", "\u23ce").replaceAll("\t", "\u21e5").replaceAll(" ", "\u00b7") || "\u2205";
}

// The tokens of the text that the server sent: they go on to the end of a stop string, which is not part of the text.
export function upTo(tokens, text) {
  const whole = textOf(tokens), begin = whole.indexOf(text), end = begin + text.length;
  if (begin < 0 || end === whole.length) return tokens;
  const kept = [];
  for (let room = new TextEncoder().encode(whole.slice(0, end)).length; room > 0 && kept.length < tokens.length;) {
    const token = tokens[kept.length];
    kept.push(token.bytes.length > room ? { ...token, bytes: token.bytes.slice(0, room) } : token);
    room -= token.bytes.length;
  }
  return kept;
}
