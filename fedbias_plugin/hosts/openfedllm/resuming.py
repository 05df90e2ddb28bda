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
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.checkpoints import (
    Checkpoint,
    CheckpointFolder,
    changed_arguments,
    find_checkpoint,
    locked,
)
from fedbias_plugin.federation.session import BiasSession
from fedbias_plugin.files import delete_temporary_files, plain_json
from fedbias_plugin.hosts.openfedllm.client_training import HostState
from fedbias_plugin.redaction import redacted
from fedbias_plugin.scoring.processes import running_processes
from fedbias_plugin.training.fingerprint import model_fingerprint
from fedbias_plugin.training.parameters import write_state
from fedbias_plugin.training.random_states import random_states, restore_random_states

if TYPE_CHECKING:
    from fedbias_plugin.hosts.openfedllm.attached_run import AttachedRun

logger = logging.getLogger(__name__)

GLOBAL, SERVER_CONTROL, CLIENT_CONTROL = "global", "control", "client-control-"
SERVER_STATES = ("proxy_dict", "opt_proxy_dict")
"""The host's momentum and second moment: parameters of its ``global_aggregate``, and names in the checkpoint."""
LOSSES = "training_loss"
"""The host's record of losses, a list in its script with one list a client."""


class Resuming:
    """What a run writes after a round, and what it takes up from an earlier process.

    Args:
        run: the run; a resumed one gets the earlier one's ``output_dir``.

    Attributes:
        resumed: the checkpoint that the run goes on from; None for a new run.
        finished_rounds: rounds that are not trained again.

    Raises:
        UserError: ``--resume_from`` names no run, a finished one, or one with other arguments.
    """

    def __init__(self, run: AttachedRun) -> None:
        self.run = run
        self._is_main = running_processes().is_main
        self._lock = ExitStack()
        self._due: tuple[int, dict[str, HostState]] | None = None
        self.resumed = self._find(run.plugin.resume_from) if run.plugin.resume_from else None
        self.finished_rounds = 0 if self.resumed is None else self.resumed.round or 0
        self.output = Path(run.script_args.output_dir)
        self.folder = CheckpointFolder(self.output)

    def open(self, session: BiasSession) -> None:
        """Lock the run's folder, and let the session of a resumed run continue its records."""
        if self.resumed is not None:
            session.load_state_dict(self.resumed.details["session"])
            logger.info("resumed after round %d of %d", self.finished_rounds, self.run.fed_args.num_rounds)
        elif self._is_main:
            self._lock.enter_context(locked(self.output))
        if self._is_main:
            delete_temporary_files(self.output)

    def is_finished(self, round_idx: int) -> bool:
        """Whether an earlier process finished round ``round_idx`` (from 0)."""
        return round_idx < self.finished_rounds

    def begin_round(self, round_idx: int) -> bool:
        """Write the checkpoint of the round before, now that the host is done with it; returns :meth:`is_finished`.

        Nobody trains in a finished round, and the script gets a stand-in for the trainer it may save with.
        """
        finished = self.is_finished(round_idx)
        if finished:
            script = vars(sys.modules["__main__"])
            if "local_dict_list" not in script:
                raise UserError("This script runs its rounds in a function: a run of it cannot be resumed.")
            script.setdefault("trainer", SimpleNamespace(save_model=lambda *args, **kwargs: None))
        if self._due is not None:
            self._write(*self._due)
            self._due = None
        return finished

    def take_up(self, global_dict: HostState | None) -> None:
        """Refuse another model; and where only the untouched one was measured, take over how its adapter was drawn."""
        assert self.resumed is not None
        model, details = self.run.model, self.resumed.details
        if details["model"] != model_fingerprint(model, self.run.tokenizer):
            raise UserError(
                "The run to resume had another model or tokenizer: give --model_name_or_path what it began with."
            )
        if self.finished_rounds == 0 and global_dict is not None:
            fill(global_dict, self.resumed.states[GLOBAL])
            write_state(model, self.resumed.states[GLOBAL])
            restore_random_states(details["random"])

    def fill(self, arguments: dict[str, Any]) -> tuple[Any, Any]:
        """What ``global_aggregate`` returns in a round that is passed over; in the last one all is filled in."""
        global_dict, control = unchanged(arguments)
        if self.resumed is None or arguments["round_idx"] + 1 < self.finished_rounds:
            return global_dict, control
        states, details = self.resumed.states, self.resumed.details
        fill(global_dict, states[GLOBAL])
        for name in SERVER_STATES:
            if name in states:
                fill(arguments[name], states[name])
        if control is not None:
            fill(control, states[SERVER_CONTROL])
        for name in states:
            if name.startswith(CLIENT_CONTROL):
                own = {key: tensor.clone() for key, tensor in states[name].items()}
                self.run.controls.replace(int(name.removeprefix(CLIENT_CONTROL)), own)
        script, stored = _losses_of_script(), details[LOSSES]
        if len(script) == len(stored):
            for losses, before in zip(script, stored, strict=True):
                losses[: len(before)] = before  # it says -1 for rounds passed over
        restore_random_states(details["random"])
        states.clear()  # which are mapped from files that are to be deleted
        return global_dict, control

    def keep_first(self, global_dict: HostState) -> None:
        """Write the checkpoint of the untouched model, if any is to be written."""
        if self.run.plugin.checkpoint_every:
            self._write(0, {GLOBAL: global_dict})

    def keep(
        self, round_number: int, global_dict: HostState, control: HostState | None, arguments: Mapping[str, Any]
    ) -> None:
        """Have a checkpoint written when the next round begins, as often as ``--checkpoint_every`` asks for.

        Args:
            round_number: from 1.
            global_dict: the global state.
            control: SCAFFOLD's c.
            arguments: of ``global_aggregate``; what :data:`SERVER_STATES` names is kept, as far as it is there.
        """
        every = self.run.plugin.checkpoint_every
        if every and round_number % every == 0:
            server = {SERVER_CONTROL: control, **{name: arguments.get(name) for name in SERVER_STATES}}
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
            output = shlex.quote(str(self.output))
            logger.warning("What is finished is kept. To go on: the same command with --resume_from %s", output)

    def _write(self, round_number: int, states: dict[str, HostState]) -> None:
        if not self._is_main:
            return
        run = self.run
        states |= {f"{CLIENT_CONTROL}{client}": control for client, control in run.controls.known.items()}
        on_cpu = {name: {key: tensor.detach().cpu() for key, tensor in state.items()} for name, state in states.items()}
        details = {
            "session": run.open_session().state_dict(),
            "client": run.client.state_dict(),
            "model": model_fingerprint(run.model, run.tokenizer),
            LOSSES: [[float(loss) for loss in losses] for losses in _losses_of_script()],
            "random": random_states(),
        }
        self.folder.write(Checkpoint(round_number, self._arguments(), details, on_cpu, "openfedllm"))

    def _find(self, folder: str) -> Checkpoint:
        """The newest checkpoint in ``folder``, which becomes the run's own."""
        made, output = Path(self.run.script_args.output_dir), Path(folder)
        if made.is_dir() and os.listdir(made) == ["args.json"]:
            shutil.rmtree(made)  # which the host has just made for a new run
        self.run.script_args.output_dir = folder
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
        return redacted(plain_json(self.run.arguments.config)[0])


def unchanged(arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """What ``global_aggregate`` returns when nothing is averaged: the global state and SCAFFOLD's c as they are."""
    control, _ = arguments.get("auxiliary_info") or (None, None)
    return arguments["global_dict"], control


def fill(target: dict[str, Any], source: Mapping[str, torch.Tensor]) -> None:
    """Put ``source`` in the place of what a host's state holds, with its dtypes and devices."""
    for name in target:
        target[name] = source[name].to(target[name], copy=True)


def _losses_of_script() -> list[Any]:
    """What the script has recorded, one list a client; empty where it records nothing of the kind."""
    losses = getattr(sys.modules["__main__"], LOSSES, None)
    return losses if isinstance(losses, list) else []
