"""Every store passes the same suites."""

from patchbay_server.testing.hold_suite import HoldSuite
from patchbay_server.testing.store_suite import StoreSuite


class TestStore(StoreSuite):
    pass


class TestHolds(HoldSuite):
    pass
