"""What Ollama reads in a request body, field by field: names, types, and who may set what.

Null counts as absent everywhere, as it does for Go. A field that Ollama does not know passes untouched, since SDKs send
many; but not one that starts with `_` (`_debug_render_only` returns the rendered prompt), and not one that Go would
take for a field of Ollama's because only letter case tells them apart.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from policy.rules.endpoints import Kind
from policy.rules.strict_json import NotAcceptable, Object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.rules.strict_json import Member


class Type(NamedTuple):
    """Python types that a JSON value may have, and what they are called. Exact types: a bool is no int."""

    types: frozenset[type]
    phrase: str


TEXT = Type(frozenset({str}), "a string")
FLAG = Type(frozenset({bool}), "true or false")
WHOLE = Type(frozenset({int}), "a whole number")
NUMBER = Type(frozenset({int, float}), "a number")
LIST = Type(frozenset({list}), "a list")
WALKED = Type(frozenset({Object}), "an object")
OBJECT = Type(frozenset({dict}), "an object")
TEXTS = Type(frozenset({str, list}), "a string or a list of strings")
THINK = Type(frozenset({bool, str}), "true, false or a level")
FORMAT = Type(frozenset({str, dict}), '"json" or a JSON schema')
KEEP_ALIVE = Type(frozenset({str, int, float}), "a duration or a number of seconds")

# Sampling: how the next token is chosen. They change one answer and nothing else.
SAMPLING: Mapping[str, Type] = MappingProxyType(
    dict.fromkeys(("num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "mirostat"), NUMBER)
    | dict.fromkeys(("top_p", "min_p", "typical_p", "tfs_z", "temperature", "repeat_penalty"), NUMBER)
    | dict.fromkeys(("presence_penalty", "frequency_penalty", "mirostat_tau", "mirostat_eta"), NUMBER)
    | {"penalize_newline": FLAG, "stop": LIST}
)

# Loading: where and how large the model sits in memory. A request that differs from the one before reloads it for all.
OPERATOR_OPTIONS = frozenset(
    "num_ctx num_batch num_ubatch num_gpu main_gpu num_thread use_mmap use_mlock low_vram f16_kv logits_all vocab_only "
    "embedding_only numa num_gqa rope_frequency_base rope_frequency_scale draft_num_predict kv_cache_type".split()
)

_NATIVE: Mapping[str, Type] = {"model": TEXT, "keep_alive": KEEP_ALIVE, "options": WALKED}
_NATIVE_ANSWER: Mapping[str, Type] = {
    **_NATIVE,
    "stream": FLAG,
    "format": FORMAT,
    "think": THINK,
    "truncate": FLAG,
    "shift": FLAG,
    "logprobs": FLAG,
    "top_logprobs": WHOLE,
}
_OPENAI_ANSWER: Mapping[str, Type] = {
    "model": TEXT,
    "keep_alive": KEEP_ALIVE,  # not read by Ollama here; held to the same rules in case it comes to be
    "stream": FLAG,
    "stream_options": WALKED,
    "max_tokens": WHOLE,
    "max_completion_tokens": WHOLE,
    "n": WHOLE,
    "best_of": WHOLE,
    "seed": WHOLE,
    "stop": TEXTS,
    **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"), NUMBER),
}

FIELDS: Mapping[Kind, Mapping[str, Type]] = MappingProxyType(
    {
        Kind.NATIVE_CHAT: {**_NATIVE_ANSWER, "messages": LIST, "tools": LIST},
        Kind.NATIVE_GENERATE: {
            **_NATIVE_ANSWER,
            **dict.fromkeys(("prompt", "suffix", "system", "template"), TEXT),
            **dict.fromkeys(("width", "height", "steps"), WHOLE),
            "context": LIST,
            "raw": FLAG,
            "images": LIST,
        },
        Kind.EMBED: {**_NATIVE, "input": TEXTS, "truncate": FLAG, "dimensions": WHOLE},
        Kind.EMBEDDINGS_LEGACY: {**_NATIVE, "prompt": TEXT},
        Kind.SHOW: {**_NATIVE, "name": TEXT, "system": TEXT, "template": TEXT, "verbose": FLAG},
        Kind.OPENAI_CHAT: {
            **_OPENAI_ANSWER,
            "messages": LIST,
            "tools": LIST,
            "response_format": OBJECT,
            "reasoning": OBJECT,
            "reasoning_effort": TEXT,
            "logprobs": FLAG,
            "top_logprobs": WHOLE,
        },
        Kind.OPENAI_COMPLETION: {**_OPENAI_ANSWER, "prompt": TEXT, "suffix": TEXT, "logprobs": WHOLE},
        Kind.OPENAI_EMBEDDINGS: {
            "model": TEXT,
            "keep_alive": KEEP_ALIVE,
            "input": TEXTS,
            "dimensions": WHOLE,
            "encoding_format": TEXT,
        },
    }
)

MESSAGE_FIELDS = frozenset("role content thinking reasoning images tool_calls tool_name tool_call_id name".split())
_TOP_FIELDS = frozenset(name for fields in FIELDS.values() for name in fields) | OPERATOR_OPTIONS | {"num_predict"}
_STREAM_OPTIONS = frozenset({"include_usage"})

# Read by no Ollama of today in these places, so harmless, unless tomorrow's binds them: then they would be unjudged.
_OPENAI_KINDS = frozenset({Kind.OPENAI_CHAT, Kind.OPENAI_COMPLETION, Kind.OPENAI_EMBEDDINGS})
_NATIVE_ONLY = frozenset({"options", "num_predict"})


def check_fields(kind: Kind, members: Mapping[str, Member], operator_options: frozenset[str]) -> None:
    """Names and types of the body's own members."""
    fields = FIELDS[kind]
    for name, member in members.items():
        expected = fields.get(name)
        if expected is not None:
            if type(member.value) not in expected.types and member.value is not None:
                raise NotAcceptable(f"{name} is to be {expected.phrase}")
            continue
        if name[:1] == "_":
            raise NotAcceptable("fields that start with _ are not allowed")
        if name not in _TOP_FIELDS:
            _refuse_look_alike(name, _TOP_FIELDS, "the body")
        elif member.value is None:
            continue
        elif name in OPERATOR_OPTIONS and name not in operator_options:
            raise NotAcceptable(f"{name} is set by the operator of this server")
        elif name in _NATIVE_ONLY and kind in _OPENAI_KINDS:
            raise NotAcceptable(f"{name} is not a field of this endpoint")


