"""The step evidence at tiny size, and its tables: the primary endpoint worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from experiments import tables
from experiments.gpu import evidence
from experiments.gpu.settings import told
from experiments.gpu.study import HERE

from selfemo.config import Config, load
from tests.support.queue import arguments

LEARNED = ("sft.max_samples=16", "sft.label_samples=8", "sft.epochs=30", "evaluation.resamples=50")
"""Of a cold start that writes whole completions of the toy conversations."""


@pytest.mark.slow
def test_each_arm_has_as_many_prompts_and_keeps_what_it_wrote(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = list[tuple[float, float]]()
    analyse = evidence.analyse_checkpoint

    def watched(sampler: Any, *rest: Any, reader: Any, **more: Any) -> Any:
        weights = [
            sum(p.double().sum().item() for p in s.policy.core.parameters()) for s in (sampler, reader)
        ]
        readers.append((weights[0], weights[1]))
        return analyse(sampler, *rest, reader=reader, **more)

    monkeypatch.setattr(evidence, "analyse_checkpoint", watched)
    call = [*arguments(tiny_model, tmp_path, *LEARNED), "--seed", "1"]
    evidence.main(call)
    file = tmp_path / "out" / "results.json"
    result = json.loads(file.read_text())
    assert "failed" not in result and result["settings"]["seed"] == 1
    start, *runs = result["runs"]
    assert [r["arm"] for r in runs] == list(evidence.ARMS)
    played = {r["arm"]: sum(x["synthetic"] for x in r["rounds"]) for r in runs}
    assert played["full"] > 0 and played["original"] == played["sft"] == 0
    for r in runs:
        assert r["seed"] == 1 and r["labels"] + played[r["arm"]] == 8, "equal prompts"
    by = {r["arm"]: r for r in runs}
    assert by["sft"]["labels_digest"] == by["original"]["labels_digest"]
    assert "targets_own" in by["placebo"]["counts"] and "targets_own" not in by["full"]["counts"]

    (first, reader), *rest = readers
    assert first == reader and len(rest) == len(evidence.ARMS)
    assert all(r == reader and trained != r for trained, r in rest), "the start hears the replies of each arm"

    u, claim = result["utterances"], [h == "claim" for h in result["utterances"]["half"]]
    for r in result["runs"]:
        assert len(r["greedy"]["texts"]) == len(u["gold"]) and len(r["sampled"]) == sum(claim)
        hit = [g == k for g, k, mine in zip(u["gold"], r["greedy"]["predicted"], claim, strict=True) if mine]
        (scored,) = r["greedy"]["claim"].values()
        assert scored["accuracy"] == pytest.approx(sum(hit) / sum(claim))
        assert r["analysis"]["parsed"] > 0
        assert all(r["analysis"]["entropy"][s] for s in ("emotion", "self_emotion", "reply"))

    # The weights are gone, and some arms too: the start is trained again, and these alone are made.
    result["runs"] = [r for r in result["runs"] if r.get("arm") not in ("sft", "vanilla")]
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(result))
    evidence.main([*call, "--after", str(earlier)])
    again = json.loads(file.read_text())
    assert sorted(r["run"] for r in again["runs"]) == sorted(["start", *(r["run"] for r in runs)])
    assert again["runs"][0]["greedy"] == start["greedy"]
    with pytest.raises(ValueError, match=r"other settings .*seed: 1, here 2"):
        evidence.main([*call[:-1], "2", "--after", str(earlier)])


@pytest.mark.slow
def test_a_start_that_knows_nothing_ends_the_step(tiny_model: Path, tmp_path: Path) -> None:
    call = arguments(tiny_model, tmp_path, "sft.lr=1e-6", "sft.epochs=1")
    with pytest.raises(SystemExit, match="stopped: the start knows no more than the label shares"):
        evidence.main([*call, "--seed", "0"])
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["run"] for r in result["runs"]] == ["start"] and "stopped" in result
    # Five of seven labels are equally frequent in the toy conversations: 40 of 47 with one added to each.
    assert result["prior"]["nll"] == pytest.approx(1.6529230, abs=1e-6)
    assert result["prior"]["start_minus_prior"][2] >= 0


def test_a_seed_of_its_own_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "required: --seed": [],
        "invalid choice: 3": ["--seed", "3"],
        "--arm": ["--seed", "0", "--arm", "ce"],
    }
    for says, more in wrong.items():
        with pytest.raises(SystemExit):
            evidence.main(["--data", "sample", "--out", str(tmp_path), *more])
        assert says in capsys.readouterr().err


START_SAYS = {"a": (0, 0, 1, 1), "b": (0, 0, 0, 0)}
GOLD = {"a": (0, 0, 0, 0), "b": (0, 0, 1, 1)}


def synthetic(seed: int, full: dict[str, tuple[int, ...]], copies: int) -> dict[str, Any]:
    """A result of one seed: data sets a and b with labels x and y, and of each `copies` of four conversations
    with one claim utterance, the last of each four of which overlaps with training data. In tuning
    conversations the start is always right and full always wrong."""
    n = 4 * copies
    u = {
        "dataset": ["a"] * 2 * n + ["b"] * 2 * n,
        "conversation": [f"{d}{i}" for d in "ab" for i in range(2 * n)],
        "half": (["claim"] * n + ["tuning"] * n) * 2,
        "overlaps": [i % 4 == 3 for i in range(4 * n)],
        "gold": [g for d in "ab" for g in (*GOLD[d] * copies, *[0] * n)],
    }

    def run(name: str, says: dict[str, tuple[int, ...]], tuning: int, **about: Any) -> dict[str, Any]:
        told = [k for d in "ab" for k in (*says[d] * copies, *[tuning] * n)]
        scored = {"accuracy": 0.5, "weighted_f1": 0.5, "macro_f1": 0.5, "nll_at_t": 1.0, "temperature": 1.0,
                  "calibration": {"ece": 0.25}}  # fmt: skip
        hits = [int(g == k) for g, k in zip(u["gold"], told, strict=True)]
        return {
            "run": name, **about, "predicted": told, "claim": {"a": scored, "b": scored},
            "hits": hits, "nll_at_t": [1.0] * len(told),
            "greedy": {"predicted": [-1] * len(told), "failures": {"empty": 3}, "texts": [""] * 12},
            "analysis": {
                "entropy": {"emotion": [0.5, 0.4, 0.6], "self_emotion": None, "reply": None},
                "round_trip": {"r1": [0.75, 0.7, 0.8], "top_match": None},
                "diversity": {"different_replies": 0.125},
            },
        }  # fmt: skip

    settings = json.loads(json.dumps(told(load([HERE / "evidence.toml"], [f"seed={seed}"]))))
    about = {"arm": "full", "lr": 3e-5, "seed": seed}
    return {
        "device": "a card", "torch": "2", "commit": "c" * 40, "sources": "5" * 64, "settings": settings,
        "labels": {"a": ["x", "y"], "b": ["x", "y"]}, "utterances": u,
        "runs": [run("start", START_SAYS, 0), run(f"full, rate 3e-05, seed {seed}", full, 1, **about)],
    }  # fmt: skip


def written(folder: Path, results: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tables, "RESULTS", folder)
    for file in folder.iterdir():
        file.unlink()
    for k, result in enumerate(results):
        (folder / f"evidence_{k}.json").write_text(json.dumps(result))
    return tables.evidence()


def test_the_primary_endpoint_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F1, 2 hits / (said + gold): of a 4/6, then 1; of b the mean of 4/6 and 0, then 1, but in seed 1, which
    says what the start says: the mean over the seeds, not F1 of all predictions together."""
    right = {"a": GOLD["a"], "b": GOLD["b"]}
    as_start = {"a": GOLD["a"], "b": START_SAYS["b"]}
    results = [synthetic(s, as_start if s == 1 else right, 6) for s in (0, 1, 2)]
    results[2] |= {
        "earlier": [{**results[0], "device": "an older card", "runs": ["start"]}],
        "start_differs": [{"hits": 0.005, "nll_at_t": 0.001}],
    }
    page = written(tmp_path, results, monkeypatch)
    assert "before that start: an older card" in page and "differ from the first: [{'hits': 0.005" in page
    before, after = (4 / 6 + 2 / 6) / 2, (1 + (1 + 2 / 6 + 1) / 3) / 2
    row = next(line for line in page.splitlines() if line.startswith("| weighted F1"))
    assert row.startswith("| weighted F1, mean of a, b, claim half | 0, 1, 2 | 50.00 | 88.89 | +38.89 [")
    assert f"{100 * before:.2f} | {100 * after:.2f} | {100 * (after - before):+.2f} [" in row
    assert row.endswith(" | +50.00, +16.67, +50.00 | 0.0001 | reached |")
    clean = next(line for line in page.splitlines() if line.startswith("| without what overlaps"))
    assert clean.endswith(" | - |") and clean.split(" | ")[2] != row.split(" | ")[2]
    assert "| original to full | not run | - |" in page
    change = next(line for line in page.splitlines() if line.startswith("| start to full | 3 |"))
    cells = change.split(" | ")
    assert cells[2].startswith(f"{100 / 3:+.2f} [") and cells[4].startswith("+38.89 [")
    assert cells[5].startswith("+") and cells[5] != cells[4], "without what overlaps"
    assert cells[6].startswith("+0.00 [+0.00, +0.00] p=1.0000"), "greedy completions that all failed"
    assert "| full | 3 | 0.250 | 0.250 | 0.500 | - | - | 0.750 | - | 0.125 |" in page


