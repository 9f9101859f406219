"""The pure parts: Go's JSON, Ollama's names, the control words. No server."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo import controls, go_json, names

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=12,
)


@given(JSON)
def test_what_python_writes_go_reads_and_back(value: object) -> None:
    assert go_json.plain(go_json.decode(json.dumps(value).encode())) == value
    assert json.loads(go_json.encode(value)) == value


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ('{"model":"a","MODEL":"b"}', "b"),
        ('{"MODEL":"b","model":"a"}', "a"),
        ('{"model":"a","model":"b"}', "b"),
        ('{"model":"a","mode\u017f":"c","model":null}', "a"),  # null leaves a string as it was
        ('{"model":"a"} {"model":"b"}', "a"),
        ('{"model":"a"}}}}', "a"),
        (' \r\n\t{"model":"a"}\x00', "a"),
        ('{"model":"\\ud800"}', "\ufffd"),
        ("null", ""),
    ],
)
def test_which_model_go_sees(body: str, model: str) -> None:
    assert go_json.Struct("ChatRequest", go_json.decode(body.encode())).string("model") == model


@pytest.mark.parametrize(
    ("written", "field"),
    [("MAX_TO\u212aEN\u017f", "max_tokens"), ("option\u017f", "options"), ("me\u017f\u017fages", "messages")],
)
def test_two_letters_beyond_ascii_bind_too(written: str, field: str) -> None:
    assert go_json.fold(written) == field


@pytest.mark.parametrize("other", ["m\u0131n", "\u0130", "\uff4d", "\u00e9", "max-tokens"])
def test_other_letters_do_not_bind(other: str) -> None:
    assert not go_json.fold(other).isascii() or other == "max-tokens"


def test_two_objects_under_one_map_are_merged_and_maps_keep_their_case() -> None:
    value = go_json.decode(b'{"options":{"num_predict":1,"NUM_PREDICT":2},"Options":{"seed":3}}')
    assert go_json.Struct("R", value).mapping("options") == {"num_predict": 1, "NUM_PREDICT": 2, "seed": 3}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        (b'{"a":', "unexpected EOF"),
        (b'{"a":"x', "unexpected EOF"),
        (b'{"a":NaN}', "invalid character 'N'"),
        (b"{'a':1}", "invalid character"),
        (b"\xef\xbb\xbf{}", "invalid character"),
        (b'{"a":"\x01"}', "invalid character"),
        (b"[" * 100_000, "exceeded max depth"),
        (b"\x1f\x8b", "invalid character"),
    ],
)
def test_what_go_refuses(body: bytes, text: str) -> None:
    with pytest.raises(go_json.GoError, match=text):
        go_json.decode(body)


@pytest.mark.parametrize(
    ("read", "value", "wanted"),
    [
        ("string", 1, "number into Go struct field R.f of type string"),
        ("integer", 1.0, "number into Go struct field R.f of type int"),
        ("integer", True, "bool into"),
        ("boolean", "true", "string into"),
        ("items", {}, "object into"),
        ("mapping", [], "array into"),
    ],
)
def test_a_wrong_type_is_an_error(read: str, value: object, wanted: str) -> None:
    bound = go_json.Struct("R", go_json.decode(json.dumps({"f": value}).encode()))
    with pytest.raises(go_json.GoError, match=wanted):
        getattr(bound, read)("f")


def test_html_is_escaped_as_go_does() -> None:
    assert go_json.encode("<a&b>\u2028é") == '"\\u003ca\\u0026b\\u003e\\u2028é"'.encode()


@pytest.mark.parametrize(
    "name",
    [
        "llama3.1:8b",
        "LLAMA3.1:8B",
        " llama3.1:8b\n",
        "library/llama3.1:8b",
        "registry.ollama.ai/library/llama3.1:8b",
        "https://registry.ollama.ai/library/llama3.1:8b",
        "Registry.Ollama.AI/Library/llama3.1:8b",
        "llama3.1:8b:local",
    ],
)
def test_one_model_has_many_names(name: str) -> None:
    parsed = names.parse(name)
    assert parsed is not None
    assert (parsed.identity, parsed.cloud) == (("registry.ollama.ai", "library", "llama3.1", "8b"), False)


@pytest.mark.parametrize(
    ("name", "short", "cloud"),
    [
        ("mistral", "mistral:latest", False),
        ("hf.co/Org/Model:Q4", "hf.co/Org/Model:Q4", False),
        ("me/mistral", "me/mistral:latest", False),
        ("gpt:cloud", "gpt:latest", True),
        ("gpt:120b-cloud", "gpt:120b", True),
        ("gpt:120B-Cloud", "gpt:120B", True),
        ("host:5000/ns/m:t", "host:5000/ns/m:t", False),
    ],
)
def test_the_parts_of_a_name(name: str, short: str, cloud: bool) -> None:
    parsed = names.parse(name)
    assert parsed is not None
    assert (parsed.short, parsed.cloud) == (short, cloud)


@pytest.mark.parametrize(
    "name", ["", " ", ":8b", "a:", "a/", "/a", "a b", "a:b:c", "..", "n.s/m", "é", "a:" + "x" * 81]
)
def test_names_that_no_ollama_takes(name: str) -> None:
    assert names.parse(name) is None


def test_controls_are_taken_out_and_everything_else_is_kept() -> None:
    asked, words = controls.parse("say !delay=20 !tokens=5 !split hello !wow !delay !split=1 !error-before=200 !")
    assert asked == controls.Controls(delay=20, tokens=5, split=True)
    assert words == ["say", "hello", "!wow", "!delay", "!split=1", "!error-before=200", "!"]


def test_every_control_that_the_package_documents_is_one() -> None:
    import re

    import gateway.demo

    documented = set(re.findall(r"^`!([a-z-]+)", gateway.demo.__doc__ or "", re.MULTILINE))
    assert documented == {name.replace("_", "-") for name in controls.Controls.__slots__}
