"""Load and save models as GPT-2 directories in the Hugging Face format.

model = tinygpt.GPT.from_pretrained("gpt2")                  # a name, a GPT-2 directory or a training run's folder
model, tokenizer = tinygpt.interop.load(folder)              # with the tokenizer in the same folder
model.save_pretrained(folder, tokenizer=tokenizer)           # a directory that transformers can load
tinygpt.interop.convert(run_folder, folder, dtype="float16") # from folder to folder, including the tokenizer
tinygpt.interop.save_gguf(model, tokenizer, file)            # one file for llama.cpp
tinygpt.interop.save_adapter(model, folder)                  # the LoRA adapter alone, in PEFT's format
tinygpt.interop.load_word_vectors(model, tokenizer, file)    # word2vec's or fastText's vectors as token embeddings
folder = tinygpt.interop.find_model("gpt2")                  # the folder of its files, downloaded if necessary

| file | contents |
|---|---|
| `config.py` | config.json and generation_config.json |
| `weights.py` | names and shapes of the arrays; one file or shards |
| `loading.py`, `saving.py`, `convert.py` | loading, saving and converting models |
| `gguf.py`, `gguf_vocabulary.py` | a GGUF file for llama.cpp: weights; tokenizers as llama.cpp's BPE |
| `plain_gpt.py` | whether a model can be saved as GPT-2 |
| `classifier.py` | loading and saving classifiers |
| `packed_run.py` | runs that trained an adapter on a packed base |
| `harness.py` | a model in lm-evaluation-harness |
| `peft.py`, `peft_config.py`, `peft_head.py` | LoRA adapters: arrays, configuration, a classifier's head |
| `torch_file.py`, `torch_pickle.py`, `torch_tensors.py` | pytorch_model.bin, read without executing anything |
| `nanogpt.py` | nanoGPT's ckpt.pt and meta.pkl, read in the same way |
| `word_vectors.py`, `vector_files.py` | word2vec's and fastText's vectors as token embeddings, and their files |
| `hub.py` | finding models by name: the local cache and the hub |
"""

from __future__ import annotations

from .convert import convert
from .gguf import save_gguf
from .hub import cache_folder, find_model
from .loading import from_pretrained, load
from .peft import load_adapter, save_adapter
from .saving import save_pretrained
from .word_vectors import WordVectors, load_word_vectors

__all__ = [
    "WordVectors", "cache_folder", "convert", "find_model", "from_pretrained", "load", "load_adapter",
    "load_word_vectors", "save_adapter", "save_gguf", "save_pretrained",
]  # fmt: skip
