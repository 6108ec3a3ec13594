"""Messages of a recording that are another node's, or wrong, are counted or named with their recording."""

import json
import math

import pytest
from bag_writer import (
    INFO,
    OFF,
    SUCCESS,
    TRACE,
    TYPES,
    Recorder,
    steps,
    two_episodes,
)
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.serialization import deserialize_message
from std_msgs.msg import Bool, String

from dtp_ros.study import bags
from dtp_ros.study.recording import BagError


def test_messages_of_others_are_counted(tmp_path):
    recorder = two_episodes()
    recorder.put(TRACE, DiagnosticArray(status=[DiagnosticStatus(name="another node")]))
    recorder.put(TRACE, DiagnosticArray())
    recorded = bags.read_bags([recorder.write(tmp_path / "run")])
    assert (len(recorded.episodes), recorded.foreign) == (2, 2)
    assert "2 messages were not of dtp_policy" in str(recorded)
    others = Recorder()
    others.put(TRACE, DiagnosticArray())
    with pytest.raises(BagError, match=r"has no message of dtp_policy \(there are 1 others"):
        bags.read_bags([others.write(tmp_path / "others")])


def test_which_topic(tmp_path):
    recorder = two_episodes()
    other = "/second/trace"
    recorder.put(other, DiagnosticArray())
    path = recorder.write(tmp_path / "run", topics={**TYPES, other: TYPES[TRACE]})
    with pytest.raises(BagError, match=f"one topic .*but 2.*{TRACE}, {other}"):
        bags.read_bags([path])
    assert len(bags.read_bags([path], topic=TRACE).episodes) == 2
    for topic in ("/nothing", SUCCESS):
        with pytest.raises(BagError, match=f"does not have topic {topic} of type"):
            bags.read_bags([path], topic=topic)
    silent = Recorder()
    silent.put(SUCCESS, Bool(data=True))
    with pytest.raises(BagError, match=r"but 0.*this type: none"):
        bags.read_bags([silent.write(tmp_path / "silent")])


def changed(key, value):
    """A step one of whose values is another, or missing."""
    recorder = Recorder()
    recorder.episode(steps(0, 1), OFF)
    recorder.say(True)
    message = deserialize_message(recorder.heard[0][2], DiagnosticArray)
    kept = [pair for pair in message.status[0].values if pair.key != key or value is not None]
    assert len(kept) < len(message.status[0].values) or value is not None
    for pair in kept:
        pair.value = value if pair.key == key else pair.value
    message.status[0].values = kept
    recorder.heard = recorder.heard[1:]
    recorder.put(TRACE, message)
    return recorder


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("step", None, "no key step"),
        ("step", "-1", "step = -1.0 does not count"),
        ("step", "0.5", "step = 0.5 does not count"),
        ("step", "true", "step = 'true' is no finite number"),
        ("entropy_clean", "wide", "entropy_clean = 'wide' is no JSON"),
        ("unimportant_attention", '"much"', "unimportant_attention = '\"much\"' is no number"),
        ("score_refined", None, "no key score_refined"),
        ("actions", "[[0.1", "actions = "),
        ("hold_reason", None, "no key hold_reason"),
        ("parameter_tolerance", '"much"', "parameter_tolerance = "),
        ("parameter_variant", None, "no key parameter_variant"),
        ("instruction", None, "no key instruction"),
    ],
)
def test_a_value_that_is_wrong_is_named_with_its_recording(tmp_path, key, value, message):
    path = changed(key, value).write(tmp_path / "run")
    with pytest.raises(BagError, match=f"run, {TRACE}: .*{message}"):
        bags.read_bags([path])


def test_a_step_whose_logits_were_not_finite_has_no_figure_and_counts(tmp_path):
    found = bags.read_bags([changed("unimportant_attention", "NaN").write(tmp_path / "run")])
    (one,) = found.episodes
    assert math.isnan(one.series["unimportant_attention"][0])
    assert one.steps == 1


def test_bytes_that_are_no_message(tmp_path):
    recorder = two_episodes()
    topic, time, data = recorder.heard[1]
    recorder.heard[1] = topic, time, data[:-40]
    with pytest.raises(BagError, match=f"run, {TRACE}: a message is no diagnostic_msgs"):
        bags.read_bags([recorder.write(tmp_path / "run")])


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"step": 0, "steps": 9, "success": True})])
def test_info_that_is_not_the_simulators(tmp_path, text):
    recorder = two_episodes()
    recorder.put(INFO, String(data=text))
    with pytest.raises(BagError, match=f"run, {INFO}: .*does not say step"):
        bags.read_bags([recorder.write(tmp_path / "run")])
