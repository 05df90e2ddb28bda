import math


def cosine_learning_rate(current_round, total_rounds, initial_lr=0.001, min_lr=0):
    """From ``initial_lr`` towards ``min_lr`` along half a cosine."""
    return min_lr + 0.5 * (initial_lr - min_lr) * (1 + math.cos(math.pi * current_round / total_rounds))
