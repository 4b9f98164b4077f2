"""What every test may ask for."""

import pytest
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
