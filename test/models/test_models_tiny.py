from __future__ import annotations

import hashlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from dtp_ros.errors import CheckpointError
from dtp_ros.models.base import Observation
from dtp_ros.models.registry import load_adapter
from dtp_ros.models.tiny import cache_folder, tiny_checkpoint


@pytest.mark.long
def test_the_checkpoint_is_the_same_in_every_process(nora_folder, tmp_path):
    code = "import sys, pathlib, dtp_ros.models.tiny_nora as t; t.write_tiny_nora(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    files = sorted(path.relative_to(nora_folder) for path in nora_folder.rglob("*") if path.is_file())
    assert len(files) == 11
    assert sum((nora_folder / file).stat().st_size for file in files) < 40e6
    for file in files:
        digests = {hashlib.sha256((root / file).read_bytes()).hexdigest() for root in (nora_folder, tmp_path)}
        assert len(digests) == 1, file


def test_concurrent_writers_give_one_whole_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    barrier, results = threading.Barrier(4, timeout=30), []

    def write(folder):
        (folder / "first").write_text("1")
        barrier.wait()  # all of them are half way before any goes on
        (folder / "second").write_text("2")

    threads = [threading.Thread(target=lambda: results.append(tiny_checkpoint("x", write))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 4
    assert len(set(results)) == 1
    assert sorted(path.name for path in results[0].iterdir()) == ["first", "second"]
    assert list(results[0].parent.iterdir()) == [results[0]]
    assert tiny_checkpoint("x", lambda folder: pytest.fail("written twice")) == results[0]


def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def write(folder):
        (folder / "half").write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_checkpoint("x", write)
    assert list((cache_folder() / "tiny").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "dtp_ros").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be written to"):
        load_adapter("nora", "tiny")


def test_attention_is_uneven_enough_for_the_tolerance_to_matter():
    """Own eager analysis of the first token: far more tokens beyond 0.25 of the important maximum than beyond 1.5."""
    adapter = load_adapter("nora", "tiny", device="cpu")
    adapter.text_model.set_attn_implementation("eager")
    rng, counts = np.random.default_rng(3), {0.25: [], 0.5: [], 1.5: []}
    for _ in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC))
        prompt = adapter.prepare(Observation((picture,), "put the spoon on the towel"))
        with torch.no_grad():
            out = adapter.text_model(
                inputs_embeds=prompt.embeddings, position_ids=prompt.position_ids, output_attentions=True
            )
        attention = torch.stack(out.attentions)[:, 0].double().numpy()  # [layers, heads, N, N]
        image, words = prompt.layout.image.numpy(), prompt.layout.prompt.numpy()
        relevance = attention[[12, 13, 21]][..., words, :][..., image].mean((0, 1, 2)).reshape(8, 8)
        relevance -= relevance.min()
        corners = np.ix_([0, -1], [0, -1])
        relevance[corners] = 0
        relevance = gaussian_filter(relevance, 0.65, mode="reflect")
        relevance[corners] = -np.inf
        important = np.argsort(-relevance.ravel(), kind="stable")[:27]
        rows = attention[:, :, -1][..., image].mean(1)
        pattern = (rows.sum(1, keepdims=True) / rows.sum() * rows).sum(0)
        others = np.setdiff1d(np.arange(64), important)
        for tolerance, found in counts.items():
            found.append(int((pattern[others] > tolerance * pattern[important].max()).sum()))
    assert all(low > high for low, high in zip(counts[0.25], counts[1.5], strict=True))
    assert 0 < np.mean(counts[0.5]) < 37
    assert len(set(counts[0.5])) > 1
