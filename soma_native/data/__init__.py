"""From texts to batches: documents, their ids in one store, windows of it, and the order they are drawn in."""
