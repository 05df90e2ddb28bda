"""Which libraries work together."""

from __future__ import annotations

from importlib import metadata

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.stack import detect_stack


@pytest.fixture
def installed(monkeypatch):
    """``installed(trl="1.16.0", transformers=None)``: these versions, None for a package that is missing."""

    def pretend(**versions: str | None) -> None:
        def version(name: str) -> str:
            if versions[name] is None:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)

    return pretend


@pytest.mark.parametrize(
    ("trl", "transformers", "stack"),
    [
        ("0.7.2", "4.31.0", "pinned"),
        ("0.7.11", "4.36.2", "pinned"),
        ("0.7.2", "4.31", "pinned"),
        ("1.0", "5", "current"),
        ("1", "5.0.0rc1", "current"),
        ("1.16.0", "5.23.0", "current"),
        ("2.0.0.dev0", "6.1", "current"),
    ],
)
def test_known_versions_are_recognised(installed, trl, transformers, stack):
    installed(trl=trl, transformers=transformers)
    assert detect_stack() == stack


@pytest.mark.parametrize(
    ("trl", "transformers"),
    [
        ("0.7.1", "4.31.0"),
        ("0.8.0", "4.36.2"),
        ("0.7.2", "4.30.2"),
        ("0.7.2", "4.37.0"),
        ("0.7.2", "5.23.0"),
        ("1.16.0", "4.57.0"),
        ("0.29.1", "5.0.0"),
    ],
)
def test_other_versions_are_refused_with_those_found_those_that_work_and_the_line(installed, trl, transformers):
    installed(trl=trl, transformers=transformers)
    with pytest.raises(UserError) as error:
        detect_stack()
    message = str(error.value)
    assert f"trl {trl}, transformers {transformers}: not known to work together" in message
    assert "trl 0.7.2 with transformers 4.31.0 (constraints-openfedllm-pinned.txt)" in message
    assert "trl 1.16 with transformers 5.23 (constraints.txt)" in message
    assert 'pip install "trl==1.16.*" "transformers==5.23.*" -c constraints.txt' in message


@pytest.mark.parametrize(
    ("versions", "missing"),
    [
        ({"trl": None, "transformers": "5.23.0"}, "trl: not installed"),
        ({"trl": "1.16.0", "transformers": None}, "transformers: not installed"),
        ({"trl": None, "transformers": None}, "trl and transformers: not installed"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(installed, versions, missing):
    installed(**versions)
    with pytest.raises(UserError, match=rf'^{missing}.*: pip install -c constraints.txt -e "\.\[openfedllm\]"$'):
        detect_stack()
