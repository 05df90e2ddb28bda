"""The embedded federated loop: OpenFedLLM's rounds without a checkout, on the current stack."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path

from fedbias_plugin.aggregation.server_optimizers import ServerOptimizer
from fedbias_plugin.algorithms import local_client
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import Stopped, UserError
from fedbias_plugin.files import delete_temporary_files, disk_errors_named
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.hosts.builtin.checkpoint import first_checkpoint, restore_checkpoint, take_checkpoint
from fedbias_plugin.hosts.builtin.model_and_rows import load_checked
from fedbias_plugin.hosts.builtin.output_folder import check_is_free, check_output_dir, resume_line
from fedbias_plugin.hosts.builtin.stopping import StoppableProgress, StopSignals
from fedbias_plugin.hosts.checkpoints import Checkpoint, CheckpointFolder, locked
from fedbias_plugin.hosts.saving import model_card, save_global_model
from fedbias_plugin.preflight import check_bitsandbytes, check_model
from fedbias_plugin.progress import Progress, build_progress
from fedbias_plugin.session import BiasSession, HostRun
from fedbias_plugin.state import State
from fedbias_plugin.tracking.jsonl import METRICS_FILE
from fedbias_plugin.training.determinism import make_deterministic
from fedbias_plugin.training.fingerprint import model_fingerprint
from fedbias_plugin.training.local_trainer import ClientUpdate, LocalTrainingSettings, train_client
from fedbias_plugin.training.schedule import clients_this_round
from fedbias_plugin.training.state_store import StateStore, choose_store, state_bytes
from fedbias_plugin.training.states import read_state, write_state

logger = logging.getLogger(__name__)

STATES = ".local_states"


def run(host: HostArguments, bias: BiasArguments, resumed: Checkpoint | None = None) -> Path:
    """Train ``host.num_rounds`` rounds across poisoned clients; everything lands in ``host.output_dir``.

    All data and every client's rows are read and checked before the model's weights are, and these before the output
    folder is made.

    Args:
        host: the host's flags.
        bias: the plugin's flags.
        resumed: where a run that was cut off in ``host.output_dir`` goes on.

    Returns:
        The output folder.

    Raises:
        UserError: input that the user can mend; nothing was written.
        Stopped: a signal came; what was finished is in the checkpoint.
    """
    output = Path(host.output_dir) if resumed else check_output_dir(host.output_dir)
    if bias.scenario == "none":
        raise UserError("--scenario none leaves the built-in host without data; use 3C for clean clients only.")
    check_model(host.model_name_or_path)
    check_bitsandbytes(host.load_in_8bit, host.load_in_4bit)
    if bias.deterministic:
        make_deterministic()
    with build_progress() as bars, StopSignals() as stop:
        progress, checkpoints = StoppableProgress(bars, stop), CheckpointFolder(output)
        session = BiasSession(bias, host_run(host, bias), progress)
        try:
            federation = Federation(host, bias, session, progress, stop, checkpoints)
            with disk_errors_named(output), nullcontext() if resumed else locked(output):
                _run_in_folder(federation, resumed)
        except BaseException as error:
            session.close(failure=f"{type(error).__name__}: {error}")
            raise
    return output


def _run_in_folder(federation: Federation, resumed: Checkpoint | None) -> None:
    """Train, save and close, in a folder that is this process's alone."""
    output = Path(federation.host.output_dir)
    if resumed is None:
        check_is_free(output)  # another process may have been here since
    delete_temporary_files(output)
    StateStore(output / STATES).close()  # of a process that was killed
    try:
        with closing(federation.store):
            federation.train(resumed)
            federation.save()
    except BaseException:
        if federation.has_begun:
            _tell_how_to_go_on(federation)
        raise
    federation.session.close()
    federation.checkpoints.delete()


def _tell_how_to_go_on(federation: Federation) -> None:
    if federation.checkpoints.is_empty:
        logger.warning("No checkpoint was kept (--checkpoint_every 0): the run cannot be resumed.")
    else:
        logger.warning("What is finished is kept. To go on: %s", resume_line(Path(federation.host.output_dir)))


def host_run(host: HostArguments, bias: BiasArguments) -> HostRun:
    """What the session must know of this host's run."""
    return HostRun(
        output_dir=Path(host.output_dir),
        fed_alg=host.fed_alg,
        num_clients=host.num_clients,
        sample_clients=host.sample_clients or host.num_clients,
        num_rounds=host.num_rounds,
        seed=host.seed,
        template=host.template,
        seq_length=host.seq_length,
        config=dataclasses.asdict(host) | dataclasses.asdict(bias),
    )


