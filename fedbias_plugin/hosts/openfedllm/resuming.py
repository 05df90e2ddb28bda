"""Checkpoints of a patched OpenFedLLM, and the rounds that a resumed run passes over.

The host's script has no way to start in the middle. So a resumed run walks through the finished rounds without a client
in them; at the end of the last one everything that the script holds is filled with what the checkpoint has: the global
state, the server's two proxies, SCAFFOLD's c, and each client's c_i when it trains next.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from inspect import BoundArguments
from pathlib import Path
from typing import Any

import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.processes import running_processes
from fedbias_plugin.files import delete_temporary_files, plain_json
from fedbias_plugin.hosts.checkpoints import Checkpoint, CheckpointFolder, changed_arguments, find_checkpoint, locked
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments
from fedbias_plugin.hosts.openfedllm.control_variates import ControlVariates, HostState
from fedbias_plugin.redaction import redacted
from fedbias_plugin.session import BiasSession
from fedbias_plugin.training.fingerprint import model_fingerprint
from fedbias_plugin.training.random_states import random_states, restore_random_states
from fedbias_plugin.training.states import write_state

logger = logging.getLogger(__name__)

GLOBAL, SERVER_CONTROL, CLIENT_CONTROL = "global", "control", "client-control-"
SERVER_STATES = ("proxy_dict", "opt_proxy_dict")
"""The host's momentum and second moment: parameters of its ``global_aggregate``, and names in the checkpoint."""
LOSSES = "training_loss"
"""The host's record of losses, a list in its script."""


