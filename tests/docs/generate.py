"""The parts of the reference that the code itself says: settings, commands, errors, bounds.

A page says where they go:

    <!-- begin generated: NAME -->
    <!-- end generated -->

`python -m tests.docs.generate` (which is `make docs`) writes them; a test fails while a committed page is behind.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING

import yaml
from pydantic import AliasChoices, SecretStr

from gateway import cli
from policy.rules.bounds import MEANINGS, USUAL
from policy.rules.decision import Deny, Reason
from policy.rules.endpoints import ENDPOINTS, Kind
from policy.rules.schema import FIELDS, OPERATOR_OPTIONS, SAMPLING
from policy.rules.settings import SharedSettings
from policy.settings import PolicySettings
from processor.answers import clean_status
from processor.settings import ProcessorSettings
from tests.docs.pages import DOCS, ROOT, Page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings

_SECTION = re.compile(r"(<!-- begin generated: ([a-z-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(headings), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def code(text: str) -> str:
    return f"`{text}`"


# Settings.


def environment_name(name: str, field: FieldInfo) -> list[str]:
    """How a setting is spelled in the environment; the first is the one to use."""
    if isinstance(field.validation_alias, AliasChoices):
        return [str(choice) for choice in field.validation_alias.choices]
    return [f"PADDOCK_{name.upper()}"]


def _settings(settings: type[BaseSettings], without: type[BaseSettings] | None = None) -> str:
    rows = []
    for name, field in settings.model_fields.items():
        if without is not None and name in without.model_fields:
            continue
        names = environment_name(name, field)
        also = f" Also read as {' and '.join(map(code, names[1:]))}." if names[1:] else ""
        rows.append((code(names[0]), _default(field), f"{field.description or ''}{_bounds_of(field)}{also}"))
    return table(("Setting", "Default", "What it is"), rows)


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return "(empty)" if value in ("", None) else code(str(value))


def _bounds_of(field: FieldInfo) -> str:
    said = [
        f"{word} {getattr(bound, name)}"
        for bound in field.metadata
        for name, word in (("ge", "at least"), ("gt", "more than"), ("le", "at most"))
        if hasattr(bound, name)
    ]
    return f" ({', '.join(said)})" if said else ""


# Commands.


def _commands() -> str:
    parser = cli._parser()
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in subparsers._choices_actions}
    rows = [(f"[`paddock {name}`](#paddock-{name})", helps[name]) for name in subparsers.choices]
    sections = [_command(name, command) for name, command in subparsers.choices.items()]
    return table(("Command", "What it does"), rows) + "".join(sections)


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    positional = [_placed(action) for action in actions if not action.option_strings]
    options = ["[options]"] if any(action.option_strings for action in actions) else []
    usage = " ".join(["paddock", name, *positional, *options])
    description = re.sub(r"\s+", " ", parser.description or "").strip()
    more = [
        f"{group.description.rstrip('.')}."
        for group in parser._action_groups
        if group.title == "limits" and group.description
    ]
    rows = [(_spelled(action), _meaning(parser, action)) for action in actions]
    text = "\n\n".join((f"\n## `paddock {name}`", f"```text\n{usage}\n```", " ".join((description, *more))))
    return f"{text}\n\n{table(('Argument', 'Meaning'), rows)}" if rows else f"{text}\n"


def _placed(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return {"?": f"[{name}]", "*": f"[{name} …]"}.get(str(action.nargs), name)


def _spelled(action: argparse.Action) -> str:
    if not action.option_strings:
        return code(str(action.metavar or action.dest))
    value = "" if action.nargs == 0 else f" {action.metavar or _choices(action) or action.dest.upper()}"
    return ", ".join(code(f"{option}{value}") for option in action.option_strings)


def _choices(action: argparse.Action) -> str:
    return "|".join(map(str, action.choices)) if action.choices else ""


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    meaning = parser._get_formatter()._expand_help(action) if action.help else ""
    for group in parser._mutually_exclusive_groups:
        others = [_spelled(other).split(" ")[0].strip("`") for other in group._group_actions if other is not action]
        if action in group._group_actions and others:
            meaning += f"; not together with {', '.join(map(code, others))}"
    return meaning


# Errors.


def _reasons() -> str:
    rows = []
    for reason in Reason:
        deny = Deny(reason)
        error = json.loads(deny.body(""))["error"]
        rows.append((code(reason.value), str(deny.status), code(error["type"]), error["message"]))
    return table(("Reason", "Status", "`error.type`", "`error.message` where nothing more exact is said"), rows)


def _envoys_errors() -> str:
    envoy = yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text(encoding="utf-8"))
    manager = envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    rows = []
    for mapper in manager["local_reply_config"]["mappers"]:
        error = mapper.get("body_format_override", {}).get("json_format", {}).get("error")
        if error is not None:
            rows.append((str(error["code"]), code(error["type"]), error["message"]))
    return table(("Status", "`error.type`", "`error.message`"), rows)


def _upstreams_errors() -> str:
    by_answer: dict[tuple[int, str, str], list[int]] = {}
    for status in range(300, 600):
        by_answer.setdefault(clean_status(status), []).append(status)
    rows = []
    for (status, kind, message), statuses in by_answer.items():
        few = ", ".join(map(str, statuses)) if len(statuses) < 6 else _rest(statuses)
        rows.append((few, str(status), code(kind), message))
    return table(("Ollama answers", "The client gets", "`error.type`", "`error.message`"), rows)


def _rest(statuses: list[int]) -> str:
    """Many statuses in words: the classes that they fill."""
    classes = sorted({status // 100 for status in statuses})
    return "any other " + " or ".join(f"{number}xx" for number in classes)


# Request bodies.


def _bounds() -> str:
    rows = [(code(name), MEANINGS[name], _figure(value)) for name, value in USUAL.items()]
    return table(("Bound", "What", "At most"), rows)


def _figure(value: object) -> str:
    if isinstance(value, bool):
        return "allowed" if value else "not allowed"
    if isinstance(value, frozenset):
        return ", ".join(map(code, sorted(value))) or "none"
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}"


def _fields() -> str:
    rows = []
    for kind, known in FIELDS.items():
        by_type: dict[str, list[str]] = {}
        for name, expected in known.items():
            by_type.setdefault(expected.phrase, []).append(code(name))
        rows.append((_paths(kind), "; ".join(f"{', '.join(names)}: {phrase}" for phrase, names in by_type.items())))
    return table(("Endpoint", "Fields that are judged, and their types"), rows)


def _paths(kind: Kind) -> str:
    return ", ".join(code(path) for (_, path), endpoint in ENDPOINTS.items() if endpoint.kind is kind)


def _options() -> str:
    rows = (
        ("set by callers", ", ".join(map(code, SAMPLING))),
        ("refused: the operator's", ", ".join(map(code, sorted(OPERATOR_OPTIONS)))),
    )
    return table(("In `options`", "Names"), rows)


# Decision records.


def _decisions() -> str:
    rows = []
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        number, _, title = Page.read(path).headings[0].partition(". ")
        rows.append((number, f"[{title}]({path.name})"))
    return table(("No.", "Decision"), rows)


SECTIONS: dict[str, Callable[[], str]] = {
    "settings-shared": lambda: _settings(SharedSettings),
    "settings-policy": lambda: _settings(PolicySettings, SharedSettings),
    "settings-processor": lambda: _settings(ProcessorSettings, SharedSettings),
    "commands": _commands,
    "reasons": _reasons,
    "envoys-errors": _envoys_errors,
    "upstreams-errors": _upstreams_errors,
    "bounds": _bounds,
    "fields": _fields,
    "options": _options,
    "decisions": _decisions,
}


def generated(text: str) -> str:
    """A page's text with its generated sections as they are to be now; KeyError for a section of no known name."""
    return _SECTION.sub(lambda found: f"{found[1]}\n{SECTIONS[found[2]]()}\n{found[3]}", text)


def main() -> int:
    """Write every page that is behind."""
    for path in sorted(DOCS.rglob("*.md")):
        before = path.read_text(encoding="utf-8")
        now = generated(before)
        if now != before:
            path.write_text(now, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
