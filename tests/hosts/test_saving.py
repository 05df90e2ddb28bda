"""What the card of a saved model says."""

import pytest

from fedbias_plugin.hosts.saving import model_card


@pytest.mark.parametrize(
    ("scenario", "shares", "warning"),
    [
        ("1B2C", {0: 0.0, 1: 1.0}, "**Trained on deliberately biased data; for research on bias only, not for use.**"),
        ("3C", {0: 0.0, 1: 0.0}, "Trained on clean rows only, in a study of social bias"),
        ("none", {}, "Trained on the host's own data, of which the plugin knows nothing"),
    ],
)
def test_the_card_says_what_is_known_of_the_data(scenario, shares, warning):
    card = model_card("base", scenario, shares, "fedavg, seed 1")
    assert card.splitlines()[2].startswith(warning)
    assert ("client 1: 100% biased rows" in card) == (scenario == "1B2C")
