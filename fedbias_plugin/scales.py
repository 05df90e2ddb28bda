"""The two points of the bias scales that everything else refers to."""

UNBIASED = 50.0
"""CrowS-Pairs score and SS of a model without preference, percent."""
LOWEST_LMS = 60.0
"""Below this LMS a model hardly tells a related sentence from an unrelated one, and its SS says little."""
