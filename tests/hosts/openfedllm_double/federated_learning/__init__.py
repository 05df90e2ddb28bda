# ruff: noqa: F401
from .fed_global import get_clients_this_round, global_aggregate
from .fed_local_dpo import get_fed_local_dpo_trainer
from .fed_local_sft import SCAFFOLD_Callback, get_fed_local_sft_trainer
from .fed_utils import get_auxiliary_dict, get_proxy_dict
from .split_dataset import get_dataset_this_round, split_dataset
