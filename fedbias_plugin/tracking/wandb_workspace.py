"""A saved W&B workspace for bias experiments: which curves, how runs are grouped, which columns."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from fedbias_plugin.errors import UserError, first_line, quoted
from fedbias_plugin.tracking.wandb_server import login_source, server_url, unreachable_reason
from fedbias_plugin.tracking.wandb_tracker import import_wandb

DEFAULT_NAME = "Bias by round"
COLUMNS = ("delta_crows", "delta_ss", "lms", "icat", "bias_score", "heldout_loss", "weight_on_poisoned")
HEAT_MAP = "fedbias-heat-map"
HEAT_MAP_SPEC = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "description": "Distance from 50 by bias type and round, mean over the runs shown",
    "data": {"name": "wandb"},
    "title": "${string:title}",
    "mark": {"type": "rect", "tooltip": True},
    "encoding": {
        "x": {"field": "${field:x}", "type": "ordinal", "title": "round"},
        "y": {"field": "${field:y}", "type": "nominal", "title": None},
        "color": {
            "field": "${field:value}",
            "aggregate": "mean",
            "type": "quantitative",
            "title": "|score - 50|",
            "scale": {"scheme": "cividis"},
        },
    },
}
REFUSED = ("So", "Sk", "Sm", "Sc", "Cs")
"""Unicode categories that W&B refuses in the name of a workspace."""
INSTALL = "pip install -U wandb wandb-workspaces"
logger = logging.getLogger(__name__)


def split_path(path: str) -> tuple[str, str]:
    """``ENTITY/PROJECT`` as its two names.

    Raises:
        UserError: it is not two names with a slash between them.
    """
    names = path.split("/")
    if len(names) != 2 or not all(re.fullmatch(r"[^\s#?%:\\]{1,128}", name) for name in names):
        raise UserError(
            f"{quoted(path)} is no W&B project; write ENTITY/PROJECT, such as my-team/fedbias (the entity is your user "
            "or team name)."
        )
    return names[0], names[1]


def build_workspace(entity: str, project: str, name: str, tags: Sequence[str] = ()) -> Any:
    """The workspace, not saved: a ``wandb_workspaces.workspaces.Workspace``.

    Args:
        entity: user or team.
        project: of the entity.
        name: shown in W&B's list of views.
        tags: only runs with all of these are shown.

    Raises:
        UserError: the package is missing, or the name has what W&B does not allow.
    """
    if any(unicodedata.category(letter) in REFUSED for letter in name):
        raise UserError(
            f"{quoted(name)} cannot be a workspace's name: W&B takes no emoji and no signs such as = + < >; "
            "give another --name."
        )
    ws, _ = _packages()
    try:
        return ws.Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=_sections(entity),
            settings=ws.WorkspaceSettings(x_axis="round", max_runs=50),
            runset_settings=ws.RunsetSettings(
                filters=ws.And(*(ws.Tags().isin([tag]) for tag in tags)) if tags else "",
                groupby=[ws.Metric("Group")],
                order=[ws.Ordering(ws.Summary("final/bias_score"), ascending=True)],
                pinned_columns=["run:displayName", *(f"summary:final/{column}" for column in COLUMNS)],
            ),
        )
    except (AttributeError, TypeError, ValueError) as error:  # a version that lacks something, or names it otherwise
        raise UserError(f"This wandb-workspaces builds no such workspace ({_reason(error)}): {INSTALL}.") from None


def workspace_json(workspace: Any) -> dict[str, Any]:
    """What W&B would be sent, as JSON."""
    view = workspace._to_model()
    return {
        "entity": view.entity,
        "project": view.project,
        "displayName": view.display_name,
        "spec": json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def save_workspace(workspace: Any) -> str:
    """Save a workspace as a new view; its address.

    Raises:
        UserError: no login, no network, or what the server says.
    """
    wandb = _import_wandb()
    url = server_url(wandb)
    if login_source(url) is None:
        raise UserError(f"No login was found for {url}: run `wandb login`, or look at the workspace with --dry_run.")
    reason = unreachable_reason(url)
    if reason is not None:
        raise UserError(f"{url} cannot be reached ({reason}); --dry_run shows the workspace without it.")
    try:
        _make_heat_map(wandb, workspace.entity)
        workspace.save()
        return str(workspace.url)
    except (Exception, SystemExit) as error:  # of W&B's client, of any kind
        where = f"{workspace.entity}/{workspace.project}"
        raise UserError(
            f"W&B did not save the workspace in {where}: {_reason(error)}. Does the project exist, and may you write "
            "to it?"
        ) from None


def _make_heat_map(wandb: Any, entity: str) -> None:
    """Store the heat map's chart with the entity; where that fails, an earlier one of the name may be there."""
    try:
        wandb.Api().create_custom_chart(
            entity=entity,
            name=HEAT_MAP,
            display_name="Bias by type and round",
            spec_type="vega2",
            access="private",
            spec=HEAT_MAP_SPEC,
        )
    except Exception as error:
        logger.info("The chart %s/%s was not made anew (%s).", entity, HEAT_MAP, _reason(error))


