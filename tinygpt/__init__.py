"""tinygpt: a GPT engine that can be read to the bottom."""
