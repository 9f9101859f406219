"""Every page of the documentation, without running anything: links lead somewhere, code parses, names exist."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import re
import subprocess
import tomllib
import xml.etree.ElementTree as ElementTree  # our own committed files
from typing import TYPE_CHECKING

import pytest
import yaml

from gateway import cli
from tests.docs.pages import DOCS, FRONT, ROOT, Page, all_pages, commands

if TYPE_CHECKING:
    from tests.docs.pages import Block

PAGES = all_pages()
SHELL = ("bash", "sh", "console")
# Pages that their own builders test, with programs of their own.
TESTED_ELSEWHERE = (
    "docs/how-to/encrypted-clients/",
    "docs/how-to/browser-sessions",
    "docs/reference/envelope-protocol.md",
)
RUNNABLE = ("bash", "python", "sql")
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()}
BETWEEN_PARTS = re.compile(r"[\w.-]+(/[\w.{}*-]+)+/?")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def of(page: Page, *languages: str) -> list[Block]:
    return [block for block in page.blocks if block.language in languages]


@each_page
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leaves the tree"
        if fragment:
            assert fragment in Page.read(target).anchors, f"{page.name}: {link}"


@each_page
def test_a_page_has_one_title_and_levels_in_order(page: Page) -> None:
    levels = [len(marks) for marks in re.findall(r"^(#{1,6}) ", page.prose, re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels


@each_page
def test_code_parses(page: Page) -> None:
    for block in page.blocks:
        where = f"{page.name}:{block.line}"
        match block.language:
            case "bash" | "sh":
                done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{where}: {done.stderr}"
            case "python":
                compile(block.text, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            case "json":
                json.loads(block.text)
            case "yaml":
                assert list(yaml.safe_load_all(block.text)), where
            case "toml":
                tomllib.loads(block.text)
            case "mermaid":
                assert re.match(r"(flowchart|sequenceDiagram|stateDiagram-v2)\b", block.text), where
            case language:
                known = (
                    "text",
                    "http",
                    "sql",
                    "console",
                    "ini",
                    "lua",
                    "javascript",
                    "dockerfile",
                    "html",
                    "promql",
                    "",
                )
                assert language in known, f"{where}: {language!r}"


@each_page
def test_code_says_whether_it_runs(page: Page) -> None:
    if page.name.startswith(TESTED_ELSEWHERE):
        return
    for block in of(page, *RUNNABLE):
        assert block.runs != (block.why_not is not None), f'{page.name}:{block.line}: `run` or `not-run="why"`'
        assert block.why_not is None or len(block.why_not) > 5, f"{page.name}:{block.line}: why not?"


@each_page
def test_paddock_commands_are_spelled_right(page: Page) -> None:
    parser = cli._parser()
    for block in of(page, *SHELL):
        for arguments in commands(block.text, "paddock"):
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                try:
                    parser.parse_args(arguments)
                except SystemExit as end:  # 0: --help and --version
                    assert end.code in (0, None), (
                        f"{page.name}:{block.line}: paddock {' '.join(arguments)}: {said.getvalue()}"
                    )


@each_page
def test_make_targets_exist(page: Page) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    wanted = [arguments[0] for block in of(page, *SHELL) for arguments in commands(block.text, "make") if arguments]
    wanted += re.findall(r"`(?:[A-Z]+=\S+ )?make ([a-z-]+)[^`]*`", page.prose)
    assert set(wanted) <= targets


@each_page
def test_paths_in_the_text_exist(page: Page) -> None:
    for span in page.code_spans:
        if BETWEEN_PARTS.fullmatch(span) and span.split("/")[0] in TOP:
            found = list(ROOT.glob(span.rstrip("/"))) if "*" in span else [ROOT / span]
            assert found and all(path.exists() for path in found), f"{page.name}: `{span}`"


@each_page
def test_no_line_ends_in_space(page: Page) -> None:
    for number, line in enumerate(page.text.split("\n")):
        assert line == line.rstrip(), f"{page.name}:{number + 1}"


def test_every_page_is_in_the_index() -> None:
    index = Page.read(DOCS / "README.md")
    decisions = Page.read(DOCS / "decisions" / "README.md")
    linked = {
        (page.path.parent / link.partition("#")[0]).resolve() for page in (index, decisions) for link in page.links
    }
    missing = {page.name for page in PAGES if page.path.is_relative_to(DOCS)} - {index.name}
    missing -= {str(path.relative_to(ROOT)) for path in linked if path.is_relative_to(ROOT)}
    assert missing == set(), "link them from docs/README.md (a decision: run `make docs`)"


def test_pictures_are_well_formed() -> None:
    for path in DOCS.rglob("*.svg"):
        root = ElementTree.parse(path).getroot()  # noqa: S314  # our own committed file
        assert root.get("viewBox"), path
        assert root.find("{http://www.w3.org/2000/svg}title") is not None, (
            f"{path}: a title is what a screen reader says"
        )


def test_the_readme_begins_with_two_commands() -> None:
    readme = Page.read(ROOT / "README.md")
    first = next(block for block in of(readme, *SHELL))
    assert [line.split("#")[0].strip() for line in first.text.strip().split("\n")] == ["make demo", "make test"]


def test_the_changelog_has_its_form() -> None:
    """https://keepachangelog.com/en/1.1.0/"""
    changelog = Page.read(ROOT / "CHANGELOG.md")
    releases = re.findall(r"^## (.*)$", changelog.prose, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    for release in releases[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", release), release
    assert set(re.findall(r"^### (.*)$", changelog.prose, re.MULTILINE)) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security",
    }  # fmt: skip


def test_decision_records_have_their_form() -> None:
    numbers = []
    for path in sorted((DOCS / "decisions").glob("*.md")):
        if path.name == "README.md":
            continue
        record = Page.read(path)
        number, _, title = record.headings[0].partition(". ")
        assert path.name.startswith(f"{number}-") and title, path.name
        assert [heading for heading in record.headings[1:] if heading in ("Context", "Decision", "Consequences")] == [
            "Context", "Decision", "Consequences",
        ], path.name  # fmt: skip
        numbers.append(number)
    assert len(numbers) == len(set(numbers)), "two records have one number"


def test_front_pages_exist() -> None:
    assert all((ROOT / name).is_file() for name in (*FRONT, "LICENSE"))
