"""What the tests on hostile data share: a folder to overwrite, and a machine without data, hub or network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedbias_plugin.data import sources


@pytest.fixture(scope="module", autouse=True)
def _no_data_and_no_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Names of the hub give one row; nothing of this machine is found."""
    empty = tmp_path_factory.mktemp("nothing")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FEDBIAS_DATA", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_HOME", str(empty))
        patch.setattr(sources, "load_hub_rows", lambda *_: [{"instruction": "a", "output": "b", "prompt": "c"}])
        patch.chdir(empty)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all cases of a test: each case overwrites the file of the one before."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of the bundled model."""
    from fedbias_plugin.assets import TINY_MODEL
    from fedbias_plugin.training.models import load_tokenizer

    return load_tokenizer(str(TINY_MODEL))
