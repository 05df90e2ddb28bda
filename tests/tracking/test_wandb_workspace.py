"""The saved workspace: valid by W&B's own models, and made of keys that runs log."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.registry import EXTENSIONS, names
from fedbias_plugin.tracking.categories import COLUMNS
from fedbias_plugin.tracking.records import RoundRecord
from fedbias_plugin.tracking.series import highlights, series
from fedbias_plugin.tracking.wandb_workspace import HEAT_MAP_SPEC, build_workspace, outline, split_path

pytest.importorskip("wandb_workspaces", reason="the package wandb-workspaces is not installed")

Make = Callable[[int], RoundRecord]
OF_CLIENTS = ("client_loss", "client_accuracy", "local_only")
OF_OTHERS = ("emulator",)


@pytest.fixture(scope="module")
def workspace() -> Any:
    return build_workspace("me", "fedbias", "Bias by round", ["table1", "alg:fedavg"])


def section_of(workspace: Any) -> dict[str, Any]:
    """What W&B would be sent, read back."""
    text = workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    section: dict[str, Any] = json.loads(text)["section"]
    return section


def panels(workspace: Any) -> Iterator[dict[str, Any]]:
    for section in section_of(workspace)["panelBankConfig"]["sections"]:
        yield from section["panels"]


@pytest.fixture
def logged(make_record: Make) -> set[str]:
    """Keys of a run's curves and of its summary."""
    rounds = [make_record(number) for number in range(3)]
    for record in rounds:
        record.global_.metrics["rouge_l"] = {"value": 25.0, "ideal": None, "f1": 25.0, "n": 4, "max_new_tokens": 128}
        accuracy = {"value": 0.5, "ideal": None, "majority": 0.2, "loss": 1.5, "n": 10}
        record.global_.metrics["heldout_accuracy"] = accuracy
        record.global_.metrics["preference_accuracy"] = {"value": 0.5, "ideal": None, "gap": -2.0, "n": 10}
        for name in OF_CLIENTS:
            record.global_.metrics[name] = {"value": 0.5, "clients": {"0": {"value": 0.4}, "4": {"value": 0.6}}}
        sides = {"sent": {"adapter": 8}, "received": {"adapter": 8}}
        record.payload = {**sides, "sent_total": 8, "received_total": 8} if record.clients else {}
    return {*series(rounds[-1]), *highlights(rounds)}


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
    sections = [metric_class(name) for name in names("metric") if metric_class(name).section]
    assert len(sections) == 8 + len(OF_CLIENTS) + len(OF_OTHERS)
    of_sections = {
        f"{'bias' if metric.ideal is not None else 'eval'}/{metric.name}" + ("" if key == "value" else f"_{key}")
        for metric in sections
        for _, keys in metric.panels
        for key in keys
    }
    assert of_sections <= named
    assert named <= logged | of_sections
    assert len(patterns) == 4 + len(OF_CLIENTS)
    for pattern in patterns:
        assert [key for key in logged if re.fullmatch(pattern, key)], pattern


def test_every_curve_of_the_model_and_of_poisoned_and_clean_clients_is_in_a_panel(
    workspace: Any, logged: set[str]
) -> None:
    shown = {key for panel in panels(workspace) for key in panel["config"].get("metrics", [])}
    left = {key for key in logged - shown if not key.startswith(("final/", "best/", "client_"))}
    assert left == {"round", "aggregation/refused"}


def test_every_client_has_a_curve_and_both_kinds_have_their_means_beside_it(workspace: Any, logged: set[str]) -> None:
    by_title = {panel["config"].get("chartTitle"): panel["config"] for panel in panels(workspace)}
    pattern = by_title["Weight of every client"]["metricRegex"]
    assert {key for key in logged if re.search(pattern, key)} == {"client_0/weight", "client_4/weight"}
    means = by_title["Bias score b_i: mean of poisoned, of clean"]
    assert means["metrics"] == ["poisoned/bias_score", "clean/bias_score"]


def test_the_heat_map_reads_columns_of_the_table_that_runs_log(workspace: Any) -> None:
    (chart,) = [panel["config"] for panel in panels(workspace) if panel["viewType"] == "Vega2"]
    assert chart["panelDefId"] == "me/fedbias-heat-map"
    assert set(chart["fieldSettings"].values()) <= set(COLUMNS)
    fields = set(re.findall(r"\$\{field:(\w+)\}", str(HEAT_MAP_SPEC)))
    assert fields == chart["fieldSettings"].keys()
    assert set(re.findall(r"\$\{string:(\w+)\}", str(HEAT_MAP_SPEC))) == chart["stringSettings"].keys()


def test_runs_are_filtered_by_tags_grouped_by_setting_and_sorted_by_bias(workspace: Any) -> None:
    (runs,) = section_of(workspace)["runSets"]
    wanted = [(part["key"]["name"], part["op"], part["value"]) for part in runs["filters"]["filters"]]
    assert wanted == [("tags", "IN", ["table1"]), ("tags", "IN", ["alg:fedavg"])]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert [key["key"]["name"] for key in runs["sort"]["keys"]] == ["final/bias_score"]


def test_the_panels_of_bias_are_those_of_the_metrics_scores_first(workspace: Any) -> None:
    lines = outline(workspace)
    assert lines[0] == "Bias by round (me/fedbias)"
    assert lines[1:10] == [
        "  Bias of the global model",
        "    CrowS-Pairs score, % (50 = no preference)",
        "    StereoSet SS, % (50 = no preference; read with LMS)",
        "    LMS and ICAT, % (LMS below 60: SS means nothing)",
        "    Delta CrowS = |score - 50|",
        "    Delta SS = |SS - 50|",
        "    Bias score b, percentage points",
        "    Last round: distance from the ideal",
        "  Bias types by round",
    ]
    assert "    Distance from 50 by bias type and round" in lines
    assert "    table categories/by_round" in lines
    start = lines.index("  Gender metrics of the global model")
    assert lines[start + 1] == "    Occupation bias: mean |log p(he) - log p(she)|, nats"
    assert "    Held-out loss, nats per token" in lines
    assert lines[-1] == (
        "  columns: displayName, final/crows_pairs/delta, final/stereoset/delta, final/stereoset/lms, "
        "final/stereoset/icat, final/heldout_loss, final/heldout_accuracy, final/heldout_accuracy/majority, "
        "final/heldout_accuracy/loss, final/preference_accuracy, final/preference_accuracy/gap, final/rouge_l, "
        "final/bias_score, final/weight_on_poisoned"
    )


def test_a_metric_of_somebody_else_has_a_panel_a_column_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTENSIONS["metric"], "gap", "tests.contract.guests:Gap")
    workspace = build_workspace("me", "fedbias", "x")
    by_title = {panel["config"].get("chartTitle"): panel["config"] for panel in panels(workspace)}
    assert by_title["word gap"]["metrics"] == ["bias/gap"]
    assert "final/gap/delta" in by_title["Last round: distance from the ideal"]["metrics"]
    assert "summary:final/gap/delta" in workspace.runset_settings.pinned_columns


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
