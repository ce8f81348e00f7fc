"""The arms of an ablation: which there are, and the configuration of each of their runs.

Departures from the paper [ours]: its full system starts from a cold start that "w/ COLD" replaces by data of
experts. Here the full arm is the given configuration; where that trains on samples of experts, one more arm
starts from gold data. Its "w/o SELF-EMO" trains on 22.5k original prompts against 15k + 8k; here all arms
have the same number of prompts.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from selfemo.config import Config, load
from selfemo.errors import ConfigError
from selfemo.runs.folder import COLD, START
from selfemo.runs.inputs import cold_start_samples, count_seen, run_inputs, seen_samples

FULL = "full"
_ARMS = resources.files("selfemo.evaluation") / "arms"
TABLE2 = (FULL, "gold-cold-start", "vanilla-grpo", "original-only")


@dataclass(frozen=True)
class Arm:
    """One arm of an ablation, read from a TOML file whose stem names it and its folder.

    Attributes:
        paper: the row of table 2 that it corresponds to, or "".
        what: a description.
        overrides: settings that differ from the configuration; the file's table `set`.
        checkpoint: "start" or "cold-start": this checkpoint of the shared run is the arm. "": it has runs of
            its own.
        sft_for_rl: the cold start trains on as many more samples as the RL stages score completions: ones
            that it has not used, as far as the data have them.
        same_labels_as: name of an arm whose RL draws the same gold labels for each seed, which is checked
            where both are run; or "".
    """

    name: str
    paper: str = ""
    what: str = ""
    overrides: tuple[str, ...] = ()
    checkpoint: str = ""
    sft_for_rl: bool = False
    same_labels_as: str = ""


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested tables."""
    if not isinstance(value, dict):
        return {prefix.removeprefix("."): value}
    return {k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}.{name}").items()}


def shipped_arms() -> list[str]:
    """The names of the arms inside the package."""
    return sorted(f.name.removesuffix(".toml") for f in _ARMS.iterdir() if f.name.endswith(".toml"))


def read_arm(name: str) -> Arm:
    """An arm by the name of a shipped one, or from a TOML file.

    Raises:
        ConfigError: there is no such arm or file, or its content is not an arm.
    """
    shipped = name in shipped_arms()
    source = _ARMS / f"{name}.toml" if shipped else Path(name)
    if not shipped and not name.endswith(".toml"):
        raise ConfigError(f"no arm {name!r}; there are: {', '.join(shipped_arms())}, or give a .toml file")
    try:
        found = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"{name}: cannot be read as an arm: {e}") from None
    kinds = {
        "paper": str, "what": str, "set": dict, "checkpoint": str, "sft_for_rl": bool, "same_labels_as": str,
    }  # fmt: skip
    for key, value in found.items():
        if not isinstance(value, kinds.get(key, ())):
            raise ConfigError(f"{name}: {key}: an arm has {', '.join(kinds)}, of type {kinds.get(key)}")
    if found.get("checkpoint", COLD) not in (START, COLD):
        raise ConfigError(f"{name}: checkpoint: valid are {START} and {COLD}")
    if found.get("checkpoint") and (found.get("set") or found.get("sft_for_rl")):
        raise ConfigError(f"{name}: an arm with a checkpoint is a part of the shared run, so it sets nothing")
    if found.get("same_labels_as") and found.get("checkpoint"):
        raise ConfigError(f"{name}: an arm with a checkpoint has no RL, so it draws no labels")
    sets = tuple(f"{k}={json.dumps(v)}" for k, v in flat(found.pop("set", {})).items())
    return Arm(Path(name).stem, overrides=sets, **found)


def arms_for(config: Config, names: Sequence[str] = ()) -> list[Arm]:
    """The full arm, then the named ones, or those of table 2 that differ from the configuration.

    Raises:
        ConfigError: an arm is unknown, two have the same name, or the configuration lacks something that
            an arm takes away, so that the arm would equal the full one.
    """
    if config.flywheel.iterations == 0:
        raise ConfigError("flywheel.iterations is 0: the full arm needs an iteration")
    if config.grpo.lam_max == 0:
        raise ConfigError(
            "grpo.lam_max is 0, which is vanilla GRPO: the full arm needs more (--set grpo.lam_max=0.3)"
        )
    if config.selfplay.synthetic_share == 0 or config.selfplay.max_turns == 1:
        raise ConfigError(
            "selfplay.synthetic_share = 0 or selfplay.max_turns = 1: no self-play, which the full arm needs"
        )
    stages = config.flywheel.iterations if config.grpo.lam_span == "run" else 1
    if config.flywheel.prompts <= config.grpo.prompts_per_step and stages == 1:
        raise ConfigError(
            "flywheel.prompts is no more than grpo.prompts_per_step: its one round of sampling has lambda 0 "
            "throughout, so that vanilla GRPO would equal the full arm; raise the first or lower the second"
        )
    arms = [read_arm(FULL), *(read_arm(n) for n in names or TABLE2[1:] if n != FULL)]
    if config.sft.samples:
        arms[0] = replace(arms[0], paper="w/ COLD")
    elif "gold-cold-start" in names:
        raise ConfigError(
            "gold-cold-start: sft.samples is empty, so the full arm starts from gold data already"
        )
    else:
        arms = [a for a in arms if a.name != "gold-cold-start"]
    if "replay-only" in names and config.flywheel.refit == "none":
        raise ConfigError('replay-only: flywheel.refit = "none", so the full arm has no refit to control')
    if twice := [n for n, k in Counter(a.name for a in arms).items() if k > 1]:
        raise ConfigError(f"two arms have the name {twice[0]!r}; rename one of the files")
    return arms


def config_of(
    arm: Arm,
    files: Sequence[Path],
    overrides: Sequence[str],
    seed: int,
    say: Callable[[str], None] = lambda message: None,
) -> Config:
    """The configuration of one run of an arm.

    Args:
        say: told, for an arm with `sft_for_rl`, how many of its additional samples are repeated ones.
    """
    own = [*overrides, *arm.overrides, f"seed={seed}"]
    if not arm.sft_for_rl:
        return load(files, own)
    full = load(files, [*overrides, f"seed={seed}"])
    sft, inputs = full.sft, run_inputs(full)
    train, gone = inputs.training, inputs.overlap.not_trained_on
    scored = full.flywheel.iterations * full.flywheel.prompts * full.sampling.group_size

    def samples(config: Config) -> tuple[int, int]:
        """The number of a cold start's samples, and of those that the model has learned from before."""
        seen = seen_samples(train, config)
        reasoning = config.prompt.reasoning
        found = cold_start_samples(train, config.sft, reasoning, config.seed, gone, seen).samples
        return len(found), count_seen(found, seen)

    if not sft.epochs:  # the given model is the cold start: this SFT goes on with others
        own += [f"sft.max_samples={scored}", f"sft.seen={sft.max_samples or samples(full)[0]}"]
        n, again = samples(load(files, own))
        passes, fresh = scored, n - again
    elif sft.max_samples:
        own += [f"sft.max_samples={sft.max_samples + scored}"]
        n, _ = samples(load(files, own))
        passes, fresh = sft.epochs * (sft.max_samples + scored), max(0, n - sft.max_samples)
    else:
        n, _ = samples(full)
        passes, fresh = sft.epochs * n + scored, 0
    say(f"{arm.name}, seed {seed}: of {scored} more samples {scored - fresh} are repeated, the others new")
    return load(files, [*own, f"sft.epochs={-(-passes // n)}"])
