"""The steps of experiments/gpu, at tiny size, and the tables from their committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments import tables
from experiments.gpu import one_thing, rl_alone, scarce, study

from selfemo.config import Config, load
from tests.conftest import toy_conversations, write_jsonl


def arguments(tiny_model: Path, tmp_path: Path, *more: str) -> list[str]:
    """Of a step at tiny size, on toy conversations."""
    data = tmp_path / "data.jsonl"
    write_jsonl(data, [*toy_conversations(8), *toy_conversations(4, "dev")])
    settings = [f"model.id={tiny_model}", "model.device=cpu", "sft.max_samples=4", "sft.label_samples=4",
                "sft.epochs=20", "sft.lr=5e-3", "flywheel.prompts=8", "grpo.prompts_per_step=4",
                "grpo.mini_batch=4", *more]  # fmt: skip
    sets = [x for s in settings for x in ("--set", s)]
    return ["--data", str(data), "--out", str(tmp_path / "out"), "--tiny", *sets, "--seconds", "900"]


@pytest.mark.slow
def test_rl_alone_runs_and_writes_each_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl_alone, "RATES", {arm: rates[:1] for arm, rates in rl_alone.RATES.items()})
    monkeypatch.setattr(rl_alone, "SEEDS", (0, 1))
    rl_alone.main(arguments(tiny_model, tmp_path))
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "failed" not in result
    names = [r["run"] for r in result["runs"]]
    assert names[0] == "start" and len(names) == 8, names
    n = len(result["utterances"]["half"])
    assert set(result["utterances"]["half"]) == {"tuning", "claim"}
    for run in result["runs"]:
        assert len(run["hits"]) == len(run["nll_at_t"]) == n
        scored = [s for half in ("tuning", "claim") for s in run[half].values()]
        assert sum(s["n"] for s in scored) == n
        assert sum(s["accuracy"] * s["n"] for s in scored) == pytest.approx(sum(run["hits"]))
    assert set(result["chosen"]) == {"mean", "ce", "std"}


@pytest.mark.slow
def test_scarce_arms_draw_the_same_labels_and_go_on_after_an_earlier_result(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scarce, "SEEDS", (0,))
    call = arguments(tiny_model, tmp_path, "data.train_conversations=4")
    scarce.main(call)
    file = tmp_path / "out" / "results.json"
    result = json.loads(file.read_text())
    assert "failed" not in result
    runs = {r["arm"]: r for r in result["runs"] if "arm" in r}
    assert list(runs) == list(scarce.ARMS)
    n = runs["original"]["labelled_prompts"]
    assert n == runs["original"]["labels"] and n % 4 == 0 and n > 0
    for arm in ("full", "balanced", "placebo"):
        # Where self-play has no turn ready, a gold prompt takes its place.
        assert runs[arm]["labelled_prompts"] == n and runs[arm]["labels"] >= n
    assert runs["twice"]["labels"] == 2 * n and runs["twice"]["labelled_prompts"] == n
    assert runs["more"]["labelled_prompts"] > n
    assert runs["unlabelled"]["labels_digest"] == runs["original"]["labels_digest"]

    result["runs"] = [r for r in result["runs"] if r.get("arm") != "twice"]
    result["runs"][1]["mark"] = "of the earlier result"
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(result))
    scarce.main([*call, "--after", str(earlier)])
    again = json.loads(file.read_text())
    assert sorted(r["run"] for r in again["runs"]) == sorted(["start", *(r["run"] for r in runs.values())])
    assert sum(r.get("mark") == "of the earlier result" for r in again["runs"]) == 1
    with pytest.raises(ValueError, match="has other settings than this step"):
        scarce.main([*call, "--set", "sampling.temperature=0.5", "--after", str(earlier)])
    work = ["--work", str(tmp_path / "work")]
    for arm in ("twice", "original"):
        scarce.main([*call, *work, "--arm", arm, "--seed", "0"])
        alone = json.loads(file.read_text())
        assert [r["run"] for r in alone["runs"]] == ["start", runs[arm]["run"]]
        assert "channel" not in alone
        start, again = result["runs"][0], alone["runs"][0]
        assert all(start[k] == again[k] for k in ("hits", "nll_at_t", "nll_shifted"))
    assert not list((tmp_path / "work").glob("tmp*")), "stores of arms are not kept"
    with pytest.raises(ValueError, match="a start of other settings or data"):
        scarce.main([*call, *work, "--arm", "twice", "--set", "sft.lr=1e-3"])


@pytest.mark.slow
def test_one_thing_runs_each_arm_on_the_same_labels(tiny_model: Path, tmp_path: Path) -> None:
    one_thing.main(arguments(tiny_model, tmp_path))
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "failed" not in result
    runs = {r["arm"]: r for r in result["runs"] if "arm" in r}
    assert list(runs) == list(one_thing.ARMS)
    drawn = {arm: r["labels_digest"] for arm, r in runs.items() if arm != "balanced prompts"}
    assert len(set(drawn.values())) == 1, drawn


def test_tables_come_from_the_committed_results() -> None:
    result = tables.read("rl_alone")
    runs = tables.chosen_runs(result)
    assert {arm: len(mine) for arm, mine in runs.items()} == {"mean": 3, "ce": 3, "std": 3, "plain": 1}
    start = [r for r in result["runs"] if r["run"] == tables.START]
    change = tables.compared(result, start, runs["mean"], "hits")
    claim = [i for i, half in enumerate(result["utterances"]["half"]) if half == "claim"]
    expected = sum(sum(r["hits"][i] for r in runs["mean"]) / 3 - start[0]["hits"][i] for i in claim) / len(
        claim
    )
    assert change.difference.value == pytest.approx(expected)
    written = tables.rl_alone()
    assert written.count("RL, divided by the mean") >= 6 and f"{expected:+.3f} [" in written


def test_tables_of_scarce_compare_the_seeds_that_both_sides_have() -> None:
    results = [tables.read(name) for name in ("scarce", "scarce_cpu")]
    each = [tables.by_arm(r) for r in results]
    changes = list[float]()
    for result, arms in zip(results, each, strict=True):
        before, after = tables.same_seeds([arms], "original", "balanced")
        assert [r["seed"] for r in before] == [r["seed"] for r in after]
        for a, b in zip(before, after, strict=True):
            assert a["labels_digest"] == b["labels_digest"], "equal gold labels"
            changes.append(tables.compared(result, [a], [b], "nll_at_t").difference.value)
        starts, runs = tables.same_seeds([arms], "start", "balanced")
        assert list(runs) == list(after) and starts == [arms["start"][0]] * len(runs)
    assert len(changes) == 3
    written = tables.scarce()
    row = next(line for line in written.splitlines() if "original to balanced, 3 seeds | both |" in line)
    assert f"{sum(changes) / 3:+.3f} [" in row
    assert "base" in tables.one_thing()


def test_the_committed_results_can_be_gone_on_with() -> None:
    """Settings that a committed result did not have yet are at their defaults."""
    for name, file in (("scarce", "scarce.toml"), ("one_thing", "one_thing.toml")):
        committed = tables.read(name)["settings"]
        assert study.told(Config.model_validate(committed)) == study.told(load([study.HERE / file], []))


def test_an_unknown_arm_or_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["--data", "sample", "--out", str(tmp_path)]
    for more in (["--arm", "twise"], ["--seed", "7"]):
        with pytest.raises(SystemExit):
            scarce.main([*call, *more])
        assert "invalid choice" in capsys.readouterr().err