def check_options(options: Object, operator_options: frozenset[str]) -> None:
    """Names and types in `options`. Only known names: a later Ollama may load models by names that are new to us."""
    for name, member in options.members.items():
        if member.value is None:
            continue
        expected = SAMPLING.get(name)
        if expected is not None:
            if type(member.value) not in expected.types:
                raise NotAcceptable(f"options.{name} is to be {expected.phrase}")
        elif name not in operator_options:
            if name in OPERATOR_OPTIONS:
                raise NotAcceptable(f"options.{name} is set by the operator of this server")
            raise NotAcceptable("options has a name that is not known here")


def check_stream_options(options: Object) -> None:
    """`include_usage`, and nothing that Go would take for it."""
    for name in options.members:
        if name not in _STREAM_OPTIONS:
            _refuse_look_alike(name, _STREAM_OPTIONS, "stream_options")
    if type(options.get("include_usage")) not in (bool, type(None)):
        raise NotAcceptable("stream_options.include_usage is to be true or false")


def check_message(message: Mapping[str, object]) -> None:
    """No name in a message that Go would take for another."""
    if not message.keys() <= MESSAGE_FIELDS:
        for name in message.keys() - MESSAGE_FIELDS:
            _refuse_look_alike(name, MESSAGE_FIELDS, "a message")


def _refuse_look_alike(name: str, fields: frozenset[str], where: str) -> None:
    """Go folds names as Unicode does, one letter for one letter: K is U+212A too, and s is U+017F.

    str.casefold does at least that; that it also makes ss of ß refuses a little more than Go would bind.
    """
    folded = name.casefold()
    if folded in fields:
        raise NotAcceptable(f"{where} has a name that differs from {folded} in letter case only")
