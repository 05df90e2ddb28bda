"""The clients' rows as tokens, and the model, whose weights come last: what is wrong without them is said before."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedbias_plugin.data.partition import ClientDataset
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.preflight import check_responses_fit, model_path
from fedbias_plugin.tasks.base import Task
from fedbias_plugin.training.base import Trainable
from fedbias_plugin.training.models import check_fits_model, load_config, load_model, model_outline
from fedbias_plugin.training.parameters import prepared
from fedbias_plugin.training.surgery import unread_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def load_checked(
    host: HostArguments,
    task: Task,
    trainable: Trainable,
    tokenizer: PreTrainedTokenizerBase,
    datasets: Sequence[ClientDataset],
) -> tuple[PreTrainedModel, dict[int, list[dict[str, Any]]]]:
    """The model (with what is to be trained), and client id -> rows to train on.

    Raises:
        UserError: a client has no token to train on, its rows or what is trained do not fit the model (found before the
            weights are read), or the model cannot be loaded.
    """
    task.check_trainable(trainable)
    path, trusted = model_path(host.model_name_or_path), host.trust_remote_code
    features = _encoded(host, task, tokenizer, datasets)
    outline = model_outline(path, trust_remote_code=trusted, kind=task.model_kind)
    outline = prepared(outline, trainable, host.seed)  # refuses names of modules that the model does not have
    _check_fit(task, features, outline)
    model = load_model(path, **host.how_to_load, kind=task.model_kind, seed=host.seed)
    return prepared(model, trainable, host.seed), features


def unread_checked(
    host: HostArguments,
    task: Task,
    trainable: Trainable,
    tokenizer: PreTrainedTokenizerBase,
    datasets: Sequence[ClientDataset],
) -> tuple[PreTrainedModel, dict[int, list[dict[str, Any]]]]:
    """As :func:`load_checked`, the model that clients train in, of a trainable that sends it; no weight is read.

    Raises:
        UserError: as there.
    """
    task.check_trainable(trainable)
    features = _encoded(host, task, tokenizer, datasets)
    config = load_config(model_path(host.model_name_or_path), host.trust_remote_code, **task.model_kind.settings)
    options: dict[str, Any] = {"dtype": host.dtype, "trust_remote_code": host.trust_remote_code}
    _check_fit(
        task,
        features,
        trainable.unread_model(config, functools.partial(unread_model, device="meta", **options), host.seed),
    )
    return trainable.unread_model(config, functools.partial(unread_model, **options), host.seed), features


def _check_fit(task: Task, features: Mapping[int, Sequence[dict[str, Any]]], outline: PreTrainedModel) -> None:
    if features:
        check_fits_model([ids for rows in features.values() for row in rows for ids in task.token_ids(row)], outline)


def _encoded(
    host: HostArguments, task: Task, tokenizer: PreTrainedTokenizerBase, datasets: Sequence[ClientDataset]
) -> dict[int, list[dict[str, Any]]]:
    """Client id -> rows to train on.

    Raises:
        UserError: a client has no token to train on.
    """
    features = {}
    for dataset in datasets:
        features[dataset.client] = encoded = task.encode(dataset.rows, tokenizer, host.seq_length)
        pairs = zip(dataset.rows, encoded, strict=True)
        cut = [row.id for row, feature in pairs if not task.is_trainable(feature)]
        check_responses_fit(
            dataset.client,
            rows=len(encoded),
            trainable=len(cut) < len(encoded),
            first=dataset.rows[0].id,
            seq_length=host.seq_length,
        )
        if cut:
            logger.warning(
                "client %d: --seq_length %d cuts the response off entirely in %d of %d rows, such as %s",
                *(dataset.client, host.seq_length, len(cut), len(encoded), cut[0]),
            )
    return features
