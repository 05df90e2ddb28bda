"""What a person sees at the end of a round."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from fedbias_plugin.errors import Stopped
from fedbias_plugin.metrics.bias_score import bias_noise
from fedbias_plugin.terminal import terminal_console
from fedbias_plugin.tracking.console import ConsoleTracker
from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord, RunInfo

Make = Callable[[int], RoundRecord]
MakeRun = Callable[..., RunInfo]


def shown(records: RoundRecord | list[RoundRecord], run: RunInfo, *, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None) if terminal else None
    tracker = ConsoleTracker(stream, console)
    tracker.start(run)
    for record in records if isinstance(records, list) else [records]:
        tracker.log_round(record)
    tracker.finish({})
    return stream.getvalue()


def test_a_log_gets_one_line_a_round_and_one_a_client(make_run: MakeRun, make_record: Make) -> None:
    record = make_record(1)
    record.warnings = ["mind [this]"]
    assert shown(record, make_run(), terminal=False).splitlines() == [
        "round 1/2: CrowS 52.0 [47.0, 57.0] (length alone: 42.7; report items, n=280) "
        "| SS 44.0 [40.0, 48.0] (report items, n=290) at LMS 90.0, ICAT 81.5 | bias score 3.25 "
        "| held-out loss 2.1250 (100 rows) | weight on poisoned 0.200 | 6.5 s",
        "  client 0: poisoned 100% | rows 300 | loss 1.2500 | update norm 0.5000 "
        "| bias score 15.00 (noise 2.70) | weight 0.200",
        "  client 4: poisoned 0% | rows 300 | loss 1.5000 | update norm 0.2500 "
        "| bias score 1.00 (noise 2.70) | weight 0.800",
        "  (noise: the mean bias score of an unbiased model on as many probe items)",
        "  warning: mind [this]",
    ]


def test_metrics_stand_in_one_order_however_they_were_asked_for(make_run: MakeRun, make_record: Make) -> None:
    record = make_record(1)
    as_ever = shown(record, make_run(), terminal=False)
    record.global_.metrics = dict(reversed(record.global_.metrics.items()))
    assert shown(record, make_run(), terminal=False) == as_ever


@pytest.mark.parametrize("terminal", [True, False])
def test_a_warning_is_said_in_full_once_and_by_its_name_in_later_rounds(
    make_run: MakeRun, make_record: Make, terminal: bool
) -> None:
    records = [make_record(number) for number in range(3)]
    records[0].warnings = ["LMS below 60: it is 55.5."]
    records[2].warnings = ["LMS below 60: it is 54.5.", "lambda too large: 3.5 times."]
    lines = [line.strip() for line in shown(records, make_run(), terminal=terminal).splitlines()]
    assert [line for line in lines if line.startswith("warning")] == [
        "warning: LMS below 60: it is 55.5.",
        "warning: lambda too large: 3.5 times.",
        "warning, as before: LMS below 60",
    ]
    assert sum("noise: the mean bias score of an unbiased model" in line for line in lines) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_the_number_of_terms_stands_with_ss_and_says_why_there_is_no_interval(
    make_run: MakeRun, make_record: Make, terminal: bool
) -> None:
    record = make_record(0)
    record.global_.metrics["stereoset"]["terms"] = 12
    text = " ".join(shown(record, make_run(), terminal=terminal).split())
    assert "n=290, 12 terms" in text
    record.global_.metrics["stereoset"] |= {"terms": 4, "ci95": None}
    text = " ".join(shown(record, make_run(), terminal=terminal).replace("│", " ").split())
    assert "too few for an interval" in text


def test_the_noise_beside_a_bias_score_is_alpha_times_both_floors(make_record: Make) -> None:
    assert bias_noise(make_record(1).clients[0].metrics, 0.5) == pytest.approx(0.5 * (2.4 + 3.0))
    assert bias_noise({"crows_pairs": {"noise_floor": 2.0}}, 0.25) == pytest.approx(0.5)
    assert bias_noise({}, 0.5) is None


def test_a_terminal_gets_a_table_of_the_model_and_one_of_the_clients(make_run: MakeRun, make_record: Make) -> None:
    record = make_record(1)
    record.warnings = ["mind [this]"]
    text = shown(record, make_run(), terminal=True)
    for part in (
        "round 1/2 · global model", "(scores: 50 = no preference)", "CrowS-Pairs score", "52.00", "[47.0, 57.0]",
        "report items, n=280", "CrowS length alone", "42.70",
        "StereoSet LMS", "90.00", "[88.0, 92.0]", "round 1/2 · clients (probe items)", "100%", "15.00 (noise 2.70)",
        "0.800", "warning: mind [this]",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("terminal", [True, False])
def test_ss_is_never_shown_without_lms_and_a_low_lms_is_pointed_out(
    make_run: MakeRun, make_record: Make, terminal: bool
) -> None:
    record = make_record(0)
    record.global_.metrics["stereoset"]["lms"] = 41.5
    text = shown(record, make_run(), terminal=terminal)
    assert "SS" in text
    assert "41.5" in text
    assert "SS means nothing" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_round_without_measurements_says_so(make_run: MakeRun, terminal: bool) -> None:
    text = shown(RoundRecord(1, GlobalRecord(), {0: ClientRecord(0.0, 5)}), make_run(), terminal=terminal)
    assert "not measured" in text
    assert "None" not in text


def test_the_untouched_model_has_no_client_table(make_run: MakeRun, make_record: Make) -> None:
    text = shown(make_record(0), make_run(), terminal=True)
    assert "untouched model" in text
    assert "clients" not in text


def test_a_stream_that_is_no_terminal_has_no_console() -> None:
    assert terminal_console(io.StringIO()) is None


def test_a_terminal_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    assert isinstance(terminal_console(stream), Console)


def test_a_terminal_without_rich_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert terminal_console(stream) is None


def test_a_run_whose_reader_goes_is_stopped_like_by_a_signal(make_run: MakeRun, make_record: Make) -> None:
    class Closed:
        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    tracker = ConsoleTracker(Closed())  # type: ignore[arg-type]
    tracker.start(make_run())
    with pytest.raises(Stopped, match="SIGPIPE") as stopped:
        tracker.log_round(make_record(1))
    assert (stopped.value.signal_number, stopped.value.at_once) == (13, True)


def test_the_tables_of_a_round_fit_eighty_columns_without_a_second_line_in_a_cell(
    make_run: MakeRun, make_record: Make
) -> None:
    record = make_record(1)
    record.global_.metrics["stereoset"] |= {"terms": 12, "lms": 100.0, "lms_ci95": [100.0, 100.0]}
    stream = io.StringIO()
    tracker = ConsoleTracker(stream, Console(file=stream, force_terminal=True, width=80, color_system=None))
    tracker.start(make_run())
    tracker.log_round(record)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if "│" in line]
    assert len(rows) == 10 + len(record.clients)
    assert all(row.split("│")[0].strip() for row in rows)


def test_a_warning_that_was_said_before_the_first_round_is_only_named(make_run: MakeRun, make_record: Make) -> None:
    record = make_record(0)
    record.warnings = ["Two worlds are mixed: rows from files."]
    stream = io.StringIO()
    tracker = ConsoleTracker(stream, said=record.warnings)
    tracker.start(make_run())
    tracker.log_round(record)
    assert "warning, as before: Two worlds are mixed\n" in stream.getvalue()
    assert "rows from files" not in stream.getvalue()
