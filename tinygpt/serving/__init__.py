"""Letting other programs talk to a model: `tinygpt serve`, OpenAI's HTTP interface.

A client's request goes through these files, from top to bottom, and its text comes back the same way:

| file | contents |
|---|---|
| `samples` | one text: what chooses its next token and what ends it |
| `engine` | the thread that owns the model and writes many texts at once; the queue before it |
| `statistics` | what is counted, for `/metrics` |
"""
