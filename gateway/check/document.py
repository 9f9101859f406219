"""A YAML file as Envoy reads it, with the line of each value.

Envoy's reader (yaml-cpp) and Python's differ where YAML leaves room, and a check must not be told another story than
the proxy. So plain words are read as yaml-cpp does it for Envoy, and what the two would not agree on is refused: a key
that stands twice (one takes the first, the other the last), merge keys, tags, several documents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

Plain = dict[str, "Plain"] | list["Plain"] | str | int | float | bool | None
Path = tuple[str | int, ...]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C library is not in every build of PyYAML
_TRUE = {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y"}
_FALSE = {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N"}
_NULL = {"", "~", "null", "Null", "NULL"}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")}
_DEEPEST = 200


class Unreadable(Exception):
    """Not a file that can be checked: `line` (from 1), `why`."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(line, why)
        self.line = line
        self.why = why


@dataclass(slots=True)
class Document:
    """One file: its content, and where each value stands. Aliases are expanded; their lines are those of the anchor."""

    name: str
    content: dict[str, Plain]
    _lines: dict[Path, int] = field(default_factory=dict, repr=False)

    def line(self, path: Path) -> int:
        """The line of the value, or of the nearest thing around it that stands in the file. Spelling of keys: snake."""
        while path not in self._lines and path:
            path = path[:-1]
        return self._lines.get(path, 1)


def snake(name: str) -> str:
    """Envoy takes `statPrefix` for `stat_prefix`: one name for both."""
    if name.startswith("@") or not name.isidentifier():
        return name
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: "_" + found[1].lower(), name)


def read(name: str, text: str) -> Document:
    """Read one file. Raises Unreadable."""
    try:
        documents = list(yaml.compose_all(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(mark.line + 1 if mark else 1, error.problem or "no YAML") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise Unreadable(1, "no YAML") from error
    if len(documents) != 1 or not isinstance(documents[0], yaml.MappingNode):
        raise Unreadable(1, "not one YAML mapping")
    document = Document(name, {})
    content = _plain(documents[0], (), document._lines)
    assert isinstance(content, dict)  # noqa: S101  # a mapping node makes nothing else
    document.content = content
    return document


def _plain(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Plain:
    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > _DEEPEST:  # an alias inside its own anchor
        raise Unreadable(node.start_mark.line + 1, "too deep, or an anchor that contains itself")
    if node.tag not in _TAGS:
        raise Unreadable(node.start_mark.line + 1, f"the tag or key {node.tag.rpartition(':')[2]} is not plain YAML")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, number), lines) for number, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)  # noqa: S101  # there is no fourth kind
    return dict(_members(node, path, lines))


def _members(node: yaml.MappingNode, path: Path, lines: dict[Path, int]) -> Iterator[tuple[str, Plain]]:
    seen = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            raise Unreadable(line, "Envoy knows no merge keys")
        name = snake(key.value)
        if name in seen:
            raise Unreadable(line, f"{key.value} stands here twice: Envoy and other readers take different ones")
        seen.add(name)
        lines.setdefault((*path, name), line)
        yield key.value, _plain(value, (*path, name), lines)


def _scalar(node: yaml.ScalarNode) -> Plain:
    text: str = node.value
    if node.style is not None:  # quoted or a block
        return text
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
