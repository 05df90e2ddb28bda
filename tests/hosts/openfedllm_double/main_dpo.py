"""Federated preference tuning (DPO), every client in turn on one model."""

# ruff: noqa: F401, F403, F405, I001
import copy
import os

import numpy as np
from peft import get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training, set_peft_model_state_dict
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DataCollatorForCompletionOnlyLM, DPOTrainer

from utils import *
from federated_learning import *
from config import get_config, get_model_config, get_training_args, save_config

script_args, fed_args, peft_config = get_config()
training_args = get_training_args(script_args, script_args.learning_rate)
save_config(script_args, fed_args)
print(script_args, fed_args)

dataset = get_dataset(script_args.dataset_name, script_args.local_data_dir)
dataset = process_dpo_dataset(script_args.dataset_name, dataset, script_args.template, script_args.dataset_sample)
local_datasets = split_dataset(fed_args, script_args, dataset)
sample_num_list = [len(local_datasets[client]) for client in range(fed_args.num_clients)]

device_map, quantization_config, torch_dtype = get_model_config(script_args)
loading = {
    "device_map": device_map,
    "quantization_config": quantization_config,
    "torch_dtype": torch_dtype,
    "trust_remote_code": script_args.trust_remote_code,
}
model = AutoModelForCausalLM.from_pretrained(script_args.model_name_or_path, **loading)
model_ref = None  # with adapters the reference is the model without them
if not script_args.use_peft:
    model_ref = AutoModelForCausalLM.from_pretrained(script_args.model_name_or_path, **loading)
checkpointing = training_args.gradient_checkpointing
if quantization_config is not None:
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
model = get_peft_model(model, peft_config)  # bug of the original: fails on None, that is without --use_peft
model.print_trainable_parameters()
model.config.use_cache = False
if checkpointing:
    model.enable_input_require_grads()

initial = get_peft_model_state_dict(model)
global_dict = copy.deepcopy(initial)
local_dict_list = [copy.deepcopy(global_dict) for _ in range(fed_args.num_clients)]
first_moment, second_moment = get_proxy_dict(fed_args, global_dict)
global_auxiliary, auxiliary_model_list, control_changes = get_auxiliary_dict(fed_args, global_dict)

tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path, padding_side="right", use_fast=False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token  # bug of the original: not every tokenizer has one

training_loss = [[] for _ in range(fed_args.num_clients)]
for round in tqdm(range(fed_args.num_rounds)):
    clients_this_round = get_clients_this_round(fed_args, round)
    print(f">> ===== Round {round + 1} : {clients_this_round} =====")
    for client in range(fed_args.num_clients):
        if client not in clients_this_round:
            training_loss[client].append(-1)
            continue
        set_peft_model_state_dict(model, global_dict)
        sub_dataset = get_dataset_this_round(local_datasets[client], round, fed_args, script_args)
        new_lr = cosine_learning_rate(round, fed_args.num_rounds, script_args.learning_rate, 1e-5)
        training_args = get_training_args(script_args, new_lr)
        trainer = get_fed_local_dpo_trainer(
            script_args,
            fed_args,
            model,
            model_ref,
            tokenizer,
            training_args,
            sub_dataset,
            global_dict,
            auxiliary_model_list[client],
            global_auxiliary,
        )
        training_loss[client].append(trainer.train().training_loss)
        if fed_args.fed_alg == "scaffold":
            own, moved = trainer.get_auxiliary_param()
            auxiliary_model_list[client], control_changes[client] = own, moved
        local_dict_list[client] = copy.deepcopy(get_peft_model_state_dict(model))

    global_dict, global_auxiliary = global_aggregate(
        fed_args,
        global_dict,
        local_dict_list,
        sample_num_list,
        clients_this_round,
        round,
        proxy_dict=first_moment,
        opt_proxy_dict=second_moment,
        auxiliary_info=(global_auxiliary, control_changes),
    )
    set_peft_model_state_dict(model, global_dict)
    if (round + 1) % fed_args.save_model_freq == 0:  # bug of the original: a short run saves nothing
        trainer.save_model(os.path.join(script_args.output_dir, f"checkpoint-{round + 1}"))
    np.save(f"{script_args.output_dir}/training_loss.npy", training_loss)
