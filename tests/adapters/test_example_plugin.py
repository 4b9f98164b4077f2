"""The example of a plug-in keeps the rules that it is there to show."""

from pathlib import Path

from patchbay_server.adapters.plugins import load
from patchbay_server.testing.adapter_suite import AdapterSuite

HERE = Path(__file__).parent
SECRET = {"api_key": "example-key-0123456789"}


class TestExamplePlugIn(AdapterSuite):
    adapter = load((), HERE / "plugins").adapters[0]
    secret = SECRET
    golden = HERE / "plugins" / "golden"
