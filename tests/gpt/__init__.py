"""The model: its loss, its gradient, layers of a user's own, and GPT-2 of transformers beside it."""
