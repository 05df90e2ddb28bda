"""The double's sources against the interface recorded from OpenFedLLM; the real sources too, where a checkout is."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.golden import golden_file

DOUBLE = Path(__file__).parents[1] / "openfedllm_double"
ANCHORS = {
    "config.py": [r"^parser = HfArgumentParser\("],
    "main_sft.py": [r"^from federated_learning import \*"],
    "main_dpo.py": [r"^from federated_learning import \*"],
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(golden_file("openfedllm_interface.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["double", "checkout"])
def host(request: pytest.FixtureRequest) -> Path:
    if request.param == "double":
        return DOUBLE
    if "OPENFEDLLM_HOME" not in os.environ:
        pytest.skip("no checkout of OpenFedLLM here; set OPENFEDLLM_HOME to its folder")
    return Path(os.environ["OPENFEDLLM_HOME"])


def body(host: Path, module: str) -> list[ast.stmt]:
    path = host / (module.replace(".", "/") + ".py")
    return ast.parse(path.read_text(encoding="utf-8")).body


def parameters(function: ast.FunctionDef) -> list[str]:
    """Names in order; ``**kwargs`` with its stars."""
    found = function.args
    assert found.posonlyargs + found.kwonlyargs == [], function.name
    assert found.vararg is None, function.name
    return [argument.arg for argument in found.args] + ([f"**{found.kwarg.arg}"] if found.kwarg else [])


def defaults(function: ast.FunctionDef) -> dict[str, str]:
    values = function.args.defaults
    with_default = function.args.args[len(function.args.args) - len(values) :]
    return {argument.arg: ast.unparse(value) for argument, value in zip(with_default, values, strict=True)}


def describe_class(module: str, found: ast.ClassDef) -> dict[str, Any]:
    methods = {part.name: parameters(part) for part in found.body if isinstance(part, ast.FunctionDef)}
    return {"module": module, "name": found.name, "bases": [ast.unparse(b) for b in found.bases], "methods": methods}


def describe_field(found: ast.AnnAssign) -> dict[str, str]:
    """The default is ``field(default=...)``'s, or the first argument of the double's own shorthand ``flag(...)``."""
    call = found.value
    assert isinstance(call, ast.Call), ast.unparse(found)
    named = [keyword.value for keyword in call.keywords if keyword.arg == "default"]
    default = ast.unparse((named or call.args)[0])
    return {"name": ast.unparse(found.target), "type": ast.unparse(found.annotation), "default": default}


def calls(tree: list[ast.stmt], names: set[str]) -> list[dict[str, Any]]:
    """Calls of ``names`` as they stand in the source: expressions of positional arguments, names of the others."""
    nodes = [node for statement in tree for node in ast.walk(statement) if isinstance(node, ast.Call)]
    nodes.sort(key=lambda node: (node.lineno, node.col_offset))
    return [
        {
            "name": ast.unparse(node.func),
            "positional": [ast.unparse(argument) for argument in node.args],
            "keywords": [keyword.arg for keyword in node.keywords],
        }
        for node in nodes
        if ast.unparse(node.func) in names
    ]


def test_every_recorded_function_has_its_parameters_and_defaults(host: Path, recorded: dict[str, Any]) -> None:
    assert len(recorded["functions"]) == 17
    for wanted in recorded["functions"]:
        tree = body(host, wanted["module"])
        found = [part for part in tree if isinstance(part, ast.FunctionDef) and part.name == wanted["name"]]
        assert len(found) == 1, wanted["name"]
        assert parameters(found[0]) == wanted["parameters"], wanted["name"]
        assert defaults(found[0]) == wanted["defaults"], wanted["name"]


def test_the_trainer_modules_hold_the_recorded_classes_and_methods_and_no_other(
    host: Path, recorded: dict[str, Any]
) -> None:
    modules = ["federated_learning.fed_local_sft", "federated_learning.fed_local_dpo"]
    found = [describe_class(m, part) for m in modules for part in body(host, m) if isinstance(part, ast.ClassDef)]
    assert len(found) == 5
    assert found == recorded["classes"]


def test_the_flags_have_their_recorded_order_types_and_defaults(host: Path, recorded: dict[str, Any]) -> None:
    found = {
        part.name: [describe_field(line) for line in part.body if isinstance(line, ast.AnnAssign)]
        for part in body(host, "config")
        if isinstance(part, ast.ClassDef)
    }
    assert [len(found[name]) for name in ("FedArguments", "ScriptArguments")] == [11, 28]
    assert found == recorded["dataclasses"]


@pytest.mark.parametrize(("script", "number"), [("main_sft", 16), ("main_dpo", 15)])
def test_a_script_calls_the_recorded_functions_in_order_with_the_recorded_arguments(
    host: Path, recorded: dict[str, Any], script: str, number: int
) -> None:
    names = {function["name"] for function in recorded["functions"]}
    wanted = [{key: call[key] for key in call if key != "line"} for call in recorded["call_sites"][f"{script}.py"]]
    assert len(wanted) == number
    assert calls(body(host, script), names) == wanted


@pytest.mark.parametrize("file", ANCHORS)
def test_the_lines_the_plugin_attaches_to_stand_once(host: Path, file: str) -> None:
    text = (host / file).read_text(encoding="utf-8")
    for anchor in ANCHORS[file]:
        assert len(re.findall(anchor, text, re.MULTILINE)) == 1, anchor
    assert "from __future__" not in text, "a line could not be put before it"
