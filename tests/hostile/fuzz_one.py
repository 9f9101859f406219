"""One target under atheris, in a process that ends with it: `python -m tests.hostile.fuzz_one TARGET [options]`.

Apart from `fuzz`, because the parsers have to be imported under atheris's instrumentation, and nothing else.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["policy.rules", "processor"]):
    from tests.hostile.targets import TARGETS

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
