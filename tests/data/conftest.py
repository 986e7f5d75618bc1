"""What these tests cache stays theirs."""

import pytest


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def own_caches(caches, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(caches / "bora"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(caches / "datasets"))
