"""``fedbias doctor`` names what is missing and the line that mends it."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedbias_plugin.cli import doctor
from fedbias_plugin.cli.doctor import PACKAGES, Finding, check_data, check_devices, check_packages, check_wandb

Versions = Callable[..., None]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Versions:
    """Pretend that every package is installed in its lowest version, but for those given (None: missing)."""

    def pretend(**changes: str | None) -> None:
        table = {package.name: package.minimum for package in PACKAGES} | changes
        monkeypatch.setattr(doctor, "installed_version", table.get)

    return pretend


def statuses(findings: list[Finding]) -> set[str]:
    return {finding.status for finding in findings}


def test_lowest_versions_are_good_enough(versions: Versions) -> None:
    versions()
    findings = list(check_packages())
    assert len(findings) == len(PACKAGES)
    assert statuses(findings) == {"ok"}


def test_a_missing_required_package_is_a_problem_with_its_line(versions: Versions) -> None:
    versions(peft=None, torch="1.13.1+cu117")
    problems = [finding for finding in check_packages() if finding.status == "problem"]
    assert [finding.mend for finding in problems] == ['pip install "torch>=2.0"', 'pip install "peft>=0.18"']
    assert "1.13.1+cu117 is too old; needs 2.0 or newer" in problems[0].text
    assert list(check_packages())[-1].mend == 'pip install "torch>=2.0" "peft>=0.18"'


@pytest.mark.parametrize("name", ["bitsandbytes", "wandb"])
def test_a_missing_optional_package_costs_only_its_feature(versions: Versions, name: str) -> None:
    versions(**{name: None})
    assert statuses(list(check_packages())) == {"ok", "note"}


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("5.0.0rc1", (5, 0, 0)), ("0.4", (0, 4)), ("weird", ())]
)
def test_versions_are_compared_by_their_leading_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert doctor.version_numbers(version) == numbers


def fake_torch(available: bool, built_for: str | None = "12.4") -> SimpleNamespace:
    class Device:
        def __init__(self, index: int) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    properties = SimpleNamespace(name="Device X", total_memory=80 * 1024**3)
    cuda = SimpleNamespace(
        is_available=lambda: available, device_count=lambda: 2, get_device_properties=lambda index: properties,
        device=Device, is_bf16_supported=lambda: True,
    )  # fmt: skip
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=built_for), get_num_threads=lambda: 8)


def test_every_cuda_device_is_listed_with_memory_and_bf16(monkeypatch: pytest.MonkeyPatch, versions: Versions) -> None:
    versions()
    monkeypatch.setitem(sys.modules, "torch", fake_torch(True))
    texts = [finding.text for finding in check_devices()]
    assert texts[1:] == ["cuda:0 Device X, 80.0 GiB, bf16", "cuda:1 Device X, 80.0 GiB, bf16"]


@pytest.mark.parametrize(("built_for", "reason"), [(None, "CPU build"), ("12.4", "no driver or device answers")])
def test_a_machine_without_cuda_is_told_why(
    monkeypatch: pytest.MonkeyPatch, versions: Versions, built_for: str | None, reason: str
) -> None:
    versions()
    monkeypatch.setitem(sys.modules, "torch", fake_torch(False, built_for))
    last = list(check_devices())[-1]
    assert last.status == "note"
    assert reason in last.text


def test_a_torch_that_does_not_import_is_a_problem(monkeypatch: pytest.MonkeyPatch, versions: Versions) -> None:
    versions()
    monkeypatch.setitem(sys.modules, "torch", None)
    (finding,) = check_devices()
    assert finding.status == "problem"
    assert "does not import" in finding.text


def test_a_data_folder_that_does_not_exist_is_a_problem(tmp_path: Path) -> None:
    last = list(check_data(str(tmp_path / "nowhere")))[-1]
    assert last.status == "problem"
    assert "nowhere" in last.text


def test_a_data_set_is_shown_where_it_is_and_a_missing_one_with_its_fetch_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FEDBIAS_DATA", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "biasdpo").mkdir()
    (tmp_path / "biasdpo" / "BiasDPO.jsonl").write_text("{}\n")
    *_, found, missing = check_data(str(tmp_path))
    assert found.text == f"biasdpo: {tmp_path / 'biasdpo' / 'BiasDPO.jsonl'} (data_dir)"
    assert missing.status == "note"
    of_genders = "professions bold_professions winobias wikitext2 bold_genders"
    assert missing.mend == f"fedbias data fetch alpaca-gpt4 alpaca dolly crows_pairs stereoset {of_genders}"


def test_a_missing_login_is_mended_by_logging_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: Versions
) -> None:
    versions()
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (finding,) = check_wandb()
    assert (finding.status, finding.mend) == ("note", "wandb login")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    (finding,) = check_wandb()
    assert finding.status == "ok"
    assert "secret" not in finding.text


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    return parser.parse_args(["doctor", *arguments])


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_the_exit_code_says_whether_the_main_job_can_run(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for check in ("check_machine", "check_packages", "check_devices", "check_wandb"):
        monkeypatch.setattr(doctor, check, lambda: iter(()))
    monkeypatch.setattr(doctor, "check_data", lambda data_dir: iter([Finding(status, "a text", "a line")]))
    arguments = parsed()
    assert arguments.main(arguments) == code
    out = capsys.readouterr().out
    assert f"data\n  {doctor.MARKS[status]}  a text\n        a line\n" in out
    assert ("can run." in out) == (code == 0)


def test_quick_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import argparse, sys; from fedbias_plugin.cli import doctor\n"
        "parser = argparse.ArgumentParser(); doctor.add_parser(parser.add_subparsers())\n"
        "arguments = parser.parse_args(['doctor', '--quick']); arguments.main(arguments)\n"
        "sys.exit(9 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CPU cores" in done.stdout
