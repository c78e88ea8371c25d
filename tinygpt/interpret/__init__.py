"""Look inside a model: what each head attends to, what each block already predicts, which tokens an answer rests on.

    import tinygpt as tg

    model = tg.GPT(tg.GPTConfig(vocab_size=65, block_size=32, n_layer=2, n_head=4, n_embd=32), seed=0)
    ids = [7, 1, 30, 7, 1]                                              # one text of T tokens

    maps = tg.interpret.attention_maps(model, ids)                      # (L, H, T, T)
    lens = tg.interpret.logit_lens(model, ids)                          # (L + 1, T, V): log-probabilities
    parts = tg.interpret.saliency(model, ids, target=30)                # (T,): for token 30 as the next one
    found = tg.interpret.activations(model, ids, ["h.0.attn", "h.1"])   # name -> (T, C)
    layers = tg.interpret.layer_statistics(model, ids)                  # name -> of values and gradients

    with tg.interpret.ablate(model, heads=[(0, 3)], layers=[1]):       # switched off, for any call, generate too
        print(model.loss([ids], labels=[ids]).item())
    with tg.interpret.hooked(model, {"h.0": lambda x: x * 0.5}):        # sees, and may replace, the output of h.0
        print(model.loss([ids], labels=[ids]).item())

    with tg.interpret.record_gradients() as record:
        model.loss([ids], labels=[ids]).backward()
    picture = tg.draw(record, model)                                    # an SVG: picture.save("graph.svg")

| file | what is there |
|---|---|
| `hooks.py` | `hooked`: watch or replace what goes into and comes out of any module; `activations` |
| `attention_maps.py` | the probabilities with which each head mixes earlier tokens |
| `logit_lens.py` | the prediction that each block would make if it were the last |
| `saliency.py` | gradient x input, integrated gradients |
| `ablation.py` | `ablate`: heads and blocks switched off |
| `layer_statistics.py` | size and spread of activations and their gradients |
| `drawing.py` | `tinygpt.draw`: the graph of a computation as SVG; `graph_facts.py`: `record_gradients`; `layout.py` |
| `explanation.py`, `page.py` | `tinygpt explain`: `page(title, explain(model, tokenizer, text))` is its HTML |
| `text.py` | what they share: one text of ids, the blocks of a model |

`model` is a GPT, another LanguageModel with blocks `h` and a final norm `ln_f`, or a classifier on one. It may have an
adapter, be packed, or compute in 16 bits. Everything is computed without dropout, on the model's backend, and returned
as NumPy arrays of at least float32. The `.grad` of its parameters stays as it is.
"""

from __future__ import annotations

from .ablation import ablate
from .attention_maps import attention_maps
from .drawing import Picture, draw
from .explanation import Explanation, explain
from .graph_facts import record_gradients
from .hooks import activations, hooked
from .layer_statistics import LayerStatistics, Summary, layer_statistics
from .logit_lens import logit_lens
from .page import page
from .saliency import saliency

__all__ = [
    "Explanation", "LayerStatistics", "Picture", "Summary", "ablate", "activations", "attention_maps", "draw",
    "explain", "hooked", "layer_statistics", "logit_lens", "page", "record_gradients", "saliency",
]  # fmt: skip
