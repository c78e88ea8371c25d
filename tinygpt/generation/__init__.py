"""Text generation: greedy, sampling and beam search.

    out = generate(model, idx, max_new_tokens=100, temperature=0.8, top_k=50, seed=0)
    for ids in stream(model, idx, ...): ...                  # token by token
    for text in stream_text(model, tokenizer, "ROMEO:", ...): ...

| file | contents |
|---|---|
| `options` | `GenerationConfig`: the options under transformers' names, checked |
| `config_file` | generation_config.json |
| `prompts` | prompts of different lengths, padding and masks |
| `row_decoder`, `decoder`, `stepper` | the rows so far, and the model's logits for their next tokens |
| `decoder_checks` | what a decoder checks of its arguments |
| `one_pass`, `graphed_decode` | fast ways to take a step: on plain arrays, as a CUDA graph |
| `prompt_reader`, `joint_prompts`, `padded_prompts` | reading prompts: in pieces, several in one pass, padded |
| `prompt_cache` | what the model has read, kept from one call to the next |
| `processors` | logits processors, which adjust the next token's scores given the tokens so far |
| `truncation` | temperature, top_k, top_p, min_p, typical_p |
| `token_sampler` | choosing the next token, greedily or at random; random numbers |
| `stopping` | eos tokens and stop strings |
| `request` | the checked arguments of a call |
| `sampler` | the generation loop |
| `beam` | beam search |
| `text`, `text_pieces` | streaming decoded text |
| `scoring` | how likely a text is: log-likelihood, perplexity with a stride |
"""

from __future__ import annotations

from ..language_model import Generated
from .config_file import config_from_dict, config_to_dict, read_config_file, write_config_file
from .options import GenerationConfig
from .processors import Rows
from .prompt_cache import PromptCache
from .sampler import generate, stream
from .scoring import LogLikelihood, TextScore, log_likelihood, perplexity, score
from .text import stream_text

__all__ = [
    "Generated",
    "GenerationConfig",
    "LogLikelihood",
    "PromptCache",
    "Rows",
    "TextScore",
    "config_from_dict",
    "config_to_dict",
    "generate",
    "log_likelihood",
    "perplexity",
    "read_config_file",
    "score",
    "stream",
    "stream_text",
    "write_config_file",
]
