"""Run one configuration over several seeds and tabulate the change of mean R1 since the cold start.

    python benchmarks/seeds.py --config configs/quickstart.toml --out runs/seeds --seeds 5

A seed whose run is in the folder already is not run again; one that was stopped goes on. The table and
`seeds.json` hold each seed and, over the seeds, mean, standard deviation and a 95% t interval.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

COLD = "cold-start"


def ensure(folder: Path, configs: list[str], sets: list[str], seed: int) -> dict:
    """The summary of one seed's run, running or resuming it first if need be."""
    done = folder / "summary.json"
    if not done.exists():
        command = [sys.executable, "-m", "selfemo.cli", "evolve"]
        if (folder / "config.toml").exists():
            command += ["--resume", str(folder)]
        else:
            command += ["--out", str(folder), "--set", f"seed={seed}"]
            command += [x for c in configs for x in ("-c", c)]
            command += [x for s in sets for x in ("--set", s)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(done.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", required=True)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        summary = ensure(args.out / f"seed-{seed}", args.config, args.sets, seed)
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
    changes = np.array([r["r1_change"][0] for r in rows])
    result = {
        "configs": args.config,
        "sets": args.sets,
        "seeds": rows,
        "mean_change": float(changes.mean()),
    }
    if len(changes) > 1:
        error = float(changes.std(ddof=1)) / len(changes) ** 0.5
        half = float(stats.t.ppf(0.975, len(changes) - 1)) * error
        result["sd"] = float(changes.std(ddof=1))
        result["interval"] = [result["mean_change"] - half, result["mean_change"] + half]
    (args.out / "seeds.json").write_text(json.dumps(result, indent=1))
    keys = [k for k in rows[0] if k not in ("seed", "r1_change", "p_value")]
    print("| seed | " + " | ".join(keys) + " | change of mean R1 | p |")
    print("|" + " --- |" * (len(keys) + 3))
    for r in rows:
        value, low, high = r["r1_change"]
        cells = [f"{r[k]:.3f}" for k in keys]
        cells += [f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", f"{r['p_value']:.3f}"]
        print(f"| {r['seed']} | " + " | ".join(cells) + " |")
    interval = result.get("interval")
    spread = f", 95% t interval [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
    print(f"\nMean change over {len(rows)} seeds: {result['mean_change']:+.3f}{spread}")


if __name__ == "__main__":
    main()
