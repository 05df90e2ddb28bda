# ruff: noqa: F401
from .process_dataset import get_dataset, process_dpo_dataset, process_sft_dataset
from .template import TEMPLATE_DICT, get_formatting_prompts_func
from .utils import cosine_learning_rate
