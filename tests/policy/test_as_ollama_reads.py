"""A second reader: whatever policy lets through, a decoder with the habits of Go's encoding/json must read the same.

The decoder here is written after Go's documentation, not after policy's: it takes the last of two equal names, folds
case as Unicode does for ASCII letters, replaces what is broken, and stops at the end of the first value.
"""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.rules.models import canonical
from policy.rules.requests import Ask, apply, parse, rewrite
from tests.policy.bodies import BOUNDS, ENDPOINT, GENERATING

CAP = 50
Pairs = list[tuple[str, object]]


class Members(list[tuple[str, object]]):
    """An object, with its members as they stand."""


def go_decode(body: bytes) -> Members:
    """The first value of a body, which has to be an object."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    value, _ = json.JSONDecoder(object_pairs_hook=Members).raw_decode(text)
    if not isinstance(value, Members):
        raise ValueError("not an object")
    return value


def go_fold(name: str) -> str:
    return "".join(
        {"\u017f": "s", "\u212a": "k"}.get(letter, letter.lower() if letter.isascii() else letter) for letter in name
    )


def go_field(members: object, name: str) -> object:
    """A field of a struct: the last member whose name folds to it; null leaves what was there."""
    found: object = None
    for given_name, value in members if isinstance(members, Members) else ():
        if go_fold(given_name) == name and value is not None:
            found = value
    return found


def go_entry(members: object, name: str) -> object:
    """An entry of a map[string]any: names are exact."""
    found: object = None
    for given_name, value in members if isinstance(members, Members) else ():
        if given_name == name:
            found = value
    return found


def go_cap(path: str, top: Members) -> int | None:
    """The bound that Ollama would give its runner; None for none."""
    asked = (
        go_entry(go_field(top, "options"), "num_predict") if path.startswith("/api/") else go_field(top, "max_tokens")
    )
    if isinstance(asked, bool) or not isinstance(asked, (int, float)):
        return None
    return int(asked) if int(asked) > 0 else None


_spellings = {
    "model": ["model", "model", "model", "MODEL", "Model", "mod\u0435l", "model ", "_model"],
    "stream": ["stream", "stream", "\u017ftream", "STREAM"],
    "options": ["options", "options", "option\u017f", "Options"],
    "max_tokens": ["max_tokens", "max_tokens", "max_to\u212aen\u017f", "Max_Tokens", "maxTokens"],
    "max_completion_tokens": ["max_completion_tokens", "MAX_COMPLETION_TOKENS"],
    "messages": ["messages", "messages", "me\u017f\u017fages"],
    "prompt": ["prompt", "Prompt"],
    "stream_options": ["stream_options", "\u017ftream_options"],
}
_counts = st.sampled_from(["5", "40", "null", "-1", "0", "1e1", "7.0", "99999999999999999999", '"5"', "true"])
_predict = st.sampled_from(["num_predict", "num_predict", "NUM_PREDICT", "num_predi\u0441t", "seed"])
_option_texts = st.lists(st.tuples(_predict, _counts), max_size=2).map(
    lambda pairs: "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"
)
_usage_texts = st.lists(
    st.tuples(
        st.sampled_from(["include_usage", "Include_Usage", "x"]), st.sampled_from(["true", "false", "null", "1"])
    ),
    max_size=2,
).map(lambda pairs: "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}")
_value_texts = {
    "model": st.sampled_from(['"a"', '"a"', '"b:1b"', '"A:latest"', '"\\u0061"', "null", '""', "7"]),
    "stream": st.sampled_from(["true", "false", "null", "1"]),
    "options": _option_texts | st.sampled_from(["null", "[]"]),
    "max_tokens": _counts,
    "max_completion_tokens": _counts,
    "messages": st.sampled_from(
        ['[{"role":"user","content":"hi"}]', '[{"role":"user","content":"hi","CONTENT":"x"}]', "[]"]
    ),
    "prompt": st.sampled_from(['"hi"', '""']),
    "stream_options": _usage_texts,
}


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """Bodies that try it: fields under many spellings, some of them twice, some with something behind."""
    path = draw(st.sampled_from(GENERATING))
    chat = "chat" in path
    names = [
        "model",
        "messages" if chat else "prompt",
        *draw(st.lists(st.sampled_from(sorted(_spellings)), max_size=4)),
    ]
    members = []
    for index, name in enumerate(names):
        spelling = name if index < 2 and draw(st.integers(0, 4)) else draw(st.sampled_from(_spellings[name]))
        members.append(f'"{spelling}"{draw(st.sampled_from(["", " "]))}:{draw(_value_texts[name])}')
    text = "{" + ",".join(draw(st.permutations(members))) + "}"
    tail = draw(st.sampled_from(["", "", "", " ", "\n", '{"model":"b:1b"}', "x", "\x00"]))
    return path, (text + tail).encode()


@settings(deadline=None)  # on a machine under load a slow example says nothing
@given(_bodies())
def test_ollama_reads_what_policy_read(case: tuple[str, bytes]) -> None:
    path, body = case
    ask = parse(ENDPOINT[path], body, BOUNDS)
    if not isinstance(ask, Ask):
        return
    top = go_decode(body)
    model = go_field(top, "model")
    assert isinstance(model, str)
    assert canonical(model) == ask.model
    stream = go_field(top, "stream")
    assert (path.startswith("/api/") if stream is None else stream) == ask.stream
    if path.startswith("/api/"):
        assert go_cap(path, top) == ask.max_tokens

    forwarded = go_decode(apply(body, rewrite(ask, cap=CAP, model=ask.model)))
    assert go_field(forwarded, "model") == ask.model
    assert go_cap(path, forwarded) == (ask.max_tokens or CAP)
    if ask.stream and path.startswith("/v1/"):
        assert go_field(go_field(forwarded, "stream_options"), "include_usage") is True


@settings(deadline=None)  # on a machine under load a slow example says nothing
@given(_bodies(), st.data())
def test_noise_in_a_body_changes_nothing_unseen(case: tuple[str, bytes], data: st.DataObject) -> None:
    """Bytes put in, taken out or changed: the body is refused, or both readers still agree."""
    path, body = case
    place = data.draw(st.integers(0, len(body)))
    noise = data.draw(st.sampled_from([b"", b'"', b",", b"\\", b"{", b"}", b"\xff", b"\xc5\xbf", b"\x00", b" ", b":"]))
    body = body[:place] + noise + body[place + data.draw(st.integers(0, 2)) :]
    ask = parse(ENDPOINT[path], body, BOUNDS)
    if isinstance(ask, Ask):
        top = go_decode(body)
        model = go_field(top, "model")
        assert isinstance(model, str)
        assert canonical(model) == ask.model
        assert go_cap(path, go_decode(apply(body, rewrite(ask, cap=CAP)))) == (ask.max_tokens or CAP)
