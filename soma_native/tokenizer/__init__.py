"""Text to token ids and back: the tokenizer, how its vocabulary is trained, and the files it comes in."""
