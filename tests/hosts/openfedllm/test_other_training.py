"""What a patched host trains is its script's: other tasks and trainables are refused before anything loads."""

from types import SimpleNamespace

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments, AttachedArguments
from fedbias_plugin.hosts.openfedllm.flags import check_arguments
from fedbias_plugin.registry import EXTENSIONS


@pytest.mark.parametrize("flags", [{"trainable": "full"}, {"trainable": "lora"}, {"task": "mine"}])
def test_tasks_and_trainables_belong_to_the_built_in_host(monkeypatch, flags):
    monkeypatch.setitem(EXTENSIONS["task"], "mine", "fedbias_plugin.tasks.sft:Sft")
    script = SimpleNamespace(model_name_or_path="nowhere/at/all")
    with pytest.raises(UserError, match=r"--task and --trainable belong to fedbias run"):
        check_arguments(AllArguments(script, SimpleNamespace(), AttachedArguments(**flags)))


def test_a_trainable_that_sends_each_client_what_it_lacks_is_refused_for_its_own_reason():
    script = SimpleNamespace(model_name_or_path="nowhere/at/all")
    with pytest.raises(UserError, match=r"--trainable offsite .* broadcasts one state to all"):
        check_arguments(AllArguments(script, SimpleNamespace(), AttachedArguments(trainable="offsite")))
