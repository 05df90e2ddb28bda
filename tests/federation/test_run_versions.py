"""Which code a run was made with: versions of packages, and a hash of every extension's own file."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from fedbias_plugin.extension import Extension
from fedbias_plugin.federation.run_description import run_versions

SOURCE = '''
"""A rule."""
from fedbias_plugin.extension import Extension

class Mine(Extension):
    """Mine."""
    factor = 2.0  # why
    """What it is."""
'''


@pytest.fixture
def code_of(tmp_path, monkeypatch):
    def hashed(source: str, name: str) -> str | None:
        path = tmp_path / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module.Mine.code()

    return hashed


def test_the_hash_is_of_the_code_and_not_of_what_is_said_of_it(code_of):
    first = code_of(SOURCE, "first")
    said = SOURCE.replace('"""Mine."""', '"""Another sentence."""').replace("# why", "#").replace("What it is", "It")
    assert first is not None
    assert code_of(said, "said") == first
    assert code_of(SOURCE.replace("2.0", "3.0"), "other") != first


def test_an_extension_without_a_file_has_none():
    assert type("Mine", (Extension,), {"__module__": "nowhere"}).code() is None


def test_a_run_tells_the_code_of_what_its_flags_ask_for():
    asked = {"aggregation": "predictive", "attack": "none", "bias_benchmarks": "crows_pairs,harness:mine"}
    of_run = run_versions({**asked, "fed_alg": "scaffold", "track": "wandb"})
    assert of_run["torch"]
    named = {name for name in of_run if " " in name}
    assert named == {"rule predictive", "metric crows_pairs", "metric harness:mine", "algorithm scaffold"}
    assert "stage pair_step" in run_versions({**asked, "pair_steps": 2})


def test_a_name_of_an_earlier_version_is_no_error():
    assert not [name for name in run_versions({"aggregation": "host", "fed_alg": "local0"}) if name.startswith("rule")]
