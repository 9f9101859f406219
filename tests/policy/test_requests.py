"""Request bodies: what is asked, what the model is given to read, and which types pass."""

from __future__ import annotations

import json

import pytest

from policy.rules.requests import Ask, Refusal, find, parse
from tests.policy.bodies import BOUNDS, CHATS, ENDPOINT, GENERATING, NATIVE, POSTS, USER, accepted, document, refused

# What is asked


@pytest.mark.parametrize("path", POSTS)
def test_the_smallest_body(path: str) -> None:
    ask = accepted(path, document(path))
    assert ask.endpoint.path == path
    assert (ask.model, ask.model_as_sent) == ("llama3.1:8b", "llama3.1:8b")
    assert ask.stream == (path in ("/api/chat", "/api/generate"))
    assert (ask.completions, ask.max_tokens, ask.wants_usage) == (1, None, True)
    assert ask.prompt_bytes == (0 if path == "/api/show" else 2)


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [True, False, None])
def test_stream(path: str, stream: bool | None) -> None:
    native = path.startswith("/api/")
    ask = accepted(path, document(path, stream=stream))
    assert ask.stream == (native if stream is None else stream)
    assert ask.wants_usage == (native or not ask.stream)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("options", "wants"),
    [(None, False), ({}, False), ({"include_usage": False}, False), ({"include_usage": None}, False),
     ({"include_usage": True}, True), ({"include_usage": True, "include_obfuscation": False}, True)],
)  # fmt: skip
def test_who_asks_for_usage_in_a_stream(path: str, options: object, wants: bool) -> None:
    assert accepted(path, document(path, stream=True, stream_options=options)).wants_usage is wants
    assert accepted(path, document(path, stream=False, stream_options=options)).wants_usage


@pytest.mark.parametrize("path", POSTS)
def test_null_is_absent(path: str) -> None:
    names = "stream options keep_alive format think tools images context template stop max_tokens n seed logprobs"
    fields = dict.fromkeys(names.split())
    assert accepted(path, document(path, **fields)) == accepted(path, document(path)) or path in GENERATING
    assert accepted(path, document(path, **fields)).prompt_bytes == accepted(path, document(path)).prompt_bytes


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_completions_are_n_times_best_of(path: str) -> None:
    assert accepted(path, document(path, n=3)).completions == 3
    assert accepted(path, document(path, n=2, best_of=3)).completions == 6
    for fields in ({"n": 17}, {"best_of": 17}, {"n": 4, "best_of": 5}, {"n": 0}, {"n": -1}, {"n": 10**40}):
        assert refused(path, document(path, **fields))


def test_a_load_is_legitimate() -> None:
    assert accepted("/api/generate", {"model": "a"}).empty
    assert accepted("/api/generate", {"model": "a", "prompt": "", "keep_alive": "10m"}).empty
    assert accepted("/api/chat", {"model": "a", "messages": []}).empty
    assert accepted("/api/chat", {"model": "a"}).prompt_bytes == 0
    assert not accepted("/api/chat", document("/api/chat")).empty
    assert refused("/v1/chat/completions", {"model": "a", "messages": []})


def test_show_takes_the_old_name_of_the_field() -> None:
    assert accepted("/api/show", {"name": "A"}).model == "a:latest"
    assert accepted("/api/show", {"model": "", "name": "a"}).model == "a:latest"
    assert accepted("/api/show", {"model": "a", "name": ""}).model == "a:latest"
    assert accepted("/api/show", {"model": "a", "name": "a"}).model == "a:latest"
    assert "not the same" in refused("/api/show", {"model": "a", "name": "b"})
    assert "model" in refused("/api/chat", {"name": "a", "messages": [USER]})


def test_a_model_in_the_path() -> None:
    found = find("GET", "/v1/models/hf.co%2FOrg%2FModel:Q4")
    assert found is not None
    ask = parse(found[0], b"", BOUNDS, found[1])
    assert isinstance(ask, Ask)
    assert (ask.model, ask.stream) == ("hf.co/org/model:q4", False)
    for name in ("", "../api/tags", "a b", "a%2Fb"):
        assert isinstance(parse(found[0], b"", BOUNDS, name), Refusal)
    assert isinstance(parse(found[0], b"{}", BOUNDS, "a"), Refusal)
    assert isinstance(parse(found[0], b"", BOUNDS), Refusal)


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models", "/api/version"])
def test_lists_take_no_question(path: str) -> None:
    assert isinstance(parse(ENDPOINT[path], b"", BOUNDS), Refusal)


