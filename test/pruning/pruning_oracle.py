"""The method a second time, slowly: float64 numpy, loops, scipy's filter on the 2-D map. Shares no code with dtp_ros.

Not a test itself: the tests of pruning compare against it.
"""

import math

import numpy as np
from scipy.ndimage import gaussian_filter


def attention_relevance(layers):
    """Eq. 1, 3. layers: list of [H, N_p, N_v]."""
    num_heads, num_prompt, num_image = layers[0].shape
    relevance = np.zeros(num_image)
    for v in range(num_image):
        seen = [float(layer[h, p, v]) for layer in layers for h in range(num_heads) for p in range(num_prompt)]
        relevance[v] = math.fsum(seen) / len(seen)
    return relevance


def embedding_relevance(prompts, images):
    """Eq. 2, 3. prompts: list of [N_p, d], images: list of [N_v, d]."""
    relevance = np.zeros(len(images[0]))
    for v in range(len(relevance)):
        cosines = []
        for prompt, image in zip(prompts, images, strict=True):
            x = image[v].astype(np.float64)
            for p in prompt.astype(np.float64):
                norms = math.sqrt(float(p @ p)) * math.sqrt(float(x @ x))
                cosines.append(float(p @ x) / norms if norms > 0 else 0.0)
        relevance[v] = math.fsum(cosines) / len(cosines)
    return relevance


def corners(rows, cols):
    """Indices of the corners, ascending."""
    return sorted({r * cols + c for r in (0, rows - 1) for c in (0, cols - 1)})


def smooth(relevance, rows, cols, sigma, suppress_corners):
    """The displayed map, by scipy's filter in two dimensions."""
    grid = np.array(relevance, dtype=np.float64)
    grid -= grid.min()
    if suppress_corners:
        grid[corners(rows, cols)] = 0.0
    grid = gaussian_filter(grid.reshape(rows, cols), sigma, mode="reflect", truncate=4.0).ravel()
    if suppress_corners:
        grid[corners(rows, cols)] = 0.0
    return grid


def region_order(relevance, rows, cols, sigma, spatial_bias):
    """Tokens from the most to the least important, and the values they were ranked by."""
    if spatial_bias:
        values = smooth(relevance, rows, cols, sigma, True)
        values[corners(rows, cols)] = -math.inf
    else:
        values = np.array(relevance, dtype=np.float64)
    return sorted(range(rows * cols), key=lambda v: (-values[v], v)), values


def layer_weights(rows):
    """Weights of Eq. 4. rows: [L, H, N_v]."""
    num_layers, num_heads, num_image = rows.shape
    totals = [
        math.fsum(float(rows[layer, h, v]) / num_heads for h in range(num_heads) for v in range(num_image))
        for layer in range(num_layers)
    ]
    total = math.fsum(totals)
    return np.array([t / total if total > 0 else 1 / num_layers for t in totals])


def visual_attention_pattern(rows, weights):
    """Eq. 4. rows: [L, H, N_v], weights: [L]."""
    num_layers, num_heads, num_image = rows.shape
    pattern = np.zeros(num_image)
    for v in range(num_image):
        for layer in range(num_layers):
            mean = math.fsum(float(rows[layer, h, v]) for h in range(num_heads)) / num_heads
            pattern[v] += float(weights[layer]) * mean
    return pattern


def distracting_tokens(pattern, region, tolerance, max_pruned):
    """Eq. 5 with its cap, as a set of indices. region: set of indices."""
    limit = tolerance * max(pattern[v] for v in region)
    found = [v for v in range(len(pattern)) if v not in region and pattern[v] > limit]
    if max_pruned:
        found = sorted(found, key=lambda v: (-pattern[v], v))[:max_pruned]
    return set(found)


def entropy(logits, support):
    """Eq. 6 in nats. logits: [vocabulary], support: distinct ids."""
    top = max(float(logits[y]) for y in support)
    weights = [math.exp(float(logits[y]) - top) for y in support]
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log(w / total) for w in weights if w > 0)
