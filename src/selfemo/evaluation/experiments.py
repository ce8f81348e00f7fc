"""Whole runs over several seeds, and the ablations of table 2: `selfemo ablate`.

Each arm is the given configuration with a few overrides; all arms have the same seeds, the same budget of
prompts and the same held-out conversations, and each is held against the full one, within a seed (paired
by prompt, clustered by conversation) and over the seeds (paired by seed).

Departures from the paper [ours]: its full system starts from a cold start that "w/ COLD" replaces by data of
experts; here the full arm is the configuration as it is, and where that takes samples of experts, one more
arm starts from gold data. Its "w/o SELF-EMO" trains on 22.5k original prompts against 15k + 8k; here the
number of prompts is the same in all arms.
"""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selfemo import __version__
from selfemo.config import Config, load
from selfemo.errors import ConfigError, StoreError
from selfemo.evaluation.parallel import Job, side_by_side
from selfemo.evaluation.predictions import (
    UNION,
    calibration_of,
    compare,
    evaluate_checkpoint,
    label_sets,
    prediction_rows,
)
from selfemo.evaluation.summary import SUMMARY_FILE, finish
from selfemo.files import lock_folder, replacing, write_json, write_text
from selfemo.method.types import LabelSet
from selfemo.progress import Reporter, StopRequest
from selfemo.reports import figures
from selfemo.reports.tables import published, render
from selfemo.runs.evolve import evolve
from selfemo.runs.folder import (
    BEFORE_RL,
    BEFORE_SFT,
    COLD,
    CONFIG_FILE,
    START,
    checkpoints,
    evaluation_name,
    fork,
)
from selfemo.runs.inputs import (
    cold_start_samples,
    load_conversations,
    run_inputs,
)
from selfemo.runs.store import STORE_FILE, Store

Keep = Literal["all", "last", "none"]
KEPT: tuple[Keep, ...] = ("all", "last", "none")
AVERAGE = "average"
TRUNK = "trunk"
"""Folder of the cold starts that arms share."""
_MEASURES = ("accuracy", "weighted_f1", "mean_r1", "parse_rate")
_MAY_DIFFER = ("model.device", "model.threads", "save", "guard")


@dataclass(frozen=True)
class Arm:
    """One setting of an ablation, as a TOML file says it.

    Attributes:
        name: names its folder; the file's stem.
        paper: the row of table 2 that it stands for; empty for none.
        what: in words.
        overrides: on top of the configuration; the file's table `set`.
        checkpoint: "start" or "cold-start": no run of its own, but the shared one up to there.
        sft_for_rl: the cold start takes as many more samples as the RL stages score completions.
    """

    name: str
    paper: str
    what: str
    overrides: tuple[str, ...] = ()
    checkpoint: str = ""
    sft_for_rl: bool = False


FULL = "full"
_ARMS = resources.files("selfemo.evaluation") / "arms"
TABLE2 = (FULL, "gold-cold-start", "vanilla-grpo", "original-only")


def shipped_arms() -> list[str]:
    return sorted(f.name.removesuffix(".toml") for f in _ARMS.iterdir() if f.name.endswith(".toml"))


def read_arm(name: str) -> Arm:
    """An arm by the name of a shipped one, or from a TOML file.

    Raises:
        ConfigError: no such arm or file, or one that says something else than an arm can.
    """
    shipped = name in shipped_arms()
    source = _ARMS / f"{name}.toml" if shipped else Path(name)
    if not shipped and not name.endswith(".toml"):
        raise ConfigError(
            f"no arm {name!r}; there are: {', '.join(shipped_arms())}, or give a .toml file"
        )
    try:
        found = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"{name}: cannot be read as an arm: {e}") from None
    kinds = {"paper": str, "what": str, "set": dict, "checkpoint": str, "sft_for_rl": bool}
    for key, value in found.items():
        if not isinstance(value, kinds.get(key, ())):
            raise ConfigError(
                f"{name}: {key}: an arm has {', '.join(kinds)}, of type {kinds.get(key)}"
            )
    if found.get("checkpoint", COLD) not in (START, COLD):
        raise ConfigError(f"{name}: checkpoint: valid are {START} and {COLD}")
    if found.get("checkpoint") and (found.get("set") or found.get("sft_for_rl")):
        raise ConfigError(f"{name}: an arm with a checkpoint is the shared run and sets nothing")
    return Arm(
        Path(name).stem,
        found.get("paper", ""),
        found.get("what", ""),
        tuple(f"{k}={json.dumps(v)}" for k, v in _flat(found.get("set", {})).items()),
        found.get("checkpoint", ""),
        found.get("sft_for_rl", False),
    )


