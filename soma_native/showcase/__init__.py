"""The showcase: a model trained, saved, loaded and sampled on a corpus of 400 sentences."""
