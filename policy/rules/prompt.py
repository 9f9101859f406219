"""What the model is given to read, measured in bytes and held to the bounds.

The measure is the base of a token estimate, so it errs upwards: the bytes of every text that can reach the prompt, a
flat figure for an image, and a flat figure for a token of `context`. It is not what is charged: the upstream's own
count settles that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policy.rules.schema import check_message
from policy.rules.strict_json import NotAcceptable, containers_in, inside

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.rules.bounds import Bounds

IMAGE_BYTES = 4096  # about a thousand tokens: vision models take from 256 to some 3000 for one image
CONTEXT_TOKEN_BYTES = 4
SCALAR_BYTES = 4


@dataclass(slots=True)
class Prompt:
    """Adds up one request. `bytes_` is the measure; an image's own bytes are bounded but not part of it."""

    bounds: Bounds
    bytes_: int = 0
    images: int = 0
    image_bytes: int = 0

    def text(self, text: object) -> None:
        """A text that the model reads; anything but a string weighs nothing."""
        if type(text) is str:
            self.bytes_ += len(text) if text.isascii() else len(text.encode())

    def tree(self, value: object) -> None:
        """A JSON value that is rendered into the prompt: all its strings, names included."""
        rest = [value]
        while rest:
            value = rest.pop()
            if type(value) is str:
                self.text(value)
            elif type(value) is dict:
                rest += value
                rest += value.values()
            elif type(value) is list:
                rest += value
            else:
                self.bytes_ += SCALAR_BYTES

    def messages(self, messages: object, *, parts: bool) -> int:
        """The messages of a chat; how many there are. `parts`: a content may be a list of typed parts (OpenAI)."""
        listed = messages if isinstance(messages, list) else []
        if len(listed) > self.bounds.messages:
            raise NotAcceptable(f"messages has more than {self.bounds.messages} entries")
        for message in listed:
            if type(message) is not dict:
                raise NotAcceptable("messages is to be a list of objects")
            content = message.get("content")
            if len(message) == 2 and type(content) is str and type(message.get("role")) is str:
                self.text(content)  # nothing but these two: most messages
                continue
            check_message(message)
            if type(message.get("role")) is not str:
                raise NotAcceptable("a message is to have a role, which is a string")
            self._message(message, parts=parts)
        return len(listed)

    def _message(self, message: dict[str, object], *, parts: bool) -> None:
        for name, value in message.items():
            if name == "content" and type(value) is list and parts:
                for part in value:
                    self._part(part)
            elif value is None or name == "role":
                continue
            elif name in ("content", "thinking", "reasoning", "tool_name", "tool_call_id", "name"):
                if type(value) is not str:
                    raise NotAcceptable(f"{name} of a message is to be a string")
                self.text(value)
            elif name == "images":
                self.image_list(value)
            elif name == "tool_calls":
                if type(value) is not list or not _all(dict, value):
                    raise NotAcceptable("tool_calls of a message is to be a list of objects")
                self.tree(value)

    def _part(self, part: object) -> None:
        """One part of an OpenAI content."""
        if type(part) is not dict:
            raise NotAcceptable("the parts of a content are to be objects")
        image = part.get("image_url")
        if part.get("type") != "image_url" or image is None:
            self.tree(part)
            return
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url.startswith("data:"):
            # Ollama fetches no image today. If it came to, a client could make it fetch from the operator's network.
            raise NotAcceptable("image_url is to be a data: URL")
        self._image(len(url))

    def image_list(self, images: object) -> None:
        """Base64 images, as the native API has them."""
        if images is None:
            return
        if type(images) is not list or not _all(str, images):
            raise NotAcceptable("images is to be a list of base64 strings")
        for image in images:
            self._image(len(image))

    def _image(self, base64_length: int) -> None:
        self.images += 1
        self.image_bytes += base64_length * 3 // 4
        self.bytes_ += IMAGE_BYTES
        if self.images > self.bounds.images:
            raise NotAcceptable(f"more than {self.bounds.images} images in one request")
        if self.image_bytes > self.bounds.image_bytes:
            raise NotAcceptable(f"images of more than {self.bounds.image_bytes} bytes in one request")

    def tools(self, tools: object, size: int) -> None:
        """Tool definitions; `size` is their length in the body."""
        if not tools:
            return
        if type(tools) is not list or not _all(dict, tools):
            raise NotAcceptable("tools is to be a list of objects")
        if len(tools) > self.bounds.tools:
            raise NotAcceptable(f"tools has more than {self.bounds.tools} entries")
        if size > self.bounds.tools_bytes:
            raise NotAcceptable(f"tools takes more than {self.bounds.tools_bytes} bytes")
        self.bytes_ += size

    def context(self, context: object) -> None:
        """Tokens of an earlier answer, handed back by the client of /api/generate."""
        if not isinstance(context, list):
            return
        if len(context) > self.bounds.context:
            raise NotAcceptable(f"context has more than {self.bounds.context} tokens")
        if not _all(int, context):
            raise NotAcceptable("context is to be a list of whole numbers")
        self.bytes_ += CONTEXT_TOKEN_BYTES * len(context)

    def inputs(self, texts: object) -> None:
        """What is to be embedded: one text or a list of them."""
        if not isinstance(texts, list):
            self.text(texts)
            return
        if len(texts) > self.bounds.inputs:
            raise NotAcceptable(f"input has more than {self.bounds.inputs} entries")
        if not _all(str, texts):
            raise NotAcceptable("input is to be a string or a list of strings")
        self.text("".join(texts))

    def template(self, template: object) -> None:
        """A prompt template. It runs in Ollama as a Go template, where a few lines can make gigabytes."""
        if not isinstance(template, str):
            return
        self.text(template)
        if len(template) > self.bounds.template_bytes:
            raise NotAcceptable(f"template is longer than {self.bounds.template_bytes} characters")
        if self.bounds.template_logic:
            return
        actions = _ACTION.findall(template)
        if len(actions) > self.bounds.template_actions:
            raise NotAcceptable(f"template has more than {self.bounds.template_actions} actions")
        if not all(_PLAIN_ACTION.fullmatch(action) for action in actions):
            raise NotAcceptable("template may insert fields and test them, and nothing more")


