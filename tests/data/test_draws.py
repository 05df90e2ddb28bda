from fedbias_plugin.data.draws import generator, permuted


def test_a_permutation_is_the_same_on_every_machine_and_every_python():
    # Golden values: a change here changes which rows every published run trained on.
    assert permuted(range(10), generator("clean", 0)) == GOLDEN[0]
    assert permuted(range(10), generator("clean", 2023)) == GOLDEN[2023]


def test_every_purpose_has_a_generator_of_its_own():
    assert permuted(range(20), generator("clean", 7)) != permuted(range(20), generator("biased", 7))


def test_a_permutation_keeps_all_items_and_leaves_its_input_alone():
    items = list("abcdefg")
    assert sorted(permuted(items, generator("x", 1))) == items
    assert items == list("abcdefg")
    assert permuted([], generator("x", 1)) == []


def test_every_order_of_three_is_equally_frequent():
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(3000):
        order = tuple(permuted(range(3), generator("uniform", seed)))
        counts[order] = counts.get(order, 0) + 1
    # Six orders, 500 expected each, standard deviation 20.4: five standard deviations either way.
    assert len(counts) == 6
    assert all(398 < count < 602 for count in counts.values())


GOLDEN = {0: [3, 9, 5, 6, 7, 0, 8, 4, 1, 2], 2023: [0, 7, 9, 1, 2, 8, 5, 6, 3, 4]}
