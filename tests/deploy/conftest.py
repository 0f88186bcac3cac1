"""The demo model, served, for the tests of what is deployed around it."""

from __future__ import annotations

from tests.integration.conftest import demo_repository, demo_server

__all__ = ["demo_repository", "demo_server"]
