"""A model's description, by keep-list: what is not named, or not of Ollama's type, does not pass."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.show import sanitize, sanitize_model

SHOW = {
    "license": "SECRET",
    "modelfile": "FROM /root/.ollama/models/blobs/sha256-SECRET",
    "parameters": 'stop "SECRET"',
    "template": "{{ .System }} SECRET",
    "system": "SECRET",
    "renderer": "SECRET",
    "parser": "SECRET",
    "details": {
        "parent_model": "SECRET:8b",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "8.0B",
        "quantization_level": "Q4_K_M",
        "weights_path": "SECRET",
    },
    "messages": [{"role": "user", "content": "SECRET"}],
    "remote_model": "SECRET",
    "remote_host": "https://SECRET",
    "model_info": {
        "general.architecture": "llama",
        "general.parameter_count": 8030261248,
        "general.name": "SECRET",
        "general.license.link": "SECRET",
        "llama.context_length": 131072,
        "llama.embedding_length": 4096,
        "qwen25vl.vision.embedding_length": 1280,
        "llama.attention.head_count": 32,
        "tokenizer.chat_template": "SECRET",
        "tokenizer.ggml.tokens": ["SECRET"],
    },
    "projector_info": {"clip.SECRET": 1},
    "tensors": [{"name": "SECRET", "type": "F16", "shape": [1]}],
    "capabilities": ["completion", "tools"],
    "modified_at": "2026-08-01T12:00:00.123456789+02:00",
    "a_field_of_tomorrow": {"system": "SECRET"},
}
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "8.0B",
    "quantization_level": "Q4_K_M",
}
INFO = {
    "general.architecture": "llama",
    "general.parameter_count": 8030261248,
    "llama.context_length": 131072,
    "llama.embedding_length": 4096,
    "qwen25vl.vision.embedding_length": 1280,
}
KEPT = {
    "details": DETAILS,
    "model_info": INFO,
    "modified_at": "2026-08-01T12:00:00.123456789+02:00",
    "capabilities": ["completion", "tools"],
}
MODEL = {"id": "llama3.1:8b", "object": "model", "created": 1754042400, "owned_by": "library"}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def test_what_may_be_known_stays() -> None:
    assert json.loads(sanitize(json.dumps(SHOW).encode())) == KEPT


def test_a_model_that_names_no_families() -> None:
    assert json.loads(sanitize(b'{"details":{"families":null,"family":"bert"}}')) == {
        "details": {"family": "bert", "families": None}
    }


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), anything, min_size=1) | st.lists(st.lists(anything), min_size=1))
def test_no_value_of_another_type_takes_a_kept_name(value: object) -> None:
    """Nothing nested can travel under a name that is kept."""
    details = dict.fromkeys(DETAILS, value)
    info = dict.fromkeys(INFO, value)
    show = {"details": details, "model_info": info, "capabilities": value, "modified_at": value}
    assert json.loads(sanitize(json.dumps(show).encode())) == {"details": {}, "model_info": {}}
    assert json.loads(sanitize_model(json.dumps(dict.fromkeys(MODEL, value)).encode())) == {}


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), anything))
def test_no_unknown_name_passes(fields: dict[str, object]) -> None:
    kept = json.loads(sanitize(json.dumps({**fields, "details": fields, "model_info": fields}).encode()))
    assert kept.keys() <= KEPT.keys()
    assert kept["details"].keys() <= DETAILS.keys()


@pytest.mark.parametrize(
    "key", ["context_length", ".context_length", "a.context_length.b", "general.X", "a b.context_length", "a.length"]
)
def test_only_lengths_are_lengths(key: str) -> None:
    assert json.loads(sanitize(json.dumps({"model_info": {key: 1}}).encode())) == {"model_info": {}}


@pytest.mark.parametrize("value", [True, 1.5, "1", None, [1]])
def test_a_length_is_a_whole_number(value: object) -> None:
    assert json.loads(sanitize(json.dumps({"model_info": {"a.context_length": value}}).encode())) == {"model_info": {}}


def test_one_model_of_the_openai_list() -> None:
    body = json.dumps({**MODEL, "permission": ["SECRET"], "root": "SECRET"}).encode()
    assert json.loads(sanitize_model(body)) == MODEL


def test_text_passes_as_it_is_and_half_a_character_as_a_question_mark() -> None:
    assert sanitize_model('{"id":"é"}'.encode()) == '{"id":"é"}'.encode()
    assert sanitize_model(b'{"id":"\\ud800"}') == b'{"id":"?"}'


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b'"text"', b"null", b'{"a":NaN}', b"[" * 100_000, b'{"a":1}}', b'{"id":"\xff"}']
)
def test_what_can_not_be_parsed_is_refused(body: bytes) -> None:
    for clean in (sanitize, sanitize_model):
        with pytest.raises(ValueError, match="not one JSON object"):
            clean(body)
