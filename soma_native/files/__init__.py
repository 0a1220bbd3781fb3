"""Reading and writing files, without knowledge of models: atomic folders, tensor files, untrusted files, texts."""
