"""What the server remembers from round to round."""

import copy

import torch


def get_proxy_dict(fed_args, global_dict):
    """First and second moments of the server's optimizer, or None for those it lacks."""
    adaptive = fed_args.fed_alg in ("fedadagrad", "fedyogi", "fedadam")
    first = _zeros(global_dict) if adaptive or fed_args.fed_alg == "fedavgm" else None
    if not adaptive:
        return first, None
    return first, {key: torch.ones_like(tensor) * fed_args.fedopt_tau**2 for key, tensor in global_dict.items()}


def get_auxiliary_dict(fed_args, global_dict):
    """SCAFFOLD's control variates: the server's, the clients', and the clients' last changes."""
    clients = range(fed_args.num_clients)
    server = _zeros(global_dict) if fed_args.fed_alg == "scaffold" else None
    return server, [copy.deepcopy(server) for _ in clients], [copy.deepcopy(server) for _ in clients]


def _zeros(state):
    return {key: torch.zeros_like(tensor) for key, tensor in state.items()}
