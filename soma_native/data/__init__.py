"""From texts to batches: documents, their token ids in one store, windows of the store, and the samplers of windows."""
