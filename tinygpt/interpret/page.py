"""The page of `tinygpt explain`: one HTML file. It needs no network, and JavaScript only for hovering."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from html import escape

import numpy as np

from .explanation import Explanation
from .page_style import SCRIPT, STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # no requests
WORDS = {"gradient_x_input": "Gradient x input", "integrated_gradients": "Integrated gradients"}
FULL = 8.0  # bits of surprise at full colour


def page(title: str, found: Explanation) -> str:
    """The page as HTML. title: the name of the model."""
    sections = (_surprise(found), _attention(found), _lens(found), _saliency(found), _card(found))
    body = "\n".join(part for section in sections for part in section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}: explained</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f"<h1>{escape(title)}</h1>\n<p class=soft>How this model processes a text of {len(found.tokens)} tokens.</p>\n"
        f'{body}\n<script type="application/json" id="data">{_data(found)}</script>\n<script>{SCRIPT}</script>\n'
        "</body>\n</html>\n"
    )


def visible(token: str) -> str:
    """A token with its white space shown."""
    return (
        token.replace("\r", "\u240d").replace("\n", "\u23ce").replace("\t", "\u21e5").replace(" ", "\u00b7") or "\u2205"
    )


def _spans(found: Explanation, classes: Iterable[str], strengths: Iterable[float], titles: Iterable[str]) -> str:
    """The tokens, each with its background colour. A line break in the text starts a new line."""
    parts = []
    for token, kind, a, title in zip(found.tokens, classes, strengths, titles, strict=True):
        parts.append(
            f'<span class="{kind}" style="--a:{min(1.0, a):.3f}" title="{escape(title)}">{_shown(token)}</span>'
        )
        parts.append("<br>" if token.endswith("\n") else "<wbr>")
    return "".join(parts)


def _shown(token: str) -> str:
    return escape(visible(token))


def _surprise(found: Explanation) -> Iterator[str]:
    known = found.surprise[1:]
    yield "<h2>Surprise</h2>"
    yield (
        "<p>How unexpected each token was, given those before it: -log2 of its probability, in bits. 0 is certain; "
        f"each bit halves the probability. The mean is {known.mean():.2f} bits, "
        f"a perplexity of {2.0 ** known.mean():.4g}.</p>"
    )
    titles = ["the first token: it is not predicted"]
    for bits, best in zip(known, found.alternatives, strict=False):
        expected = ", ".join(f"{visible(token)} {100 * p:.1f} %" for token, p in best)
        titles.append(f"{bits:.2f} bits ({100 * 2.0**-bits:.3g} %); expected: {expected}")
    strengths = np.nan_to_num(found.surprise) / FULL
    yield f'<div class="tokens">{_spans(found, ["hot"] * len(titles), strengths.tolist(), titles)}</div>'
    yield f'<p class="legend">Full colour: {FULL:g} bits or more. Hover over a token to see what was expected.</p>'


def _attention(found: Explanation) -> Iterator[str]:
    L, H, T, _ = found.maps.shape
    last = found.maps[:, :, -1]  # (L, H, T)
    mean = last.mean(axis=(0, 1))
    yield "<h2>Attention</h2>"
    yield (
        f'<p>Attention from the token <b id="which">{_shown(found.tokens[-1])}</b> to earlier ones: <span id="who">'
        'the mean of all heads</span>. <span id="how" hidden>Hover over a token to see where it attends; '
        "select a head in the table to see it alone.</span></p>"
    )
    titles = [f"{100 * a:.1f} %" for a in mean]
    yield f'<div class="tokens" id="look">{_spans(found, ["good"] * T, (mean / mean.max()).tolist(), titles)}</div>'
    yield "<p class=soft>The token that each head attends to most:</p>"
    yield '<div class="wide"><table id="heads"><thead><tr><th>block</th>'
    yield "".join(f"<th>head {h}</th>" for h in range(H)) + "</tr></thead><tbody>"
    for i in range(L):
        best = last[i].argmax(-1)
        cells = (f"<td>{_shown(found.tokens[j])} {100 * last[i, h, j]:.0f} %</td>" for h, j in enumerate(best))
        yield f"<tr><th>{i}</th>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _lens(found: Explanation) -> Iterator[str]:
    depths = ["embeddings", *(f"block {i}" for i in range(len(found.maps)))]
    last = found.settled(len(found.tokens) - 1)
    answer = _shown(found.lens_tokens[int(found.lens_ids[-1, -1])])
    yield "<h2>Logit lens: when the answer appears</h2>"
    yield (
        "<p>The most likely next token if the model stopped after this block. Highlighted: where it is the final "
        f"answer and stays so. After the whole text, the answer is <b>{answer}</b>, from {depths[last]} on.</p>"
    )
    yield '<div class="wide"><table><thead><tr><th>after</th>' + "".join(f"<th>{name}</th>" for name in depths)
    yield "</tr></thead><tbody>"
    for t, token in enumerate(found.tokens):
        settled, cells = found.settled(t), []
        for depth, i in enumerate(found.lens_ids[:, t]):
            kind = ' class="answer"' if depth >= settled else ""
            share = 100 * found.lens_probabilities[depth, t]
            cells.append(f"<td{kind}>{_shown(found.lens_tokens[int(i)])} <small>{share:.0f} %</small></td>")
        yield f"<tr><th>{_shown(token)}</th>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _saliency(found: Explanation) -> Iterator[str]:
    yield f"<h2>Why {_shown(found.target)}?</h2>"
    yield (
        "<p>The contribution of each token to the log-probability (in nats) of "
        f"<b>{_shown(found.target)}</b> as the next token; "
        f'its probability is {100 * found.target_probability:.3g} %. <span class="legend"><b class="good" '
        'style="--a:.6">supports it</b> <b class="bad" style="--a:.6">opposes it</b></span></p>'
    )
    for method, values in found.saliency.items():
        strongest = max(float(np.abs(values).max()), 1e-30)
        classes = ["good" if value >= 0 else "bad" for value in values]
        spans = _spans(found, classes, (np.abs(values) / strongest).tolist(), [f"{value:+.4f}" for value in values])
        total = f"sum {values.sum():+.3f}"
        if method == "integrated_gradients":
            total += ", the difference from a text whose embeddings are all zeros"
        yield f'<p class=soft>{WORDS[method]}, {total}:</p><div class="tokens">{spans}</div>'


def _card(found: Explanation) -> Iterator[str]:
    yield '<h2>The model</h2><div class="wide"><table><tbody>'
    yield from (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in found.facts)
    yield "</tbody></table></div>"
    yield "<p class=soft>Memory, and the time of one pass over this text, measured layer by layer:</p>"
    yield '<div class="wide"><table><thead><tr><th>part</th><th>weights</th><th>bytes</th><th></th><th>time</th>'
    yield "<th></th></tr></thead><tbody>"
    sizes, times = (sum(p.bytes for p in found.parts) or 1), (sum(p.seconds for p in found.parts) or 1.0)
    for part in found.parts:
        yield (
            f"<tr><th>{part.name}</th><td class=number>{part.weights:,}</td><td class=number>{part.bytes:,}</td>"
            f"<td>{_bar(part.bytes / sizes)}</td><td class=number>{1000 * part.seconds:.2f} ms</td>"
            f"<td>{_bar(part.seconds / times)}</td></tr>"
        )
    yield "</tbody></table></div>"


def _bar(share: float) -> str:
    return f'<span class="bar" style="width:{6 * share:.2f}rem"></span> {100 * share:.0f} %'


def _data(found: Explanation) -> str:
    """What the script needs: the maps as bytes, 0 to 255, of their lower triangles."""
    L, H, T, _ = found.maps.shape
    lower = np.rint(255 * found.maps[:, :, *np.tril_indices(T)]).astype(np.uint8)  # (L, H, T (T + 1) / 2)
    data = {
        "tokens": [visible(token) for token in found.tokens],
        "layers": L,
        "heads": H,
        "maps": base64.b64encode(lower.tobytes()).decode("ascii"),
    }
    return json.dumps(data).replace("<", "\\u003c")  # a token may be </script>
