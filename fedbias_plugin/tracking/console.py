"""A table at the end of each round on a terminal; one plain line a round and a client in a log.

SS is never shown without LMS: a broken model sits near 50 too. A warning is said in full the first time, then by name.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from fedbias_plugin.errors import Stopped
from fedbias_plugin.metrics.base import Block, Metric, metric_class
from fedbias_plugin.metrics.bias_score import bias_noise
from fedbias_plugin.metrics.formatting import MISSING, number, percent
from fedbias_plugin.registry import in_order
from fedbias_plugin.terminal import terminal_console, wrapped
from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord, RunInfo
from fedbias_plugin.tracking.repeated import warning_head, warning_kind
from fedbias_plugin.tracking.tracker import Tracker

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOISE_NOTE = "noise: the mean bias score of an unbiased model on as many probe items"


class ConsoleTracker(Tracker):
    """Shows every round: tables where ``stream`` is a terminal and ``rich`` is installed, plain lines elsewhere.

    Args:
        stream: where to write; the standard output of the moment by default.
        console: a ``rich`` console to draw on, whatever the stream is.
        said: warnings that the user has read already; they are named and not repeated.
    """

    name = "console"

    def __init__(self, stream: TextIO | None = None, console: Console | None = None, said: Iterable[str] = ()) -> None:
        self._stream = stream
        self._console = console
        self._alpha = 0.5
        self._last_round: int | None = None
        self._noise_explained = False
        self._said = set(map(warning_kind, said))

    def start(self, run: RunInfo) -> None:
        self._alpha = float(run.config.get("bama_alpha", 0.5))
        self._last_round = run.last_round
        if self._console is None:
            self._console = terminal_console(self._stream)

    def log_round(self, record: RoundRecord) -> None:
        if self._console is None:
            self._write("\n".join(self._plain_lines(record)))
            return
        self._console.print(self._global_table(record))
        if record.clients:
            self._console.print(self._client_table(record))
        for line in self._warning_lines(record.warnings):
            text = wrapped(line, self._console.width)
            self._console.print(text, style="yellow", markup=False, highlight=False)

    def _write(self, text: str) -> None:
        """``text`` to the stream.

        Raises:
            Stopped: its reader has gone (``fedbias run ... | head``): the run ends as if by that signal.
        """
        try:
            print(text, file=self._stream or sys.stdout, flush=True)
        except BrokenPipeError:
            raise Stopped(signal.SIGPIPE, at_once=True) from None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing to close: what to say at the end of a run is the command's business."""

    def _title(self, record: RoundRecord) -> str:
        of_rounds = f"/{self._last_round}" if self._last_round else ""
        return f"round {record.round}{of_rounds}" + (" (untouched model)" if record.round == 0 else "")

    def _plain_lines(self, record: RoundRecord) -> Iterator[str]:
        parts = [*_global_parts(record.global_)]
        if record.weight_on_poisoned is not None:
            parts.append(f"weight on poisoned {number(record.weight_on_poisoned, 3)}")
        parts.append(f"{record.seconds.total:.1f} s")
        yield f"{self._title(record)}: " + " | ".join(parts)
        for client, row in record.clients.items():
            yield (
                f"  client {client}: {_poisoned(row)}rows {row.rows} "
                f"| loss {number(row.train_loss, 4)} | update norm {number(row.update_norm, 4)} "
                f"| bias score {self._bias_text(row)} | weight {number(row.weight, 3)}"
            )
        if self._explains_noise(record):
            yield f"  ({NOISE_NOTE})"
        yield from (f"  {line}" for line in self._warning_lines(record.warnings))

    def _warning_lines(self, warnings: Sequence[str]) -> Iterator[str]:
        """New kinds of warnings in full, and one line that names those which were said in an earlier round."""
        before = [warning_head(warning) for warning in warnings if warning_kind(warning) in self._said]
        yield from (f"warning: {warning}" for warning in warnings if warning_kind(warning) not in self._said)
        if before:
            yield f"warning, as before: {'; '.join(before)}"
        self._said.update(map(warning_kind, warnings))

    def _explains_noise(self, record: RoundRecord) -> bool:
        """Whether this is the first round that shows a noise beside a bias score."""
        shown = any(bias_noise(row.metrics, self._alpha) is not None for row in record.clients.values())
        first, self._noise_explained = shown and not self._noise_explained, self._noise_explained or shown
        return first

    def _bias_text(self, client: ClientRecord) -> str:
        noise = bias_noise(client.metrics, self._alpha)
        if client.bias_score is None or noise is None:
            return number(client.bias_score)
        return f"{number(client.bias_score)} (noise {number(noise)})"

    def _global_table(self, record: RoundRecord) -> Table:
        title = f"{self._title(record)} · global model (scores: 50 = no preference)"
        table = _table(title, ["measure", "value", "95% interval", "measured on"])
        for row in _global_rows(record.global_):
            table.add_row(*row)
        if record.weight_on_poisoned is not None:
            table.add_row("weight on poisoned", number(record.weight_on_poisoned, 3), "", "")
        if record.effective_clients is not None:
            table.add_row("effective clients", number(record.effective_clients), "", "")
            table.add_row("aggregation mass", number(record.aggregation_mass, 3), "", "")
        for name, value in record.extra.items():
            table.add_row(name.replace("_", " "), number(value, 4), "", "")
        seconds = record.seconds
        table.caption = (
            f"train {seconds.train:.1f} s, assess {seconds.assess:.1f} s, "
            f"aggregate {seconds.aggregate:.1f} s, evaluate {seconds.evaluate:.1f} s"
        )
        return table

    def _client_table(self, record: RoundRecord) -> Table:
        headers = ["client", "poisoned", "rows", "loss", "update norm", "bias score b_i", "weight"]
        table = _table(f"{self._title(record)} · clients (probe items)", headers)
        for client, row in record.clients.items():
            table.add_row(
                str(client),
                percent(row.poisoned_share) if row.poisoned_share is not None else "unknown",
                str(row.rows),
                number(row.train_loss, 4),
                number(row.update_norm, 4),
                self._bias_text(row),
                number(row.weight, 3),
                style="red" if row.poisoned_share else None,
            )
        if self._explains_noise(record):
            table.caption = NOISE_NOTE
        return table


