from dataclasses import replace

import pytest
import torch
from engine_models import LAYERS, MODELS, forced, gemma, observation, qwen
from engine_oracle import EagerModel, base_visible, extended, hide

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.decoder import Chain, TokenSequence
from dtp_ros.errors import CaptureError, ObservationError
from dtp_ros.models.base import TokenLayout

IDS = [50, 47, 61]


@pytest.fixture(params=MODELS)
def adapter(request):
    adapter = MODELS[request.param]()
    with torch.inference_mode(), captured_attention(adapter.text_model):
        yield adapter


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def sequence_of(adapter, ids=()):
    prompt = adapter.prepare(observation())
    sequence = TokenSequence(adapter, prompt)
    for token in ids:
        sequence.append(token)
    return prompt, sequence


def some_mask(prompt):
    """A few image tokens: neither none nor all."""
    return torch.arange(len(prompt.layout.image)) % 3 == 1


def eager_of(adapter, prompt, ids, hidden_rows=None, mask=None):
    embeddings, positions = extended(adapter, prompt, ids)
    visible = base_visible(embeddings.shape[1], prompt.embeddings.shape[1] if prompt.bidirectional else 0)
    if mask is not None:
        visible = hide(visible, prompt.layout.image[mask], hidden_rows)
    return EagerModel(adapter)(embeddings, positions, visible)


def test_mask_by_hand():
    adapter = gemma()
    prompt = adapter.prepare(observation())
    small = replace(
        prompt,
        embeddings=prompt.embeddings[:, :3],
        position_ids=prompt.position_ids[:, :3],
        layout=TokenLayout(torch.tensor([0, 1]), torch.tensor([2]), 1, 2, "attention"),
    )
    prefix_lm = TokenSequence(adapter, small)
    prefix_lm.append(50)
    hidden = torch.tensor([False, True])
    assert prefix_lm.mask(0, 4).int()[0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    # Token 1 is hidden from all but itself.
    assert prefix_lm.mask(0, 4, hidden).int()[0, 0].tolist() == [
        [1, 0, 1, 0],
        [1, 1, 1, 0],
        [1, 0, 1, 0],
        [1, 0, 1, 1],
    ]
    assert prefix_lm.mask(2, 3).int().tolist() == [[[[1, 1, 1]]]]
    causal = TokenSequence(adapter, replace(small, bidirectional=False))
    causal.append(50)
    assert causal.mask(0, 4, hidden).int()[0, 0].tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 1, 1],
    ]


def test_prefill_equals_eager(adapter):
    prompt, sequence = sequence_of(adapter)
    clean, relevance = Chain(sequence).prefill((1, 2))
    eager = eager_of(adapter, prompt, [])
    layout = prompt.layout
    close(clean.logits[0], eager.logits[-1])
    close(clean.attention(), eager.attention[:, :, -1, layout.image], 1e-5)
    if layout.relevance == "attention":
        expected = eager.attention[[1, 2]][:, :, layout.prompt][..., layout.image].mean(dim=(0, 1, 2))
    else:
        states = torch.nn.functional.normalize(torch.stack(eager.states)[[2, 3]], dim=-1)
        expected = (states[:, layout.prompt] @ states[:, layout.image].mT).mean(dim=(0, 1))
    close(relevance, expected, 1e-5)


def test_steps_equal_eager(adapter):
    """Token by token over a cache, and several tokens in one pass, against whole passes."""
    prompt, sequence = sequence_of(adapter)
    chain = Chain(sequence)
    chain.prefill((1,))
    for i, token in enumerate(IDS):
        sequence.append(token)
        step = chain.extend(capture=True)
        eager = eager_of(adapter, prompt, IDS[: i + 1])
        close(step.logits[0], eager.logits[-1])
        close(step.attention(), eager.attention[:, :, -1, prompt.layout.image], 1e-5)
    chain.rewind(len(IDS))
    forced_pass = chain.extend(capture=True, count=len(IDS))
    close(forced_pass.logits, eager.logits[-len(IDS) :])
    for i in range(len(IDS)):
        close(forced_pass.attention(i), eager.attention[:, :, i - len(IDS), prompt.layout.image], 1e-5)


