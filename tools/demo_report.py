"""What the demo says at its end: the summary in words, and the pictures with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pictures import Moment, write_animation, write_panel

PANEL_COLUMNS = 6
STAGES = ("prepare", "prefill", "analyse", "refine", "decode")


@dataclass
class Latencies:
    """From an image to what follows from it, s: as the nodes publish it, and by the wall clock here.

    policy: from the image's stamp to the chunk; arm: to the command. In lock-step the nodes' clock stands still while
    they compute, so that theirs say nothing; the wall clock then counts from the image's arrival here.
    """

    policy: list[float] = field(default_factory=list)
    arm: list[float] = field(default_factory=list)
    policy_wall: list[float] = field(default_factory=list)
    arm_wall: list[float] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The 50th and 95th percentile of both, in words."""
        stands_still = not any(value > 1e-6 for value in (*self.policy, *self.arm))
        policy, arm = (self.policy_wall, self.arm_wall) if stands_still else (self.policy, self.arm)
        clock = " (wall clock, seen from here)" if stands_still else ""
        lines = []
        for name, values in (("to chunk", policy), ("to command", arm)):
            if values:
                half, most = np.percentile(values, [50, 95])
                lines.append(f"latency, image {name}: 50 % {1e3 * half:.0f} ms, 95 % {1e3 * most:.0f} ms{clock}")
        return lines


@dataclass(frozen=True)
class Step:
    """One step of the episode: what was recorded, and its pictures (None where they were lost on the way)."""

    record: dict[str, object]
    moment: Moment | None


def figures(steps: Sequence[Step], key: str) -> list[float]:
    """The values of one figure over the steps that have it."""
    return [float(value) for s in steps if isinstance(value := s.record.get(key), (int, float))]


def median(values: Sequence[float]) -> float:
    """The median, NaN of nothing."""
    return float(np.median(values)) if values else float("nan")


def caption(step: Step) -> Step:
    """The step with its figures written below its pictures."""
    if step.moment is None:
        return step
    r = step.record
    first = f"step {r.get('step')}" + (f"   tolerance {r['tolerance']:.2f}" if "tolerance" in r else "")
    second = ""
    if "pruned" in r:
        second = (
            f"pruned {r['pruned']:.0f} image tokens, fire rate {r['fire_rate']:.2f}\n"
            f"entropy {r['entropy_clean']:.2f} to {r['entropy_refined']:.2f} nats"
        )
    elif "grasped" in r:
        second = f"grasped: {r['grasped']}\nsuccess: {r.get('success')}"
    return replace(step, moment=replace(step.moment, caption=first, figures=second))


def write_pictures(steps: Sequence[Step], folder: Path) -> None:
    """Write episode.gif with every step, and panel.png with moments before and after the change."""
    shown = [s for s in map(caption, steps) if s.moment is not None]
    moments = [s.moment for s in shown if s.moment is not None]
    if not moments:
        raise RuntimeError("no step has all its pictures; is the debug topic's transport broken?")
    write_animation(moments, folder / "episode.gif")
    chosen = np.unique(np.linspace(0, len(moments) - 1, PANEL_COLUMNS).round().astype(int))
    instruction = next((str(s.record["instruction"]) for s in steps if "instruction" in s.record), "")
    write_panel([moments[i] for i in chosen], instruction, folder / "panel.png")


def summary(steps: Sequence[Step], latencies: Latencies, memory: int, seconds: float, folder: Path) -> str:
    """The lines that the visitor reads at the end."""
    walls = figures(steps, "wall")
    rate = (len(walls) - 1) / (walls[-1] - walls[0]) if len(walls) > 1 and walls[-1] > walls[0] else float("nan")
    last = steps[-1].record if steps else {}
    pace = " (lock-step: the simulator waits for the policy)" if "task" in last else ""
    lines = ["", f"{len(steps)} steps at {rate:.1f} steps/s{pace}"]
    lines += _pruning_lines(steps)
    lines += _time_lines(steps)
    lines += latencies.lines()
    if "success" in last:
        grasped = any(bool(s.record.get("grasped")) for s in steps)
        lines.append(f"task {last.get('task')}, episode {last.get('episode')}: "
                     f"{'success' if last['success'] else 'no success'}, "
                     f"{'grasped' if grasped else 'not grasped'}")  # fmt: skip
    if memory:
        lines.append(f"peak memory of the nodes {memory / 2**30:.2f} GiB, {seconds:.0f} s in all")
    lines.append(f"written: {', '.join(str(folder / n) for n in ('episode.gif', 'panel.png', 'episode.jsonl'))}")
    return "\n".join(lines)


def _pruning_lines(steps: Sequence[Step]) -> list[str]:
    lines = []
    for tolerance in sorted(set(figures(steps, "tolerance")), reverse=True):
        part = [s for s in steps if s.record.get("tolerance") == tolerance]
        fire, pruned = np.mean(figures(part, "fire_rate")), np.mean(figures(part, "pruned"))
        held = sum(bool(s.record.get("hold_reason")) for s in part)
        lines.append(
            f"tolerance {tolerance:.2f}: {len(part)} steps, fire rate {fire:.2f}, {pruned:.1f} pruned tokens a step"
            + (f", {held} held" if held else "")
        )
    return lines


def _time_lines(steps: Sequence[Step]) -> list[str]:
    total = median(figures(steps, "seconds_total"))
    if not np.isfinite(total):
        return []
    parts = [(name, median(figures(steps, f"seconds_{name}"))) for name in STAGES]
    split = ", ".join(f"{name} {1e3 * value:.0f}" for name, value in parts if np.isfinite(value))
    return [f"model {1e3 * total:.0f} ms a step (median): {split} ms"]