def arms_for(config: Config, names: Sequence[str] = ()) -> list[Arm]:
    """The full arm, then the named ones, or those of table 2 that differ from the configuration.

    Raises:
        ConfigError: an arm that is none, or of which two have one name; the configuration is an ablation
            itself, so that an arm would equal the full one.
    """
    if config.flywheel.iterations == 0:
        raise ConfigError("flywheel.iterations is 0: the full arm needs an iteration")
    if config.grpo.lam_max == 0:
        raise ConfigError(
            "grpo.lam_max is 0, which is vanilla GRPO: the full arm needs a lambda above 0"
        )
    if config.selfplay.synthetic_share == 0 or config.selfplay.max_turns == 1:
        raise ConfigError(
            "selfplay.synthetic_share = 0 or selfplay.max_turns = 1 leaves self-play out: the full arm "
            "needs it"
        )
    if config.flywheel.prompts <= config.grpo.prompts_per_step:
        raise ConfigError(
            "flywheel.prompts is no more than grpo.prompts_per_step: its one round of sampling has lambda 0 "
            "throughout, so that vanilla GRPO would equal the full arm; raise the first or lower the second"
        )
    samples = bool(config.sft.samples)
    arms = [read_arm(FULL), *(read_arm(n) for n in names or TABLE2[1:] if n != FULL)]
    if samples:
        arms[0] = replace(arms[0], paper="w/ COLD")
    else:
        if "gold-cold-start" in names:
            raise ConfigError("gold-cold-start: sft.samples is empty: the full arm is that already")
        arms = [a for a in arms if a.name != "gold-cold-start"]
    if twice := [n for n, k in Counter(a.name for a in arms).items() if k > 1]:
        raise ConfigError(f"two arms of the name {twice[0]}")
    return arms


def _config_of(arm: Arm, files: Sequence[Path], overrides: Sequence[str], seed: int) -> Config:
    """The configuration of one run of an arm."""
    config = load(files, [*overrides, *arm.overrides, f"seed={seed}"])
    if not arm.sft_for_rl:
        return config
    full = load(files, [*overrides, f"seed={seed}"])
    scored = full.flywheel.iterations * full.flywheel.prompts * full.sampling.group_size
    if (
        not config.sft.epochs
    ):  # the model comes with its cold start: what follows takes no part in it
        more = ["sft.epochs=1", f"sft.max_samples={scored}"]
    elif config.sft.max_samples:
        more = [f"sft.max_samples={config.sft.max_samples + scored}"]
    else:
        train = run_inputs(full)[1]
        n = len(cold_start_samples(train, full.sft, full.prompt.reasoning, full.seed)[0])
        more = [f"sft.epochs={-(-(config.sft.epochs * n + scored) // n)}"]
    return load(files, [*overrides, *arm.overrides, f"seed={seed}", *more])


_SHARED = {COLD: BEFORE_RL, START: BEFORE_SFT}


def _equal(a: Config, b: Config, sections: Sequence[str]) -> bool:
    return all(getattr(a, s) == getattr(b, s) for s in sections)


