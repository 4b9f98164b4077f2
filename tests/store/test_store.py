"""Every store passes the same suite."""

from patchbay_server.testing.store_suite import StoreSuite


class TestStore(StoreSuite):
    pass