# What the model reads, in bytes


def test_every_text_is_weighed() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "é"}}]
    written = json.dumps(tools, ensure_ascii=False)
    body = f'{{"model":"a","messages":[{{"role":"user","content":"héllo"}}],"tools":{written}}}'.encode()
    assert accepted("/api/chat", body).prompt_bytes == 6 + len(written.encode())
    assert accepted("/api/generate", document("/api/generate", system="abc", suffix="de", template="{{ .Prompt }}")
                    ).prompt_bytes == 2 + 3 + 2 + 13  # fmt: skip
    assert accepted("/api/embed", document("/api/embed", input=["ab", "中"])).prompt_bytes == 5
    assert accepted("/api/generate", document("/api/generate", context=[1, 2, 3])).prompt_bytes == 2 + 12


@pytest.mark.parametrize("path", CHATS)
def test_every_text_of_a_message_is_weighed(path: str) -> None:
    plain = accepted(path, document(path)).prompt_bytes
    for name in ("thinking", "reasoning", "tool_name", "name", "tool_call_id"):
        assert accepted(path, document(path, messages=[USER | {name: "abc"}])).prompt_bytes == plain + 3
    calls = [{"function": {"name": "f", "arguments": {"a": "bcd"}}}]
    heavier = accepted(path, document(path, messages=[{"role": "assistant", "content": None, "tool_calls": calls}]))
    assert heavier.prompt_bytes == len("functionnamefargumentsabcd")


def test_an_image_weighs_the_same_whatever_its_size() -> None:
    small = accepted("/api/chat", document("/api/chat", messages=[USER | {"images": ["AAAA"]}])).prompt_bytes
    large = accepted("/api/chat", document("/api/chat", messages=[USER | {"images": ["A" * 40_000]}])).prompt_bytes
    parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    openai = accepted("/v1/chat/completions", document("/v1/chat/completions", messages=[USER | {"content": parts}]))
    assert small == large > 1000
    assert 0 < openai.prompt_bytes - small < 20


def test_an_ask_holds_nothing_of_the_prompt() -> None:
    for path in POSTS:
        secret = {"messages": [USER | {"content": "hunter2"}]} if path in CHATS else {"system": "hunter2"}
        assert "hunter2" not in repr(accepted(path, document(path, **secret)))


# Types


