"""From text to tokens on disk to batches.

corpus = shakespeare()                                          # or any UTF-8 text file
tokenizer = CharTokenizer.from_text(read_text(corpus.path))
write_tokens(corpus.path, tokenizer, "tokens.npy")
train, validation = split(open_tokens("tokens.npy"))
inputs, targets = RandomBatches(train, batch_size=12, block_size=64, seed=0).batch(step)
for inputs, targets in DataLoader(train, batch_size=12, block_size=64, seed=0).epoch(0): ...
for inputs, targets in SequentialBatches(validation, batch_size=12, block_size=64): ...
for row in read_rows("reviews.csv.gz"): row.values["text"], row.where       # tables, row by row
for piece in Documents(["books/", "more.jsonl"]): piece.text, piece.last     # what a corpus is made of
write_documents(Documents("books/"), tokenizer, "tokens.npy", "the books", validation_fraction=0.1)
"""

from __future__ import annotations

from .batches import RandomBatches, SequentialBatches
from .character_vocabulary import CharacterVocabulary
from .corpora import Corpus, cache_folder, shakespeare
from .documents import Documents, Piece
from .loader import DataLoader
from .rows import BadRows, Row, read_rows
from .token_writer import write_documents
from .tokens import open_tokens, read_text, split, write_tokens

__all__ = [
    "BadRows",
    "CharacterVocabulary",
    "Corpus",
    "DataLoader",
    "Documents",
    "Piece",
    "RandomBatches",
    "Row",
    "SequentialBatches",
    "cache_folder",
    "open_tokens",
    "read_rows",
    "read_text",
    "shakespeare",
    "split",
    "write_documents",
    "write_tokens",
]
