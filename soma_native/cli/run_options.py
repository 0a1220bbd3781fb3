"""The options of `train` that decide what is trained: `plan` takes them too."""

from __future__ import annotations

import argparse

from soma_native.cli.arguments import add_device, fraction_type, integer, positive_type, seed_type
from soma_native.cli.new_run import FROM_CONTEXT, FROM_LR
from soma_native.model.config import PRECISIONS
from soma_native.model.presets import PRESETS
from soma_native.optim.schedule import SCHEDULES
from soma_native.tokenizer.train import KINDS
from soma_native.training.config import OPTIMIZERS
from soma_native.training.recipes import CLASSICS, VAL_FRACTION


def add_run_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of the model and the training. Returns the group of validation, for more of them."""
    model = parser.add_argument_group("the model and its tokenizer")
    model.add_argument(
        "--from", dest="source", metavar="DIR", help="train the model in this folder further; it stays as it is"
    )
    model.add_argument(
        "--tokenizer",
        metavar="KIND|FILE|DIR",
        help=f"a kind to train ({', '.join(KINDS)}), or a tokenizer that exists: tokenizer.json or its folder",
    )
    model.add_argument("--vocab-size", type=integer(2), metavar="N", help="most tokens of the vocabulary")
    model.add_argument("--preset", choices=tuple(PRESETS), help="size of the model; a classic one has its own recipe")
    model.add_argument("--recipe", choices=tuple(CLASSICS), help="settings of a classic, in the place of a plan")
    model.add_argument(
        "--seq-len",
        type=integer(1),
        metavar="N",
        help="tokens in a window, and the model's context; "
        f"with --from at most its context (default then: {FROM_CONTEXT}, or less if it is shorter)",
    )
    model.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of matrix products: float32, bfloat16, or auto: bfloat16 for training steps if the processor multiplies "
        "it faster, and float32 to validate (default: auto)",
    )
    add_device(model)
    training = parser.add_argument_group("the training")
    length = training.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes",
        type=positive_type,
        metavar="M",
        help="time of the whole run; the plan makes the best of it (default: what the corpus is worth, at most 10)",
    )
    length.add_argument("--epochs", type=integer(1), metavar="N", help="times through the texts, instead of a time")
    length.add_argument("--steps", type=integer(1), metavar="N", help="optimizer steps, with ten validations")
    training.add_argument("--batch-size", type=integer(1), metavar="N", help="windows in a step")
    training.add_argument(
        "--lr",
        type=positive_type,
        metavar="X",
        help=f"highest learning rate (default: by plan or recipe; with --from, {FROM_LR} of the usual)",
    )
    training.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="muon: Muon for the matrices inside blocks, AdamW for the rest (default: muon, adamw in a classic recipe)",
    )
    training.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="course of the learning rate after its warm-up (default: wsd, cosine in a classic recipe)",
    )
    training.add_argument(
        "--dropout", type=fraction_type, metavar="X", help="part of the activations that is dropped (default: by plan)"
    )
    training.add_argument(
        "--teachers",
        type=integer(0),
        metavar="N",
        help="models that are trained first, from which the model then learns too (default: by plan, for tiny texts)",
    )
    training.add_argument(
        "--sync-every",
        type=integer(1),
        metavar="N",
        help="local steps of each of several ranks between two outer steps of all (DiLoCo), for slow links",
    )
    training.add_argument(
        "--seed", type=seed_type, metavar="N", help="seed of the weights and of the order of the texts (default: 0)"
    )
    watching = parser.add_argument_group("validation and saves")
    watching.add_argument(
        "--val-fraction",
        type=fraction_type,
        metavar="X",
        help=f"part held out to validate on (default: {VAL_FRACTION}, or 0 if the texts are too short)",
    )
    watching.add_argument(
        "--max-eval-windows",
        type=integer(1),
        metavar="N",
        help="most windows in a validation, evenly spread over the held-out part (default: all, which with few --steps "
        "can take longer than the training)",
    )
    watching.add_argument(
        "--patience",
        type=integer(1),
        metavar="N",
        help="validations without a lower loss that end the run, once its learning rate has fallen",
    )
    return watching
