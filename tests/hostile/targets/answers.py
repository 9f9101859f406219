"""Answers that are one document: their counts, what is shown of a model, and the member that is spliced in."""

from __future__ import annotations

import json
import re

from processor import show
from processor.envelope_metadata import add_metadata
from processor.tally import parse, trailing_counts, trailing_usage
from processor.usage import Meter, meter_for
from tests.hostile.targets.cutting import cuttings
from tests.hostile.targets.streams import counts, play

_PATHS = ("/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_SHOWN = {"details", "model_info", "modified_at", "capabilities"}
_DETAILS = {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"}


def documents_are_counted_once(data: bytes) -> None:
    """A document passes unchanged, or is an error and none of it passes; its counts do not depend on its chunks."""
    for path in _PATHS:

        def meter(path: str = path) -> Meter:
            return meter_for(path, content_type="application/json", content_encoding="", hide_usage=False, cap=9)

        whole = meter()
        expected = play(whole, [data])
        counts(whole.usage())
        is_error = data.lstrip().startswith(b'{"error"')
        assert expected == data or is_error
        assert not is_error or (b'"upstream error"' in expected and len(expected) < 100)
        for chunks in cuttings(data)[1:]:
            cut = meter()
            assert play(cut, chunks) == expected, chunks
            assert cut.usage() == whole.usage(), chunks


def shown_models_show_the_keep_list(data: bytes) -> None:
    """Only kept names, of Ollama's own types: nothing nested in which something else could hide."""
    for sanitize, names in ((show.sanitize, _SHOWN), (show.sanitize_model, {"id", "object", "created", "owned_by"})):
        try:
            found = json.loads(sanitize(data))
        except ValueError:
            parsed = parse(data)
            assert parsed is None or re.search(rb"NaN|Infinity", data) or _not_utf8(data)
            continue
        assert found.keys() <= names
        details, info = found.pop("details", {}), found.pop("model_info", {})
        assert details.keys() <= _DETAILS and details.get("parent_model", "") == ""
        assert all(re.search(r"(^|\.)(architecture|parameter_count|\w+_length)$", name) for name in info)
        for value in (*found.values(), *details.values(), *info.values()):
            assert value is None or isinstance(value, str | int) or all(isinstance(one, str) for one in value)


def _not_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return False


def metadata_is_a_member_more(data: bytes) -> None:
    """An answer with `_metadata` is the answer that it was, and one member more."""
    said = {"payload_id": "x", "n": 1}
    try:
        before = json.loads(data.decode())
    except (ValueError, RecursionError):
        before = None
    try:
        found = add_metadata(data, said)
    except ValueError:
        assert not isinstance(before, dict)
        return
    if isinstance(before, dict):
        try:
            after = json.loads(bytes(found))
        except RecursionError:
            return
        assert repr(after) == repr({name: value for name, value in before.items() if name != "_metadata"} | _last(said))


def _last(said: dict[str, object]) -> dict[str, object]:
    return {"_metadata": said}


def tails_tell_counts(data: bytes) -> None:
    """The end of a long document: counts that are there, or nothing. Never an exception, never a nested object."""
    for name, value in trailing_counts(data).items():
        assert re.fullmatch(r"[a-z_]+", name) and type(value) is int
    usage = trailing_usage(data)
    assert usage is None or b'"usage":{' in data


TARGETS = (
    documents_are_counted_once,
    shown_models_show_the_keep_list,
    metadata_is_a_member_more,
    tails_tell_counts,
)
