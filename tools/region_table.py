"""`make region-table`: in how many frames DTP's important region holds the object to move, its target and the gripper.

The shipped policy acts with DTP on every fixed configuration; the simulator says where things are. No ROS is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from dtp_ros.engine.policy import DtpPolicy
from dtp_ros.models.registry import load_adapter, model_defaults
from dtp_ros.pruning.config import PruningConfig
from dtp_ros.sim.layout import fixed_layout
from dtp_ros.sim.tasks import EPISODES, SETTINGS, TASKS
from dtp_ros.study.regions import PLACES, sights


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="", help="a folder or a hub id; the shipped weights if empty")
    parser.add_argument("--setting", choices=SETTINGS, default="plain")
    parser.add_argument("--distractors", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=None)
    parser.add_argument("--episodes", nargs="+", type=int, default=list(range(EPISODES)), metavar="N")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    defaults = model_defaults("tabletop")
    pruning = PruningConfig(**{name: defaults[name] for name in PruningConfig.__dataclass_fields__})  # type: ignore[arg-type]
    if options.tolerance is not None:
        pruning = replace(pruning, tolerance=options.tolerance)
    policy = DtpPolicy(load_adapter("tabletop", options.checkpoint or str(defaults["checkpoint"])))
    print(f"| task | frames | {' | '.join(f'{place} inside' for place in PLACES)} | fire rate | success |")
    print("|---|---|---|---|---|---|---|")
    for task in TASKS:
        counts: Counter[str] = Counter()
        for episode in tqdm(options.episodes, desc=task, unit="episode", leave=False):
            layout = fixed_layout(task, episode, distractors=options.distractors, setting=options.setting)
            for sight in sights(policy, layout, pruning):
                counts.update(place for place, inside in sight.inside.items() if inside)
                counts["frames"] += 1
                counts["fired"] += sight.trace.fire_rate > 0
                counts["success"] += sight.success
        frames = counts["frames"]
        shares = " | ".join(f"{100 * counts[place] / frames:.1f} %" for place in PLACES)
        fired = f"{100 * counts['fired'] / frames:.0f} %"
        print(f"| {task} | {frames} | {shares} | {fired} | {counts['success']}/{len(options.episodes)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