# (paths, field, values that it must not have)
WRONG: list[tuple[list[str], str, list[object]]] = [
    (POSTS, "model", [None, "", 7, ["a"], {"a": 1}, True]),
    (GENERATING, "stream", ["true", 1, 0, [], {}]),
    (CHATS, "messages", ["hi", {"role": "user"}, [1], ["hi"], [[]], [None], [{}], [{"content": "a"}], [{"role": 1}]]),
    (CHATS, "messages", [[{"role": None}], [USER | {"content": 1}], [USER | {"content": {}}]]),
    (CHATS, "messages", [[USER | {"tool_calls": {}}], [USER | {"tool_calls": [1]}], [USER | {"images": "AAAA"}]]),
    (CHATS, "messages", [[USER | {"images": [1]}], [USER | {"thinking": ["a"]}], [USER | {"name": 1}]]),
    (["/api/chat"], "messages", [[USER | {"content": [{"type": "text", "text": "parts are OpenAI's"}]}]]),
    (["/v1/chat/completions"], "messages", [[USER | {"content": ["text"]}], [USER | {"content": [None]}]]),
    (NATIVE, "options", [[], "num_predict=1", 1, True, {"num_predict": "5"}, {"num_predict": True}]),
    (["/api/chat", "/api/generate"], "options", [{"num_predict": 1.5}, {"num_predict": []}]),
    (NATIVE, "options", [{"temperature": "hot"}, {"stop": "x"}, {"stop": [1]}, {"penalize_newline": 1}]),
    (["/api/chat", "/api/generate"], "format", ["yaml", [], 1]),
    (["/api/chat", "/api/generate"], "think", [1, {}]),
    (CHATS, "tools", [{}, ["f"], [1], "f"]),
    (POSTS, "keep_alive", [[], True, "soon", {}]),
    (["/api/chat", "/v1/chat/completions"], "logprobs", [1, "yes"]),
    (CHATS, "top_logprobs", [21, -1, 1.0, "1"]),
    (["/api/chat", "/api/generate", "/api/embed"], "truncate", ["no", 0]),
    (["/api/generate", "/v1/completions"], "prompt", [["hi"], 1, {}]),
    (["/api/generate"], "system", [1]),
    (["/api/generate", "/v1/completions"], "suffix", [[], 1]),
    (["/api/generate"], "template", [{}, 1]),
    (["/api/generate"], "raw", ["yes", 1]),
    (["/api/generate"], "context", ["1,2", [1.5], [True], [None]]),
    (["/api/generate"], "images", ["AAAA", [None], [["AAAA"]]]),
    (["/api/generate"], "width", ["1", 10**6, -1]),
    (["/v1/chat/completions", "/v1/completions"], "max_tokens", ["5", 5.0, True, [5]]),
    (["/v1/chat/completions", "/v1/completions"], "max_completion_tokens", ["5", 1e3, False]),
    (["/v1/chat/completions", "/v1/completions"], "n", ["2", 1.0, True]),
    (["/v1/chat/completions", "/v1/completions"], "stream_options", [[], True, {"include_usage": 1}]),
    (["/v1/chat/completions", "/v1/completions"], "seed", [1.5, "1"]),
    (["/v1/chat/completions", "/v1/completions"], "stop", [1, ["a", 1], {}]),
    (["/v1/chat/completions", "/v1/completions"], "temperature", ["0", True]),
    (["/v1/chat/completions"], "response_format", ["json", []]),
    (["/v1/chat/completions"], "reasoning", ["high"]),
    (["/v1/chat/completions"], "reasoning_effort", [3]),
    (["/v1/completions"], "logprobs", [True, 99, -1, 1.0]),
    (["/api/embed", "/v1/embeddings"], "input", [1, {}, [1, 2], [["a"]], [None]]),
    (["/api/embed", "/v1/embeddings"], "dimensions", ["8", 1.5]),
    (["/v1/embeddings"], "encoding_format", [1]),
]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [(path, field, value) for paths, field, values in WRONG for path in paths for value in values],
)
def test_a_wrong_type_is_refused(path: str, field: str, value: object) -> None:
    message = refused(path, document(path, **{field: value}))
    assert field in message or field in ("messages", "options")  # whose message names what is inside


@pytest.mark.parametrize("path", POSTS)
def test_fields_that_ollama_does_not_know_pass(path: str) -> None:
    more = {
        "user": "u",
        "store": False,
        "metadata": {"A": 1, "a": 2},
        "parallel_tool_calls": True,
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "logit_bias": {"5": -1},
        "Ünïcödé": 1,
    }
    assert accepted(path, document(path, **more)).model == "llama3.1:8b"


def test_names_of_tools_and_properties_are_the_clients_own() -> None:
    properties = {"Name": {"type": "string"}, "Model": {"type": "string"}, "CONTENT": {}, "_id": {}, "meſſages": {}}
    parameters = {"type": "object", "properties": properties}
    tools = [{"type": "function", "function": {"name": "F", "parameters": parameters}}]
    calls = [{"id": "1", "type": "function", "function": {"name": "F", "arguments": {"Name": "x", "MODEL": "y"}}}]
    for path in CHATS:
        accepted(path, document(path, tools=tools, messages=[USER | {"tool_calls": calls}]))
    accepted("/api/chat", document("/api/chat", format={"type": "object", "properties": properties}))


@pytest.mark.parametrize("path", POSTS)
def test_a_refusal_repeats_nothing_that_the_client_wrote(path: str) -> None:
    for body in (
        document(path, model="hunter2 hunter2"),
        document(path, _hunter2=1),
        document(path, options={"hunter2": 1}),
        document(path, keep_alive="hunter2"),
        document(path, messages=[{"role": "user", "content": 1, "hunter2": 1}], prompt=1, input=1, verbose="hunter2"),
    ):
        assert "hunter2" not in refused(path, body)
