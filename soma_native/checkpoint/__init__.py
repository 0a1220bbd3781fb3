"""Saves models as Hugging Face folders, all files at once or none, and loads them with full checks."""

from soma_native.checkpoint.folder import extra_file, load, load_config, load_model, save

__all__ = ["extra_file", "load", "load_config", "load_model", "save"]
