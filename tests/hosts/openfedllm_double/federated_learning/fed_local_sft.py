"""Supervised trainers of a client."""

import copy

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import TrainerCallback
from trl import SFTTrainer


def get_fed_local_sft_trainer(
    script_args,
    fed_args,
    model,
    tokenizer,
    training_args,
    local_dataset,
    formatting_prompts_func,
    data_collator,
    global_dict,
    local_auxiliary,
    global_auxiliary,
):
    """Bug of the original: the typo in FedAdagrad's name."""
    shared = {
        "model": model,
        "tokenizer": tokenizer,
        "args": training_args,
        "max_seq_length": script_args.seq_length,
        "train_dataset": local_dataset,
        "formatting_func": formatting_prompts_func,
        "data_collator": data_collator,
    }
    algorithm = fed_args.fed_alg
    if algorithm == "scaffold":
        control = {"local_auxiliary": local_auxiliary, "global_auxiliary": global_auxiliary}
        trainer = SFTTrainerSCAFFOLD(global_state=global_dict, **control, **shared)
        trainer.add_callback(SCAFFOLD_Callback(trainer.correction, model))
        return trainer
    if algorithm == "fedprox":
        return SFTTrainerFedProx(global_state=global_dict, prox_mu=fed_args.prox_mu, **shared)
    if algorithm in ("fedavg", "fedavgm", "fedadgrad", "fedyogi", "fedadam") or algorithm.startswith("local"):
        return SFTTrainer(**shared)
    raise ValueError(f"Unsupported `fed_alg`: {algorithm}")


class SFTTrainerFedProx(SFTTrainer):
    """Bug of the original: newer trainers hand ``num_items_in_batch`` to ``compute_loss`` as well."""

    def __init__(self, global_state, prox_mu, **kwargs):
        super().__init__(**kwargs)
        self.global_state = global_state
        self.mu = prox_mu

    def compute_loss(self, model, inputs, return_outputs=False):
        found = super().compute_loss(model, inputs, return_outputs=return_outputs)
        loss = found[0] if return_outputs else found
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                anchor = self.global_state[name.replace(".default", "")]
                loss += self.mu / 2 * torch.norm(weight - anchor) ** 2
        return (loss, found[1]) if return_outputs else loss


class SFTTrainerSCAFFOLD(SFTTrainer):
    """Keeps ``correction``, the server's control variate less the client's."""

    def __init__(self, global_state, local_auxiliary, global_auxiliary, **kwargs):
        super().__init__(**kwargs)
        self.global_state = global_state
        self.local_auxiliary = local_auxiliary
        self.global_auxiliary = global_auxiliary
        self.correction = {name: global_auxiliary[name] - own for name, own in local_auxiliary.items()}

    def get_auxiliary_param(self):
        """The client's new control variate, and how far it moved."""
        new, moved = copy.deepcopy(self.local_auxiliary), copy.deepcopy(self.local_auxiliary)
        walked = self.args.max_steps * self.args.learning_rate
        with torch.no_grad():
            for long_name, weight in self.model.named_parameters():
                if weight.requires_grad:
                    name = long_name.replace(".default", "")
                    new[name] = (self.global_state[name] - weight) / walked - self.correction[name]
                    moved[name] = new[name] - self.local_auxiliary[name]
        return new, moved


class SCAFFOLD_Callback(TrainerCallback):
    """Moves the model by the correction after every step."""

    def __init__(self, correction, model):
        super().__init__()
        self.correction = correction
        self.model = model

    def on_step_end(self, args, state, control, **kwargs):
        weights = copy.deepcopy(get_peft_model_state_dict(self.model))
        for name, weight in weights.items():
            weight -= args.learning_rate * self.correction[name]
        set_peft_model_state_dict(self.model, weights)
