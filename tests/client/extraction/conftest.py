"""The client of these jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cnclip_client import Client, Retry


@pytest.fixture
def client(triton: Any) -> Iterator[Client]:
    retry = Retry(attempts=1000, first_delay_s=0.01, max_delay_s=0.1, deadline_s=20)
    with Client(triton.url, model="vit-b-16", retry=retry) as connected:
        yield connected
