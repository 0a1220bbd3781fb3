"""Trained models as Hugging Face folders: saved at once or not at all, and read as if anyone had written them."""

from soma_native.checkpoint.folder import extra_file, load, load_config, load_model, save

__all__ = ["extra_file", "load", "load_config", "load_model", "save"]
