"""What a client asks for at /v1/completions and /v1/chat/completions, checked field by field.

A field of OpenAI's API is either used, or ignored because it changes no text, or refused by name because it would.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from soma_native._checks import flag, integer
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.generation.sampling import Sampling
from soma_native.serve.body import Fields, text
from soma_native.serve.chat import messages_of
from soma_native.serve.errors import ApiError
from soma_native.serve.models import Models, Prompt, Served

_MOST_ALTERNATIVES = 20
_MOST_STOPS = 32
_SEEDS = 1 << 64

# The sampling rules of `Generator.generate`, all of which are fields by the same names.
_RULES = tuple(
    field.name
    for field in dataclasses.fields(Sampling)
    if field.name not in ("max_tokens", "seed", "stop", "logit_bias")
)
_IGNORED = (
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata", "store", "service_tier",
    "parallel_tool_calls",
)  # fmt: skip
_REFUSED = {
    "suffix": "the model continues a text and fills no gap",
    "best_of": "ask for n texts and choose among them",
    "tools": "the model calls no functions",
    "tool_choice": "the model calls no functions",
    "functions": "the model calls no functions",
    "function_call": "the model calls no functions",
    "response_format": "the model writes plain text",
    "modalities": "the model writes text alone",
    "audio": "the model writes text alone",
    "prediction": "write the beginning of the answer into the prompt",
    "web_search_options": "the model searches nothing",
    "reasoning_effort": "the model has no levels of effort",
    "verbosity": "limit the answer by max_tokens",
}
# Values of these fields that ask for nothing.
_HARMLESS = {
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request for texts.

    Attributes:
        served: the model that is asked.
        prompts: the texts to continue.
        n: how many continuations each gets.
        sampling: the keywords of a call of the engine, as the client and the folder give them; not yet checked.
        stream: whether the answer is a stream of events.
        usage: whether the stream ends with the numbers of tokens.
        warnings: what the client should know of its prompts.
        logprobs: how many alternatives each token shows; None for no log-probabilities.
        echo: whether the answer begins with the prompt.
        chat: whether the answer has the form of a chat.
    """

    served: Served
    prompts: list[Prompt]
    n: int
    sampling: dict[str, Any]
    stream: bool
    usage: bool
    warnings: list[str]
    logprobs: int | None = None
    echo: bool = False
    chat: bool = False


def completion_of(fields: Fields, models: Models) -> Ask:
    """The request of /v1/completions. Raises ApiError, or ValueError and TypeError that name the field."""
    served = models.named(fields.take("model", text))
    prompts = fields.take("prompt", lambda name, value: prompts_of(name, value, served))
    logprobs = fields.take("logprobs", lambda name, value: integer(name, value, 0, _MOST_ALTERNATIVES))
    echo = fields.take("echo", flag, False)
    if fields.peek("best_of") == fields.peek("n", 1):
        fields.ignore("best_of")
    return _ask(fields, served, prompts or [Prompt("", [])], logprobs, echo=echo)


def chat_of(fields: Fields, models: Models) -> Ask:
    """The request of /v1/chat/completions. Raises as `completion_of`."""
    served = models.named(fields.take("model", text))
    if served.template is None:
        problem = (
            f"the model {served.name} has no chat template, so it cannot chat: ask /v1/completions, or put a "
            "chat_template.jinja into its folder and start the server again"
        )
        raise ApiError(400, problem, param="model", code="no_chat_template")
    messages = fields.first(("messages",), messages_of)
    wanted = fields.take("logprobs", flag, False)
    top = fields.take("top_logprobs", lambda name, value: integer(name, value, 0, _MOST_ALTERNATIVES), 0)
    if top and not wanted:
        raise ArgumentError("top_logprobs", "needs logprobs: true")
    prompt = _fitting("messages", Prompt(*served.template.prompt(messages, served.tok), exact=True), served)
    return _ask(fields, served, [prompt], top if wanted else None, chat=True)


