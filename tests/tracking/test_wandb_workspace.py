"""The saved workspace: valid by W&B's own models, and made of keys that runs log."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.tracking.flatten import flatten_record
from fedbias_plugin.tracking.highlights import HISTORY_COLUMNS, Highlights
from fedbias_plugin.tracking.records import RoundRecord
from fedbias_plugin.tracking.wandb_workspace import HEAT_MAP_SPEC, build_workspace, split_path, workspace_json

pytest.importorskip("wandb_workspaces", reason="the package wandb-workspaces is not installed")

Make = Callable[[int], RoundRecord]


@pytest.fixture(scope="module")
def workspace() -> Any:
    return build_workspace("me", "fedbias", "Bias by round", ["table1", "alg:fedavg"])


def panels(workspace: Any) -> Iterator[dict[str, Any]]:
    for section in workspace_json(workspace)["spec"]["section"]["panelBankConfig"]["sections"]:
        yield from section["panels"]


@pytest.fixture
def logged(make_record: Make) -> set[str]:
    """Keys of a run's curves and of its summary."""
    highlights = Highlights()
    for number in range(3):
        record = make_record(number)
        record.global_.rouge_l = {"f1": 25.0, "n": 4, "max_new_tokens": 128}
        highlights.add(record)
    return {*flatten_record(record), *highlights.scalars()}


def test_what_would_be_saved_is_read_back_as_the_same_workspace_by_wandbs_own_models(workspace: Any) -> None:
    from wandb_workspaces.workspaces import Workspace, internal

    view = workspace._to_model()
    text = view.spec.model_dump_json(by_alias=True, exclude_none=True)
    read = Workspace._from_model(
        internal.View(
            entity="me", project="fedbias", display_name=workspace.name, name="nw-1-v", id="1",
            spec=internal.WorkspaceViewspec.model_validate_json(text),
        )
    )  # fmt: skip
    assert [section.name for section in read.sections] == [section.name for section in workspace.sections]
    kinds = [[type(panel) for panel in section.panels] for section in workspace.sections]
    assert [[type(panel) for panel in section.panels] for section in read.sections] == kinds
    assert read.runset_settings.filters == workspace.runset_settings.filters
    assert "UnknownPanel" not in str(kinds)


def test_every_curve_column_and_bar_is_a_key_that_runs_log(workspace: Any, logged: set[str]) -> None:
    named, patterns = set(), set()
    for panel in panels(workspace):
        config = panel.get("config", {})
        named |= set(config.get("metrics", []))
        named |= {str(config[axis]).removeprefix("summary:") for axis in ("xAxis", "yAxis") if axis in config}
        patterns |= {config["metricRegex"]} if "metricRegex" in config else set()
    columns = workspace.runset_settings.pinned_columns
    named |= {column.removeprefix("summary:") for column in columns if column.startswith("summary:")}
    assert len(named) > 20
    assert named <= logged
    assert len(patterns) == 7
    for pattern in patterns:
        assert [key for key in logged if re.fullmatch(pattern, key)], pattern


def test_poisoned_and_clean_clients_are_in_panels_of_their_own(workspace: Any, logged: set[str]) -> None:
    by_title = {panel["config"].get("chartTitle"): panel["config"] for panel in panels(workspace)}
    pattern = by_title["POISONED clients: weight"]["metricRegex"]
    assert {key for key in logged if re.search(pattern, key)} == {"client_poisoned/0/weight"}
    pattern = by_title["clean clients: weight"]["metricRegex"]
    assert {key for key in logged if re.search(pattern, key)} == {"client_clean/4/weight"}
    pattern = by_title["Weights of all clients"]["metricRegex"]
    assert {key for key in logged if re.search(pattern, key)} == {"client/0/weight", "client/4/weight"}


def test_the_heat_map_reads_columns_of_the_table_that_runs_log(workspace: Any) -> None:
    (chart,) = [panel["config"] for panel in panels(workspace) if panel["viewType"] == "Vega2"]
    assert chart["panelDefId"] == "me/fedbias-heat-map"
    assert set(chart["fieldSettings"].values()) <= set(HISTORY_COLUMNS)
    fields = set(re.findall(r"\$\{field:(\w+)\}", str(HEAT_MAP_SPEC)))
    assert fields == chart["fieldSettings"].keys()
    assert set(re.findall(r"\$\{string:(\w+)\}", str(HEAT_MAP_SPEC))) == chart["stringSettings"].keys()


def test_runs_are_filtered_by_tags_grouped_by_setting_and_sorted_by_bias(workspace: Any) -> None:
    (runs,) = workspace_json(workspace)["spec"]["section"]["runSets"]
    wanted = [(part["key"]["name"], part["op"], part["value"]) for part in runs["filters"]["filters"]]
    assert wanted == [("tags", "IN", ["table1"]), ("tags", "IN", ["alg:fedavg"])]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert [key["key"]["name"] for key in runs["sort"]["keys"]] == ["final/bias_score"]


def test_two_names_make_a_project_and_anything_else_is_answered_with_an_example() -> None:
    assert split_path("my-team/fed.bias") == ("my-team", "fed.bias")
    for path in ("fedbias", "a/b/c", "/b", "a/", "a b/c", "a/b?x", "a/" + "b" * 200, "https://wandb.ai/me/p"):
        with pytest.raises(UserError, match="write ENTITY/PROJECT, such as my-team/fedbias"):
            split_path(path)


@pytest.mark.parametrize("name", ["bias 🙂", "a=b"])
def test_a_name_that_wandb_refuses_is_refused_with_what_is_wrong(name: str) -> None:
    with pytest.raises(UserError, match="no emoji and no signs such as"):
        build_workspace("me", "p", name)


@pytest.mark.parametrize("missing", ["wandb", "wandb_workspaces.workspaces"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match="pip install -U wandb wandb-workspaces"):
        build_workspace("me", "p", "x")


def test_a_version_that_lacks_something_is_named_with_the_line_that_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb_workspaces.workspaces as package

    monkeypatch.delattr(package, "Ordering")
    with pytest.raises(UserError, match=r"has no attribute 'Ordering'.*pip install -U wandb wandb-workspaces"):
        build_workspace("me", "p", "x")
