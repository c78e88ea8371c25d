"""GPT-2 directories: loaded, saved, fetched, damaged."""
