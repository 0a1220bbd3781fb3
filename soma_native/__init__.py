"""Train small language models on an ordinary CPU: tokenizer, transformer, trainer, generator on native kernels."""

from importlib import import_module as _import_module
from importlib.machinery import EXTENSION_SUFFIXES as _SUFFIXES
from os.path import exists as _exists
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from soma_native.analysis.floor import Floor, text_floor
    from soma_native.checkpoint import load, load_model, save
    from soma_native.checkpoint.gguf import export_gguf
    from soma_native.checkpoint.soma_pickle import import_soma_pickle
    from soma_native.data.documents import read_documents
    from soma_native.data.token_store import TokenStore
    from soma_native.errors import CheckpointError, EngineClosedError, EngineFullError
    from soma_native.generation.completion import Completion
    from soma_native.generation.engine import Engine, Handle
    from soma_native.generation.generator import Generator
    from soma_native.generation.scoring import Scores
    from soma_native.model.config import ModelConfig
    from soma_native.model.model import Model
    from soma_native.optim.adamw import AdamW
    from soma_native.optim.average import WeightAverage
    from soma_native.optim.muon import Muon
    from soma_native.planning.plan import Plan, plan
    from soma_native.planning.train import train
    from soma_native.system import active_isa, available_isas, get_num_threads, set_num_threads
    from soma_native.tokenizer.tokenizer import Tokenizer
    from soma_native.training.callbacks import Callback, Event
    from soma_native.training.config import TrainConfig
    from soma_native.training.history import History
    from soma_native.training.trainer import Trainer
    from soma_native.version import __version__

# The module of each name. A name is imported on first use: the import is quick, and the command can guard its imports.
_LAZY = {
    "AdamW": "optim.adamw",
    "Callback": "training.callbacks",
    "CheckpointError": "errors",
    "Completion": "generation.completion",
    "Engine": "generation.engine",
    "EngineClosedError": "errors",
    "EngineFullError": "errors",
    "Event": "training.callbacks",
    "Floor": "analysis.floor",
    "Generator": "generation.generator",
    "Handle": "generation.engine",
    "History": "training.history",
    "Model": "model.model",
    "ModelConfig": "model.config",
    "Muon": "optim.muon",
    "Plan": "planning.plan",
    "Scores": "generation.scoring",
    "Tokenizer": "tokenizer.tokenizer",
    "TokenStore": "data.token_store",
    "TrainConfig": "training.config",
    "Trainer": "training.trainer",
    "WeightAverage": "optim.average",
    "__version__": "version",
    "active_isa": "system",
    "available_isas": "system",
    "export_gguf": "checkpoint.gguf",
    "get_num_threads": "system",
    "import_soma_pickle": "checkpoint.soma_pickle",
    "load": "checkpoint",
    "load_model": "checkpoint",
    "plan": "planning.plan",
    "read_documents": "data.documents",
    "save": "checkpoint",
    "set_num_threads": "system",
    "text_floor": "analysis.floor",
    "train": "planning.train",
    "_core": "core",
    "_adamw_of": "optim.adamw",  # pickles name this function and the four below
    "_average_of": "optim.average",
    "_generator_of": "generation.generator",
    "_model_of": "model.model",
    "_muon_of": "optim.muon",
    "_tokenizer_of": "tokenizer.tokenizer",
}

__all__ = [
    "AdamW",
    "Callback",
    "CheckpointError",
    "Completion",
    "Engine",
    "EngineClosedError",
    "EngineFullError",
    "Event",
    "Floor",
    "Generator",
    "Handle",
    "History",
    "Model",
    "ModelConfig",
    "Muon",
    "Plan",
    "Scores",
    "TokenStore",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "WeightAverage",
    "__version__",
    "active_isa",
    "available_isas",
    "export_gguf",
    "get_num_threads",
    "import_soma_pickle",
    "load",
    "load_model",
    "plan",
    "read_documents",
    "save",
    "set_num_threads",
    "text_floor",
    "train",
]


if not any(_exists(f"{__path__[0]}/_core{suffix}") for suffix in _SUFFIXES):
    _import_module("soma_native.core")  # finds the core elsewhere, or raises an error that says what to do


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        value = getattr(_import_module(f"soma_native.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'soma_native' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
