"""Runs read images in less time: how these are decoded is tested elsewhere."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _plain(plain_decoder):
    pass