# -- runs -----------------------------------------------------------------------------------------------


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested tables."""
    if not isinstance(value, dict):
        return {prefix.removeprefix("."): value}
    return {
        k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}.{name}").items()
    }


def _same_settings(folder: Path, config: Config) -> None:
    """Raises: StoreError, where the run in a folder has other settings than the ones that matter."""
    saved, wanted = (
        _flat(c.model_dump(mode="json")) for c in (load([folder / CONFIG_FILE]), config)
    )
    differ = [
        k
        for k in sorted(saved.keys() | wanted.keys())
        if saved.get(k) != wanted.get(k) and not k.startswith(_MAY_DIFFER)
    ]
    if differ:
        raise StoreError(
            f"{folder} holds a run with other settings ({', '.join(differ)}); give another --out"
        )


def complete_run(
    folder: Path,
    config: Config,
    reporter: Reporter,
    stop: StopRequest | None = None,
    keep: Keep = "all",
    trunk: Path | None = None,
    at: str = COLD,
) -> dict[str, Any]:
    """The summary of the run in a folder, which is begun, resumed, or read where it is finished.

    Args:
        keep: which checkpoints stay once the run is finished.
        trunk, at: a run to take over what comes first from (`pipeline.fork`).

    Raises:
        StoreError: the folder holds a run with other settings.
        Stopped: `stop` was asked for.
    """
    done = folder / SUMMARY_FILE
    begun = (folder / CONFIG_FILE).exists()
    if begun:
        _same_settings(folder, config)
    if not begun and trunk is not None:
        fork(trunk, folder, config, at)
        begun = True
    if not done.exists():
        settings = None if begun else config
        run = evolve(folder, settings, evaluate_checkpoint, reporter, stop)
        try:
            finish(run)
        finally:
            run.close()
    last = checkpoints(config)[-1]
    for path in (folder / "checkpoints").glob("*"):
        if keep == "none" or (keep == "last" and path.name != last):
            shutil.rmtree(path)
    summary: dict[str, Any] = json.loads(done.read_text())
    return summary


def _complete(
    folder: Path, config: Config, keep: Keep, reporter: Reporter, stop: StopRequest
) -> None:
    complete_run(folder, config, reporter, stop, keep)


@dataclass(frozen=True)
class _Planned:
    """A run that is to be there: its folder and configuration, and what it takes over (`pipeline.fork`)."""

    folder: Path
    config: Config
    keep: Keep = "all"
    trunk: Path | None = None
    at: str = COLD


def _together(
    planned: Sequence[_Planned], out: Path, jobs: int, reporter: Reporter, stop: StopRequest | None
) -> None:
    """Complete those runs that are not finished, `jobs` at a time."""
    open_ = [p for p in planned if not (p.folder / SUMMARY_FILE).exists()]
    for p in open_:  # one after the other: a trunk that is copied is locked
        if p.trunk is not None and not (p.folder / CONFIG_FILE).exists():
            fork(p.trunk, p.folder, p.config, p.at)
    side_by_side(
        [
            Job(str(p.folder.relative_to(out)), _complete, (p.folder, p.config, p.keep))
            for p in open_
        ],
        jobs,
        reporter,
        stop,
    )


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """mean, sd (n - 1) and 95% t interval of one value a seed; sd and interval None for one seed."""
    array = np.asarray(values, dtype=np.float64)
    result: dict[str, Any] = {"mean": float(array.mean()), "sd": None, "interval": None}
    if len(array) > 1:
        from scipy import stats

        sd = float(array.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(array) - 1)) * sd / len(array) ** 0.5
        result |= {"sd": sd, "interval": [result["mean"] - half, result["mean"] + half]}
    return result


def paired_over_seeds(full: Sequence[float], arm: Sequence[float]) -> dict[str, Any]:
    """`over_seeds` of arm - full by seed, with the p-value of the paired t-test (None for one seed)."""
    delta = [b - a for a, b in zip(full, arm, strict=True)]
    result = {**over_seeds(delta), "p_value": None}
    if len(delta) > 1:
        if np.ptp(delta) < 1e-12:
            # Without spread there is no t; equal seeds mean equal runs, or a shift that never varies.
            result["p_value"] = 1.0 if abs(delta[0]) < 1e-12 else 0.0
        else:
            from scipy import stats

            result["p_value"] = float(stats.ttest_rel(arm, full).pvalue)
    return result


# -- the ablation ---------------------------------------------------------------------------------------


def _scores(summary: Mapping[str, Any], checkpoint: str) -> dict[str, dict[str, list[Any]]]:
    """MEASURES with their intervals by data set, union and plain average of a run's last checkpoint."""
    found = {d: {m: s[m] for m in _MEASURES} for d, s in summary["scores"][checkpoint].items()}
    single = [s for d, s in found.items() if d != UNION]
    if len(single) > 1:
        found[AVERAGE] = {
            m: [sum(s[m][0] for s in single) / len(single), None, None] for m in _MEASURES
        }
    return found


def _rows(folder: Path, checkpoint: str) -> list[Any]:
    with Store(folder / STORE_FILE, read_only=True) as store:
        return prediction_rows(store, evaluation_name(checkpoint))


_SIGNAL = {
    "r1_flat": "one R1", "r2_flat": "one R2", "silent": "no advantage", "pass_rate": "passed the gate",
    "parse_rate": "parsed", "r1": "R1", "r2": "R2", "sampling_entropy": "entropy",
}  # fmt: skip


def _rl_metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run's rounds of RL."""
    with Store(folder / STORE_FILE, read_only=True) as store:
        return [m for m in store.metrics() if m["stage"].endswith("-rl")]


