"""All the ways to generate text: sampling, greedy, several samples at once, beam search, streaming; and scoring.

    python examples/generate.py                                # trains a small model first: about half a minute
    python examples/generate.py --model gpt2                   # or a folder: a training run, a GPT-2 directory
    python examples/generate.py --prompt "To be, or not to be"

The command line has the same in `tinygpt sample`, `tinygpt chat` and `tinygpt eval --stride`.
"""

from __future__ import annotations

import argparse

import numpy as np

import tinygpt as tg
from tinygpt.cli import OptionParser, exit_with
from tinygpt.generation import GenerationConfig, log_likelihood, perplexity, stream_text


def train_small_model(steps: int) -> tuple[tg.GPT, tg.tokenizers.Tokenizer]:
    """A character-level model of Shakespeare: in seconds it learns names, short words and line lengths."""
    text = "".join(tg.data.read_text(tg.data.shakespeare().path))[:500_000]
    tokenizer = tg.tokenizers.CharTokenizer.from_text(text)
    tokens = tokenizer.encode(text)
    config = tg.GPTConfig(tokenizer.vocab_size, block_size=64, n_layer=3, n_head=3, n_embd=96)
    model = tg.GPT(config, seed=0)
    batches = tg.data.RandomBatches(tokens, batch_size=12, block_size=64, seed=0)
    optimizer = tg.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(steps):
        loss = model.loss(*batches.batch(step))
        loss.backward()
        tg.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"Trained for {steps} steps: loss {loss.item():.2f} nats per character\n")
    return model, tokenizer


def main() -> int:
    parser = OptionParser(description="All the ways to generate text from a model.")
    parser.add_argument("--model", metavar="FOLDER_OR_NAME", help="model to load (default: train a small one)")
    parser.add_argument("--prompt", default="ROMEO:\n", metavar="TEXT", help="text to continue")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="training steps (default: 400)")
    parser.add_argument("--max-new-tokens", type=int, default=60, metavar="N", help="length of a text (default: 60)")
    show(parser.parse_args())
    return 0


def show(options: argparse.Namespace) -> None:
    if options.model is None:
        model, tokenizer = train_small_model(max(1, options.steps))
    else:
        model, tokenizer = tg.interop.load(options.model)
    prompt, new = options.prompt, options.max_new_tokens
    ids = tokenizer.encode(prompt)[None]  # (1, T)

    print("--- Streamed: sampled at temperature 0.8 from the most likely tokens that make up 95%")
    print(prompt, end="")
    for piece in stream_text(model, tokenizer, prompt, new, temperature=0.8, top_p=0.95, seed=0):
        print(piece, end="", flush=True)

    print("\n\n--- Greedy, without repeating any five tokens in a row")
    print(tokenizer.decode(model.generate(ids, new, do_sample=False, no_repeat_ngram_size=5)[0]))

    print("\n--- Three sampled at once, each up to the end of its line; a config holds options for several calls")
    config = GenerationConfig(max_new_tokens=new, top_k=20, stop_strings="\n", pad_token_id=0, seed=1)
    mask = np.ones_like(ids)  # the prompt has no padding; id 0 pads the rows that end early
    found = model.generate(
        ids, attention_mask=mask, config=config, num_return_sequences=3, tokenizer=tokenizer, return_details=True
    )
    for row, length, log_probs in zip(found.sequences, found.lengths, found.log_probs, strict=True):
        line = tokenizer.decode(row[ids.shape[1] :][:length])
        print(f"{log_probs.sum():8.2f} nats  {line!r}")

    print("\n--- Beam search: the best two of four beams")
    found = model.generate(ids, new, do_sample=False, num_beams=4, num_return_sequences=2, return_details=True)
    for row, score in zip(found.sequences, found.scores, strict=True):
        print(f"{score:8.2f} per token  {tokenizer.decode(row[ids.shape[1] :])!r}")

    print("\n--- User-defined logits processor: never repeat the previous token")

    def no_echo(rows, logits):  # rows: the tokens of each row so far; logits (R, V)
        logits[np.arange(len(logits)), [row[-1] for row in rows]] = -np.inf
        return logits

    print(tokenizer.decode(model.generate(ids, new, logits_processor=no_echo, temperature=0.8, seed=0)[0]))

    print("\n--- Log-likelihoods of two texts after the prompt")
    for text in ("I will not go to the", "the to go not will I"):
        score = log_likelihood(model, tokenizer.encode(text), context=ids[0])
        print(f"{score.total:8.2f} nats  {text}")
    text = tokenizer.encode("To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n")
    stride = max(1, model.config.block_size // 4)
    print(f"Perplexity of two lines of Hamlet: {perplexity(model, text, stride):.2f}")


if __name__ == "__main__":
    exit_with(main)
