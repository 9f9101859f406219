"""How large the parts of a request may be. Per tenant; the defaults stop abuse and no client that we know of.

The length of plain text (prompt, system, suffix, template, message contents) is bounded by the body cap and by tokens.
What is bounded here costs more than its bytes say: a schema becomes a grammar, an image becomes pixels, a template
becomes a program.
"""

from __future__ import annotations

from dataclasses import dataclass


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
        if not 1 <= self.depth <= 256:
            raise ValueError("depth is at most 256: the scanner recurses, and shares its stack with its callers")
