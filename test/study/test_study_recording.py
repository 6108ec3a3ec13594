"""Recordings in several files, compressed, cut off or damaged: what can be read is, the rest is named."""

from contextlib import suppress

import pytest
from bag_writer import GRID, LARGE, OFF, STORAGES, Recorder, joined, step_result, two_episodes
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from rosbags.rosbag2 import CompressionMode

from dtp_ros.errors import DtpError
from dtp_ros.study import bags
from dtp_ros.study.recording import BagError

FIRST_CHUNK = 0.34  # of the long recording ends there


@pytest.mark.parametrize("storage", STORAGES)
def test_a_recording_in_several_files(tmp_path, storage):
    whole = two_episodes()
    parts = []
    for number, part in enumerate((whole.heard[:3], whole.heard[3:])):  # within the first episode
        parts.append(Recorder(heard=part).write(tmp_path / f"part{number}", storage))
    expected = bags.read_bags([whole.write(tmp_path / "run", storage)])
    assert bags.read_bags([joined(tmp_path / "split" / "run", parts)]) == expected


@pytest.mark.parametrize("storage", STORAGES)
def test_one_file_alone(tmp_path, storage):
    path = two_episodes().write(tmp_path / "run", storage)
    (file,) = (f for f in path.iterdir() if f.suffix != ".yaml")
    assert bags.read_bags([file]) == bags.read_bags([path])


def test_a_compressed_recording(tmp_path):
    expected = bags.read_bags([two_episodes().write(tmp_path / "a" / "run", "mcap")])
    for number, mode in enumerate((CompressionMode.FILE, CompressionMode.MESSAGE, CompressionMode.STORAGE)):
        path = two_episodes().write(tmp_path / str(number) / "run", "mcap", compression=mode)
        assert bags.read_bags([path]) == expected


def killed(path):
    """As a recorder leaves it that was killed: without metadata.yaml."""
    (path / "metadata.yaml").unlink()
    return path


def many_episodes(count=12, length=9, grid=GRID):
    recorder = Recorder()
    for seed in range(count):
        recorder.say(False)
        recorder.episode([step_result(seed, i, grid=grid) for i in range(length)], OFF)
        recorder.say(seed % 2 == 1)
    return recorder


@pytest.mark.parametrize("storage", STORAGES)
def test_a_recorder_that_was_killed_costs_the_last_episode(tmp_path, storage):
    path = many_episodes().write(tmp_path / "run", storage)
    expected = bags.read_bags([path])
    recorded = bags.read_bags([killed(path)])
    assert recorded.episodes == expected.episodes[:-1]
    assert recorded.left_out == {bags.CUT: 1}


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path):
    whole = many_episodes(2, 4)
    parts = [Recorder(heard=[one]).write(tmp_path / f"part{i}", "sqlite3") for i, one in enumerate(whole.heard)]
    assert len(parts) > 10
    recorded = bags.read_bags([killed(joined(tmp_path / "x" / "run", parts))])
    assert recorded.episodes == bags.read_bags([whole.write(tmp_path / "run")]).episodes[:1]


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory):
    """An MCAP file of several chunks, and its episodes."""
    path = many_episodes(30, 5, LARGE).write(tmp_path_factory.mktemp("long") / "run", "mcap")
    episodes = bags.read_bags([path]).episodes
    return (killed(path) / "run.mcap").read_bytes(), episodes


@hypothesis(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 1.0))
def test_an_mcap_file_cut_off_anywhere_gives_the_episodes_before(tmp_path_factory, long_recording, share):
    content, episodes = long_recording
    path = tmp_path_factory.mktemp("cut") / "run"
    path.mkdir()
    (path / "run_0.mcap").write_bytes(content[: round(share * len(content))])
    if share < FIRST_CHUNK:
        with suppress(BagError):  # unless it holds that much
            bags.read_bags([path])
        return
    recorded = bags.read_bags([path])
    assert recorded.episodes == episodes[: len(recorded.episodes)]
    assert recorded.left_out == {bags.CUT: 1}


def test_the_whole_chunks_of_a_file_are_read_without_its_folder(tmp_path, long_recording):
    content, episodes = long_recording
    (tmp_path / "run.mcap").write_bytes(content[: round(0.8 * len(content))])
    recorded = bags.read_bags([tmp_path / "run.mcap"])
    assert 10 < len(recorded.episodes) < len(episodes)  # two of three chunks
    assert recorded.episodes == episodes[: len(recorded.episodes)]


def broken(path, storage, change):
    (file,) = (f for f in path.iterdir() if f.suffix != ".yaml")
    content = file.read_bytes()
    file.write_bytes(change(content))
    return path


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"something else" * 1000,
        lambda content: content[:2000] + bytes(len(content) - 4000) + content[-2000:],
    ],
    ids=["half", "empty", "foreign", "zeros"],
)
def test_a_broken_file_is_named(tmp_path, storage, change):
    path = broken(many_episodes().write(tmp_path / "run", storage), storage, change)
    with pytest.raises(BagError, match=str(path)):
        bags.read_bags([path])


def test_folders_that_are_no_recordings(tmp_path):
    with pytest.raises(BagError, match=r"has neither metadata\.yaml nor a file"):
        bags.read_bags([tmp_path])
    with pytest.raises(BagError, match="nowhere does not exist"):
        bags.read_bags([tmp_path / "nowhere"])
    (tmp_path / "metadata.yaml").write_text("a: [")
    with pytest.raises(BagError, match="cannot be read"):
        bags.read_bags([tmp_path])
    assert issubclass(BagError, DtpError)
