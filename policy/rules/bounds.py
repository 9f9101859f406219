"""How large the parts of a request may be. The defaults stop abuse and no client that we know of; a tenant may have
others, and what is kept of it is what differs.

The length of plain text (prompt, system, suffix, template, message contents) is bounded by the body cap and by tokens.
What is bounded here costs more than its bytes say: a schema becomes a grammar, an image becomes pixels, a template
becomes a program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from policy.rules.schema import OPERATOR_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

Value = int | float | bool | frozenset[str]

DEEPEST = 256
_LARGEST = 10**9  # of any figure, save where the scanner sets a bound of its own
_WORDS = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Upper bounds, unless a name says otherwise."""

    depth: int = 64  # of objects and arrays in each other, the body itself included
    containers: int = 50_000  # objects and arrays in a body
    messages: int = 4096
    tools: int = 512
    tools_bytes: int = 1 << 20
    format_bytes: int = 1 << 16  # of a JSON schema for the answer
    format_depth: int = 32
    format_repeats: int = 100_000  # that it counts out, all together: a grammar may write out each
    images: int = 64  # in one request
    image_bytes: int = 16 << 20  # decoded, all together
    image_side: int = 4096  # pixels of a generated image
    image_steps: int = 200  # of a generated image
    context: int = 262_144  # tokens in `context`
    stop: int = 64  # sequences
    inputs: int = 2048  # texts to embed (the OpenAI API's own bound)
    completions: int = 16  # n times best_of
    top_logprobs: int = 20  # Ollama's own bound
    template_bytes: int = 8192
    template_actions: int = 32
    template_logic: bool = False  # allow ranges, variables and functions: a small template can then fill a memory
    keep_alive_seconds: float = 24 * 3600.0
    keep_alive_empty_seconds: float = 60.0  # lower bound where nothing is to be computed: less is an unload
    operator_options: frozenset[str] = frozenset()  # of `schema.OPERATOR_OPTIONS`: what this tenant may set itself

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= DEEPEST:
            raise ValueError(f"depth is at most {DEEPEST}: the scanner recurses, and shares its stack with its callers")

    def differing(self) -> dict[str, object]:
        """What is not as by default, in values that JSON has, for `of`."""
        found: dict[str, object] = {}
        for name, usual in USUAL.items():
            value = getattr(self, name)
            if value != usual:
                found[name] = sorted(value) if isinstance(value, frozenset) else value
        return found

    @classmethod
    def of(cls, differing: Mapping[str, object]) -> Bounds:
        """The defaults with these differences; what another version knows and this does not is left out. ValueError for
        a value that cannot be one's."""
        known = {name: value for name, value in differing.items() if name in USUAL}
        options = known.get("operator_options")
        if isinstance(options, list):
            known["operator_options"] = [option for option in options if option in OPERATOR_OPTIONS]
        return cls(**{name: _checked(name, value) for name, value in known.items()})  # type: ignore[arg-type]  # each is checked against its own field


DEFAULT = Bounds()
USUAL: Mapping[str, Value] = {field.name: getattr(DEFAULT, field.name) for field in fields(Bounds)}

# What each holds to, in words.
MEANINGS: Mapping[str, str] = {
    "depth": "objects and arrays in each other, the body included",
    "containers": "objects and arrays in a body",
    "messages": "entries of `messages`",
    "tools": "entries of `tools`",
    "tools_bytes": "bytes of `tools`",
    "format_bytes": "bytes of `format` or `response_format`",
    "format_depth": "nesting of `format` or `response_format`",
    "format_repeats": "repetitions that `format` or `response_format` counts out, all together",
    "images": "images in one request",
    "image_bytes": "bytes of all its images, decoded",
    "image_side": "`width` and `height` of a generated image",
    "image_steps": "`steps` of a generated image",
    "context": "entries of `context`",
    "stop": "entries of `stop`",
    "inputs": "entries of `input`",
    "completions": "`n` times `best_of`",
    "top_logprobs": "`top_logprobs`",
    "template_bytes": "characters of `template`",
    "template_actions": "actions (`{{…}}`) in `template`",
    "template_logic": "actions other than inserting a field or testing one",
    "keep_alive_seconds": "seconds of `keep_alive`",
    "keep_alive_empty_seconds": "least seconds of `keep_alive` in a request without a prompt",
    "operator_options": "options of how a model is loaded that a caller may set, by their names",
}


def read(name: str, text: str) -> Value:
    """One bound as an operator writes it: `1_000`, `1.5`, `yes`, `num_ctx,num_gpu`. ValueError says what is wrong."""
    usual = USUAL[name]
    if isinstance(usual, frozenset):
        return _checked(name, [word for word in text.split(",") if word])
    if isinstance(usual, bool):
        if text.lower() not in _WORDS:
            raise ValueError(f"{name} is yes or no")
        return _WORDS[text.lower()]
    form = r"[0-9][0-9_]*(\.[0-9]+)?" if isinstance(usual, float) else r"[0-9][0-9_]*"
    if not re.fullmatch(form, text):
        raise ValueError(f"{name} is {'a number' if isinstance(usual, float) else 'a whole number'}")
    return _checked(name, type(usual)(text))


def _checked(name: str, value: object) -> Value:
    usual = USUAL[name]
    if isinstance(usual, frozenset):
        if not isinstance(value, list) or not OPERATOR_OPTIONS.issuperset(value):
            raise ValueError(f"{name} are of {', '.join(sorted(OPERATOR_OPTIONS))}")
        return frozenset(value)
    if isinstance(usual, bool) or isinstance(value, bool):
        if type(value) is not type(usual):
            raise ValueError(f"{name} cannot be {value!r}")
        return value
    low, high = (1, DEEPEST) if name == "depth" else (0, _LARGEST)
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is from {low} to {high}")
    return type(usual)(value)
