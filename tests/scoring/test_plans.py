"""Plans are made once per texts and tokenizer, and never taken for those of others."""

import copy
from pathlib import Path

import numpy as np
import pytest

from fedbias_plugin.scoring import plans as plans_module
from fedbias_plugin.scoring.items import ScoreRequest
from fedbias_plugin.scoring.plans import PlanCache, plans_folder

REQUESTS = [ScoreRequest("The nurse was kind."), ScoreRequest(" It rained.", context="The nurse was rude.")]


@pytest.fixture
def made(monkeypatch):
    """One entry for every plan that was made, not found."""
    calls, build = [], plans_module.build_plan
    monkeypatch.setattr(plans_module, "build_plan", lambda *args: calls.append(args) or build(*args))
    return calls


def plan_of(cache, tokenizer, requests=REQUESTS, prefix=0, size=64):
    return cache.plan(requests, tokenizer, prefix, size, str)


def test_a_plan_is_made_once_in_memory_and_once_on_the_disk(tmp_path, made, bos_tokenizer):
    cache = PlanCache(tmp_path / "plans")
    first = plan_of(cache, bos_tokenizer)
    assert plan_of(cache, bos_tokenizer) is first
    stored = plan_of(PlanCache(tmp_path / "plans"), copy.deepcopy(bos_tokenizer))
    assert len(made) == 1
    assert all(np.array_equal(part, stored.arrays()[name]) for name, part in first.arrays().items())
    assert {part.dtype for part in stored.arrays().values()} == {np.dtype(np.int64)}


def test_other_texts_tokenizers_prefixes_and_sizes_get_their_own(tmp_path, made, bos_tokenizer, eos_tokenizer):
    grown = copy.deepcopy(bos_tokenizer)
    grown.add_tokens(["nurse"])
    for cache in (PlanCache(tmp_path), PlanCache(tmp_path)):
        plan_of(cache, bos_tokenizer)
        plan_of(cache, bos_tokenizer, requests=REQUESTS[::-1])
        plan_of(cache, bos_tokenizer, requests=[ScoreRequest(" was kind.", "The nurse"), REQUESTS[1]])
        plan_of(cache, eos_tokenizer)
        plan_of(cache, grown)
        plan_of(cache, bos_tokenizer, prefix=1)
        plan_of(cache, bos_tokenizer, size=None)
    assert len(made) == 7


def test_a_tokenizer_that_learns_a_word_gets_a_new_plan(made, bos_tokenizer):
    cache, tokenizer = PlanCache(), copy.deepcopy(bos_tokenizer)
    before = plan_of(cache, tokenizer)
    tokenizer.add_tokens(["nurse"])
    assert plan_of(cache, tokenizer).lengths[0] < before.lengths[0]


def test_a_tokenizer_without_a_fast_core_is_never_looked_up(tmp_path, made, bos_tokenizer):
    class Slow:
        def __len__(self):
            return len(bos_tokenizer)

        def __call__(self, *args, **kwargs):
            return bos_tokenizer(*args, **kwargs)

    cache = PlanCache(tmp_path)
    plan_of(cache, Slow())
    plan_of(cache, Slow())
    assert len(made) == 2
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_is_changed_inside_gets_a_new_plan(bos_tokenizer):
    from tokenizers.normalizers import Replace

    cache, tokenizer = PlanCache(), copy.deepcopy(bos_tokenizer)
    before = plan_of(cache, tokenizer)
    tokenizer.backend_tokenizer.normalizer = Replace("nurse", "ox")
    assert plan_of(cache, tokenizer).lengths[0] < before.lengths[0]


def test_special_tokens_in_a_text_are_read_as_the_tokenizer_is_told(bos_tokenizer):
    cache, requests = PlanCache(), [ScoreRequest("It rained.</s>")]
    split = copy.deepcopy(bos_tokenizer)
    split.split_special_tokens = True
    assert plan_of(cache, bos_tokenizer, requests).lengths[0] < plan_of(cache, split, requests).lengths[0]


def test_a_tokenizer_with_code_of_its_own_is_never_looked_up(made, bos_tokenizer):
    from tokenizers import PreTokenizedString
    from tokenizers.pre_tokenizers import PreTokenizer

    class Own(type(bos_tokenizer)):
        pass

    class Part:
        def pre_tokenize(self, text: PreTokenizedString):
            text.split(lambda index, piece: [piece])

    own, part = copy.deepcopy(bos_tokenizer), copy.deepcopy(bos_tokenizer)
    own.__class__ = Own
    part.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Part())
    cache = PlanCache()
    for tokenizer in (own, own, part, part):
        plan_of(cache, tokenizer)
    assert len(made) == 4


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_damaged_stored_plan_is_made_anew(tmp_path, made, bos_tokenizer, damage):
    plan_of(PlanCache(tmp_path), bos_tokenizer)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    plan_of(PlanCache(tmp_path), bos_tokenizer)
    assert len(made) == 2
    plan_of(PlanCache(tmp_path), bos_tokenizer)
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_costs_only_the_time(tmp_path, made, bos_tokenizer):
    (tmp_path / "file").write_text("")
    plan_of(PlanCache(tmp_path / "file" / "plans"), bos_tokenizer)
    assert len(made) == 1


def test_memory_holds_the_plans_used_last(made, bos_tokenizer, monkeypatch):
    monkeypatch.setattr(plans_module, "KEPT", 2)
    cache = PlanCache()
    first, second, third = ([ScoreRequest(f"It rained for {days} days.")] for days in ("two", "three", "four"))
    for requests in (first, second, first, third, first):
        plan_of(cache, bos_tokenizer, requests)
    assert len(made) == 3
    plan_of(cache, bos_tokenizer, second)
    assert len(made) == 4


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEDBIAS_CACHE", "~/kept")
    assert plans_folder() == tmp_path / "kept" / "plans"
    monkeypatch.delenv("FEDBIAS_CACHE")
    assert plans_folder() == tmp_path / ".cache" / "fedbias_plugin" / "plans"


def test_a_user_without_a_home_has_a_folder_too(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FEDBIAS_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    assert plans_folder().parent.name == "fedbias_plugin"
