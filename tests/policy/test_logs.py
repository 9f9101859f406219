from __future__ import annotations

import io
import json
import logging
import logging.config
from typing import Any

import pytest

from policy.rules import logs

MODEL_PATH = "/v1/models/hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF"
KEY = "nz_Ab3dEf9hi" + "0123456789abcdefghijklmnopqrstuv"


def line(message: str, *args: object, exc_info: Any = None, **fields: object) -> dict[str, object]:
    record = logging.makeLogRecord(
        {
            "name": "policy.edge",
            "levelno": 20,
            "levelname": "INFO",
            "msg": message,
            "args": args,
            "created": 1732233600.5,
        }
        | {"exc_info": exc_info}
        | fields
    )
    text = logs.JsonLines("policy").format(record)
    assert "\n" not in text
    read: dict[str, object] = json.loads(text)
    return read


def test_one_event_is_one_json_object() -> None:
    assert line("upstream_unreachable", upstream="gpu:11434", attempts=3, well=False, nothing=None) == {
        "time": "2024-11-22T00:00:00.500+00:00",
        "level": "info",
        "service": "policy",
        "logger": "policy.edge",
        "event": "upstream_unreachable",
        "upstream": "gpu:11434",
        "attempts": 3,
        "well": False,
        "nothing": None,
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {KEY} refused", "key nz_Ab3dEf9hi… refused"),
        (f"Authorization: Bearer {KEY}", "Authorization: Bearer nz_Ab3dEf9hi…"),
        ("authorization: bearer sk-proj-0123456789", "authorization: bearer …"),
        ("Basic dXNlcjpwYXNz", "Basic …"),
        ("postgresql://paddock:hunter2@db:5432/paddock", "postgresql://paddock:…@db:5432/paddock"),
        ("redis://:hunter2@cache:6379", "redis://:…@cache:6379"),
        ("http://gpu:11434/api/tags", "http://gpu:11434/api/tags"),
        ("the bearer of news", "the bearer of news"),
    ],
)
def test_what_looks_like_a_credential_is_cut_wherever_it_stands(text: str, shown: str) -> None:
    assert line(text)["event"] == shown
    assert line("event", field=text)["field"] == shown
    assert line("event %s", text)["event"] == f"event {shown}"
    assert line("event", field=[text, {"a": text}])["field"] == str([shown, {"a": shown}])


def test_a_traceback_is_one_bounded_field_without_secrets() -> None:
    try:
        raise ValueError(f"bad key {KEY}\nsecond line " + "x" * 20_000)
    except ValueError as error:
        shown = str(line("fault", exc_info=(type(error), error, error.__traceback__))["exception"])
    assert len(shown) <= logs.TRACEBACK_MAX
    try:
        raise ValueError(f"bad key {KEY}")
    except ValueError as error:
        shown = str(line("fault", exc_info=(type(error), error, error.__traceback__))["exception"])
    assert "nz_Ab3dEf9hi…" in shown
    assert KEY not in shown
    assert "Traceback" in shown


def test_long_and_strange_values_are_bounded_and_stay_json() -> None:
    assert len(str(line("event", field="x" * 100_000)["field"])) == logs.VALUE_MAX + 1
    assert line("event", field="lone \ud800 surrogate")["field"] == "lone ? surrogate"
    assert line("event", field=float("inf"))["field"] == "inf"
    assert line("event", field=b"\xff")["field"] == "b'\\xff'"


def test_a_field_cannot_take_the_place_of_what_the_record_says() -> None:
    assert line("event", level="critical", time="never")["level"] == "info"


def test_the_configuration_writes_lines_and_keeps_libraries_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = list(root.handlers)
    try:
        logging.config.dictConfig(logs.config("processor", "info"))
        logging.getLogger("processor.test").info("started", extra={"workers": 2})
        logging.getLogger("httpx").info("HTTP Request: GET …")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name in ("httpx", "httpcore", "uvicorn", "asyncio", "alembic"):
            logging.getLogger(name).setLevel(logging.NOTSET)
    lines = [json.loads(text) for text in written.getvalue().splitlines()]
    assert [(one["service"], one["event"], one["workers"]) for one in lines] == [("processor", "started", 2)]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (MODEL_PATH, MODEL_PATH),
        (f"/api/pull/{KEY}", "/api/pull/nz_Ab3dEf9hi…"),
        ("/v1/sk-proj-0123456789abcdefghijklmnop/chat", "/v1/sk-proj-…/chat"),
        ("/" + "f" * 64, "/…"),
    ],
)
def test_a_path_shows_nobodys_key(path: str, shown: str) -> None:
    assert logs.redact_path(path) == shown
