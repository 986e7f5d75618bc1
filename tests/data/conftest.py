"""These tests have their own cache of Hugging Face datasets."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_datasets(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield
