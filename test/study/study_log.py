"""Made-up logs of a study, in which it is known who solves what."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dtp_ros.study.log import SERIES, Episode

Solves = Callable[[int], bool]
SETUP = {
    "model": "tabletop",
    "checkpoint": "shipped",
    "device": "cpu",
    "variant": "dtp",
    "tolerance": 0.5,
    "tolerance_mode": "fixed",
    "tolerance_grid": [0.25, 0.5],
    "top_k": 27,
    "sigma": 0.65,
    "seed": 0,
    "relevance_layers": [1, 2],
    "mask_scope": "all",
    "mask_schedule": "per_step",
    "execute_horizon": 1,
}
ABLATION = ("off", "dtp 0.5", "no_gaussian 0.5", "random_all 0.5", "random_unimportant 0.5")
ABLATED: dict[str, Solves] = {  # who solves what, of 20 episodes
    "off": lambda n: n < 10,
    "dtp 0.5": lambda n: n < 15,
    "no_gaussian 0.5": lambda n: n < 10,
    "random_all 0.5": lambda n: n < 4,
    "random_unimportant 0.5": lambda n: 2 <= n < 12,
}


def setup_of(arm: str, **own: object) -> dict[str, object]:
    """Constants of an arm that is named as dtp_ros/study/arms.py does."""
    variant, _, tolerance = arm.partition(" ")
    if variant == "min_entropy":
        return {**SETUP, "tolerance_mode": "min_entropy", **own}
    return {**SETUP, "variant": variant, **({"tolerance": float(tolerance)} if tolerance else {}), **own}


def episode(arm: str, number: int, success: bool, **own: object) -> Episode:
    """One of three steps, whose figures depend on arm and number; `setup`, `grasped` and so on as given."""
    pruned = 0.0 if arm == "off" else 1.0 + number % 3
    figures = {
        "unimportant_attention": 0.2 + 0.01 * (number % 5),
        "fire_rate": min(pruned, 1.0) * (0.3 + 0.05 * (number % 4)),
        "pruned": pruned,
        "entropy_clean": 1.0 + 0.02 * (number % 7),
        "entropy_refined": 1.0 + 0.02 * (number % 7) - 0.1 * pruned,
        "score_clean": 0.6 - 0.005 * (number % 7),
        "score_refined": 0.6 - 0.005 * (number % 7) + 0.03 * pruned,
        "tolerance": 0.5,
    }
    fields = {
        "arm": arm,
        "benchmark": "bench",
        "task": "stack",
        "episode": number,
        "success": success,
        "grasped": success or number % 5 == 0,
        "steps": 3,
        "holds": 0,
        "setup": setup_of(arm),
        "series": {name: (round(figures[name], 4),) * 3 for name in SERIES},  # as the log keeps them
    }
    return Episode(**{**fields, **own})


def made(arms: dict[str, Solves], numbers: Iterable[int] = range(20), **own: object) -> list[Episode]:
    """Every arm on the same episodes."""
    return [episode(arm, number, solves(number), **own) for arm, solves in arms.items() for number in numbers]
