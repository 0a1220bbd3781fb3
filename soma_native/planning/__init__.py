"""Plans: what a corpus and a time allow on this machine, and the whole way from texts to a model in one call."""
