"""What a model is: its sizes, the presets, and the handle of the one in the core."""
