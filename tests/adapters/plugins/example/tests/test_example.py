"""The conformance suite over the example: what every adapter has to keep."""

from pathlib import Path

from patchbay_example import ADAPTER

from patchbay_server.testing.adapter_suite import AdapterSuite

CREDENTIAL = {"api_key": "example-key-0123456789"}


class TestExample(AdapterSuite):
    adapter = ADAPTER
    secret = CREDENTIAL
    golden = Path(__file__).parent / "golden"
