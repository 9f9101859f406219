"""`paddock check`: which files are meant, what is said of them, and the exit status for CI."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from gateway import embedded
from gateway.check.document import Document
from gateway.check.proof import Settings, document, prove, validated
from gateway.check.site import Finding
from gateway.failure import Failure
from gateway.launch import shipped_envoy
from policy.settings import PolicySettings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def check(args: argparse.Namespace) -> int:
    """0: everything holds; 1: something does not."""
    main, others, found = _files(args.files or [shipped_envoy() / "envoy.yaml"])
    if main is not None:
        found += prove(main, others, _settings(args, main))
        found += _asked(main, others)
    violations = [one for one in found if not one.note]
    if args.json:
        shown = [dataclasses.asdict(one) for one in found]
        print(json.dumps({"ok": not violations, "findings": shown}, indent=2))
    else:
        for one in found:
            print(one)
        names = ", ".join(one.name for one in (main, *others) if one is not None)
        if not violations:
            print(f"{names}: what must hold, holds", file=sys.stderr)
        else:
            print(f"{len(violations)} violation{'s' if len(violations) > 1 else ''}", file=sys.stderr)
    return 1 if violations else 0


def _settings(args: argparse.Namespace, main: Document) -> Settings:
    """As the services beside would read them from this environment."""
    limit = args.max_request_body_bytes or _limit_in_force()
    named = os.environ.get("PADDOCK_UPSTREAMS", "")
    return Settings(limit, tuple(url for url in named.split(",") if url.strip()), Path(main.name).parent)


def _limit_in_force() -> int:
    try:
        return PolicySettings().max_request_body_bytes
    except ValidationError as error:
        why = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Failure(f"a setting is wrong: {why}", do="Correct it, or name --max-request-body-bytes.") from error


def _files(paths: Sequence[Path]) -> tuple[Document | None, list[Document], list[Finding]]:
    """The bootstrap and its cluster files. One that is not named is looked for beside the other, then as shipped."""
    read = [document(path) for path in paths]
    found = [one for one in read if isinstance(one, Finding)]
    documents = [one for one in read if isinstance(one, Document)]
    mains = [one for one in documents if "resources" not in one.content]
    others = [one for one in documents if "resources" in one.content]
    if len(mains) > 1:
        raise Failure(
            f"{', '.join(one.name for one in mains)}: one bootstrap at a time", do="Check them by separate commands."
        )
    if found:
        return None, [], found
    for name, missing in (("envoy.yaml", not mains), ("clusters.yaml", not others)):
        if missing:
            one = document(_companion(name, paths))
            if isinstance(one, Finding):
                return None, [], [one]
            (mains if name == "envoy.yaml" else others).append(one)
    return mains[0], others, []


def _companion(name: str, paths: Sequence[Path]) -> Path:
    beside = [path.parent / name for path in paths if (path.parent / name).is_file()]
    return beside[0] if beside else shipped_envoy() / name


def _asked(main: Document, others: Sequence[Document]) -> list[Finding]:
    """Envoy's own opinion. Asked last: a typed violation says more than its words."""
    try:
        envoy = embedded.envoy_program()
    except Failure:
        why = "the executable was not found, so `envoy --mode validate` did not run"
        return [Finding(main.name, 1, "envoy", why, note=True)]
    refused = validated(main, others, Path(envoy))
    return [refused] if refused else []