def _all(type_: type, values: list[object]) -> bool:
    """Whether all are of exactly this type: a bool is no int."""
    return set(map(type, values)) <= {type_}


_ACTION = re.compile(r"\{\{(.*?)(?:\}\}|\Z)", re.DOTALL)
_PLAIN_ACTION = re.compile(
    r"(?:-\s)?\s*(?:\.[A-Za-z]+|(?:else\s+)?if(?:\s+(?:not|and|or))?(?:\s+\.[A-Za-z]+)+|else|end)\s*(?:\s-)?"
)


def check_format(schema: object, size: int, bounds: Bounds) -> None:
    """A JSON schema for the answer: Ollama compiles it to a grammar."""
    if size > bounds.format_bytes:
        raise NotAcceptable(f"the format takes more than {bounds.format_bytes} bytes")
    layer = containers_in([schema])
    repeats = 0.0
    for _ in range(bounds.format_depth):
        if not layer:
            break
        repeats += sum(_repeats(value) for value in layer if isinstance(value, dict))
        layer = [inner for value in layer for inner in containers_in(inside(value))]
    if layer:
        raise NotAcceptable(f"the format nests more than {bounds.format_depth} deep")
    if repeats > bounds.format_repeats:
        raise NotAcceptable(f"the format counts out more than {bounds.format_repeats} repetitions")


# Words of a JSON schema that say how often something is repeated: a few bytes that Ollama may write out one by one.
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_BRACES = re.compile(r"\{([^{}]*+)\}")
_COUNT = re.compile(r"[0-9]+")


def _repeats(schema: Mapping[str, object]) -> float:
    counts = [value for name in _COUNTS if isinstance(value := schema.get(name), int | float)]
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        counts += [float(count) for braces in _BRACES.findall(pattern) for count in _COUNT.findall(braces)]
    return sum(max(count, 0) for count in counts)


def check_stop(stop: object, bounds: Bounds) -> None:
    """Sequences that end an answer."""
    if not isinstance(stop, list):
        return
    if len(stop) > bounds.stop:
        raise NotAcceptable(f"stop has more than {bounds.stop} entries")
    if not _all(str, stop):
        raise NotAcceptable("stop is to hold strings")
