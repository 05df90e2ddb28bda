"""Tiny checkouts with the shape of OpenFedLLM's, and the line that patching adds to their scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.patcher import Plan, plan_patch, plan_unpatch

LINE = "import fedbias_plugin.hosts.openfedllm.attach  # added by fedbias patch  # noqa: F401  # isort: skip"
OLD_MARK = "  # added by fedbias patch"
OLD_FLAGS = (
    "from fedbias_plugin.hosts.openfedllm.attach import extend_arguments; FedArguments, HfArgumentParser = "
    "extend_arguments(FedArguments, HfArgumentParser)" + OLD_MARK
)
OLD_COMPAT = "import fedbias_plugin.hosts.openfedllm.compat" + OLD_MARK
OLD_HOOKS = "from fedbias_plugin.hosts.openfedllm.hooks import *" + OLD_MARK
"""What version 0.x added to config.py and to the scripts."""

CONFIG = """\
from transformers import HfArgumentParser
class FedArguments:
    fed_alg: str = "fedavg"
    num_clients: int = 2
    sample_clients: int = 2
    num_rounds: int = 5
class ScriptArguments:
    model_name_or_path: str = "model"
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    max_steps: int = 10
    seq_length: int = 512
    template: str = "alpaca"
    use_peft: bool = False
    output_dir: str = "output"
    seed: int = 1
parser = HfArgumentParser((ScriptArguments, FedArguments))
settings = parser.parse_args_into_dataclasses()
"""
SFT = """\
import trl
from federated_learning import *
from config import settings
parts = split_dataset(settings)
for number in range(3):
    for client in get_clients_this_round(number):
        rows = get_dataset_this_round(parts[client])
        get_fed_local_sft_trainer(rows).train()
    global_aggregate(settings)
"""
DPO = SFT.replace("_sft_", "_dpo_")
PATCHED_SFT = f"{LINE}\n{SFT}"
BENCH = SFT.replace("split_dataset", "get_fed_datasets")
SERVER = "def global_aggregate(global_dict, local_dict_list, sample_num_list, clients_this_round, round_idx): ...\n"


def checkout(folder: Path, server: str = SERVER, **changes: str | bytes | None) -> Path:
    """Write a checkout; ``config``, ``main_sft`` or ``main_dpo`` replace a script (None: it is absent)."""
    (folder / "federated_learning").mkdir(parents=True, exist_ok=True)
    (folder / "federated_learning/__init__.py").write_text("from .fed_global import global_aggregate\n")
    (folder / "federated_learning/fed_global.py").write_text(server)
    for name, text in ({"config": CONFIG, "main_sft": SFT, "main_dpo": DPO} | changes).items():
        if text is not None:
            (folder / f"{name}.py").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file directly in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def patch(folder: Path) -> Plan:
    """Patch a checkout, and give what was done."""
    plan = plan_patch(folder)
    plan.write()
    return plan


def unpatch(folder: Path) -> Plan:
    """Unpatch a checkout, and give what was done."""
    plan = plan_unpatch(folder)
    plan.write()
    return plan


def refusal(folder: Path, plan: Callable[[Path], Plan] = plan_patch) -> str:
    """The message of a refusal, after which every byte is as before."""
    before = contents(folder)
    with pytest.raises(UserError) as error:
        plan(folder).write()
    assert contents(folder) == before
    return str(error.value)
