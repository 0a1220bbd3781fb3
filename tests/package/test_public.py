"""The public surface: its names, their members, and their docstrings."""

from __future__ import annotations

import pytest

import soma_native

# Names of the public surface. Removing one breaks other people's programs.
PUBLIC = (
    "AdamW CheckpointError Completion Engine EngineClosedError EngineFullError Floor Generator Handle Model "
    "ModelConfig Muon Plan Scores TokenStore Tokenizer TrainConfig Trainer __version__ active_isa available_isas "
    "export_gguf get_num_threads import_soma_pickle load plan save set_num_threads text_floor train"
)
PUBLIC_MEMBERS = {
    "Tokenizer": "train encode encode_with_offsets encode_array encode_batch decode decode_bytes vocab_size kind "
    "special_tokens token_to_id id_to_token save load",
    "ModelConfig": "preset",
    "Model": "config precision num_parameters parameters gradients forward hidden loss loss_and_grad zero_grad",
    **dict.fromkeys(("AdamW", "Muon"), "step"),
    "Trainer": "fit",
    "Generator": "generate generate_batch stream complete score score_batch embed embed_batch",
    "Scores": "text tokens offsets logprobs ranks top total loss perplexity bits_per_byte",
    "Engine": "submit close memory_of",
}


def test_the_public_names_exist() -> None:
    assert not [name for name in PUBLIC.split() if not hasattr(soma_native, name)]
    assert not [name for name in PUBLIC.split() if name not in soma_native.__all__]
    assert not sorted(name for name in soma_native.__all__ if not hasattr(soma_native, name))


@pytest.mark.parametrize("name", PUBLIC_MEMBERS)
def test_the_public_members_exist(name: str) -> None:
    cls = getattr(soma_native, name)
    fields = set(getattr(cls, "__dataclass_fields__", ()))
    assert not sorted(
        member for member in PUBLIC_MEMBERS[name].split() if member not in fields and not hasattr(cls, member)
    )


def test_public_things_have_docstrings() -> None:
    silent = []
    for name in soma_native.__all__:
        thing = getattr(soma_native, name)
        if not callable(thing):
            continue
        if not (thing.__doc__ or "").strip():
            silent.append(name)
        if isinstance(thing, type):
            for member, value in vars(thing).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if not member.startswith("_") and callable(function) and not (function.__doc__ or "").strip():
                    silent.append(f"{name}.{member}")
    assert not silent
