"""The reference keeps up with the code: what is generated is current, and nothing that can be set is left out."""

from __future__ import annotations

import re

import pytest

from policy.settings import PolicySettings
from processor.settings import ProcessorSettings
from tests.docs import generate
from tests.docs.pages import DOCS, ROOT, Page, all_pages

GENERATED = [page for page in all_pages() if "<!-- begin generated: " in page.text]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bPADDOCK_[A-Z_]*[A-Z]\b", text))


def without_files(names: set[str], settings: set[str]) -> set[str]:
    """Names less those that say from which file a setting is read."""
    return {name for name in names if name.removesuffix("_FILE") not in settings or name in settings}


def settings() -> set[str]:
    return {
        name
        for each in (PolicySettings, ProcessorSettings)
        for field_name, field in each.model_fields.items()
        for name in generate.environment_name(field_name, field)
    }


@pytest.mark.parametrize("page", GENERATED, ids=lambda page: page.name)
def test_generated_sections_are_current(page: Page) -> None:
    assert generate.generated(page.text) == page.text, f"{page.name} is behind the code: run `make docs`"


def test_every_section_stands_on_a_page() -> None:
    placed = {name for page in GENERATED for name in re.findall(r"<!-- begin generated: ([a-z-]+) -->", page.text)}
    assert placed == set(generate.SECTIONS)


def test_every_setting_is_described() -> None:
    for each in (PolicySettings, ProcessorSettings):
        for name, field in each.model_fields.items():
            assert field.description and field.description.rstrip().endswith("."), f"{each.__name__}.{name}"


def test_every_variable_that_the_code_reads_is_in_the_reference() -> None:
    read = set()
    for package in ("policy", "processor", "gateway"):
        for path in (ROOT / package).rglob("*.py"):
            read |= names_in(path.read_text(encoding="utf-8"))
    documented = names_in((DOCS / "reference" / "settings.md").read_text(encoding="utf-8"))
    assert without_files(read, documented) - documented == set(), "undocumented variables"
    assert documented - read - settings() == set(), "documented variables that nothing reads"


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_pages_name_variables_that_exist(page: Page) -> None:
    documented = names_in((DOCS / "reference" / "settings.md").read_text(encoding="utf-8"))
    composed = set(re.findall(r"\$\{(PADDOCK_[A-Z_]+)", (ROOT / "compose.yaml").read_text(encoding="utf-8")))
    assert without_files(names_in(page.text), documented) - documented - composed == set()