def test_the_primary_endpoint_wants_its_size_its_test_and_its_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"a": GOLD["a"], "b": GOLD["b"]}
    few = written(tmp_path, [synthetic(s, right, 1) for s in (0, 1, 2)], monkeypatch)
    # Four conversations change: of their 16 swaps two are as large.
    assert "+50.00 [" in few and "| not reached |" in few
    one = written(tmp_path, [synthetic(1, right, 6)], monkeypatch)
    assert "| 1 | 50.00 | 100.00 |" in one and "| open: seed 0, 2 not run |" in one
    of_others = synthetic(0, right, 6)
    of_others["settings"]["flywheel"]["prompts"] = 64
    told_ = written(tmp_path, [of_others], monkeypatch)
    assert "other settings: exploratory" in told_ and "64 prompts an arm" in told_
    # A run whose details failed has scores all the same.
    for key in ("greedy", "analysis"):
        del of_others["runs"][1][key]
    assert "| full | 0 | - | - |" in written(tmp_path, [of_others], monkeypatch)
    small = {"a": START_SAYS["a"], "b": START_SAYS["b"]}
    none = written(tmp_path, [synthetic(s, small, 6) for s in (0, 1, 2)], monkeypatch)
    assert "| +0.00 [+0.00, +0.00] | +0.00, +0.00, +0.00 | 1.0000 | not reached |" in none
    without = [synthetic(s, right, 6) for s in (0, 1, 2)]
    for result in without:
        del result["runs"][1]
    assert "| weighted F1 | not run |" in written(tmp_path, without, monkeypatch)


