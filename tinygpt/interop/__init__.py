"""Models in and out: GPT-2 directories of the Hugging Face format.

model = tinygpt.GPT.from_pretrained("gpt2")                  # a name, or the folder of a directory or a training run
model, tokenizer = tinygpt.interop.load(folder)              # with its tokenizer, which must belong to it
model.save_pretrained(folder, tokenizer=tokenizer)           # a directory that transformers loads
tinygpt.interop.convert(run_folder, folder, dtype="float16") # the same from folder to folder, tokenizer included
folder = tinygpt.interop.find_model("gpt2")                  # where its files are; fetched if need be

| file | what is in it |
|---|---|
| `config.py` | config.json and generation_config.json |
| `weights.py` | names and shapes of the arrays; one file or shards |
| `loading.py`, `saving.py`, `convert.py` | the ways in, out and through |
| `hub.py` | names: the cache and the hub |
"""

from __future__ import annotations

from .convert import convert
from .hub import cache_folder, find_model
from .loading import from_pretrained, load
from .saving import save_pretrained

__all__ = ["cache_folder", "convert", "find_model", "from_pretrained", "load", "save_pretrained"]
