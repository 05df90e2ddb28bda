"""Which rows a client holds, and which of them it sees in a round."""

import random


def split_dataset(fed_args, script_args, dataset):
    """Bugs of the original: nothing but ``iid`` is known, and the newer libraries' ``shard`` deals contiguous rows."""
    rows = dataset.shuffle(seed=script_args.seed)
    shards = fed_args.num_clients if fed_args.split_strategy == "iid" else 0
    return [rows.shard(shards, client) for client in range(shards)]


def get_dataset_this_round(dataset, round, fed_args, script_args):
    """Bugs of the original: the draw knows the round's number only; ``max_steps=-1`` asks for fewer than no rows."""
    wanted = script_args.batch_size * script_args.gradient_accumulation_steps * script_args.max_steps
    random.seed(round)
    return dataset.select(random.sample(range(len(dataset)), min(wanted, len(dataset))))
