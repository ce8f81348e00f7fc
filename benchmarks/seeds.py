"""Run one configuration over several seeds and tabulate the change of mean R1 since the cold start.

    python benchmarks/seeds.py --config quickstart --out runs/seeds --seeds 5

A seed whose run is in the folder already is not run again; one that was stopped goes on. The table and
`seeds.json` hold each seed and, over the seeds, mean, standard deviation and a 95% t interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from selfemo.config import load
from selfemo.evaluation.experiments.runs import PlannedRun, complete_run
from selfemo.evaluation.experiments.statistics import over_seeds
from selfemo.evaluation.rendering import render
from selfemo.progress import Console
from selfemo.reports.figures import draw

COLD = "cold-start"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", required=True)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        config = load(args.config, [*args.sets, f"seed={seed}"])
        summary = complete_run(PlannedRun(args.out / f"seed-{seed}", config), draw, Console())
        last = summary["r1_change"]["to"]
        data = next(iter(summary["scores"][COLD]))
        rows.append(
            {
                "seed": seed,
                **{
                    f"{m} {c}": summary["scores"][c][data][m][0]
                    for m in ("parse_rate", "accuracy", "mean_r1")
                    for c in (COLD, last)
                },
                "r1_change": summary["r1_change"]["change"],
                "p_value": summary["r1_change"]["p_value"],
            }
        )
    whole = over_seeds([r["r1_change"][0] for r in rows])
    result = {
        "configs": args.config,
        "sets": args.sets,
        "seeds": rows,
        "mean_change": whole["mean"],
        "sd": whole["sd"],
        "interval": whole["interval"],
    }
    (args.out / "seeds.json").write_text(json.dumps(result, indent=1))
    keys = [k for k in rows[0] if k not in ("seed", "r1_change", "p_value")]
    lines = []
    for r in rows:
        value, low, high = r["r1_change"]
        change = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append([str(r["seed"]), *(f"{r[k]:.3f}" for k in keys), change, f"{r['p_value']:.3f}"])
    print(render(["seed", *keys, "change of mean R1", "p"], lines, "markdown"))
    interval = whole["interval"]
    spread = f", 95% t interval [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
    print(f"Mean change over {len(rows)} seeds: {whole['mean']:+.3f}{spread}")


if __name__ == "__main__":
    main()
