"""Edits of a body, byte by byte: what has to change does, and nothing else."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.rules.grant import Grant, Splice
from policy.rules.requests import Ask, apply, parse, rewrite
from tests.policy.bodies import BOUNDS, CHATS, ENDPOINT, GENERATING, POSTS, USER, accepted, document

CAP = 777


def rewritten(path: str, body: bytes, model: str | None = None, cap: int = CAP) -> bytes:
    ask = parse(ENDPOINT[path], body, BOUNDS)
    assert isinstance(ask, Ask), ask
    return apply(body, rewrite(ask, cap=cap, model=model))


@pytest.mark.parametrize(
    ("path", "sent", "forwarded"),
    [
        # A completion cap where there is none, in the native API
        ("/api/generate", '{"model":"a"}', '{"options":{"num_predict":777},"model":"a"}'),
        ("/api/generate", ' {\n "model": "a" } ', ' {"options":{"num_predict":777},\n "model": "a" } '),
        ("/api/generate", '{"model":"a","options":{}}', '{"model":"a","options":{"num_predict":777}}'),
        ("/api/generate", '{"model":"a","options":{ }}', '{"model":"a","options":{"num_predict":777 }}'),
        ("/api/generate", '{"model":"a","options":null}', '{"model":"a","options":{"num_predict":777}}'),
        (
            "/api/generate",
            '{"model":"a","options": {"seed" : 1}}',
            '{"model":"a","options": {"num_predict":777,"seed" : 1}}',
        ),
        *(
            (
                "/api/generate",
                f'{{"model":"a","options":{{"num_predict" : {none} ,"seed":1}}}}',
                '{"model":"a","options":{"num_predict" : 777 ,"seed":1}}',
            )
            for none in ("null", "-1", "-2", "0", "-0", "-1.0", "0.0", "-1e300")
        ),
        # and in the OpenAI API, under the name that Ollama knows
        ("/v1/completions", '{"model":"a"}', '{"max_tokens":777,"model":"a"}'),
        ("/v1/completions", '{"model":"a","max_tokens":null}', '{"model":"a","max_tokens":777}'),
        ("/v1/completions", '{"model":"a","max_tokens":-1}', '{"model":"a","max_tokens":777}'),
        ("/v1/completions", '{"max_completion_tokens" : 5,"model":"a"}', '{"max_tokens":5,"model":"a"}'),
        ("/v1/completions", '{"max_completion_tokens":null,"model":"a"}', '{"max_tokens":777,"model":"a"}'),
        (
            "/v1/completions",
            '{"max_completion_tokens":5,"model":"a","max_tokens":null}',
            '{"max_completion_tokens":5,"model":"a","max_tokens":5}',
        ),
        (
            "/v1/completions",
            '{"max_completion_tokens":0,"model":"a","max_tokens":-1}',
            '{"max_completion_tokens":777,"model":"a","max_tokens":777}',
        ),
        # Usage in a stream
        (
            "/v1/completions",
            '{"model":"a","stream":true,"max_tokens":5}',
            '{"stream_options":{"include_usage":true},"model":"a","stream":true,"max_tokens":5}',
        ),
        (
            "/v1/completions",
            '{"model":"a","stream":true}',
            '{"max_tokens":777,"stream_options":{"include_usage":true},"model":"a","stream":true}',
        ),
        (
            "/v1/completions",
            '{"max_completion_tokens":5,"model":"a","stream":true}',
            '{"stream_options":{"include_usage":true},"max_tokens":5,"model":"a","stream":true}',
        ),
        (
            "/v1/completions",
            '{"model":"a","stream":true,"max_tokens":5,"stream_options":{}}',
            '{"model":"a","stream":true,"max_tokens":5,"stream_options":{"include_usage":true}}',
        ),
        (
            "/v1/completions",
            '{"model":"a","stream":true,"max_tokens":5,"stream_options":{"x":1}}',
            '{"model":"a","stream":true,"max_tokens":5,"stream_options":{"include_usage":true,"x":1}}',
        ),
        *(
            (
                "/v1/completions",
                f'{{"model":"a","stream":true,"max_tokens":5,"stream_options":{{"include_usage":{off}}}}}',
                '{"model":"a","stream":true,"max_tokens":5,"stream_options":{"include_usage":true}}',
            )
            for off in ("false", "null")
        ),
        (
            "/v1/completions",
            '{"model":"a","stream":true,"max_tokens":5,"stream_options":null}',
            '{"model":"a","stream":true,"max_tokens":5,"stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_an_edit(path: str, sent: str, forwarded: str) -> None:
    assert rewritten(path, sent.encode()).decode() == forwarded


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/chat", {"options": {"num_predict": 5}}),
        ("/api/chat", {"options": {"num_predict": 5.0}, "stream": False}),
        ("/api/generate", {"options": {"num_predict": 10**9}}),  # over any cap: refused elsewhere, never lowered here
        ("/v1/chat/completions", {"max_tokens": 5}),
        ("/v1/chat/completions", {"max_tokens": 5, "max_completion_tokens": 5}),
        ("/v1/completions", {"max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}),
        ("/api/embed", {}),
        ("/api/embeddings", {}),
        ("/v1/embeddings", {}),
        ("/api/show", {}),
    ],
)
def test_nothing_to_change(path: str, fields: dict[str, object]) -> None:
    ask = accepted(path, document(path, **fields))
    assert rewrite(ask, cap=CAP) == ()
    assert rewrite(ask, cap=CAP, model=ask.model_as_sent) == ()
    assert len(rewrite(ask, cap=CAP, model="other:latest")) == 1


def test_the_model_is_sent_under_the_upstreams_name() -> None:
    body = '{"x":"é","model" : "Llama3.1" ,"input":"中"}'.encode()
    assert rewritten("/api/embed", body, 'ü"\\:latest') == (
        '{"x":"é","model" : "\\u00fc\\"\\\\:latest" ,"input":"中"}'.encode()
    )
    assert rewritten("/api/show", b'{"model":"","name":"A"}', "a:latest") == b'{"model":"","name":"a:latest"}'


def test_splices_travel_in_a_grant() -> None:
    body = '{"model":"é","stream":true}'.replace("é", "a").encode()
    ask = parse(ENDPOINT["/v1/completions"], body, BOUNDS)
    assert isinstance(ask, Ask)
    splices = rewrite(ask, cap=5, model="a:latest")
    assert all(isinstance(splice, Splice) for splice in splices)
    grant = Grant.from_json(
        Grant("r", 1, "meter", "/v1/completions", "a", True, 1, "t", 1, "p", "", 1, 5, splices=splices).to_json()  # type: ignore[arg-type]  # a str is what it is on the wire
    )
    assert apply(body, grant.splices) == apply(body, splices)


# For any body, spelled in any way that JSON allows


class Speller:
    """Writes JSON with random white space and random escapes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def space(self) -> str:
        return "".join(self.random.choices(" \n\t\r", k=self.random.choice((0, 0, 0, 1, 3))))

    def text(self, text: str) -> str:
        return '"' + "".join(map(self.letter, text)) + '"'

    def letter(self, letter: str) -> str:
        plain = json.dumps(letter, ensure_ascii=False)[1:-1]
        escaped = "".join(
            f"\\u{unit:04{self.random.choice('xX')}}" for unit in memoryview(letter.encode("utf-16-le")).cast("H")
        )
        return self.random.choice((plain, plain, plain, escaped))

    def value(self, value: object) -> str:
        space = self.space
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            members = [f"{space()}{self.text(k)}{space()}:{space()}{self.value(v)}{space()}" for k, v in value.items()]
            return "{" + (",".join(members) or space()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(f"{space()}{self.value(item)}{space()}" for item in value) + "]"
        return json.dumps(value)


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_junk = st.dictionaries(
    _texts.map(lambda name: "x" + name),
    st.none() | st.integers(-5, 5) | _texts | st.lists(_texts, max_size=2),
    max_size=3,
)
_maybe_count = st.sampled_from([None, -2, -1, 0, 1, 5, 4096])


@st.composite
def _documents(draw: st.DrawFn) -> tuple[str, dict[str, object]]:
    """A body that is acceptable, in random order."""
    path = draw(st.sampled_from(GENERATING))
    fields: dict[str, object] = {"model": draw(st.sampled_from(["a", "B:1b", "library/a"]))}
    if path in CHATS:
        fields["messages"] = [USER | {"content": draw(_texts)} | draw(_junk)]
    else:
        fields["prompt"] = draw(_texts)
    if draw(st.booleans()):
        fields["stream"] = draw(st.sampled_from([True, False, None]))
    if path.startswith("/api/"):
        if draw(st.booleans()):
            fields["options"] = draw(
                st.none()
                | st.fixed_dictionaries(
                    {}, optional={"num_predict": _maybe_count, "seed": st.just(1), "top_p": st.just(0.5)}
                )
            )
    else:
        if draw(st.booleans()):
            fields["stream_options"] = draw(
                st.none()
                | st.fixed_dictionaries(
                    {}, optional={"include_usage": st.sampled_from([None, True, False]), "x": _texts}
                )
            )
        count = draw(_maybe_count)
        for name in draw(
            st.sampled_from([(), ("max_tokens",), ("max_completion_tokens",), ("max_tokens", "max_completion_tokens")])
        ):
            fields[name] = count if draw(st.booleans()) else draw(st.sampled_from([None, 0, -1]))
    fields |= draw(_junk)
    if draw(st.booleans()):
        fields["fingerprint"] = draw(_texts)
    names = draw(st.permutations(list(fields)))
    return path, {name: fields[name] for name in names}


def intended(path: str, fields: dict[str, object], model: str) -> dict[str, object]:
    """The transformation, on values."""
    fields = fields | {"model": model}
    if path.startswith("/openai/"):  # between a page and the gateway alone
        fields.pop("fingerprint", None)

    def bound(value: object) -> object:
        return value if isinstance(value, int) and value > 0 else None

    if path.startswith("/api/"):
        options = fields.get("options") or {}
        assert isinstance(options, dict)
        return fields | {"options": options | {"num_predict": bound(options.get("num_predict")) or CAP}}
    cap = bound(fields.get("max_tokens")) or bound(fields.get("max_completion_tokens")) or CAP
    if "max_tokens" in fields and "max_completion_tokens" in fields:
        fields = fields | {"max_completion_tokens": cap}
    else:
        fields.pop("max_completion_tokens", None)
    fields = fields | {"max_tokens": cap}
    if fields.get("stream"):
        options = fields.get("stream_options") or {}
        assert isinstance(options, dict)
        fields = fields | {"stream_options": options | {"include_usage": True}}
    return fields


@settings(deadline=None)  # on a machine under load a slow example says nothing
@given(_documents(), st.integers(0, 2**32), st.sampled_from(["a:latest", "Ünï:1b"]))
def test_what_is_forwarded_is_what_was_meant(case: tuple[str, dict[str, object]], seed: int, model: str) -> None:
    path, fields = case
    speller = Speller(seed)
    body = (speller.space() + speller.value(fields) + speller.space()).encode()
    assert json.loads(body) == fields
    forwarded = rewritten(path, body, model)
    assert json.loads(forwarded) == intended(path, fields, model)
    again = parse(ENDPOINT[path], forwarded, BOUNDS) if model.isascii() else None
    if isinstance(again, Ask):  # nothing is left to do, and the cap is now the client's own
        assert rewrite(again, cap=1) == ()
        assert again.max_tokens is not None
        assert again.wants_usage


@settings(deadline=None)  # on a machine under load a slow example says nothing
@given(_documents(), st.integers(0, 2**32))
def test_the_rest_goes_on_byte_for_byte(case: tuple[str, dict[str, object]], seed: int) -> None:
    path, fields = case
    body = Speller(seed).value(fields).encode()
    ask = parse(ENDPOINT[path], body, BOUNDS)
    assert isinstance(ask, Ask)
    splices = rewrite(ask, cap=CAP, model="a:latest")
    kept = len(body) - sum(splice.length for splice in splices)
    assert len(apply(body, splices)) == kept + sum(len(splice.text.encode()) for splice in splices)
    prompt = json.dumps(fields.get("prompt") or fields.get("messages"))
    assert json.dumps(json.loads(apply(body, splices)).get("prompt") or fields.get("messages")) == prompt


@pytest.mark.parametrize("path", POSTS)
def test_large_bodies_that_are_not_ascii(path: str) -> None:
    filler = "é中😀" * 5000
    body = json.dumps({"x1": filler} | document(path) | {"x2": filler}, ensure_ascii=False).encode()
    forwarded = rewritten(path, body, "other:latest")
    assert json.loads(forwarded)["model"] == "other:latest"
    assert json.loads(forwarded)["x2"] == filler
