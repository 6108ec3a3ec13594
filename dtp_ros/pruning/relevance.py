"""How relevant each image token is to the instruction: Eq. 1 to 3 of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dtp_ros.errors import ConfigError
from dtp_ros.pruning.shapes import require_layers


def attention_relevance(rows: Sequence[Tensor]) -> Tensor:
    """Relevance R, float32 [N_v], as attention from instruction to image (Eq. 1, 3).

    R[v] = mean over l in L_sel, h, p in P of A_l^h[p, v].

    rows: attention probabilities of each selected layer, rows of P, columns of V: [H, N_p, N_v], any float type.
    Raises ConfigError where there is no layer, or one that is shaped unlike the others.
    """
    require_layers("rows", rows, H=None, N_p=None, N_v=None)
    return torch.stack([layer.float().mean(dim=(0, 1)) for layer in rows]).mean(dim=0)


def embedding_relevance(prompt_states: Sequence[Tensor], image_states: Sequence[Tensor]) -> Tensor:
    """Relevance R, float32 [N_v], as similarity in the residual stream (Eq. 2, 3): for images that follow the prompt.

    R[v] = mean over l in L_sel, p in P of cos(x_l[p], x_l[v]), in -1 ... 1; the cosine with a zero vector is 0.

    prompt_states, image_states: residual stream after each selected layer at P, [N_p, d], and at V, [N_v, d], in the
    same order of layers, any float type. Raises ConfigError where layers are missing or do not fit together.
    """
    require_layers("prompt_states", prompt_states, N_p=None, d=None)
    require_layers("image_states", image_states, N_v=None, d=prompt_states[0].shape[1])
    count = len(prompt_states)
    if len(image_states) != count:
        raise ConfigError(f"image_states has {len(image_states)} layers (valid: {count}, as prompt_states has)")
    layers = []
    for prompt, image in zip(prompt_states, image_states, strict=True):
        # The mean over P of cosines is one product with the mean unit vector. Not a matmul: those may run in TF32.
        direction = normalize(prompt.float(), dim=-1).mean(dim=0)
        layers.append((normalize(image.float(), dim=-1) * direction).sum(dim=-1))
    return torch.stack(layers).mean(dim=0)
