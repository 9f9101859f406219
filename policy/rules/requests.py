"""A request body, judged for its shape: what is asked of which model, how much it may cost, and what must be edited.

`parse` reads a body once into an `Ask`, or says in a `Refusal` why not. `rewrite` says which bytes to change before an
upstream sees the body: a completion cap where there is none, the cap under the name that Ollama knows, usage in
streams, the model under its own name. Everything else goes on as it came, which is safe because `strict_json` lets
nothing pass that Ollama would read in another way, and `schema` nothing that it would read and this would not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy.rules import strict_json
from policy.rules.bounds import Bounds
from policy.rules.edits import NO_SLOTS, Editor, Slots
from policy.rules.endpoints import ENDPOINTS, Endpoint, Kind, find
from policy.rules.keep_alive import check_keep_alive
from policy.rules.models import canonical
from policy.rules.prompt import Prompt, check_format, check_stop
from policy.rules.schema import check_fields, check_options, check_stream_options
from policy.rules.splices import apply
from policy.rules.strict_json import NotAcceptable, Object

if TYPE_CHECKING:
    from policy.rules.edits import Slot
    from policy.rules.grant import Splice
    from policy.rules.strict_json import Member, Places

__all__ = ["ENDPOINTS", "Ask", "Bounds", "Endpoint", "Kind", "Refusal", "apply", "find", "parse", "rewrite"]

_WALKED = frozenset({"options", "stream_options"})
_FINGERPRINT = "fingerprint"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for. It holds nothing of the prompt."""

    endpoint: Endpoint
    model: str  # canonical
    model_as_sent: str
    stream: bool
    prompt_bytes: int = 0  # of all that the model is to read: see `prompt`
    completions: int = 1
    max_tokens: int | None = None  # for each completion; None where the client set no bound
    wants_usage: bool = True  # False: a stream whose client did not ask for usage, and is not to see it
    empty: bool = False  # nothing to compute: the model is only loaded
    fingerprint: str | None = field(default=None, repr=False)  # of a session's client, where it says one
    slots: Slots = field(default=NO_SLOTS, repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused with 400. The message repeats nothing that the client wrote."""

    message: str


def parse(endpoint: Endpoint, body: bytes, bounds: Bounds, path_model: str | None = None) -> Ask | Refusal:
    """Read the body of a request to `endpoint`; `path_model` is the model in its path, where that names one."""
    try:
        if endpoint.kind is Kind.MODEL:
            return _path_ask(endpoint, body, path_model or "")
        if endpoint.kind in (Kind.LIST, Kind.VERSION):
            raise NotAcceptable("this endpoint takes no question")
        whole, places = strict_json.read(body, depth=bounds.depth, containers=bounds.containers, walked=_WALKED)
        return _Reading(endpoint, whole, places, bounds).ask()
    except NotAcceptable as refused:
        return Refusal(str(refused))


def rewrite(ask: Ask, *, cap: int, model: str | None = None) -> tuple[Splice, ...]:
    """The edits that the body needs: `cap` completion tokens where the client set no bound, and `model` as its name."""
    splices = []
    if ask.slots.model is not None and model is not None and model != ask.model_as_sent:
        splices.append(ask.slots.model.filled(json.dumps(model)))
    value = str(cap if ask.max_tokens is None else ask.max_tokens)
    splices += [slot.filled(value) for slot in ask.slots.cap]
    if ask.slots.usage is not None:
        splices.append(ask.slots.usage.filled("true"))
    if ask.slots.gone is not None:
        splices.append(ask.slots.gone.filled(""))
    if len(splices) > 1:
        splices.sort(key=lambda splice: (splice.offset, splice.length))  # what is put in stands before what is replaced
    return tuple(splices)


def _path_ask(endpoint: Endpoint, body: bytes, name: str) -> Ask:
    if body:
        raise NotAcceptable("this endpoint takes no body")
    return Ask(endpoint, _canonical(name), name, stream=False)


def _canonical(name: str) -> str:
    try:
        return canonical(name)
    except ValueError:
        raise NotAcceptable("model is not a valid model name") from None


class _Reading:
    """One body on its way to an Ask."""

    __slots__ = ("bounds", "endpoint", "members", "openai", "places", "prompt", "whole")

    def __init__(self, endpoint: Endpoint, whole: Object, places: Places, bounds: Bounds) -> None:
        self.endpoint = endpoint
        self.whole = whole
        self.members = whole.members
        self.places = places
        self.bounds = bounds
        self.prompt = Prompt(bounds)
        self.openai = endpoint.path.startswith(("/v1/", "/openai/"))

    def ask(self) -> Ask:
        kind, bounds = self.endpoint.kind, self.bounds
        check_fields(kind, self.members, bounds.operator_options)
        model, name = self._model()
        options = self.whole.get("options")
        if isinstance(options, Object):
            check_options(options, bounds.operator_options)
            check_stop(options.get("stop"), bounds)
        stream_options = self.whole.get("stream_options")
        if isinstance(stream_options, Object):
            check_stream_options(stream_options)
        empty = self._measure(kind)
        check_keep_alive(self.whole.get("keep_alive"), bounds, empty=empty)
        stream = self.whole.get("stream")
        streams = self.endpoint.generates and (self.endpoint.streams_by_default if stream is None else stream is True)
        editor = Editor(self.whole, self.places)
        max_tokens: int | None = None
        cap: tuple[Slot, ...] = ()
        if self.endpoint.generates:
            max_tokens, cap = editor.openai_cap() if self.openai else editor.native_cap()
        wanted, usage = editor.usage() if streams and self.openai else (True, None)
        return Ask(
            self.endpoint,
            _canonical(name),
            name,
            streams,
            self.prompt.bytes_,
            self._completions() if self.openai else 1,
            max_tokens,
            wanted,
            empty,
            self._fingerprint(),
            Slots(editor.replace(model), cap, usage, editor.remove(_FINGERPRINT) if self.endpoint.session else None),
        )

    def _fingerprint(self) -> str | None:
        """What a session's client says it is. To an endpoint of keys it is a field like any that Ollama ignores."""
        if not self.endpoint.session:
            return None
        said = self.whole.get(_FINGERPRINT)
        if not isinstance(said, str | None):
            raise NotAcceptable("fingerprint is to be a string")
        return said

    def _model(self) -> tuple[Member, str]:
        """The member that names the model. /api/show also takes `name`, and Ollama looks there if `model` is empty."""
        found: list[tuple[Member, str]] = []
        for field_name in ("model", "name") if self.endpoint.kind is Kind.SHOW else ("model",):
            member = self.members.get(field_name)
            if member is not None and isinstance(member.value, str) and member.value:
                found.append((member, member.value))
        if not found:
            raise NotAcceptable("model is missing")
        if found[0][1] != found[-1][1]:
            raise NotAcceptable("model and name are not the same")
        return found[0]

    def _measure(self, kind: Kind) -> bool:
        """Weigh what the model is to read, within its bounds. True where that is nothing."""
        get, prompt = self.whole.get, self.prompt
        if kind is Kind.NATIVE_CHAT or kind is Kind.OPENAI_CHAT:
            count = prompt.messages(get("messages"), parts=self.openai)
            prompt.tools(get("tools"), self._size("tools"))
            self._check_answer()
            if self.openai and not count:
                raise NotAcceptable("messages is to have at least one entry")
            return not count
        if kind is Kind.NATIVE_GENERATE or kind is Kind.OPENAI_COMPLETION:
            text = get("prompt")
            prompt.text(text)
            prompt.text(get("system"))
            prompt.text(get("suffix"))
            prompt.template(get("template"))
            prompt.context(get("context"))
            prompt.image_list(get("images"))
            self._check_answer()
            return not text
        if kind is Kind.EMBED or kind is Kind.OPENAI_EMBEDDINGS:
            texts = get("input")
            prompt.inputs(texts)
            return not texts
        prompt.text(get("prompt"))
        return not get("prompt")

    def _check_answer(self) -> None:
        """Bounds on the shape of the answer."""
        bounds, get = self.bounds, self.whole.get
        format_ = get("format")
        if isinstance(format_, str) and format_ not in ("", "json"):
            raise NotAcceptable('format is to be "json" or a JSON schema')
        check_format(format_, self._size("format"), bounds)
        check_format(get("response_format"), self._size("response_format"), bounds)
        check_stop(get("stop"), bounds)
        for name in ("logprobs", "top_logprobs"):
            self._count(name, bounds.top_logprobs)
        for name, most in (("width", bounds.image_side), ("height", bounds.image_side), ("steps", bounds.image_steps)):
            self._count(name, most)

    def _count(self, name: str, most: int, least: int = 0) -> int | None:
        """A whole number within bounds; None where absent (or a flag under the same name)."""
        value = self.whole.get(name)
        if type(value) is not int:
            return None
        if not least <= value <= most:
            raise NotAcceptable(f"{name} is to be from {least} to {most}")
        return value

    def _completions(self) -> int:
        """How many completions the answer may hold: `n` times `best_of`, whichever of them an Ollama minds."""
        most = self.bounds.completions
        count = (self._count("n", most, 1) or 1) * (self._count("best_of", most, 1) or 1)
        if count > most:
            raise NotAcceptable(f"n times best_of is not to be more than {most}")
        return count

    def _size(self, name: str) -> int:
        member = self.members.get(name)
        return 0 if member is None else self.places.size(member)
