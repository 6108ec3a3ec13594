import torch

from dtp_ros.engine.selection import TokenSelector
from dtp_ros.models.base import ActionVocabulary

CPU = torch.device("cpu")


def logits(**values):
    """Ten logits, -1 but for the named ones (t3=...)."""
    result = torch.full((10,), -1.0)
    for name, value in values.items():
        result[int(name[1:])] = value
    return result


class Only:
    def __init__(self, *ids):
        self.ids = ids

    def allowed(self, ids):
        return torch.tensor(self.ids)


def test_greedy_over_action_ids_only():
    selector = TokenSelector(ActionVocabulary(torch.tensor([2, 4, 6]), max_tokens=3), None, CPU)
    assert selector.choose(logits(t3=9.0, t4=1.0), []) == (4, False)
    assert selector.support.tolist() == [2, 4, 6]


def test_ties_go_to_the_lower_id():
    selector = TokenSelector(ActionVocabulary(torch.tensor([2, 4, 6])), Only(6, 4), CPU)
    assert selector.choose(logits(t4=1.0, t6=1.0), []) == (4, False)


def test_the_end_waits_for_min_tokens():
    vocabulary = ActionVocabulary(torch.tensor([4, 6]), end_ids=(1,), min_tokens=2, max_tokens=3)
    selector = TokenSelector(vocabulary, None, CPU)
    values = logits(t1=5.0, t6=2.0)
    assert [selector.choose(values, ids)[0] for ids in ([], [4], [4, 4])] == [6, 6, 1]
    assert selector.is_end(1)
    assert not selector.is_end(6)
    assert selector.support.tolist() == [1, 4, 6]
    assert [selector.goes_on(6, [4] * n) for n in (1, 2)] == [True, False]
    assert not selector.goes_on(1, [4])


def test_an_intervention_is_a_changed_choice():
    vocabulary = ActionVocabulary(torch.tensor([4, 6, 8]), end_ids=(1,), min_tokens=1)
    values = logits(t6=3.0, t8=2.0)
    assert TokenSelector(vocabulary, Only(8, 4), CPU).choose(values, [4]) == (8, True)
    assert TokenSelector(vocabulary, Only(8, 6), CPU).choose(values, [4]) == (6, False)
    # The grammar says itself when the end may come, and when it must.
    assert TokenSelector(vocabulary, Only(1), CPU).choose(values, [4]) == (1, True)
