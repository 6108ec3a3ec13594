from dataclasses import replace

import pytest
import torch
from engine_models import MODELS, forced, gemma, observation, qwen
from engine_oracle import EagerModel, base_visible, extended, hide

from dtp_ros.engine.capture import captured_attention
from dtp_ros.engine.decoder import Chain
from dtp_ros.engine.sequence import TokenSequence
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


def seen(sequence, tokens, hidden=None, keys=None):
    """The mask of rows of these tokens in a cache of none, or of `keys` and then these."""
    rows = torch.tensor(tokens)
    keys = rows if keys is None else torch.tensor([*keys, *tokens])
    own = torch.eye(len(keys), dtype=torch.bool)[-len(rows) :]
    return sequence.mask(rows, keys, own, hidden).int()[0, 0].tolist()


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
    hidden = torch.tensor([[[False, True]]])
    everything = [0, 1, 2, 3]
    assert seen(prefix_lm, everything) == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    # Token 1 is hidden from all but itself.
    assert seen(prefix_lm, everything, hidden) == [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert seen(prefix_lm, [2], keys=[0, 1]) == [[1, 1, 1]]
    # Another row of the same token is not seen, in the prompt or behind it.
    assert seen(prefix_lm, [2, 2], keys=[0, 1, 2]) == [[1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]
    assert seen(prefix_lm, [3, 3], keys=[0, 1, 2, 3]) == [[1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 1]]
    causal = TokenSequence(adapter, replace(small, bidirectional=False))
    causal.append(50)
    assert seen(causal, everything, hidden) == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    # Each row has a mask of its own, and a negative key is nobody's.
    apart = torch.tensor([[[True, False], [False, True]]])
    assert seen(causal, [2, 3], apart, keys=[0, 1]) == [[0, 1, 1, 0], [1, 0, 1, 1]]
    assert seen(causal, [3], keys=[0, 1, -1]) == [[1, 1, 0, 1]]


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


def removed(adapter, prompt, mask, ids):
    """An eager pass over what is left where `mask` is physically taken out, positions of the others kept."""
    embeddings, positions = extended(adapter, prompt, ids)
    out = set(prompt.layout.image[mask].tolist())
    kept = torch.tensor([i for i in range(embeddings.shape[1]) if i not in out])
    prefix = prompt.embeddings.shape[1] - len(out) if prompt.bidirectional else 0
    return EagerModel(adapter)(embeddings[:, kept], positions[..., kept], base_visible(len(kept), prefix))


def test_a_chain_without_tokens_equals_removal_with_positions_kept(adapter):
    prompt, sequence = sequence_of(adapter, IDS[:1])
    mask = some_mask(prompt)
    clean = Chain(sequence)
    clean.extend()
    chain = clean.without(mask)
    results = [chain.extend().logits[0]]
    for token in IDS[1:]:
        sequence.append(token)
        results.append(chain.extend().logits[0])
    close(torch.stack(results), removed(adapter, prompt, mask, IDS).logits[-len(IDS) :])
    untouched = eager_of(adapter, prompt, IDS).logits[-1]
    close(clean.extend().logits[0], untouched)
    assert (untouched - results[-1]).abs().max() > 1e-2  # removal does something here


def test_branches_equal_removal_each_for_itself(adapter):
    """Masked for all rows, in one batch; the one that is selected goes on."""
    prompt, sequence = sequence_of(adapter, IDS[:1])
    masks = torch.stack([some_mask(prompt), ~some_mask(prompt)])
    clean = Chain(sequence)
    clean.extend()
    branches = clean.branches(masks)
    logits = branches.extend().logits
    for found, mask in zip(logits, masks, strict=True):
        close(found, removed(adapter, prompt, mask, IDS[:1]).logits[-1])
    branches.select(1)
    sequence.append(IDS[1])
    close(branches.extend().logits[0], removed(adapter, prompt, masks[1], IDS[:2]).logits[-1])


def test_last_row_again_under_a_mask(adapter):
    """Rewound and run again: clean it gives the same, masked it equals a pass in which that row alone is masked."""
    prompt, sequence = sequence_of(adapter, IDS)
    chain, last = Chain(sequence), len(sequence) - 1
    first = chain.extend().logits[0]
    chain.rewind()
    close(chain.extend().logits[0], first)
    chain.rewind()
    mask = some_mask(prompt)
    eager = eager_of(adapter, prompt, IDS, torch.tensor([last]), mask)
    close(chain.attempt([last], [mask], keep=1).logits[0], eager.logits[-1])
    assert chain.complete


def test_rows_of_one_pass_see_what_they_should(adapter):
    """A masked row, the next one that reads it, and two that are not kept, each against an eager pass of its own."""
    prompt, sequence = sequence_of(adapter, IDS)
    chain, last = Chain(sequence), len(sequence) - 1
    chain.extend()
    chain.rewind(2)
    mask = some_mask(prompt)
    found = chain.attempt([last - 1, last, last, last - 1], [mask, None, mask, None], keep=2, captured=3)
    masked_before = eager_of(adapter, prompt, IDS, torch.tensor([last - 1]), mask)
    both = eager_of(adapter, prompt, IDS, torch.tensor([last - 1, last]), mask)
    clean = eager_of(adapter, prompt, IDS)
    expected = [masked_before.logits[-2], masked_before.logits[-1], both.logits[-1], clean.logits[-2]]
    close(found.logits, torch.stack(expected))
    for row, eager, at in ((0, masked_before, -1), (1, both, -1), (2, clean, -2)):
        close(found.attention(row), eager.attention[:, :, at, prompt.layout.image], 1e-5)
    assert chain.complete
    sequence.append(52)
    after = eager_of(adapter, prompt, [*IDS, 52], torch.tensor([last - 1]), mask)
    close(chain.extend().logits[0], after.logits[-1])


def test_a_row_beside_the_last_one_can_be_adopted(adapter):
    prompt, sequence = sequence_of(adapter, IDS)
    chain, last = Chain(sequence), len(sequence) - 1
    chain.extend()
    masks = [some_mask(prompt), ~some_mask(prompt), some_mask(prompt)]
    before = chain._cache.rows().clone()
    tried = chain.attempt([last] * 3, masks, keep=0)
    assert torch.equal(chain._cache.rows(), before)
    sequence.append(52)
    close(chain.extend().logits[0], eager_of(adapter, prompt, [*IDS, 52]).logits[-1])
    chain.rewind()
    sequence.drop_last()
    again = chain.attempt([last] * 3, masks, keep=0)
    close(again.logits, tried.logits, 1e-5)
    chain.adopt(1)
    sequence.append(52)
    eager = eager_of(adapter, prompt, [*IDS, 52], torch.tensor([last]), masks[1])
    close(tried.logits[1], eager.logits[-2])
    close(chain.extend().logits[0], eager.logits[-1])


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
