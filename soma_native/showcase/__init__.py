"""The whole way once, on 400 sentences of our own."""