def _ask(fields: Fields, served: Served, prompts: list[Prompt], logprobs: int | None, **more: Any) -> Ask:
    limits = served.limits
    n = fields.take("n", lambda name, value: integer(name, value, 1, limits.max_texts), 1)
    if n * len(prompts) > limits.max_texts:
        problem = f"asks for {n * len(prompts)} texts with its prompts; a request may have {limits.max_texts}"
        raise ArgumentError("n", problem)
    if n * len(prompts) > (most_texts := served.engine.max_sequences + served.engine.max_queue):
        raise ArgumentError("n", f"asks for {n * len(prompts)} texts; the server takes {most_texts} at once")
    sampling = {**served.defaults, **fields.some(_RULES)}
    most = [fields.take(name, lambda name, value: _max_tokens(name, value, limits.max_tokens)) for name in _MOST]
    if None not in most and len({*most}) > 1:
        raise ArgumentError(_MOST[0], f"is {most[0]} and {_MOST[1]} {most[1]}: give one")
    sampling["max_tokens"] = next(
        (one for one in most if one is not None), min(sampling["max_tokens"], limits.max_tokens)
    )
    sampling["seed"] = fields.take("seed", _seed)
    sampling["stop"] = fields.take("stop", _stops)
    bias = fields.take("logit_bias", _bias)
    if bias is not None:
        sampling["logit_bias"] = bias
    stream = fields.take("stream", flag, False)
    usage = fields.take("stream_options", _with_usage, False)
    if usage and not stream:
        raise ArgumentError("stream_options", "needs stream: true")
    count = n * len(prompts) * sampling["max_tokens"] * (1 + (logprobs or 0))
    if logprobs is not None and not stream and count > limits.max_numbers:
        problem = f"with max_tokens and n means up to {count} numbers; an answer may have {limits.max_numbers}"
        raise ArgumentError("logprobs", f"{problem}: ask for less, or for a stream")
    if logprobs is not None:
        logprobs = min(logprobs, served.model.config.vocab_size)
    fields.ignore(*_IGNORED)
    fields.refuse(_REFUSED, _HARMLESS)
    fields.close()
    return Ask(served, prompts, n, sampling, stream, usage, served.warnings(prompts), logprobs, **more)


_MOST = ("max_tokens", "max_completion_tokens")


def _max_tokens(name: str, value: Any, limit: int) -> int:
    return integer(name, value, 0, limit)


def prompts_of(name: str, value: Any, served: Served, *, most: int = 0, fitting: bool = True) -> list[Prompt]:
    """A text, a list of texts, a list of tokens, or a list of such lists.

    Args:
        name: the field.
        value: its value.
        served: the model.
        most: the largest number of texts; 0 is that of a request for texts.
        fitting: whether each must fit into the context.
    """
    if not (isinstance(value, list) and value and isinstance(value[0], (str, list))):
        return [_prompt(name, value, served, fitting)]
    most = most or served.limits.max_texts
    if len(value) > most:
        raise ArgumentError(name, f"has {len(value)} texts; a request may have {most}: ask several times")
    return [_prompt(f"{name}[{number}]", one, served, fitting) for number, one in enumerate(value)]


def _prompt(name: str, value: Any, served: Served, fitting: bool) -> Prompt:
    if isinstance(value, str):
        prompt = Prompt(text(name, value), served.tok.encode(value))
    elif value and isinstance(value, list):
        ids = ids_of(name, value, served)
        prompt = Prompt(served.tok.decode(ids), ids, exact=True)
    else:
        raise ArgumentTypeError(name, f"must be a text, a list of texts, or a list of tokens, got {value!r:.80}")
    return _fitting(name, prompt, served) if fitting else prompt


def ids_of(name: str, value: Any, served: Served) -> list[int]:
    """A list of tokens, given by their ids."""
    if not isinstance(value, list):
        raise ArgumentTypeError(name, f"must be a list of tokens, got {value!r:.80}")
    return [integer(f"{name}[{number}]", one, 0, served.tok.vocab_size - 1) for number, one in enumerate(value)]


def _fitting(name: str, prompt: Prompt, served: Served) -> Prompt:
    if len(prompt.ids) > served.context:
        problem = (
            f"{name} has {len(prompt.ids)} tokens; the context of {served.name} holds {served.context}: shorten it"
        )
        raise ApiError(400, problem, param=name, code="context_length_exceeded")
    return prompt


def _seed(name: str, value: Any) -> int:
    """Any integer of 64 bits, with a sign or without."""
    return integer(name, value, -_SEEDS // 2, _SEEDS - 1) % _SEEDS


def _stops(name: str, value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS:
        raise ArgumentError(name, f"must be a text or a list of at most {_MOST_STOPS} texts, got {value!r:.80}")
    return [text(f"{name}[{number}]", stop) for number, stop in enumerate(stops)]


def _bias(name: str, value: Any) -> dict[int, Any]:
    """{token: bias}, where JSON has the token as a text."""
    if not isinstance(value, dict):
        raise ArgumentTypeError(name, f'must be an object such as {{"50256": -100}}, got {value!r:.80}')
    for token in value:
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise ArgumentError(name, f"must have the numbers of tokens as names, got {token!r:.80}")
    return {int(token): bias for token, bias in value.items()}


def _with_usage(name: str, value: Any) -> bool:
    if not isinstance(value, dict):
        raise ArgumentTypeError(name, f'must be an object such as {{"include_usage": true}}, got {value!r:.80}')
    options = Fields(value)
    options.ignore("include_obfuscation")
    wanted: bool = options.take("include_usage", flag, False)
    options.close()
    return wanted