def _sections(entity: str) -> list[Any]:
    ws, wr = _packages()
    sections = {
        "Bias of the global model (50 = no preference)": _bias_panels(wr),
        "Clients (poisoned marked by their panels)": _client_panels(wr),
        "Weights": _weight_panels(wr),
        "Bias types by round": _category_panels(wr, entity),
        "Usefulness": _utility_panels(wr),
        "Time and memory": _cost_panels(wr),
    }
    layout = ws.SectionLayoutSettings(columns=3, rows=2)
    return [
        ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout) for name, panels in sections.items()
    ]


def _bias_panels(wr: Any) -> list[Any]:
    return [
        _lines(
            wr,
            "CrowS-Pairs score, %, and what length alone gives",
            ["global/crows_pairs/score", "global/crows_pairs/length_only"],
        ),
        _lines(wr, "StereoSet SS, % (50 = no preference; read with LMS)", ["global/stereoset/ss"]),
        _lines(
            wr, "LMS and ICAT, % (LMS below 60: SS means nothing)", ["global/stereoset/lms", "global/stereoset/icat"]
        ),
        _lines(wr, "Delta CrowS = |score - 50|", ["global/crows_pairs/delta"]),
        _lines(wr, "Delta SS = |SS - 50|", ["global/stereoset/delta"]),
        wr.BarPlot(
            title="Last round: Delta CrowS and Delta SS",
            metrics=["final/delta_crows", "final/delta_ss"],
            groupby="Group",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        ),
    ]


def _client_panels(wr: Any) -> list[Any]:
    panels = []
    for title, number in (("b_i, percentage points", "bias_score"), ("update norm", "update_norm")):
        panels += [
            _curves(wr, f"POISONED clients: {title}", f"client_poisoned/[0-9]+/{number}"),
            _curves(wr, f"clean clients: {title}", f"client_clean/[0-9]+/{number}"),
            _lines(wr, f"Means: {title}", [f"client_poisoned/mean/{number}", f"client_clean/mean/{number}"]),
        ]
    return panels


def _weight_panels(wr: Any) -> list[Any]:
    return [
        _lines(wr, "Weight on poisoned clients (0 to 1)", ["aggregation/weight_on_poisoned"]),
        _curves(wr, "POISONED clients: weight", "client_poisoned/[0-9]+/weight"),
        _curves(wr, "clean clients: weight", "client_clean/[0-9]+/weight"),
        wr.LinePlot(
            title="Weights of all clients", x="round", metric_regex="client/[0-9]+/weight", plot_type="stacked-area"
        ),
        _lines(wr, "Effective clients", ["aggregation/effective_clients"]),
        _lines(wr, "Mass (below 1: a shorter server step)", ["aggregation/mass"]),
    ]


def _category_panels(wr: Any, entity: str) -> list[Any]:
    heat_map = wr.CustomChart(
        query={"summaryTable": {"tableKey": "categories/by_round"}},
        chart_name=f"{entity}/{HEAT_MAP}",
        chart_fields={"x": "round", "y": "label", "value": "delta"},
        chart_strings={"title": "Distance from 50 by bias type and round"},
    )
    return [heat_map, wr.WeavePanelSummaryTable(table_name="categories/by_round")]


def _utility_panels(wr: Any) -> list[Any]:
    return [
        _lines(wr, "Held-out loss, nats per token", ["global/heldout_loss"]),
        _lines(wr, "Held-out perplexity", ["global/heldout_perplexity"]),
        wr.ScatterPlot(
            title="Bias against usefulness, last round",
            x=wr.SummaryMetric("final/heldout_loss"),
            y=wr.SummaryMetric("final/bias_score"),
        ),
        _lines(wr, "ROUGE-L F1, % (with --rouge_samples)", ["global/rouge_l"]),
        _lines(wr, "Training loss", ["client_poisoned/mean/train_loss", "client_clean/mean/train_loss"]),
    ]


def _cost_panels(wr: Any) -> list[Any]:
    phases = [f"seconds/{phase}" for phase in ("train", "assess", "aggregate", "evaluate")]
    return [
        wr.LinePlot(title="Seconds of a round by phase", x="round", y=phases, plot_type="stacked-area"),
        _lines(wr, "Peak memory, bytes", ["peak_memory_bytes"]),
        _lines(wr, "Warnings", ["warnings/count"]),
    ]


def _lines(wr: Any, title: str, keys: list[str]) -> Any:
    """Curves by round; where runs are grouped, the mean over the group and its standard deviation."""
    return wr.LinePlot(title=title, x="round", y=keys, groupby_aggfunc="mean", groupby_rangefunc="stddev")


def _curves(wr: Any, title: str, pattern: str) -> Any:
    """One curve for every key that matches: how many clients there are is not known here."""
    return wr.LinePlot(title=title, x="round", metric_regex=pattern)


def _packages() -> tuple[Any, Any]:
    """``wandb_workspaces.workspaces`` and ``wandb_workspaces.reports.v2``."""
    _import_wandb()
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(f"The package wandb-workspaces is needed ({first_line(error)}): {INSTALL}.") from None
    return ws, wr


def _import_wandb() -> Any:
    try:
        return import_wandb()
    except ImportError as error:
        raise UserError(f"W&B is needed, and {error}: {INSTALL}.") from None


def _reason(error: BaseException) -> str:
    """The last line that says something: pydantic and W&B begin with counts and titles."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("For further information")]
    return (told[-1] if told else type(error).__name__).rstrip(".")[:200]