def test_masking_for_all_queries_equals_removal_with_positions_kept(adapter):
    """The tokens are physically taken out; nothing is masked for them, positions of the others stay."""
    prompt, sequence = sequence_of(adapter, IDS[:1])
    mask = some_mask(prompt)
    chain = Chain(sequence)
    results = [chain.extend(mask).logits[0]]
    for token in IDS[1:]:
        sequence.append(token)
        results.append(chain.extend(mask).logits[0])
    embeddings, positions = extended(adapter, prompt, IDS)
    removed = set(prompt.layout.image[mask].tolist())
    kept = torch.tensor([i for i in range(embeddings.shape[1]) if i not in removed])
    prefix = prompt.embeddings.shape[1] - len(removed) if prompt.bidirectional else 0
    eager = EagerModel(adapter)(embeddings[:, kept], positions[..., kept], base_visible(len(kept), prefix))
    close(torch.stack(results), eager.logits[-len(IDS) :])
    clean = eager_of(adapter, prompt, IDS).logits[-1]
    assert (clean - results[-1]).abs().max() > 1e-2  # masking does something here


def test_last_row_again_under_a_mask(adapter):
    """Rewound and run again: clean it gives the same, masked it equals a pass in which that row alone is masked."""
    prompt, sequence = sequence_of(adapter, IDS)
    chain = Chain(sequence)
    first = chain.extend().logits[0]
    chain.rewind()
    close(chain.extend().logits[0], first)
    chain.rewind()
    mask = some_mask(prompt)
    eager = eager_of(adapter, prompt, IDS, torch.tensor([len(sequence) - 1]), mask)
    close(chain.extend(mask).logits[0], eager.logits[-1])
    assert chain.complete


def test_replay_reads_the_kept_cache_and_leaves_it(adapter):
    """Rows replayed in one pass equal each row run clean, alone, where the rows before it were masked."""
    prompt, sequence = sequence_of(adapter)
    mask = some_mask(prompt)
    chain, alone = Chain(sequence), Chain(sequence)
    chain.prefill((1,))
    alone.prefill((1,))
    expected = []
    for token in IDS:
        sequence.append(token)
        expected.append(alone.extend(capture=True))
        alone.rewind()
        alone.extend(mask)
        chain.extend(mask)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in chain._cache.layers]
    replayed = chain.replay(len(IDS))
    for i, single in enumerate(expected):
        close(replayed.logits[i], single.logits[0], 1e-5)
        close(replayed.attention(i), single.attention(), 1e-6)
    for layer, (keys, values) in zip(chain._cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    assert chain.complete


def test_tail_comes_back_bit_for_bit(adapter):
    prompt, sequence = sequence_of(adapter, IDS)
    chain = Chain(sequence)
    chain.extend()
    tail = chain.tail()
    chain.rewind()
    chain.extend(some_mask(prompt))
    assert not torch.equal(chain.tail()[-1][0], tail[-1][0])
    chain.replace_tail(tail)
    assert len(tail) == LAYERS
    for old, new in zip(tail, chain.tail(), strict=True):
        assert torch.equal(old[0], new[0])
        assert torch.equal(old[1], new[1])


def test_positions_go_on_from_the_prompt(adapter):
    prompt, sequence = sequence_of(adapter, IDS)
    length = prompt.embeddings.shape[1]
    assert torch.equal(sequence.position_ids[..., :length], prompt.position_ids)
    generated = sequence.position_ids[..., length:]
    assert (
        generated.reshape(-1, len(IDS)).tolist()
        == [[prompt.next_position + i for i in range(len(IDS))]] * prompt.position_ids[..., 0].numel()
    )


def test_forced_prefix_is_causal_even_after_a_prefix_lm():
    adapter = forced(gemma())
    prompt = adapter.prepare(observation())
    with torch.inference_mode(), captured_attention(adapter.text_model):
        found = Chain(TokenSequence(adapter, prompt)).prefill((1,))[0]
    eager = eager_of(adapter, prompt, [])
    assert len(eager.logits) == prompt.embeddings.shape[1] + 2
    close(found.logits[0], eager.logits[-1])


def test_prompt_longer_than_the_window_is_refused():
    adapter = gemma()
    prompt = adapter.prepare(observation())
    limit = adapter.text_model.config.sliding_window
    longest = limit - adapter.vocabulary.max_tokens

    def stretched(length):
        repeats = prompt.embeddings.repeat(1, 10, 1)[:, :length]
        return replace(prompt, embeddings=repeats, position_ids=torch.arange(length)[None])

    TokenSequence(adapter, stretched(longest))
    with pytest.raises(ObservationError, match=rf"{limit + 1} positions.*up to {limit}"):
        TokenSequence(adapter, stretched(longest + 1))
    causal = qwen()  # whose config names a window that no layer uses
    prompt = causal.prepare(observation())
    causal.text_model.config.sliding_window = 4
    TokenSequence(causal, prompt)


def test_a_pass_without_capture_has_no_attention():
    adapter = qwen()
    with torch.inference_mode(), captured_attention(adapter.text_model):
        plain = Chain(TokenSequence(adapter, adapter.prepare(observation()))).extend()
    with pytest.raises(CaptureError, match="captured no attention"):
        plain.attention()
