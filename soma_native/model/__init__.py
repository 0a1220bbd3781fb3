"""Models: the configuration, the presets, and the Python handle of a model in the core."""
