"""The ways around a naive gateway, in the order of their list: each is refused, or seen for what it is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from policy.rules.requests import Ask, Bounds, find, parse
from tests.policy.bodies import BOUNDS, CHATS, NATIVE, POSTS, USER, accepted, document, refused


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", ["MODEL", "Model", "mODEL", "model"])
def test_trap_1_two_models_in_one_body(path: str, name: str) -> None:
    rest = json.dumps(document(path))[1:]
    for body in (f'{{"{name}":"forbidden",{rest}', f'{rest[:-1]},"{name}":"forbidden"}}'.join(["{", ""])):
        assert "forbidden" not in refused(path, body.encode())


@pytest.mark.parametrize(
    ("path", "name"),
    [("/api/chat", "optionſ"), ("/api/chat", "meſſages"), ("/api/chat", "Options"), ("/api/chat", "\u212aeep_alive"),
     ("/api/chat", "ſtream"), ("/api/generate", "ſystem"), ("/api/generate", "PROMPT"), ("/api/generate", "Raw"),
     ("/api/embed", "INPUT"), ("/api/show", "NAME"), ("/v1/chat/completions", "max_to\u212aenſ"),
     ("/v1/chat/completions", "Max_Tokens"), ("/v1/chat/completions", "MAX_COMPLETION_TOKENS"),
     ("/v1/chat/completions", "ſtream_optionſ"), ("/v1/chat/completions", "N"), ("/v1/completions", "Best_Of")],
)  # fmt: skip
def test_trap_1_names_that_fold(path: str, name: str) -> None:
    assert "letter case" in refused(path, document(path, **{name: None}))
    escaped = json.dumps(document(path, **{name: None})).encode()  # ASCII, with \u017f
    assert "letter case" in refused(path, escaped)


def test_trap_1_names_that_fold_further_in() -> None:
    for path in CHATS:
        for name in ("Content", "ROLE", "roLe", "contenT", "Imageſ", "tool_callſ"):
            assert "letter case" in refused(path, document(path, messages=[USER | {name: "x"}]))
    for options in ({"NUM_PREDICT": 1}, {"Num_Predict": 9**9}, {"num_predict": 5, "num_predict\u0000": 9}):
        assert refused("/api/chat", document("/api/chat", options=options))
    for name in ("Include_Usage", "include_uſage"):
        fields = document("/v1/chat/completions", stream=True, stream_options={name: False})
        assert refused("/v1/chat/completions", fields)


@pytest.mark.parametrize(
    "body",
    [b'{"model":"a"}{"model":"b"}', b'{"model":"a","seed":NaN}', b'{"model":"a\xff"}', b'{"model":"a","x":"\\ud800"}',
     b'\xef\xbb\xbf{"model":"a"}', b"model=a&prompt=hi", b'[{"model":"a"}]', b"", b"null"],
)  # fmt: skip
@pytest.mark.parametrize("path", POSTS)
def test_trap_2_what_is_not_one_strict_object(path: str, body: bytes) -> None:
    assert refused(path, body)


def test_traps_3_to_5_the_body_is_judged_by_method_and_path_alone() -> None:
    found = find("POST", "/api/chat")  # no Content-Type, no Content-Encoding, no query: nothing else to be told
    assert found is not None
    assert isinstance(parse(found[0], json.dumps(document("/api/chat")).encode(), BOUNDS), Ask)
    assert find("POST", "/api/chat?model=forbidden") is None
    assert refused("/api/chat", b"\x1f\x8b\x08\x00\x00\x00\x00\x00")  # a compressed body is no JSON


@pytest.mark.parametrize("path", POSTS)
def test_trap_6_one_model_of_many_names(path: str) -> None:
    for name in ("LLAMA3.1:8B", " llama3.1:8b ", "library/llama3.1:8b", "registry.ollama.ai/library/llama3.1:8b",
                 "https://registry.ollama.ai/library/llama3.1:8b", "llama3.1:8b:local"):  # fmt: skip
        ask = accepted(path, document(path, model=name))
        assert (ask.model, ask.model_as_sent) == ("llama3.1:8b", name)
    assert accepted(path, document(path, model="llama3.1")).model == "llama3.1:latest"
    for name in ("llama3.1@sha256:00", "llama3.1: 8b", "a/b/c/d", "x" * 201, "llama3.1:local"):
        assert refused(path, document(path, model=name)) == "model is not a valid model name"


@pytest.mark.parametrize("name", ["gpt-oss:cloud", "gpt-oss:Cloud", "gpt-oss:20b-cloud", "gpt-oss:20b:cloud"])
def test_trap_7_cloud_models_keep_their_mark(name: str) -> None:
    assert accepted("/api/chat", document("/api/chat", model=name)).model.endswith("cloud")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", ["_debug_render_only", "_DEBUG_RENDER_ONLY", "_", "_x"])
@pytest.mark.parametrize("value", [True, False, None])
def test_trap_8_private_fields(path: str, name: str, value: object) -> None:
    assert "_" in refused(path, document(path, **{name: value}))


EMPTY: dict[str, dict[str, object]] = {
    "/api/generate": {"model": "a", "prompt": ""},
    "/api/chat": {"model": "a", "messages": []},
    "/api/embed": {"model": "a", "input": []},
    "/api/embeddings": {"model": "a"},
}


@pytest.mark.parametrize("path", EMPTY)
@pytest.mark.parametrize("value", [0, 0.0, -0.0, "0", "0s", "-0", "1ns", 1e-12, 1, "59s", "0h0m0.5s"])
def test_trap_9_an_empty_request_does_not_unload(path: str, value: object) -> None:
    assert "keep_alive" in refused(path, EMPTY[path] | {"keep_alive": value})
    accepted(path, document(path, keep_alive=value))  # with something to compute it is the caller's own cost


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("value", [-1, -0.5, "-1s", "-1h", "-1m30s", 86401, "25h", "1500m", 1e30, "99999999999999999h"])
def test_trap_9_nobody_pins_a_model(path: str, value: object) -> None:
    assert "keep_alive" in refused(path, document(path, keep_alive=value))


@pytest.mark.parametrize("value", [60, 300, "5m", "1h30m", "24h", 86400, "90s", "1.5h", "100000ms", ".5h", "+5m"])
def test_trap_9_an_ordinary_keep_alive(value: object) -> None:
    accepted("/api/chat", document("/api/chat", keep_alive=value))
    accepted("/api/chat", EMPTY["/api/chat"] | {"keep_alive": value})


@pytest.mark.parametrize("value", ["", " 5m", "5 m", "m", "5", "5d", "1h-5m", "٥m", "5m\n", "1e3s", "inf", "5m" * 40])
def test_trap_9_what_is_no_duration(value: str) -> None:
    assert "keep_alive" in refused("/api/chat", document("/api/chat", keep_alive=value))


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize(
    "name", "num_ctx num_batch num_gpu main_gpu num_thread use_mmap use_mlock low_vram numa draft_num_predict".split()
)
def test_trap_9_the_operators_options(path: str, name: str) -> None:
    assert f"options.{name} is set by the operator" in refused(path, document(path, options={name: 1}))
    assert "operator" in refused(path, document(path, **{name: 1}))
    accepted(path, document(path, options={name: None}))  # Ollama skips null
    allowed = replace(BOUNDS, operator_options=frozenset({name}))
    accepted(path, document(path, options={name: 1}), allowed)


def test_trap_9_an_option_of_a_later_ollama_is_not_passed_blindly() -> None:
    assert "not known" in refused("/api/chat", document("/api/chat", options={"num_universes": 2}))
    assert refused("/v1/chat/completions", document("/v1/chat/completions", options={"num_ctx": 9}))
    assert refused("/v1/chat/completions", document("/v1/chat/completions", num_ctx=9))
    assert refused("/v1/chat/completions", document("/v1/chat/completions", num_predict=9))


SAMPLING = {"seed": 1, "num_predict": 10, "num_keep": 4, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "tfs_z": 1,
            "typical_p": 0.7, "repeat_last_n": 33, "temperature": 0.8, "repeat_penalty": 1.2, "presence_penalty": 1.5,
            "frequency_penalty": 1.0, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "penalize_newline": True,
            "stop": ["\n", "user:"]}  # fmt: skip


def test_sampling_is_the_callers() -> None:
    assert accepted("/api/generate", document("/api/generate", options=SAMPLING)).max_tokens == 10


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize(
    ("value", "tokens"),
    [(1, 1), (100, 100), (100.0, 100), (1e3, 1000), (2**31 - 1, 2**31 - 1), (0, None), (-1, None), (-2, None),
     (-1e300, None), (None, None)],
)  # fmt: skip
def test_trap_10_num_predict(path: str, value: object, tokens: int | None) -> None:
    assert accepted(path, document(path, options={"num_predict": value})).max_tokens == tokens


@pytest.mark.parametrize("value", [2**31, 2**63, 2**64, 1e300, 10**60])
def test_trap_10_a_count_that_overflows_is_refused(value: object) -> None:
    # float64 to int64 beyond its range is a large negative number on amd64, and that is no bound at all
    assert "too large" in refused("/api/chat", document("/api/chat", options={"num_predict": value}))
    if isinstance(value, int):
        for name in ("max_tokens", "max_completion_tokens"):
            assert "too large" in refused("/v1/chat/completions", document("/v1/chat/completions", **{name: value}))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("fields", "tokens"),
    [({"max_tokens": 5}, 5), ({"max_completion_tokens": 5}, 5), ({"max_tokens": 5, "max_completion_tokens": 5}, 5),
     ({"max_tokens": None, "max_completion_tokens": 5}, 5), ({"max_tokens": -1, "max_completion_tokens": 5}, 5),
     ({"max_tokens": 5, "max_completion_tokens": 0}, 5), ({"max_tokens": 0}, None), ({"max_tokens": -1}, None),
     ({"max_completion_tokens": None}, None), ({}, None)],
)  # fmt: skip
def test_trap_10_both_names_of_the_cap(path: str, fields: dict[str, object], tokens: int | None) -> None:
    assert accepted(path, document(path, **fields)).max_tokens == tokens


def test_trap_10_two_caps_that_differ() -> None:
    path = "/v1/chat/completions"
    assert "not the same" in refused(path, document(path, max_tokens=5, max_completion_tokens=500))


def schema(levels: int) -> object:
    return {"type": "string"} if levels == 1 else {"items": schema(levels - 1)}


def test_trap_11_sizes_are_bounded_and_the_bounds_are_generous() -> None:
    chat, openai, generate = "/api/chat", "/v1/chat/completions", "/api/generate"
    small = replace(BOUNDS, messages=2, tools=2, tools_bytes=200, format_bytes=200, format_depth=3, images=2,
                    image_bytes=30, context=3, stop=2, inputs=2, template_bytes=20)  # fmt: skip
    tool = {"type": "function", "function": {"name": "f"}}
    data = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

    def images(count: int, size: int = 4) -> list[object]:
        return [USER | {"images": ["A" * size]}] * count

    for path, fits, over in (
        (chat, {"messages": [USER] * 2}, {"messages": [USER] * 3}),
        (openai, {"messages": [USER] * 2}, {"messages": [USER] * 3}),
        (chat, {"tools": [tool] * 2}, {"tools": [tool] * 3}),
        (openai, {"tools": [tool]}, {"tools": [tool | {"x": "y" * 200}]}),
        (chat, {"format": schema(3)}, {"format": schema(4)}),
        (chat, {"format": schema(3)}, {"format": {"x": "y" * 200}}),
        (openai, {"response_format": {"type": "text"}}, {"response_format": {"json_schema": {"schema": schema(2)}}}),
        (chat, {"messages": images(2)}, {"messages": images(3)}),
        (chat, {"messages": images(1, 40)}, {"messages": images(1, 44)}),
        (generate, {"images": ["AAAA"] * 2}, {"images": ["AAAA"] * 3}),
        (openai, {"messages": [USER | {"content": [data] * 1}]}, {"messages": [USER | {"content": [data] * 3}]}),
        (generate, {"context": [1] * 3}, {"context": [1] * 4}),
        (chat, {"options": {"stop": ["a"] * 2}}, {"options": {"stop": ["a"] * 3}}),
        (openai, {"stop": ["a"] * 2}, {"stop": ["a"] * 3}),
        ("/api/embed", {"input": ["a"] * 2}, {"input": ["a"] * 3}),
        ("/v1/embeddings", {"input": ["a"] * 2}, {"input": ["a"] * 3}),
        (generate, {"template": "{{ .Prompt }}"}, {"template": "{{ .Prompt }}" + " " * 20}),
    ):
        accepted(path, document(path, **fits), small)
        assert refused(path, document(path, **over), small)
        accepted(path, document(path, **over))  # by default


@pytest.mark.parametrize(
    "many",
    [{"minItems": 10**9}, {"maxItems": 1e9}, {"type": "string", "minLength": 100_001}, {"maxLength": 10**60},
     {"pattern": "^(a{1,99999}){2,99999}$"}, {"pattern": "^a{ 100001}$"}, {"pattern": f"^a{{{'9' * 5000}}}$"},
     {"properties": {str(n): {"maxLength": 1001} for n in range(100)}}],
)  # fmt: skip
def test_trap_11_what_a_schema_counts_out_is_bounded(many: dict[str, object]) -> None:
    """A few bytes that a grammar writes out one by one."""
    for format_ in (many, {"properties": {"a": {"items": many}}}):
        for path in ("/api/chat", "/api/generate"):
            assert "repetitions" in refused(path, document(path, format=format_))
        whole = {"type": "json_schema", "json_schema": {"schema": format_}}
        assert "repetitions" in refused("/v1/chat/completions", document("/v1/chat/completions", response_format=whole))
        accepted("/api/chat", document("/api/chat", tools=[{"function": {"parameters": format_}}]))


@pytest.mark.parametrize(
    "few",
    [{"maxLength": 65536, "minLength": 1}, {"pattern": "^[0-9]{3,5}$"}, {"pattern": "{" * 9000 + "1" * 9000},
     {"pattern": "{ " + " " * 60_000}, {"properties": {"maxItems": {"type": "integer", "maximum": 10**9}}},
     {"maxItems": -5, "minItems": None, "minLength": "10000000"}],
)  # fmt: skip
def test_trap_11_what_real_schemas_count_passes(few: dict[str, object]) -> None:
    accepted("/api/chat", document("/api/chat", format=few))


def test_trap_11_nesting_is_bounded_wherever_it_stands() -> None:
    deep: object = 1
    for _ in range(70):
        deep = [deep]
    for path in POSTS:
        assert "deep" in refused(path, document(path, whatever=deep))
    assert refused("/api/chat", b'{"model":"a","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@pytest.mark.parametrize(
    "template",
    ["", "plain text", "{{ .Prompt }}", "{{- if .System }}<s>{{ .System }}</s>{{ end -}}{{ .Prompt }}",
     "{{ if and .System .Prompt }}a{{ else if .Prompt }}b{{ else }}c{{ end }}{{.Response}}"],
)  # fmt: skip
def test_trap_11_a_plain_template(template: str) -> None:
    accepted("/api/generate", document("/api/generate", template=template))


@pytest.mark.parametrize(
    "template",
    ["{{ range .Messages }}{{ range $.Messages }}x{{ end }}{{ end }}",
     '{{ $x := "aaaaaaaa" }}{{ $x = printf "%s%s" $x $x }}{{ $x }}',
     '{{ printf "%1000000d" 1 }}',
     '{{ define "a" }}{{ template "a" }}{{ end }}',
     '{{ block "a" . }}{{ end }}',
     "{{ with .Messages }}{{ end }}",
     "{{ .Prompt | json }}",
     "{{ .Prompt }}" * 33],
)  # fmt: skip
def test_trap_11_a_template_is_a_program(template: str) -> None:
    assert "template" in refused("/api/generate", document("/api/generate", template=template))


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "https://example.com/a.png", "file:///etc/passwd", "", 7, None, {"x": 1}]
)
def test_trap_11_no_image_is_fetched(url: object) -> None:
    path = "/v1/chat/completions"
    for image in (url, {"url": url}):
        part = {"type": "image_url", "image_url": image}
        if image is not None:
            assert refused(path, document(path, messages=[USER | {"content": [part]}]))


def test_trap_12_no_credential_is_read_from_a_body() -> None:
    ask = accepted("/api/chat", document("/api/chat", api_key="nz_secret", authorization="Bearer nz_secret"))
    assert "nz_secret" not in repr(ask)  # headers are stripped by Envoy; bodies carry no credential for us


def test_bounds_that_the_scanner_cannot_keep_are_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        Bounds(depth=5000)
