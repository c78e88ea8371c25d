"""`tinygpt convert`: write a training run, a GPT-2 directory or nanoGPT's ckpt.pt for transformers or for llama.cpp."""

from __future__ import annotations

import argparse

ABOUT = """Write a model, with its tokenizer, as a GPT-2 directory in the Hugging Face format, which transformers loads,
or with --to gguf as one file, which llama.cpp loads. There a prompt and its continuation must fit into the model's
block: llama.cpp does not slide the window, and stops with an error beyond it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    words = "a training run, a GPT-2 directory, a LoRA adapter of PEFT, nanoGPT's ckpt.pt, or a name such as gpt2"
    parser.add_argument("source", metavar="SOURCE", help=words)
    words = "the folder or the file to write; an existing model is replaced"
    parser.add_argument("target", metavar="TARGET", help=words)
    words = "huggingface (default), or gguf: a file for llama.cpp, which needs the package gguf"
    parser.add_argument("--to", choices=("huggingface", "gguf"), default="huggingface", help=words)
    formats = ("float32", "bfloat16", "float16", "float64", "f32", "f16", "bf16", "q8_0", "q4_0")
    words = (
        "of the weights: float32 (default), bfloat16, float16, float64; with --to gguf f32 (default), f16, bf16, q8_0 "
        "or q4_0"
    )
    parser.add_argument("--dtype", choices=formats, metavar="DTYPE", help=words)
    words = "in bytes, or for example 200MB: a larger model is split into several files (default: one file)"
    parser.add_argument("--max-shard-size", metavar="SIZE", help=words)
    words = "of a training run (default: best)"
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best", help=words)
    words = "add the LoRA adapter to the weights and write the whole model (default: write the adapter alone, for PEFT)"
    parser.add_argument("--merge-lora", action="store_true", help=words)
    words = "take the tokenizer from this folder, or from nanoGPT's meta.pkl (default: the model's)"
    parser.add_argument("--tokenizer", metavar="FOLDER_OR_FILE", help=words)
    words = "branch, tag or commit of a model that is given by its name (default: main)"
    parser.add_argument("--revision", default="main", metavar="REV", help=words)
    parser.set_defaults(run=convert)


def convert(options: argparse.Namespace) -> int:
    """Write the directory and list its files."""
    from .. import interop
    from ..tokenizers import FILES

    size = options.max_shard_size
    if size is not None and size.isdigit():
        size = int(size)
    target = interop.convert(
        options.source, options.target, dtype=options.dtype, max_shard_size=size,
        checkpoint=options.checkpoint, revision=options.revision, merge_lora=options.merge_lora,
        tokenizer=options.tokenizer, to=options.to,
    )  # fmt: skip
    if options.to == "gguf":
        print(f"{target} holds the model in {options.dtype or 'f32'}: {target.stat().st_size:,} bytes")
        return 0
    files = sorted(path for path in target.iterdir() if path.is_file())
    what = "LoRA adapter" if (target / "adapter_config.json").exists() else "model"
    print(f"{target} holds the {what} in {options.dtype or 'float32'}:")
    for path in files:
        print(f"    {path.name:<34}{path.stat().st_size:>15,} bytes")
    if not any((target / name).exists() for name in FILES):
        print("It has no tokenizer, which the commands need to read text: give one with --tokenizer")
    return 0
