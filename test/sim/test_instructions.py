import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtp_ros.errors import ConfigError
from dtp_ros.sim.instructions import phrases, task_of
from dtp_ros.sim.tasks import TASKS

ALL = [(task, phrase) for task in TASKS.values() for phrase in phrases(task)]


def test_the_tasks_own_instruction_comes_first_and_none_twice():
    for task in TASKS.values():
        said = phrases(task)
        assert said[0] == task.instruction
        assert len(said) == len(set(said)) >= 24


@given(st.sampled_from(ALL), st.sampled_from(["{}", "{}.", "Please {} now!", "  {}\n"]), st.booleans())
def test_every_phrase_means_its_task_however_it_is_written(pair, frame, loud):
    task, phrase = pair
    said = frame.format(phrase)
    assert task_of(said.upper() if loud else said) is task


def test_phrases_name_source_before_target():
    names = {"spoon": "towel|cloth", "carrot": "plate", "green": "yellow", "eggplant": "basket"}
    for task, phrase in ALL:
        ((source, target),) = [(s, t) for s, t in names.items() if s in phrase]
        assert re.search(rf"{source}.*({target})", phrase), (task.name, phrase)


@pytest.mark.parametrize(
    "said",
    [
        "", "dance", "put the carrot on the towel", "stack the yellow block on the green block",
        "put the spoon on the towel and the carrot on the plate", "put the spoonbill on the towel",
    ],
)  # fmt: skip
def test_what_is_no_task_is_refused_with_those_there_are(said):
    with pytest.raises(ConfigError, match="stack the green block on the yellow block"):
        task_of(said)
