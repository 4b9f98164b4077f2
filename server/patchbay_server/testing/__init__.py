"""What authors of adapters and stores run against their own work. Needs pytest; nothing of the service imports it."""

import pytest

# The suites state their rules with `assert`: this makes pytest say what differs.
pytest.register_assert_rewrite("patchbay_server.testing.adapter_suite", "patchbay_server.testing.store_suite")
