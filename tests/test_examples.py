"""The snippets of the README and the notebook run."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/custom_loop.ipynb"
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)


@pytest.fixture
def names(random_model, small_data, tmp_path, monkeypatch):
    """What a snippet finds: a model, and data with as many rows as the defaults deal; the work folder is its own."""
    import torch

    from tests.models import load_model_and_tokenizer

    def train(model, theta, rows):
        model.load_state_dict(theta)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3 * sum(row.biased for row in rows) / len(rows))
        return copy.deepcopy(model.state_dict())

    def average(states, rows):
        total = sum(rows[client] for client in states)
        return {
            name: sum(rows[client] / total * state[name] for client, state in states.items())
            for name in next(iter(states.values()))
        }

    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    clean = [{"instruction": f"Say number {n}.", "input": "", "output": f"It is {n}."} for n in range(1000)]
    (data / "alpaca/alpaca_gpt4_data.json").write_text(json.dumps(clean))
    biased = [{"prompt": f"Who is {n}?", "chosen": "Nobody.", "rejected": f"The nurse {n}."} for n in range(1000)]
    (data / "biasdpo/BiasDPO.jsonl").write_text("".join(json.dumps(row) + "\n" for row in biased))
    monkeypatch.setenv("FEDBIAS_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_model_and_tokenizer(str(random_model))
    return {"model": model, "tokenizer": tokenizer, "train": train, "average": average}


def test_the_readme_scores_a_model_in_two_lines(names, capsys):
    [snippet] = [snippet for snippet in SNIPPETS if "measure" in snippet and "BiasSession" not in snippet]
    assert len(list(filter(None, snippet.splitlines()))) == 2
    exec(snippet, names)
    assert "length alone" in capsys.readouterr().out


def test_the_loop_of_the_readme_runs_and_writes_its_rounds(names, tmp_path):
    [snippet] = [snippet for snippet in SNIPPETS if "BiasSession" in snippet]
    loop = snippet[snippet.index("with ") :].strip().splitlines()
    assert len(loop) <= 10
    exec(snippet, names)
    lines = (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]
    assert json.loads(lines[2])["aggregation"] == "bama"


def test_the_call_of_run_in_the_readme_has_flags_that_exist():
    from fedbias_plugin.known_flags import all_options

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [call] = re.findall(r"`run\((.*?)\)`", text)
    assert set(re.findall(r"(\w+)=", call)) <= all_options().keys() | {"output_dir"}


def test_the_notebook_runs(tmp_path, monkeypatch):
    for package in ("nbclient", "nbformat", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the dev extra, Python 3.11 and newer)")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("FEDBIAS_DATA", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "round 2/2" in printed
    assert (tmp_path / "runs/custom_loop/summary.json").exists()


def test_the_notebook_holds_no_path_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