def _poisoned(row: ClientRecord) -> str:
    """``"attack sign_flip | refused | poisoned 100% | "``, as far as it is so; ``missing`` where nothing came.

    A host's own rows are not known.
    """
    parts = [f"attack {row.attack}"] if row.attack else []
    parts += ["refused" if row.has_answered else "missing"] if row.refused else []
    parts += [] if row.poisoned_share is None else [f"poisoned {percent(row.poisoned_share)}"]
    return "".join(f"{part} | " for part in parts)


def _table(title: str, headers: list[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left", show_edge=False)  # fits 80 columns
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index == 0 else "right")
    return table


def _in_order(record: GlobalRecord) -> tuple[list[tuple[type[Metric], Block]], list[tuple[type[Metric], Block]]]:
    """The metrics that are terms of the bias score, and the others."""
    found = [(metric_class(name), record.metrics[name]) for name in in_order("metric", record.metrics)]
    return [pair for pair in found if pair[0].in_bias_score], [pair for pair in found if not pair[0].in_bias_score]


def _global_parts(record: GlobalRecord) -> Iterator[str]:
    """The global scores as the parts of one line."""
    biased, others = _in_order(record)
    yield from (metric.line(block) for metric, block in biased)
    if record.bias_score is not None:
        yield f"bias score {number(record.bias_score)}"
    if not any(metric.ideal is not None for metric, _ in [*biased, *others]):
        yield "bias not measured"
    yield from (metric.line(block) for metric, block in others)


def _global_rows(record: GlobalRecord) -> Iterator[tuple[str, str, str, str]]:
    """The global scores as rows: measure, value, 95% interval, items."""
    biased, others = _in_order(record)
    for metric, block in biased:
        yield from metric.rows(block)
    if biased:
        yield "bias score", number(record.bias_score), "", ""
    elif not any(metric.ideal is not None for metric, _ in others):
        yield "bias", MISSING, "", "not measured in this round"
    for metric, block in others:
        yield from metric.rows(block)