class Federation:
    """The model, the clients' encoded rows and the server, for the length of one run.

    Args:
        host: the host's flags.
        bias: the plugin's flags.
        session: owns the clients' rows, the measuring and the weighting.
        progress: draws the bars.
        stop: asked after every training step whether to go on.
        checkpoints: of the run's folder.

    Attributes:
        has_begun: whether there is anything to go on with.

    Raises:
        UserError: a client has no token to train on, its rows or the adapter do not fit the model, or the model cannot
            be loaded.
    """

    def __init__(
        self,
        host: HostArguments,
        bias: BiasArguments,
        session: BiasSession,
        progress: Progress,
        stop: StopSignals,
        checkpoints: CheckpointFolder,
    ) -> None:
        self.host, self.bias, self.session, self.progress = host, bias, session, progress
        self.stop, self.checkpoints = stop, checkpoints
        self.has_begun = False
        self._on_disk: int | None = None
        self.model, self.tokenizer, self.features = load_checked(host, session.client_datasets)
        self.global_state = read_state(self.model)
        self.local_controls: dict[int, State] = {}
        self.store = _open_store(host, self.global_state)
        self.server = ServerOptimizer(
            host.fed_alg,
            fedopt_tau=host.fedopt_tau,
            fedopt_eta=host.fedopt_eta,
            fedopt_beta1=host.fedopt_beta1,
            fedopt_beta2=host.fedopt_beta2,
            variant=host.fedopt_variant,
            v_0=host.fedopt_v0,
            num_clients=host.num_clients,
        )
        self.settings = LocalTrainingSettings(
            batch_size=host.batch_size,
            gradient_accumulation_steps=host.gradient_accumulation_steps,
            learning_rate=host.learning_rate,
            num_rounds=host.num_rounds,
            max_steps=host.max_steps,
            local_epochs=bias.local_epochs,
            pad_token_id=self.tokenizer.pad_token_id,
            gradient_checkpointing=host.gradient_checkpointing,
            schedule_seed=bias.schedule_seed,
            bf16=host.bf16,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what is not trained: the same in every round."""
        return model_fingerprint(self.model, self.tokenizer)

    def train(self, resumed: Checkpoint | None) -> None:
        """Round 0 measures the untouched model; every further round trains, weighs, averages and measures."""
        done = self._begin(resumed)
        try:
            with self.progress.rounds(self.host.num_rounds) as advance:
                advance(done)
                for round_number in range(done + 1, self.host.num_rounds + 1):
                    self._round(round_number - 1)
                    done = round_number
                    self._keep(done)
                    advance()
        except Stopped as stopped:
            if not stopped.at_once:
                self._checkpoint(done)
            raise

    def _keep(self, round_number: int) -> None:
        """Save the global model and write a checkpoint, as often as is asked for."""
        if round_number % self.host.save_model_freq == 0:
            self.save(f"checkpoint-{round_number}")
        if round_number % (self.host.checkpoint_every or 1) == 0:
            self._checkpoint(round_number)

    def _begin(self, resumed: Checkpoint | None) -> int:
        """The last round that is finished: 0 in a new run, whose untouched model is measured here."""
        if resumed is not None and resumed.round is not None:
            restore_checkpoint(self, resumed)
            self._on_disk, self.has_begun = resumed.round, True
            logger.info("resumed after round %d of %d", resumed.round, self.host.num_rounds)
            return resumed.round
        if resumed is not None:  # the process before got no further than the untouched model
            (Path(self.host.output_dir) / METRICS_FILE).unlink(missing_ok=True)
            self.session.load_state_dict(resumed.details["session"])
        elif self.host.checkpoint_every:
            self.checkpoints.write(first_checkpoint(self))
        self.has_begun = True
        self.session.after_aggregation(0, model=self.model, tokenizer=self.tokenizer)
        self._checkpoint(0)
        return 0

    def _checkpoint(self, round_number: int) -> None:
        """Write the state after ``round_number``, which is the present one, unless that is done or not wanted."""
        if self.host.checkpoint_every and self._on_disk != round_number:
            self.checkpoints.write(take_checkpoint(self, round_number))
            self._on_disk = round_number

    def save(self, name: str | None = None) -> None:
        """Write the global adapter to ``adapter`` (without LoRA the model to ``model``) or ``name`` in the output."""
        folder = Path(self.host.output_dir) / (name or ("adapter" if self.host.use_peft else "model"))
        host, bias, base = self.host, self.bias, self.host.model_name_or_path
        settings = f"{host.fed_alg}, --aggregation {bias.aggregation}, {host.num_rounds} rounds, seed {host.seed}"
        shares = {dataset.client: dataset.biased_share for dataset in self.session.client_datasets}
        card = model_card(base, bias.scenario, shares, settings, bias.attack, with_adapter=host.use_peft)
        save_global_model(self.model, self.tokenizer, folder, card)

    def _round(self, round_idx: int) -> None:
        host = self.host
        clients = clients_this_round(
            host.fed_alg, host.num_clients, host.sample_clients or host.num_clients, round_idx, self.bias.schedule_seed
        )
        updates = {}
        with self.progress.task(f"round {round_idx + 1}: train clients", len(clients)) as advance:
            for client in clients:
                updates[client] = self._train_client(client, round_idx)
                advance()
        sample_counts = {client: len(self.features[client]) for client in clients}
        states = self.session.before_aggregation(
            round_idx + 1,
            model=self.model,
            tokenizer=self.tokenizer,
            global_state=self.global_state,
            local_states={client: update.state for client, update in updates.items()},
            sample_counts=sample_counts,
            train_losses={client: update.train_loss for client, update in updates.items()},
        )
        with self.stop.held(bool(host.checkpoint_every) and self._on_disk != round_idx):
            self._aggregate(round_idx, states, updates, sample_counts)
            write_state(self.model, self.global_state)
            del updates, states  # as large as the model each, when all weights are trained
            for client in clients:
                self.store.drop(f"client-{client}")
                self.store.drop(f"client-{client}-control-delta")
            self.session.after_aggregation(round_idx + 1, model=self.model, tokenizer=self.tokenizer)

    def _aggregate(
        self,
        round_idx: int,
        states: Mapping[int, State],
        updates: Mapping[int, ClientUpdate],
        sample_counts: Mapping[int, int],
    ) -> None:
        """Average ``states`` into the global one; without any, as all updates were refused, it stays."""
        if not states:
            return
        accepted = {client: updates[client] for client in states}
        deltas = {client: u.control_delta for client, u in accepted.items() if u.control_delta is not None}
        self.global_state = self.server.aggregate(
            round_idx, self.global_state, states, sample_counts, deltas or None, into=self.global_state
        )
        for client, update in accepted.items():
            if update.new_local_control is not None:
                self.local_controls[client] = update.new_local_control

    def _train_client(self, client: int, round_idx: int) -> ClientUpdate:
        """What the client sends back, with its states where ``--local_states`` wants them."""
        update = train_client(
            self.model,
            self.features[client],
            client=client,
            round_idx=round_idx,
            settings=self.settings,
            fed_alg=self.host.fed_alg,
            global_state=self.global_state,
            prox_mu=self.session.proximal_mu(client, self.host.prox_mu),
            local_control=self.local_controls.get(client),
            global_control=self.server.control_variate,
            after_step=self.stop.check,
        )
        if not math.isfinite(update.train_loss) and self.bias.on_bad_update == "stop":
            raise UserError(
                f"Client {client}'s training loss in round {round_idx + 1} is {update.train_loss}: training has "
                f"diverged. Lower --learning_rate (now {self.settings.learning_rate_of(round_idx):g}), or go on "
                "without such clients: --on_bad_update drop."
            )
        keep = self.store.keep
        state = keep(f"client-{client}", update.state)
        if update.new_local_control is None or update.control_delta is None:
            return dataclasses.replace(update, state=state)
        control = keep(f"client-{client}-control", update.new_local_control)
        delta = keep(f"client-{client}-control-delta", update.control_delta)
        return dataclasses.replace(update, state=state, new_local_control=control, control_delta=delta)


def waiting_bytes(host: HostArguments, global_state: State) -> int:
    """Bytes of the clients' states that wait at once: one a client of the round.

    With SCAFFOLD also its new control variate and the change of it, and the control variates of all clients.
    """
    clients = 1 if local_client(host.fed_alg) is not None else host.sample_clients or host.num_clients
    copies = 3 * clients + host.num_clients if host.fed_alg == "scaffold" else clients
    return copies * state_bytes(global_state)


def _open_store(host: HostArguments, global_state: State) -> StateStore:
    return choose_store(host.local_states, Path(host.output_dir) / STATES, waiting_bytes(host, global_state))
