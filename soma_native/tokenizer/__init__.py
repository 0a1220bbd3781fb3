"""Text to token ids and back: the tokenizer, its training, and its file formats."""
