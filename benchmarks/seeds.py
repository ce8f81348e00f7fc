"""Run one configuration over several seeds and tabulate what each of its stages added.

    python benchmarks/seeds.py --config quickstart --out runs/seeds --seeds 5

A seed whose run is in the folder already is not run again; one that was stopped goes on. The table and
`seeds.json` hold by seed what the RL stage and what the whole loop did to accuracy, to NLL at T and to NLL
after a prior shift (nats), paired on the held-out turns of all data sets together; over the seeds their mean,
deviation and 95% t interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfemo.config import Config, load
from selfemo.evaluation.changes import change_record
from selfemo.evaluation.experiments.runs import PlannedRun, complete_run
from selfemo.evaluation.experiments.statistics import over_seeds
from selfemo.evaluation.rendering import render
from selfemo.files import write_json
from selfemo.method.types import UNION
from selfemo.progress import Console
from selfemo.runs.folder import COLD, checkpoints, evaluation_name, policy_name
from selfemo.runs.store import STORE_FILE, Store

MEASURES = ("accuracy", "nll_at_t", "nll_shifted")


def stages_of(folder: Path, config: Config) -> dict[str, Any]:
    """The seconds of each stage of a run, and the changes by RL of each iteration and by the whole loop."""
    before, pairs = COLD, []
    for i in range(1, config.flywheel.iterations + 1):
        pairs.append((f"RL {i}", before, policy_name(f"iteration-{i}")))
        before = f"iteration-{i}"
    pairs.append(("whole loop", COLD, checkpoints(config)[-1]))
    with Store(folder / STORE_FILE, read_only=True) as store:
        labels = store.label_sets()
        seconds = {r["name"]: r["seconds"] for r in store.stages()}
        found = []
        for name, a, b in pairs:
            rows = [store.predictions(evaluation_name(c)) for c in (a, b)]
            changes = change_record(*rows, labels)
            found.append(
                {"stage": name, "from": a, "to": b, **changes[max(changes, key=lambda d: d == UNION)]}
            )
    return {"seconds": seconds, "stages": found}


def table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """One row a seed and stage."""
    rows = []
    for s in seeds:
        for stage in s["stages"]:
            cells = []
            for m in MEASURES:
                if stage[m] is None:  # no label probabilities, or one conversation
                    cells.append("-")
                    continue
                value, low, high = stage[m]["difference"]
                ends = "" if m == "accuracy" else "{before:.3f} to {after:.3f}, ".format(**stage[m])
                cells.append(f"{ends}{value:+.3f} [{low:+.3f}, {high:+.3f}]")
            rows.append([str(s["seed"]), stage["stage"], *cells, stage["verdict"]])
    header = ["seed", "stage", "accuracy", "NLL at T", "NLL at T, prior shift", "verdict"]
    return render(header, rows, "markdown")


def over_all(seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By stage and measure: the mean over seeds, its interval, and in how many seeds it rose and fell."""
    found = []
    for k, stage in enumerate(seeds[0]["stages"]):
        for m in MEASURES:
            if any(s["stages"][k][m] is None for s in seeds):
                continue
            values = [s["stages"][k][m]["difference"][0] for s in seeds]
            counts = {"rose": sum(v > 0 for v in values), "fell": sum(v < 0 for v in values)}
            found.append({"stage": stage["stage"], "measure": m, **counts, **over_seeds(values)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", required=True)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    seeds: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        config, folder = load(args.config, [*args.sets, f"seed={seed}"]), args.out / f"seed-{seed}"
        complete_run(PlannedRun(folder, config, keep="last"), Console())
        seeds.append({"seed": seed, **stages_of(folder, config)})
        whole = over_all(seeds)
        result = {"configs": args.config, "sets": args.sets, "seeds": seeds, "over_seeds": whole}
        write_json(args.out / "seeds.json", result)
    print(table(seeds))
    for w in whole:
        spread = "" if not (i := w["interval"]) else f", 95% t interval [{i[0]:+.3f}, {i[1]:+.3f}]"
        print(
            f"{w['stage']}, {w['measure']}: mean {w['mean']:+.3f}{spread}; rose in {w['rose']} and fell in "
            f"{w['fell']} of {len(seeds)} seeds"
        )


if __name__ == "__main__":
    main()
