"""What touches a disk and knows no model: folders replaced at once, tensor files, files of strangers, texts."""
