from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.rules import tags

LLAMA = {"name": "llama3.1:8b", "model": "llama3.1:8b", "size": 4920753328, "details": {"family": "llama"}}
MISTRAL = {"name": "mistral:7b", "model": "mistral:7b"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(["name", "model", "modified_at", "size", "digest", "details", "capabilities", "remote_host"])


def listing(*entries: object) -> bytes:
    return json.dumps({"models": entries}).encode()


@settings(deadline=None)  # a busy machine is no fault of the reader
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        tags.read(body)
    except ValueError:
        pass


@settings(deadline=None)  # a busy machine is no fault of the reader
@given(st.lists(JSON | st.dictionaries(FIELDS, JSON), max_size=5))
def test_whatever_is_read_can_be_written_in_both_forms(entries: list[object]) -> None:
    found = tags.read(listing(*entries))
    details = [model.details for model in found]
    assert json.loads(tags.tags_body(details)) == {"models": details}
    assert len(json.loads(tags.models_body(details))["data"]) == len(found)
    assert len({model.canonical for model in found}) == len(found)


def test_the_model_that_another_was_made_from_is_not_named() -> None:
    derived = {**MISTRAL, "details": {"parent_model": "secret:7b", "family": "llama", "families": ["llama"]}}
    found = tags.read(listing(derived, LLAMA))
    assert found[0].details["details"] == {"parent_model": "", "family": "llama", "families": ["llama"]}
    assert found[1].details["details"] == {"family": "llama"}


@pytest.mark.parametrize(
    ("entry", "created", "owner"),
    [
        ({"name": "llama3.1:8b", "modified_at": "2024-08-01T12:00:00.123456789+02:00"}, 1722506400, "library"),
        ({"name": "nomic-embed-text:latest", "modified_at": "2024-08-01T10:00:00Z"}, 1722506400, "library"),
        ({"name": "hf.co/org/model:q4", "modified_at": "9999-99-99"}, 0, "org"),
        ({"name": "someone/model:1b"}, 0, "someone"),
        ({"name": "old:1b", "modified_at": "0001-01-01T00:00:00Z"}, -62135596800, "library"),
    ],
)
def test_the_openai_list(entry: dict[str, object], created: int, owner: str) -> None:
    assert json.loads(tags.models_body([entry])) == {
        "object": "list",
        "data": [{"id": entry["name"], "object": "model", "created": created, "owned_by": owner}],
    }


def test_an_upstream_without_models() -> None:
    assert tags.read(b'{"models":null}') == tags.read(b'{"models":[]}') == ()


def test_odd_entries_are_left_out_and_the_rest_is_kept() -> None:
    odd = [None, 7, {}, {"name": 5}, {"name": "../../etc"}, {"name": "x" * 5000}, {"name": "ok", "size": "huge"}]
    secret = {**MISTRAL, "remote_host": "https://ollama.com:443", "remote_model": "m", "api_key": "s3cret"}
    read = tags.read(listing(*odd, LLAMA, secret, {**LLAMA, "size": 1}))
    assert [(model.canonical, dict(model.details)) for model in read] == [
        ("ok:latest", {"name": "ok"}),
        ("llama3.1:8b", LLAMA),
        ("mistral:7b", MISTRAL),
    ]


def test_thousands_of_models_are_bounded() -> None:
    read = tags.read(listing(*({"name": f"m{number}"} for number in range(5000))))
    assert len(read) == tags.MODELS_MAX
