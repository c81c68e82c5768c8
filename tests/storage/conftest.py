"""Stores to test."""

import secrets
from pathlib import Path

import pytest

from mrmodel.storage import Store, open_store


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.services)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store."""
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("s3_env")
    return open_store(f"s3://mrmodel/{secrets.token_hex(8)}/below")
