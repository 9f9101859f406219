"""The documentation as tests read it: pages, their headings, links and code blocks.

A fence's info string says what becomes of a block; a reader's browser shows its first word only:

    ```bash run               runs in `test_snippets`, against a real gateway, in order within its page
    ```bash not-run="why"     is parsed and checked as far as that goes, and says why it does not run
    ```text output            what the block above it printed; `…` is anything within a line, alone any lines
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FRONT = ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md")

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
_HEADING = re.compile(r"^(#{1,6}) +(.*?) *#*$")
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_ASSIGNMENT = re.compile(r"[A-Za-z_]+=")
_BEFORE_COMMANDS = frozenset({"do", "then", "else", "!", "exec", "if", "while", "until"})
_CODE = re.compile(r"`+[^`]*`+")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    line: int  # of its opening fence
    language: str
    words: frozenset[str]
    why_not: str | None  # of `not-run="…"`
    text: str

    @property
    def runs(self) -> bool:
        return "run" in self.words

    @property
    def is_output(self) -> bool:
        return "output" in self.words


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path
    text: str = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Page:
        return cls(path, path.read_text(encoding="utf-8"))

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(self._blocks())

    @cached_property
    def prose(self) -> str:
        """The page with its fenced blocks left out; lines keep their numbers."""
        lines = self.text.split("\n")
        for first, last in self._fences():
            for number in range(first, last + 1):
                lines[number] = ""
        return "\n".join(lines)

    @cached_property
    def anchors(self) -> frozenset[str]:
        """What a `#fragment` may name, made of the headings as GitHub makes it."""
        found: set[str] = set()
        for line in self.prose.split("\n"):
            heading = _HEADING.match(line)
            if heading is None:
                continue
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[2])
            anchor = base = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            count = 0
            while anchor in found:
                count += 1
                anchor = f"{base}-{count}"
            found.add(anchor)
        return frozenset(found)

    @cached_property
    def headings(self) -> tuple[str, ...]:
        return tuple(heading[2] for line in self.prose.split("\n") if (heading := _HEADING.match(line)))

    @cached_property
    def links(self) -> tuple[str, ...]:
        return tuple(_LINK.findall(_CODE.sub("", self.prose)))

    @cached_property
    def code_spans(self) -> tuple[str, ...]:
        """What stands in backticks in the prose."""
        return tuple(span.strip("`").strip() for span in _CODE.findall(self.prose))

    def table(self, heading: str) -> list[list[str]]:
        """The cells of the first table under `heading`, its own first row left out."""
        _, _, after = self.prose.partition(f"# {heading}\n")
        rows: list[list[str]] = []
        for line in after.split("\n"):
            if line.startswith("|"):
                rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            elif rows:
                break
        assert len(rows) > 2, f"{self.name}: no table under {heading!r}"
        return rows[2:]

    def _fences(self) -> Iterator[tuple[int, int]]:
        """First and last line of each fenced block, from 0."""
        opened: tuple[int, str] | None = None
        for number, line in enumerate(self.text.split("\n")):
            fence = _FENCE.match(line)
            if fence is None:
                continue
            if opened is None:
                opened = (number, fence["fence"])
            elif fence["fence"].startswith(opened[1]) and not fence["info"].strip():
                yield opened[0], number
                opened = None
        assert opened is None, f"{self.name}:{opened[0] + 1}: a code block without an end"

    def _blocks(self) -> Iterator[Block]:
        lines = self.text.split("\n")
        for first, last in self._fences():
            fence = _FENCE.match(lines[first])
            assert fence is not None
            indent = len(fence["indent"])
            language, *words = shlex.split(fence["info"]) or [""]
            why = [word.partition("=")[2] for word in words if word.startswith("not-run=")]
            text = "\n".join(line[indent:] if not line[:indent].strip() else line for line in lines[first + 1 : last])
            yield Block(first + 1, language, frozenset(words), why[0] if why else None, text)


def all_pages() -> list[Page]:
    return [Page.read(path) for path in (*(ROOT / name for name in FRONT), *sorted(DOCS.rglob("*.md")))]


def commands(text: str, program: str) -> Iterator[list[str]]:
    """The arguments of each call of `program` in a shell script, however it is spelled (`.venv/bin/paddock`)."""
    lexer = shlex.shlex(text.replace("\\\n", " ").replace("\n", "\n;\n"), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    call: list[str] | None = None
    first = True  # whether the next word is a command's name
    for token in (*lexer, ";"):
        if set(token) <= set("();<>|&"):
            if call is not None:
                yield call
            call, first = None, not set(token) <= set("<>")
        elif call is not None:
            call.append(token)
        elif first and (token == program or token.endswith(f"bin/{program}")):
            call = []
        elif not _ASSIGNMENT.match(token) and token not in _BEFORE_COMMANDS:
            first = False
