"""The host's flags, read when this module is imported, and what follows from them."""

# ruff: noqa: UP045
import json
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Optional

import torch
from accelerate import Accelerator
from peft import LoraConfig
from transformers import BitsAndBytesConfig, HfArgumentParser, TrainingArguments


def flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class FedArguments:
    fed_alg: Optional[str] = flag("fedavg", "how the server combines the clients")
    num_rounds: Optional[int] = flag(500, "rounds")
    num_clients: Optional[int] = flag(2, "clients")
    sample_clients: Optional[int] = flag(2, "clients that train in one round")
    split_strategy: Optional[str] = flag("iid", "how rows are dealt to clients")
    prox_mu: Optional[float] = flag(0.01, "weight of FedProx's term")
    fedopt_tau: Optional[float] = flag(1e-3, "adaptivity of the server's optimizer")
    fedopt_eta: Optional[float] = flag(1e-3, "the server's learning rate")
    fedopt_beta1: Optional[float] = flag(0.9, "decay of the server's first moment")
    fedopt_beta2: Optional[float] = flag(0.99, "decay of the server's second moment")
    save_model_freq: Optional[int] = flag(50, "rounds between two saved models")


@dataclass
class ScriptArguments:
    model_name_or_path: Optional[str] = flag("meta-llama/Llama-2-7b-hf", "base model")
    dataset_name: Optional[str] = flag("lucasmccabe-lmi/CodeAlpaca-20k", "data set")
    log_with: Optional[str] = flag("none", "where the trainer reports to")
    learning_rate: Optional[float] = flag(2e-5, "first learning rate of the clients")
    batch_size: Optional[int] = flag(16, "rows in a batch")
    seq_length: Optional[int] = flag(512, "most tokens of a row")
    gradient_accumulation_steps: Optional[int] = flag(1, "batches in a step")
    load_in_8bit: Optional[bool] = flag(False, "8-bit base model")
    load_in_4bit: Optional[bool] = flag(False, "4-bit base model")
    use_peft: Optional[bool] = flag(False, "train LoRA adapters")
    trust_remote_code: Optional[bool] = flag(False, "run code that comes with the model")
    output_dir: Optional[str] = flag("output", "parent of the run's folder")
    peft_lora_r: Optional[int] = flag(8, "LoRA's rank")
    peft_lora_alpha: Optional[int] = flag(16, "LoRA's alpha")
    logging_steps: Optional[int] = flag(100, "steps between two logged losses")
    use_auth_token: Optional[bool] = flag(False, "unused")
    num_train_epochs: Optional[int] = flag(3, "handed to the trainer, where max_steps wins")
    max_steps: Optional[int] = flag(10, "steps a client trains in a round")
    save_steps: Optional[int] = flag(1000, "steps between two checkpoints of the trainer")
    save_total_limit: Optional[int] = flag(10, "checkpoints the trainer keeps")
    push_to_hub: Optional[bool] = flag(False, "upload the model")
    hub_model_id: Optional[str] = flag(None, "its name there")
    gradient_checkpointing: Optional[bool] = flag(True, "recompute activations to save memory")
    template: Optional[str] = flag("alpaca", "prompt template")
    seed: Optional[int] = flag(2023, "order of the rows before they are dealt")
    dpo_beta: Optional[float] = flag(0.1, "DPO's beta")
    dataset_sample: Optional[int] = flag(20000, "most rows taken from the data set")
    local_data_dir: Optional[str] = flag(None, "text put before the data set's name")


parser = HfArgumentParser((ScriptArguments, FedArguments))
script_args, fed_args = parser.parse_args_into_dataclasses()

peft_config = None
if script_args.use_peft:
    lora = {"r": script_args.peft_lora_r, "lora_alpha": script_args.peft_lora_alpha, "lora_dropout": 0.05}
    peft_config = LoraConfig(task_type="CAUSAL_LM", bias="none", **lora)

PASSED_ON = ["output_dir", "gradient_accumulation_steps", "gradient_checkpointing", "num_train_epochs", "max_steps"]
PASSED_ON += ["logging_steps", "save_steps", "save_total_limit", "push_to_hub", "hub_model_id"]


def get_config():
    return script_args, fed_args, peft_config


def get_training_args(script_args, new_lr):
    """Bug of the original: no seed among them."""
    return TrainingArguments(
        learning_rate=new_lr,
        lr_scheduler_type="constant",
        per_device_train_batch_size=script_args.batch_size,
        report_to=script_args.log_with,
        **{name: getattr(script_args, name) for name in PASSED_ON},
    )


def get_model_config(script_args):
    """Device map, quantisation and dtype of the base model."""
    if not (script_args.load_in_8bit or script_args.load_in_4bit):
        return None, None, None
    if script_args.load_in_4bit and script_args.load_in_8bit:
        raise ValueError("A model is loaded in 8 bits or in 4 bits, not in both.")
    if script_args.load_in_8bit:
        quantised = BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantised = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return {"": Accelerator().local_process_index}, quantised, torch.bfloat16


def save_config(script_args, fed_args):
    """Makes the run's folder, named after its flags and the time. Bug of the original: not the folder's parent."""
    data = os.path.basename(script_args.dataset_name)
    start = f"{script_args.output_dir}/{data}"
    sizes = f"{fed_args.fed_alg}_c{fed_args.num_clients}s{fed_args.sample_clients}_i{script_args.max_steps}"
    sizes += f"_b{script_args.batch_size}a{script_args.gradient_accumulation_steps}_l{script_args.seq_length}"
    adapter = f"r{script_args.peft_lora_r}a{script_args.peft_lora_alpha}"
    folder = f"{start}_{script_args.dataset_sample}_{sizes}_{adapter}_{_stamp(0)}"
    while os.path.exists(folder):
        folder = f"{start}_{sizes}_{_stamp(1)}"
    os.mkdir(folder)
    script_args.output_dir = folder
    with open(os.path.join(folder, "args.json"), "w") as stream:
        json.dump({"script_args": asdict(script_args), "fed_args": asdict(fed_args)}, stream, indent=4)


def _stamp(seconds):
    return f"{datetime.now() + timedelta(seconds=seconds):%Y%m%d%H%M%S}"
