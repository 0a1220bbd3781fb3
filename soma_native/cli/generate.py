"""`soma-native generate`: continues a text with a saved model, and prints it piece by piece."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import time
from typing import Any

from soma_native.checkpoint import load
from soma_native.cli.arguments import add_command, add_device, add_kv_cache, integer, number, seed_type, text
from soma_native.cli.corpus import read_stdin
from soma_native.cli.errors import UsageError
from soma_native.cli.output import print_json
from soma_native.generation.generator import Generator
from soma_native.generation.sampling import DEFAULTS, PENALTY, WEIGHTS

_SETTINGS = [field.name for field in dataclasses.fields(DEFAULTS) if field.name not in {"seed", "logit_bias"}]


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "generate",
        run,
        "continue a text with a saved model",
        'generate runs/showcase "SOMA is" --max-tokens 11 --seed 1',
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of the model")
    parser.add_argument(
        "prompt", type=text, metavar="PROMPT", help='the text to continue; "-" reads it from standard input'
    )
    count: dict[str, Any] = {"type": integer(0, 2**31 - 1), "metavar": "N"}
    parser.add_argument(
        "--max-tokens", **count, default=DEFAULTS.max_tokens, help="most tokens to add (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=number(least=0),
        default=DEFAULTS.temperature,
        metavar="X",
        help="higher is more varied, 0 always takes the most likely token (default: %(default)s)",
    )
    likeliest = "draw from the N most likely tokens; 0 means all (default: %(default)s)"
    parser.add_argument("--top-k", **count, default=DEFAULTS.top_k, help=likeliest)
    parser.add_argument(
        "--top-p",
        type=number(above=0, most=1),
        default=DEFAULTS.top_p,
        metavar="X",
        help="draw from the most likely tokens that together reach this probability; 1 is all (default: %(default)s)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=lambda given: given if given == "auto" else number(**PENALTY)(given),
        default=DEFAULTS.repetition_penalty,
        metavar="X",
        help="divides the logits of tokens that are in the text already; 1 is off, auto is 1.15 for words, else 1 "
        "(default: %(default)s)",
    )
    fraction: dict[str, Any] = {"type": number(), "metavar": "X"}
    parser.add_argument(
        "--min-p",
        **fraction,
        default=DEFAULTS.min_p,
        help="draw from tokens with at least this share of the highest probability; 0 is off (default: %(default)s)",
    )
    parser.add_argument(
        "--no-repeat-ngram-size",
        **count,
        default=DEFAULTS.no_repeat_ngram_size,
        help="no N tokens in a row come twice; 0 is off (default: %(default)s)",
    )
    for name, each in {"presence": "once", "frequency": "for each time"}.items():
        parser.add_argument(
            f"--{name}-penalty",
            **fraction,
            default=getattr(DEFAULTS, f"{name}_penalty"),
            help=f"lowers the logits of generated tokens, {each}: -2 to 2 (default: %(default)s)",
        )
    parser.add_argument(
        "--dry-multiplier",
        **fraction,
        default=DEFAULTS.dry_multiplier,
        help="lowers the logits of tokens that extend a repetition; 0 is off, 0.8 is usual (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-base",
        **fraction,
        default=DEFAULTS.dry_base,
        help="how fast that grows with the length of the repetition (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-allowed-length",
        **count,
        default=DEFAULTS.dry_allowed_length,
        help="the shortest repetition that counts (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-sequence-breakers",
        type=text,
        nargs="*",
        default=DEFAULTS.dry_sequence_breakers,
        metavar="TEXT",
        help='texts that no repetition reaches across (default: a line break, ":", the double quote, "*")',
    )
    parser.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="ID=X",
        help="add X to the logit of a token; -inf rules it out; may be repeated",
    )
    parser.add_argument(
        "--heal-prompt",
        action=argparse.BooleanOptionalAction,
        default=DEFAULTS.heal_prompt,
        help="read a prompt that ends inside a token as its author means",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="auto",
        help="form of the weights while generating: bfloat16 and int8 are faster and less exact, float32 is an exact "
        "copy packed for speed, auto uses the model's weights without a copy (default: auto)",
    )
    add_kv_cache(parser)
    add_device(parser)
    parser.add_argument("--seed", type=seed_type, metavar="N", help="the same seed gives the same text")
    parser.add_argument(
        "--stop", type=text, action="append", metavar="TEXT", help="end before this text; may be repeated"
    )


def _bias(given: str) -> tuple[int, float]:
    token, equals, bias = given.partition("=")
    try:
        return int(token), float(bias if equals else "no number")
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an id and a number such as 13=-5, got {given!r}") from None


def run(arguments: argparse.Namespace) -> None:
    """Print the prompt and its continuation."""
    prompt = arguments.prompt
    if prompt == "-":
        prompt = read_stdin().rstrip("\n")
    if "" in (arguments.stop or []):
        raise UsageError("--stop: the text must not be empty")
    seed = secrets.randbits(53) if arguments.seed is None else arguments.seed  # 53 bits: exact in every JSON reader
    model, tok = load(arguments.folder, device=arguments.device)
    began = time.perf_counter()
    pieces = Generator(model, tok, weights=arguments.weights, kv_cache=arguments.kv_cache).stream(
        prompt,
        seed=seed,
        logit_bias=dict(arguments.logit_bias),
        **{name: getattr(arguments, name) for name in _SETTINGS},
    )
    if arguments.json:
        continuation = "".join(pieces)
        seconds = time.perf_counter() - began
        print_json({"prompt": prompt, "text": prompt + continuation, "seconds": seconds, "seed": seed})
        return
    try:
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print()
