"""The text of a run: from files, pipes or Shakespeare to a tokenizer and a token file.

| file | contents |
|---|---|
| `prepare` | the way from one to the other |
| `corpus` | the files, and their options |
| `tokenizer_training`, `token_size` | training a BPE or word tokenizer; the size of the token file, estimated |
| `text_facts` | text.json: which text it was |
| `token_folder`, `token_cache` | text that was tokenized ahead; a cache of encoded texts |
"""