def _signal(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What RL had to learn from: each measure's mean over rounds, weighted by their groups."""
    found = {}
    for key in _SIGNAL:
        known = [(m[key], m["prompts"]) for m in rounds if m.get(key) is not None]
        if groups := sum(n for _, n in known):
            found[key] = sum(v * n for v, n in known) / groups
    return found


def _shares(
    summaries: Sequence[Mapping[str, Any]], checkpoint: str, which: str
) -> dict[str, dict[str, float]]:
    """Share of each emotion by data set, the mean over runs. `which`: predicted_share or gold_share."""
    by = [s["scores"][checkpoint] for s in summaries]
    return {
        d: {e: sum(one[d][which][e] for one in by) / len(by) for e in by[0][d][which]}
        for d in by[0]
        if d != UNION
    }


_FIT = {"nll": "NLL", "temperature": "T", "nll_tempered": "NLL at T"}


def _fit(seeds: Sequence[Sequence[Any]], labels: Mapping[str, LabelSet]) -> dict[str, Any]:
    """NLL, best temperature and the NLL at it by data set, means over seeds; None where nothing parsed."""
    result: dict[str, Any] = {}
    for d in labels:
        found = [calibration_of([r for r in rows if r["dataset"] == d], labels) for rows in seeds]
        known = [c for c in found if c["n"]]
        result[d] = {k: sum(c[k] for c in known) / len(known) if known else None for k in _FIT}
    return result


def ablate(
    files: Sequence[Path],
    overrides: Sequence[str],
    out: Path,
    seeds: int,
    reporter: Reporter,
    *,
    stop: StopRequest | None = None,
    keep: Keep = "last",
    only: Sequence[str] = (),
    jobs: int = 1,
) -> dict[str, Any]:
    """Run all arms over the seeds 0 to `seeds` - 1 and compare; writes ablation.json, .md, .csv and figures.

    Runs lie in OUT/ARM/seed-N; those that are finished are not run again, one that was stopped goes on. The
    arms of a seed that begin with the same cold start share it: it is trained once, in OUT/trunk/seed-N. The
    untouched model, which no seed changes, is evaluated once.

    Args:
        only: arms to run besides the full one, shipped ones by name or TOML files; empty for table 2.
        jobs: runs at a time, each in a process of its own.

    Raises:
        SelfEmoError: of `jobs` runs at a time one failed; the others are finished.
        ConfigError: the configuration has no self-play or no lambda to take away, or an unknown arm.
        StoreError: the folder holds runs with other settings.
        Stopped: `stop` was asked for; the same call goes on.
    """
    base = load(files, overrides)
    arms = arms_for(base, only)
    configs = {  # all of them before the first run: a mistake shows at once
        (a.name, s): _config_of(a, files, overrides, s) for a in arms for s in range(seeds)
    }
    labels = label_sets(load_conversations(base.data))
    trunks = [load(files, [*overrides, f"seed={s}", "flywheel.iterations=0"]) for s in range(seeds)]

    def planned(a: Arm, s: int) -> _Planned:
        config = configs[a.name, s]
        shared = next((c for c, k in _SHARED.items() if _equal(config, trunks[s], k)), None)
        trunk = out / TRUNK / f"seed-{s}" if shared else None
        return _Planned(out / a.name / f"seed-{s}", config, keep, trunk, shared or COLD)

    with lock_folder(out):
        if jobs > 1:
            rest = [planned(a, s) for s in range(seeds) for a in arms if not a.checkpoint]
            first = [_Planned(out / TRUNK / f"seed-{s}", c) for s, c in enumerate(trunks)]
            # What takes over no more than the untouched model's scores need not wait for a trunk.
            first += [replace(p, trunk=None) for p in rest if p.at == START]
            _together(first, out, jobs, reporter, stop)
            _together(rest, out, jobs, reporter, stop)
        summaries: dict[tuple[str, int], dict[str, Any]] = {}
        for s in range(seeds):  # seed by seed: what is done can be compared early
            trunk = out / TRUNK / f"seed-{s}"
            reporter.say(f"cold start of seed {s}")
            untouched = out / TRUNK / "seed-0" if s else None
            shared = complete_run(trunk, trunks[s], reporter, stop, trunk=untouched, at=START)
            for a in arms:
                reporter.say(f"{a.name}, seed {s} (run {len(summaries) + 1} of {len(configs)})")
                if a.checkpoint:
                    summaries[a.name, s] = shared
                    continue
                p = planned(a, s)
                summaries[a.name, s] = complete_run(
                    p.folder, p.config, reporter, stop, p.keep, p.trunk, p.at
                )
        last = {a.name: a.checkpoint or checkpoints(configs[a.name, 0])[-1] for a in arms}
        home = {a.name: out / (TRUNK if a.checkpoint else a.name) for a in arms}
        result: dict[str, Any] = {
            "selfemo": __version__,
            "configs": [str(f) for f in files],
            "overrides": list(overrides),
            "prompts": base.flywheel.prompts * base.flywheel.iterations,
            "split": base.data.eval_split,
            "checkpoint": last[FULL],
            "seeds": seeds,
            "gold_share": _shares([summaries[FULL, 0]], last[FULL], "gold_share"),
            "arms": [],
        }
        full_rows = [_rows(out / FULL / f"seed-{s}", last[FULL]) for s in range(seeds)]
        full_scores = [_scores(summaries[FULL, s], last[FULL]) for s in range(seeds)]
        rounds: dict[str, list[list[dict[str, Any]]]] = {}
        for a in arms:
            scores = [_scores(summaries[a.name, s], last[a.name]) for s in range(seeds)]
            runs, every_row = [], []
            for s in range(seeds):
                run: dict[str, Any] = {
                    "seed": s,
                    "folder": f"{home[a.name].name}/seed-{s}",
                    "checkpoint": last[a.name],
                    "scores": scores[s],
                }
                rows = _rows(home[a.name] / f"seed-{s}", last[a.name])
                every_row.append(rows)
                if a.name != FULL:
                    found = compare(full_rows[s], rows, labels)
                    run["against_full"] = {d: c.as_dict() for d, c in found.items()}
                runs.append(run)
            values = {
                d: {m: [one[d][m][0] for one in scores] for m in _MEASURES} for d in scores[0]
            }
            arm: dict[str, Any] = {
                "name": a.name,
                "paper": a.paper,
                "what": a.what,
                "overrides": list(a.overrides),
                "rl": not a.checkpoint and configs[a.name, 0].flywheel.iterations > 0,
                "scores": {
                    d: {m: over_seeds(v) for m, v in by.items()} for d, by in values.items()
                },
                "predicted_share": _shares(
                    [summaries[a.name, s] for s in range(seeds)], last[a.name], "predicted_share"
                ),
                "fit": _fit(every_row, labels),
                "runs": runs,
            }
            if arm["rl"]:
                rounds[a.name] = [_rl_metrics(out / r["folder"]) for r in runs]
                arm["signal"] = _signal([m for seed in rounds[a.name] for m in seed])
            if a.name != FULL:
                arm["against_full"] = {
                    d: {
                        m: paired_over_seeds([one[d][m][0] for one in full_scores], v)
                        for m, v in by.items()
                    }
                    for d, by in values.items()
                }
            result["arms"].append(arm)
        result["figures"] = _figures(out, result, rounds)
        _write(out, result)
        return result


_CURVES = {"r1": ("R1", "mean over rollouts"), "sampling_entropy": ("Entropy", "nats per token")}


def _figures(
    out: Path, result: Mapping[str, Any], rounds: Mapping[str, list[list[dict[str, Any]]]]
) -> list[str]:
    """Scores by arm, and R1 and entropy over the rounds of the arms that have RL; into OUT/figures.

    Args:
        rounds: the metrics of each seed's rounds, by arm.
    """
    folder = out / "figures"
    names = [figures.arm_dots(folder, result["arms"], m) for m in ("accuracy", "mean_r1")]
    for key, (title, unit) in _CURVES.items():
        curves = {a: [[m.get(key) for m in seed] for seed in by] for a, by in rounds.items()}
        names.append(figures.arm_curves(folder, title, unit, curves))
    return names


def _signed(entry: Mapping[str, Any]) -> str:
    text = f"{entry['mean']:+.3f}"
    if entry["interval"]:
        text += f" [{entry['interval'][0]:+.3f}, {entry['interval'][1]:+.3f}]"
    return text


def ablation_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean (sd) over seeds by arm and data set, and the difference from the full arm."""
    header = [
        "arm", "data", "accuracy", "weighted F1", "mean R1", "accuracy - full", "p over seeds",
        "p within seeds",
    ]  # fmt: skip
    rows = []
    for arm in result["arms"]:
        for d, by in arm["scores"].items():
            cells = [
                f"{by[m]['mean']:.3f}" + ("" if by[m]["sd"] is None else f" ({by[m]['sd']:.3f})")
                for m in ("accuracy", "weighted_f1", "mean_r1")
            ]
            against = arm.get("against_full", {}).get(d, {}).get("accuracy")
            within = [
                f"{r['against_full'][d]['accuracy']['p_value']:.3f}"
                for r in arm["runs"]
                if d in r.get("against_full", {})
            ]
            p = (
                "-"
                if against is None or against["p_value"] is None
                else f"{against['p_value']:.3f}"
            )
            rows.append(
                [
                    arm["name"],
                    d,
                    *cells,
                    _signed(against) if against else "-",
                    p,
                    ", ".join(within) or "-",
                ]
            )
    return header, rows


def signal_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what the RL of each arm had to learn from."""
    rows = [
        [a["name"], *(f"{a['signal'][k]:.3f}" if k in a["signal"] else "-" for k in _SIGNAL)]
        for a in result["arms"]
        if a["rl"]
    ]
    return ["arm", *_SIGNAL.values()], rows


def share_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: how often each arm predicts which emotion, the gold emotions first; how sure it is."""

    def show(shares: Mapping[str, float]) -> str:
        said = sorted(((v, e) for e, v in shares.items() if v > 0), key=lambda x: (-x[0], x[1]))
        missing = 1 - sum(shares.values())
        more = [f"(failed {missing:.0%})"] if missing > 1e-9 else []
        return ", ".join([*(f"{e} {v:.0%}" for v, e in said), *more]) or "-"

    rows = [["gold", d, show(s), *["-"] * len(_FIT)] for d, s in result["gold_share"].items()]
    for a in result["arms"]:
        for d, s in a["predicted_share"].items():
            fit = [a["fit"][d][k] for k in _FIT]
            rows.append([a["name"], d, show(s), *("-" if v is None else f"{v:.3f}" for v in fit)])
    return ["arm", "data", "emotions", *_FIT.values()], rows


def _write(out: Path, result: Mapping[str, Any]) -> None:
    header, rows = ablation_table(result)
    arms = [
        [a["name"], a["paper"], a["what"], " ".join(a["overrides"]) or "-"] for a in result["arms"]
    ]
    paper = [
        [
            r["model"],
            r["synthetic"],
            r["original"],
            *(f"{r['accuracy'][k]:.2f}" for k in r["accuracy"]),
        ]
        for r in published()["table2"]
    ]
    text = (
        f"# Ablation (table 2): {result['seeds']} seeds, {result['prompts']} prompts each\n\n"
        f"Split {result['split']}, checkpoint {result['checkpoint']}. Mean (standard deviation) over seeds; "
        "differences are arm minus full with 95% t intervals over seeds. p over seeds: paired t-test; p "
        "within seeds: each seed's paired test by conversation, accuracy.\n\n"
        + render(header, rows, "markdown")
        + "\n"
        + render(["arm", "row of table 2", "what", "overrides"], arms, "markdown")
        + "\nWhat is predicted:\n\n"
        + render(*share_table(result), "markdown")
        + "\nWhat RL had to learn from: means over its groups. A group whose completions have one R1, or one "
        "R2, learns nothing from it.\n\n"
        + render(*signal_table(result), "markdown")
        + "\nPublished (table 2, accuracy in per cent, Qwen3-4B):\n\n"
        + render(
            ["model", "synthetic", "original", "EmoryNLP", "IEMOCAP", "MELD", "AVG"],
            paper,
            "markdown",
        )
    )
    write_text(out / "ablation.md", text)
    with (
        replacing(out / "ablation.csv") as staging,
        staging.open("w", newline="", encoding="utf-8") as f,
    ):
        writer = csv.writer(f)
        writer.writerow(
            ["arm", "seed", "data", "measure", "value", "low", "high", "difference", "difference_low",
             "difference_high", "p_value"]
        )  # fmt: skip
        for arm in result["arms"]:
            for run in arm["runs"]:
                for d, by in run["scores"].items():
                    for m, value in by.items():
                        against = run.get("against_full", {}).get(d, {}).get(m)
                        more = [*against["difference"], against["p_value"]] if against else [""] * 4
                        ends = ["" if v is None else v for v in value]
                        writer.writerow([arm["name"], run["seed"], d, m, *ends, *more])
    write_json(out / "ablation.json", result)