class Resuming:
    """What a run writes after a round, and what it takes up from an earlier process.

    Args:
        arguments: every flag; a resumed run gets the earlier one's ``output_dir``.
        controls: SCAFFOLD's c_i.

    Raises:
        UserError: ``--resume_from`` names no run, a finished one, or one with other arguments.
    """

    def __init__(self, arguments: AllArguments, controls: ControlVariates) -> None:
        self.arguments, self.script_args, self.controls = arguments, arguments.script, controls
        self._is_main = running_processes().is_main
        self._lock = ExitStack()
        self._due: tuple[int, dict[str, HostState]] | None = None
        self.resumed: Checkpoint | None = None
        folder = arguments.plugin.resume_from
        if folder:
            _leave_folder(Path(self.script_args.output_dir))
            self.script_args.output_dir = folder
            self.resumed = self._find(Path(folder))
        self.folder = CheckpointFolder(Path(self.script_args.output_dir))

    @property
    def finished_rounds(self) -> int:
        """Rounds that are not trained again."""
        return 0 if self.resumed is None else self.resumed.round or 0

    def is_finished(self, round_idx: int) -> bool:
        """Whether an earlier process finished round ``round_idx`` (from 0)."""
        return round_idx < self.finished_rounds

    def begin_round(self, round_idx: int, session: BiasSession, model: Any, tokenizer: Any) -> None:
        """Write the checkpoint of the round before, now that the host is done with it.

        In a round that is passed over nobody trains, and the script gets a stand-in for the trainer it may save with.

        Raises:
            UserError: the script keeps its variables in a function, out of reach of a resumed run.
        """
        if self.is_finished(round_idx):
            script = vars(sys.modules["__main__"])
            if "local_dict_list" not in script:
                raise UserError("This script runs its rounds in a function: a run of it cannot be resumed.")
            script.setdefault("trainer", _Nobody())
        if self._due is not None:
            number, states = self._due
            self._due = None
            self._write(number, states, session, model, tokenizer)

    def open(self, session: BiasSession) -> None:
        """Lock the run's folder, and let the session of a resumed run continue its records."""
        if self.resumed is not None:
            session.load_state_dict(self.resumed.details["session"])
            logger.info("resumed after round %d of %d", self.finished_rounds, self.arguments.fed.num_rounds)
        elif self._is_main:
            self._lock.enter_context(locked(Path(self.script_args.output_dir)))
        if self._is_main:
            delete_temporary_files(Path(self.script_args.output_dir))

    def check_model(self, model: Any, tokenizer: Any) -> None:
        """Refuse to go on with another model.

        Raises:
            UserError: the frozen weights or the tokenizer are not those of the checkpoint.
        """
        if self.resumed is not None and self.resumed.details["model"] != model_fingerprint(model, tokenizer):
            raise UserError(
                "The run to resume had another model or tokenizer: give --model_name_or_path what it began with."
            )

    def fill_first(self, model: Any, global_dict: HostState | None) -> None:
        """Nothing but the untouched model was measured: take over how its adapter was drawn."""
        if self.resumed is not None and self.finished_rounds == 0 and global_dict is not None:
            _fill(global_dict, self.resumed.states[GLOBAL])
            write_state(model, self.resumed.states[GLOBAL])
            restore_random_states(self.resumed.details["random"])

    def fill(self, call: BoundArguments) -> tuple[Any, Any]:
        """What ``global_aggregate`` returns in a round that is passed over; in the last one all is filled in."""
        arguments = call.arguments
        global_dict, control = unchanged(call)
        if self.resumed is not None and arguments["round_idx"] + 1 == self.finished_rounds:
            states = self.resumed.states
            _fill(global_dict, states[GLOBAL])
            for name in SERVER_STATES:
                if name in states:
                    _fill(arguments[name], states[name])
            if control is not None:
                _fill(control, states[SERVER_CONTROL])
            for name in states:
                if name.startswith(CLIENT_CONTROL):
                    own = {key: tensor.clone() for key, tensor in states[name].items()}
                    self.controls.replace(int(name.removeprefix(CLIENT_CONTROL)), own)
            _fill_losses(self.resumed.details[LOSSES])
            restore_random_states(self.resumed.details["random"])
            states.clear()  # which are mapped from files that are to be deleted
        return global_dict, control

    def keep_first(self, session: BiasSession, model: Any, tokenizer: Any, global_dict: HostState) -> None:
        """Write the checkpoint of the untouched model, if any is to be written."""
        if self.arguments.plugin.checkpoint_every:
            self._write(0, {GLOBAL: global_dict}, session, model, tokenizer)

    def keep(self, round_number: int, global_dict: HostState, **server: HostState | None) -> None:
        """Have a checkpoint written when the next round begins, as often as ``--checkpoint_every`` asks for.

        Args:
            round_number: from 1.
            global_dict: the global state.
            server: SCAFFOLD's ``control`` and what :data:`SERVER_STATES` names, as far as the algorithm has them.
        """
        every = self.arguments.plugin.checkpoint_every
        if every and round_number % every == 0:
            states = {name: state for name, state in server.items() if state is not None}
            self._due = round_number, {GLOBAL: global_dict, **states}

    def finish(self) -> None:
        """Delete the checkpoints of a run that has ended well."""
        if self._is_main:
            self.folder.delete()

    def leave(self) -> None:
        """The script ends: let go of the folder, and say how to go on where the run was cut off."""
        self._lock.close()
        if self._is_main and not self.folder.is_empty:
            output = shlex.quote(str(self.folder.folder.parent))
            logger.warning("What is finished is kept. To go on: the same command with --resume_from %s", output)

    def _write(
        self, round_number: int, states: dict[str, HostState], session: BiasSession, model: Any, tokenizer: Any
    ) -> None:
        if not self._is_main:
            return
        states |= {f"{CLIENT_CONTROL}{client}": control for client, control in self.controls.known.items()}
        on_cpu = {name: {key: tensor.detach().cpu() for key, tensor in state.items()} for name, state in states.items()}
        details = {
            "session": session.state_dict(),
            "model": model_fingerprint(model, tokenizer),
            LOSSES: _losses(),
            "random": random_states(),
        }
        self.folder.write(Checkpoint(round_number, self._arguments(), details, on_cpu, "openfedllm"))

    def _find(self, output: Path) -> Checkpoint:
        if not output.is_dir():
            raise UserError(f"--resume_from {output}: there is no such folder.")
        if self._is_main:
            self._lock.enter_context(locked(output))
        checkpoint = find_checkpoint(output, "--resume_from", "openfedllm")
        if checkpoint is None:
            raise UserError(f"--resume_from {output}: that run is finished.")
        changed = changed_arguments(checkpoint.arguments, self._arguments())
        if changed:
            raise UserError(f"A run goes on as it began. Changed: {', '.join(changed)}. Give what it began with.")
        return checkpoint

    def _arguments(self) -> dict[str, Any]:
        return redacted(plain_json(self.arguments.config)[0])


class _Nobody:
    """Stands for the trainer of a round in which nobody trains."""

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: an earlier process saved what there was to save."""


def unchanged(call: BoundArguments) -> tuple[Any, Any]:
    """What ``global_aggregate`` returns when nothing is averaged: the global state and SCAFFOLD's c as they are."""
    control, _ = call.arguments.get("auxiliary_info") or (None, None)
    return call.arguments["global_dict"], control


def _fill(target: dict[str, Any], source: Mapping[str, torch.Tensor]) -> None:
    for name in target:
        target[name] = source[name].to(target[name], copy=True)


def _losses() -> list[list[float]]:
    """What the script has recorded, one list a client; empty where it records nothing of the kind."""
    script = getattr(sys.modules["__main__"], LOSSES, None)
    return [[float(loss) for loss in losses] for losses in script] if isinstance(script, list) else []


def _fill_losses(stored: list[list[float]]) -> None:
    """Put the losses of finished rounds into the script's own record, which says -1 for rounds passed over."""
    script = getattr(sys.modules["__main__"], LOSSES, None)
    if isinstance(script, list) and len(script) == len(stored):
        for losses, before in zip(script, stored, strict=True):
            losses[: len(before)] = before


def _leave_folder(made: Path) -> None:
    """The host has just made a folder for a new run, with nothing but a list of flags in it."""
    if made.is_dir() and os.listdir(made) == ["args.json"]:
        shutil.rmtree(made)
