"""A split and a transform of somebody else's: their rows are dealt, hashed and written down like the package's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin import known_flags, registry
from fedbias_plugin.arguments import CoreArguments
from fedbias_plugin.cli.data import fetch, list_datasets
from fedbias_plugin.data.base import Split, Transform
from fedbias_plugin.data.catalog import all_known, locate
from fedbias_plugin.data.partition import ClientDataset, Partition, manifest, partition_hash
from fedbias_plugin.data.rows import RowSource
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.run_description import HostRun
from fedbias_plugin.federation.session import BiasSession
from fedbias_plugin.known_dataset import DataFile, Form, KnownDataset
from fedbias_plugin.metrics.base import Metric
from fedbias_plugin.options import option
from fedbias_plugin.updates.pipeline import Pipeline
from tests.data.conftest import write_lines


@dataclass
class ByLabel(Split):
    """Every client holds the rows of one value of a column."""

    label_rows: str = option("", "file of rows")
    label_column: str = option("category", "column that says whose a row is")

    def deal(self, arguments: Any, num_clients: int, seed: int) -> Partition:
        source = load_rows(self.label_rows, "clean", arguments.data_dir)
        values = list(dict.fromkeys(row.labels[self.label_column] for row in source.rows))
        clients = [
            ClientDataset(client, tuple(row for row in source.rows if row.labels[self.label_column] == value))
            for client, value in enumerate(values)
        ]
        return Partition(clients, (), {"labelled": source}, seed, self.name)


@dataclass
class Shout(Transform):
    """Responses in capitals."""

    shout: bool = option(False, "write responses in capitals")

    @property
    def is_on(self) -> bool:
        return self.shout

    @property
    def warnings(self) -> list[str]:
        return ["all responses are in capitals"]

    def apply(self, partition: Partition, benchmarks: Mapping[str, Any], seed: int) -> Partition:
        clients = [
            dataclasses.replace(
                client, rows=tuple(dataclasses.replace(row, response=row.response.upper()) for row in client.rows)
            )
            for client in partition.clients
        ]
        return dataclasses.replace(partition, clients=clients)


@dataclass
class Riddles(Metric):
    """A metric that brings its data set."""

    text_count = 0
    prepare = measure = result = None

    datasets = (KnownDataset("riddles", "riddles", "Riddles", "CC0", "a test", (Form((DataFile("r.csv"),), rows=3),)),)
    mini_file = None


@pytest.fixture
def arguments_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """The plugin's flags where the three are registered."""
    for kind, name, cls in (
        ("split", "by_label", ByLabel),
        ("transform", "shout", Shout),
        ("metric", "riddles", Riddles),
    ):
        monkeypatch.setitem(registry.EXTENSIONS[kind], name, f"{__name__}:{cls.__name__}")
    return known_flags.with_extensions(CoreArguments, "BiasArguments")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    rows = [("a", "yes", "qa"), ("b", "no", "chat"), ("c", "maybe", "qa")]
    columns = ("instruction", "response", "category")
    return write_lines(tmp_path / "rows.jsonl", [dict(zip(columns, row, strict=True)) for row in rows])


def session(arguments: Any, tmp_path: Path) -> BiasSession:
    return BiasSession(arguments, HostRun(tmp_path / "out", "fedavg", 2, 2, 1, seed=5))


def test_a_stranger_s_split_deals_rows_of_which_nobody_knows_a_biased_share(arguments_class, labelled, tmp_path):
    flags = {"scenario": "by_label", "label_rows": str(labelled), "bias_benchmarks": "none"}
    arguments = arguments_class(**flags)
    assert registry.options(arguments_class)["label_rows"].read_when == {"scenario": ("by_label",)}
    opened = session(arguments, tmp_path)
    assert [[row.id.split(":")[1] for row in client.rows] for client in opened.client_datasets] == [["0", "2"], ["1"]]
    partition = arguments.split.deal(arguments, 2, 5)
    assert opened.state_dict()["data"] == {"training rows": partition_hash(partition)}
    record = json.loads(json.dumps(manifest(partition)))
    assert record["scenario"] == "by_label"
    assert [(client["biased_share"], client["rows"]) for client in record["clients"]] == [(None, 2), (None, 1)]
    assert record["sources"]["labelled"]["files"] == ["rows.jsonl"]
    assert partition.known_shares == {}
    with pytest.raises(UserError, match=r"dealt 1 rows to client 1; with --num_clients 1 the clients 0 to 0 need rows"):
        partition.check(1)
    with pytest.raises(UserError, match=r"^--scenario by_label dealt 0 rows to client 2; with --num_clients 3 the"):
        partition.check(3)
    with pytest.raises(UserError, match=r"--attack sign_flip: no client holds biased rows under --scenario by_label"):
        session(arguments_class(**flags, attack="sign_flip"), tmp_path)


def test_the_split_of_the_documents_is_one(tmp_path, labelled):
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
    space = {
        name: globals()[name] for name in ("dataclass", "Split", "option", "Partition", "ClientDataset", "load_rows")
    }
    exec(
        "from __future__ import annotations\n@dataclass\nclass ByCategory"
        + page.split("class ByCategory")[1].split("```")[0],
        space,
    )
    split = space["ByCategory"](category_rows=str(labelled))
    split.name = "by_category"
    clients = split.deal(CoreArguments, 2, 5).clients
    assert [[row.response for row in client.rows] for client in clients] == [["no"], ["yes", "maybe"]]


def test_a_split_that_deals_no_preferences_says_so(arguments_class, labelled):
    split = arguments_class(scenario="by_label").split
    with pytest.raises(UserError, match=r"^--scenario by_label deals no preference rows, .* use main_sft\.py\.$"):
        split.deal_preferences(RowSource("pairs", [], (), "0" * 64, "file"), 2, 5)


def test_a_stranger_s_transform_is_switched_on_by_its_flag(arguments_class, labelled, tmp_path):
    flags = {"scenario": "by_label", "label_rows": str(labelled), "bias_benchmarks": "none"}
    as_dealt, shouted = (session(arguments_class(**flags, shout=shout), tmp_path) for shout in (False, True))
    texts = [[row.response for client in one.client_datasets for row in client.rows] for one in (as_dealt, shouted)]
    assert texts == [["yes", "maybe", "no"], ["YES", "MAYBE", "NO"]]
    run = HostRun(tmp_path, "fedavg", 2, 2, 1, seed=5)
    pipeline = Pipeline(arguments_class(scenario="none", shout=True), run, {})
    assert pipeline.on_data(None, {}) == (None, ["shout: the host's own rows (--scenario none) stay as they are"])
    partition = arguments_class(**flags).split.deal(arguments_class(), 2, 5)
    assert pipeline.on_data(partition, {})[1] == ["all responses are in capitals"]


def test_a_stranger_s_metric_brings_its_data_set(arguments_class, tmp_path, capsys):
    assert list_datasets(None) == 0
    assert "riddles\triddles\t3\tCC0\t-\tnot here: see a test" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^riddles has no address here, see a test; there is nothing to download\.$"):
        fetch(["riddles"], None)
    assert [known.name for known in all_known() if known.kind == "riddles"] == ["riddles"]
    with pytest.raises(UserError, match=r"^riddles is not on this machine; run: fedbias data fetch riddles\.$"):
        locate("riddles", kind="riddles")
    with pytest.raises(UserError, match=r"no bundled mini data of the kind riddles"):
        locate("auto", "mini", kind="riddles")
    (tmp_path / "r.csv").write_text("a\n1\n")
    assert locate("auto", tmp_path, kind="riddles").path == tmp_path / "r.csv"
