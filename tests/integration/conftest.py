"""Fixtures of the tests that mount file systems."""

import pytest

from tests.clients import FindTool
from tests.mounts import Tools, find_mount_tools


@pytest.fixture
def mount_tools(client_tool: FindTool) -> Tools:
    """What it takes to mount an ext4 on a volume."""
    return find_mount_tools(client_tool)