def test_results_that_do_not_belong_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"a": GOLD["a"], "b": GOLD["b"]}
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.evidence() == "not run\n"
    with pytest.raises(ValueError, match="in more than one of"):
        written(tmp_path, [synthetic(0, right, 1), synthetic(0, right, 1)], monkeypatch)
    with pytest.raises(ValueError, match="not of the same utterances"):
        written(tmp_path, [synthetic(0, right, 1), synthetic(1, right, 2)], monkeypatch)
    results = [synthetic(0, right, 1), synthetic(1, right, 1)]
    results[1]["settings"]["flywheel"]["prompts"] = 64
    with pytest.raises(
        ValueError, match=r"evidence_1.json has other settings .*flywheel.prompts: 6016, here 64"
    ):
        written(tmp_path, results, monkeypatch)
    results[1]["settings"] = {**results[0]["settings"], "seed": 1, "model": {"id": "another"}}
    assert "of another model or other settings: exploratory" in written(tmp_path, results, monkeypatch)


def test_the_arms_are_what_they_are_named_after() -> None:
    """Settings that load, and differ where their names say so."""
    config = {arm: arm_settings(arm) for arm in evidence.ARMS}
    full, plain = config["full"], config["plain"]
    assert (full.grpo.credit, full.grpo.normalise, full.selfplay.self_emotion) == (
        "causal",
        "mean",
        "balanced",
    )
    assert (plain.grpo.credit, plain.grpo.normalise, plain.grpo.lam_max) == ("completion", "std", 1.0)
    assert plain.sampling.group_size == 8 and plain.selfplay.self_emotion == "sampled"
    assert config["vanilla"] == plain.model_copy(
        update={"grpo": plain.grpo.model_copy(update={"lam_max": 0.0})}
    )
    assert config["placebo"] == full.model_copy(
        update={"selfplay": full.selfplay.model_copy(update={"targets": "shuffled"})}
    )
    assert config["original"] == full.model_copy(update={"selfplay": config["original"].selfplay})
    assert config["original"].selfplay.synthetic_share == 0 and not config["original"].replies
    assert len({c.flywheel.prompts for c in config.values()}) == 1


def arm_settings(arm: str) -> Config:
    return load([HERE / "evidence.toml"], list(evidence.ARMS[arm].settings))
