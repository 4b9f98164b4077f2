"""Fuzzes one decoder, guided by coverage: `python -m tests.fuzz.run TARGET [options of libFuzzer] [folders of seeds]`.

To look for longer than the tests do, give `-max_total_time=600` and a folder for what is found, before
`tests/fuzz/seeds/TARGET`. An input that breaks a rule is written to a file: mend the decoder, and keep the file as a
seed.
"""

import sys

import atheris

with atheris.instrument_imports(include=["patchbay_server.wire"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
