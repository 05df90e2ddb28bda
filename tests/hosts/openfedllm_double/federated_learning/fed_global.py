"""The server. Every sum runs in the original's order, because results are compared bit for bit."""

import random

import torch


def get_clients_this_round(fed_args, round):
    """Bugs of the original: the draw knows the round's number only; ``local12`` is client 2."""
    if fed_args.fed_alg.startswith("local"):
        return [int(fed_args.fed_alg[-1])]
    everybody = range(fed_args.num_clients)
    if fed_args.sample_clients > fed_args.num_clients:
        return list(everybody)
    random.seed(round)
    return sorted(random.sample(everybody, fed_args.sample_clients))


def global_aggregate(
    fed_args,
    global_dict,
    local_dict_list,
    sample_num_list,
    clients_this_round,
    round_idx,
    proxy_dict=None,
    opt_proxy_dict=None,
    auxiliary_info=None,
):
    """Changes ``global_dict`` (and the server's memory) in place and gives it back."""
    rows = sum(sample_num_list[client] for client in clients_this_round)
    trained = [(local_dict_list[client], sample_num_list[client]) for client in clients_this_round]
    adaptive = ADAPTIVE.get(fed_args.fed_alg)
    if adaptive is not None:
        for key in opt_proxy_dict:
            delta = sum(state[key] - global_dict[key] for state, _ in trained) / len(trained)
            adaptive(fed_args, key, delta, proxy_dict, opt_proxy_dict, round_idx)
            root = torch.sqrt(opt_proxy_dict[key]) + fed_args.fedopt_tau
            global_dict[key] += fed_args.fedopt_eta * torch.div(proxy_dict[key], root)
    elif fed_args.fed_alg == "fedavgm":
        for key in global_dict:
            delta = sum((state[key] - global_dict[key]) * count / rows for state, count in trained)
            proxy_dict[key] = _momentum(fed_args, proxy_dict[key], delta, round_idx)
            global_dict[key] = torch.add(global_dict[key], proxy_dict[key])
    else:
        for key in global_dict:
            global_dict[key] = sum(state[key] * count / rows for state, count in trained)
    if fed_args.fed_alg != "scaffold":
        return global_dict, None
    global_auxiliary, deltas = auxiliary_info
    for key in global_auxiliary:
        global_auxiliary[key] += sum(deltas[client][key] for client in clients_this_round) / fed_args.num_clients
    return global_dict, global_auxiliary


def _momentum(fed_args, before, delta, round_idx):
    if round_idx == 0:
        return delta
    return fed_args.fedopt_beta1 * before + (1 - fed_args.fedopt_beta1) * delta


def _adagrad(fed_args, key, delta, first, second, round_idx):
    first[key] = delta
    second[key] = second[key] + torch.square(delta)


def _yogi(fed_args, key, delta, first, second, round_idx):
    first[key] = _momentum(fed_args, first[key], delta, round_idx)
    square = torch.square(first[key])
    second[key] = second[key] - (1 - fed_args.fedopt_beta2) * square * torch.sign(second[key] - square)


def _adam(fed_args, key, delta, first, second, round_idx):
    first[key] = _momentum(fed_args, first[key], delta, round_idx)
    kept = fed_args.fedopt_beta2 * second[key]
    second[key] = kept + (1 - fed_args.fedopt_beta2) * torch.square(first[key])


ADAPTIVE = {"fedadagrad": _adagrad, "fedyogi": _yogi, "fedadam": _adam}
