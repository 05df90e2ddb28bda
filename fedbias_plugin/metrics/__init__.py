"""How biased is this model: sentence scores of a causal LM, CrowS-Pairs, StereoSet, and their statistics.

Only :mod:`~fedbias_plugin.scoring.scorer` and what uses it import torch; results, statistics, probe and the two
benchmarks do not, so published predictions are scored without it.
"""
