"""A saved W&B workspace for bias experiments: which curves, how runs are grouped, which columns."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from fedbias_plugin.errors import UserError, first_line, quoted
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.registry import load
from fedbias_plugin.tracking.numbers import metric_names
from fedbias_plugin.tracking.records import Seconds
from fedbias_plugin.tracking.series import curve, metric_measures
from fedbias_plugin.tracking.wandb_server import import_wandb, login_source, server_url, unreachable_reason
from fedbias_plugin.tracking.wandb_tracker import CATEGORIES

DEFAULT_NAME = "Bias by round"
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
OVER_GROUP = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
"""Where runs are grouped: the mean over the group and its standard deviation."""
logger = logging.getLogger(__name__)


def split_path(path: str) -> tuple[str, str]:
    """``ENTITY/PROJECT`` as its two names.

    Raises:
        UserError: it is not two names with a slash between them.
    """
    parts = path.split("/")
    if len(parts) != 2 or not all(re.fullmatch(r"[^\s#?%:\\]{1,128}", name) for name in parts):
        raise UserError(
            f"{quoted(path)} is no W&B project; write ENTITY/PROJECT, such as my-team/fedbias (the entity is your user "
            "or team name)."
        )
    return parts[0], parts[1]


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
    _wandb()
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(f"The package wandb-workspaces is needed ({first_line(error)}): {INSTALL}.") from None
    columns = [column for metric in metric_names() if not metric_class(metric).section for column in _columns(metric)]
    columns += ["bias_score", "weight_on_poisoned"]
    try:
        layout = ws.SectionLayoutSettings(columns=3, rows=2)
        return ws.Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=[
                ws.Section(name=title, panels=panels, is_open=True, layout_settings=layout)
                for title, panels in _sections(wr, entity).items()
            ],
            settings=ws.WorkspaceSettings(x_axis="round", max_runs=50),
            runset_settings=ws.RunsetSettings(
                filters=ws.And(*(ws.Tags().isin([tag]) for tag in tags)) if tags else "",
                groupby=[ws.Metric("Group")],
                order=[ws.Ordering(ws.Summary("final/bias_score"), ascending=True)],
                pinned_columns=["run:displayName", *(f"summary:final/{column}" for column in columns)],
            ),
        )
    except (AttributeError, TypeError, ValueError) as error:  # a version that lacks something, or names it otherwise
        raise UserError(f"This wandb-workspaces builds no such workspace ({_reason(error)}): {INSTALL}.") from None


def outline(workspace: Any) -> list[str]:
    """What a workspace shows, a line for each section, panel and list of columns."""
    lines = [f"{workspace.name} ({workspace.entity}/{workspace.project})"]
    for section in workspace.sections:
        lines.append(f"  {section.name}")
        for panel in section.panels:
            strings = getattr(panel, "chart_strings", {})
            title = strings.get("title") or getattr(panel, "title", None) or f"table {panel.table_name}"
            lines.append(f"    {title}")
    columns = (column.partition(":")[2] for column in workspace.runset_settings.pinned_columns)
    return [*lines, f"  columns: {', '.join(columns)}"]


def save_workspace(workspace: Any) -> str:
    """Save a workspace as a new view; its address.

    Raises:
        UserError: no login, no network, or what the server says.
    """
    wandb = _wandb()
    url = server_url(wandb)
    if login_source(url) is None:
        raise UserError(f"No login was found for {url}: run `wandb login`, or look at the workspace with --dry_run.")
    reason = unreachable_reason(url)
    if reason is not None:
        raise UserError(f"{url} cannot be reached ({reason}); --dry_run shows the workspace without it.")
    try:
        try:
            wandb.Api().create_custom_chart(
                entity=workspace.entity,
                name=HEAT_MAP,
                display_name="Bias by type and round",
                spec_type="vega2",
                access="private",
                spec=HEAT_MAP_SPEC,
            )
        except Exception as error:  # an earlier one of the name may be there
            logger.info("The chart %s/%s was not made anew (%s).", workspace.entity, HEAT_MAP, _reason(error))
        workspace.save()
        return str(workspace.url)
    except (Exception, SystemExit) as error:  # of W&B's client, of any kind
        where = f"{workspace.entity}/{workspace.project}"
        raise UserError(
            f"W&B did not save the workspace in {where}: {_reason(error)}. Does the project exist, and may you write "
            "to it?"
        ) from None


def _sections(wr: Any, entity: str) -> dict[str, list[Any]]:
    """Title of a section -> its panels; ``wr`` is ``wandb_workspaces.reports.v2``."""

    def lines(title: str, *keys: str) -> Any:
        return wr.LinePlot(title=title, x="round", y=list(keys), **OVER_GROUP)

    def both(title: str, number: str, **more: Any) -> list[Any]:
        """The means, and a curve a client: how many there are is not known here."""
        means = lines(f"{title}: mean of poisoned, of clean", f"poisoned/{number}", f"clean/{number}")
        every = f"client_[0-9]+/{number}"
        return [means, wr.LinePlot(title=f"{title} of every client", x="round", metric_regex=every, **more)]

    def every_client(section: str) -> list[Any]:
        """A panel a metric of the section that is of each client's own rows."""
        own = [metric for metric in classes.values() if metric.section == section and metric.by_round]
        return [
            wr.LinePlot(title=f"{metric.title}, every client", x="round", metric_regex=f"client_[0-9]+/{metric.name}")
            for metric in own
        ]

    heat_map = wr.CustomChart(
        query={"summaryTable": {"tableKey": CATEGORIES}},
        chart_name=f"{entity}/{HEAT_MAP}",
        chart_fields={"x": "round", "y": "label", "value": "delta"},
        chart_strings={"title": "Distance from 50 by bias type and round"},
    )
    scatter = wr.ScatterPlot(
        title="Bias against held-out loss, last round",
        x=wr.SummaryMetric("final/heldout_loss"),
        y=wr.SummaryMetric("final/bias_score"),
    )
    classes = {name: metric_class(name) for name in metric_names()}
    compared = [name for name, metric in classes.items() if metric.ideal is not None and not metric.section]
    distances = [f"final/{name}/delta" for name in compared]
    others = {
        title: [lines(*panel) for kind in ("bias", "eval") for panel in _of_section(title, kind)] + every_client(title)
        for title in dict.fromkeys(metric.section for metric in classes.values() if metric.section)
    }
    bars = wr.BarPlot(title="Last round: distance from the ideal", metrics=distances, groupby="Group", **OVER_GROUP)
    phases = [curve(f"seconds/{part}") for part in vars(Seconds())]
    return {
        "Bias of the global model": [
            *(lines(*panel) for panel in _of_section("", "bias")),
            lines("Bias score b, percentage points", curve("bias_score")),
            bars,
        ],
        "Bias types by round": [heat_map, wr.WeavePanelSummaryTable(table_name=CATEGORIES)],
        "Training and usefulness": [
            lines("Training loss, mean over rows", "train/loss"),
            lines("Learning rate", curve("learning_rate")),
            *(lines(*panel) for panel in _of_section("", "eval")),
            scatter,
        ],
        "Clients": [
            *both("Bias score b_i", "bias_score"),
            *both("Update norm", "update_norm"),
            *both("Training loss", "train_loss"),
        ],
        "Weights": [
            lines("Weight on poisoned clients (0 to 1)", curve("weight_on_poisoned")),
            *both("Weight", "weight", plot_type="stacked-area"),
            lines("Effective clients", curve("effective_clients")),
            lines("Mass (below 1: a shorter server step)", curve("mass")),
        ],
        "Time and memory": [
            wr.LinePlot(title="Seconds of a round by phase", x="round", y=phases, plot_type="stacked-area"),
            lines("Peak memory, MiB", curve("peak_memory_mib")),
            lines("Bytes of a round, by definition", curve("payload/sent"), curve("payload/received")),
            lines("Bytes since the beginning", curve("payload/sent_total"), curve("payload/received_total")),
            lines("Warnings", "run/warnings"),
        ],
        **others,
    }


def _of_section(section: str, kind: str) -> list[tuple[str, ...]]:
    """Title and curves of the panels of the metrics of a section whose curves are of a ``kind``, distances last."""
    panels: list[tuple[str, ...]] = []
    for name in [name for name in metric_names() if metric_class(name).section == section]:
        metric = load("metric", name)
        for title, keys in metric.panels or ((metric.title, ("value",)),):
            curves = [curve(name if key == "value" else f"{name}/{key}", metric.ideal) for key in keys]
            panels += [(title, *curves)] if curves[0].startswith(f"{kind}/") else []
    return sorted(panels, key=lambda panel: panel[1].endswith("_delta"))


def _columns(name: str) -> list[str]:
    """What the table of runs shows of a metric, below ``final/``: the distance from the ideal where there is one."""
    value, distance, *others = metric_measures(name)
    return [value if metric_class(name).ideal is None else distance, *others]


def _wandb() -> Any:
    try:
        return import_wandb()
    except ImportError as error:
        raise UserError(f"W&B is needed, and {error}: {INSTALL}.") from None


def _reason(error: BaseException) -> str:
    """The last line that says something: pydantic and W&B begin with counts and titles."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("For further information")]
    return (told[-1] if told else type(error).__name__).rstrip(".")[:200]
