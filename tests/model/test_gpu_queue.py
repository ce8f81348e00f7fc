"""The steps of experiments/gpu, at tiny size, and the tables from their committed results."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from experiments import tables
from experiments.gpu import one_thing, provenance, rl_alone, scarce, study

from selfemo.config import Config, load
from selfemo.errors import ConfigError
from tests.conftest import toy_conversations, write_jsonl
from tests.support.queue import arguments


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
        assert [int(g == k) for g, k in zip(result["utterances"]["gold"], run["predicted"], strict=True)] == (
            run["hits"]
        )
        assert all(0 <= s["calibration"]["ece"] <= 1 for s in scored)
    assert set(provenance.KEYS) <= set(result) and len(result["sources"]) == 64
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
    assert [made["runs"] for made in again["earlier"]] == [[r["run"] for r in result["runs"]]]
    with pytest.raises(ValueError, match=r"other settings .*\(sampling.temperature: 1.0, here 0.5\)"):
        scarce.main([*call, "--set", "sampling.temperature=0.5", "--after", str(earlier)])
    result["runs"][0]["hits"][0] ^= 1  # one of 20 utterances is more than one in a hundred
    earlier.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"the start is not that .* 5.0% of the utterances"):
        scarce.main([*call, "--after", str(earlier)])
    monkeypatch.setattr(study, "START_HITS", 0.05)
    scarce.main([*call, "--after", str(earlier), "--arm", "original"])
    near = json.loads(file.read_text())
    assert near["start_differs"] == [{"hits": 0.05, "nll_at_t": 0.0}]
    assert near["runs"][0]["hits"] == result["runs"][0]["hits"], "the scores of the first start stay"
    result["runs"][0]["hits"][0] ^= 1
    work = ["--work", str(tmp_path / "work")]
    for arm in ("twice", "original"):
        own = tmp_path / arm
        scarce.main([*call, *work, "--out", str(own), "--arm", arm, "--seed", "0"])
        alone = json.loads((own / "results.json").read_text())
        assert [r["run"] for r in alone["runs"]] == ["start", runs[arm]["run"]]
        assert "channel" not in alone
        start, again = result["runs"][0], alone["runs"][0]
        assert all(start[k] == again[k] for k in ("hits", "nll_at_t", "nll_shifted"))
    assert not list((tmp_path / "work").glob("tmp*")), "stores of arms are not kept"
    with pytest.raises(ValueError, match="a start of other settings or data"):
        other = ["--out", str(tmp_path / "other"), "--set", "sft.lr=1e-3"]
        scarce.main([*call, *work, *other, "--arm", "twice"])


@pytest.mark.slow
def test_scarce_with_more_labels_compares_self_play_with_the_labels_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scarce, "SEEDS", (0,))
    call = arguments(tiny_model, tmp_path)
    labelled = {}
    for budget, conversations in (("quarter", 2), ("all", 8)):
        more = ["--set", "sft.max_samples=2", "--set", "sft.label_samples=1"] if budget == "quarter" else []
        scarce.main([*call, *more, "--out", str(tmp_path / budget), "--labels", budget])
        file = tmp_path / budget / "results.json"
        result = json.loads(file.read_text())
        assert "failed" not in result and result["budget"] == budget
        assert result["settings"]["data"]["train_conversations"] == conversations % 8
        assert "start" in result["channel"], "the diagnosis"
        start, *runs = result["runs"]
        assert [r["arm"] for r in runs] == list(scarce.COMPARED)
        # Where self-play has no turn ready, a gold prompt takes its place.
        assert len({r["labelled_prompts"] for r in runs}) == 1 and runs[0]["labels"] <= runs[1]["labels"]
        labelled[budget] = runs[0]["labels"]
        # Of each conversation five labels; a start of the others' labels leaves them, in rounds of four.
        assert labelled[budget] == min(8, (5 * conversations - start["samples"] - start["labels"]) // 4 * 4)
    assert labelled == {"quarter": 4, "all": 8}
    earlier = tmp_path / "earlier.json"
    earlier.write_text(file.read_text())
    with pytest.raises(ValueError, match="is of --labels all, here quarter"):
        scarce.main([*call, "--labels", "quarter", "--after", str(earlier)])
    with pytest.raises(ValueError, match="is of --labels all, here 200"):
        scarce.main([*call, "--after", str(earlier)])


def test_budgets_of_labels_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    write_jsonl(data, [*toy_conversations(3), *toy_conversations(4, "dev")])
    call = ["--data", str(data), "--out", str(tmp_path)]
    for more, told in (
        (["half"], "invalid choice: 'half'"),
        (["all", "--arm", "more"], "is left without labels"),
    ):
        with pytest.raises(SystemExit):
            scarce.main([*call, "--labels", *more])
        assert told in capsys.readouterr().err
    with pytest.raises(ConfigError, match="3 training conversations have no quarter"):
        scarce.main([*call, "--labels", "quarter"])


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


def test_tables_of_scarce_do_not_pool_budgets_of_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tables.read("scarce")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "scarce.json").write_text(json.dumps(few))
    alone = tables.scarce()
    (tmp_path / "scarce_quarter.json").write_text(json.dumps({**few, "budget": "quarter"}))
    assert (
        tables.scarce()
        == f"{alone}\n{alone.replace(': 200', ': quarter').replace('scarce.', 'scarce_quarter.')}"
    )
    (tmp_path / "scarce_again.json").write_text(json.dumps(few))
    with pytest.raises(ValueError, match="in more than one of scarce"):
        tables.scarce()


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


def test_a_start_that_was_trained_again_may_differ_a_little() -> None:
    earlier = {"hits": [0, 1] * 100, "nll_at_t": [1.5, 1.0] * 100}
    other = {"hits": [1, *earlier["hits"][1:]], "nll_at_t": [1.7, *earlier["nll_at_t"][1:]]}
    hits, nll = study.start_difference(earlier, other)
    assert hits == pytest.approx(1 / 200) and nll == pytest.approx(0.2 / 200)
    assert hits < study.START_HITS and nll < study.START_NLL
    assert study.start_difference(earlier, earlier) == (0, 0)


def test_settings_that_differ_are_named() -> None:
    first = {"a": {"x": 1, "y": 2}, "b": [1]}
    assert study.differing(first, first) == []
    assert study.differing(first, {"a": {"x": 1, "y": 3}, "c": 0}) == [
        "a.y: 2, here 3", "b: [1], here None", "c: None, here 0",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_would_not_end_in_time_is_given_up(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "_SETTLED", 1)

    def late(step: study.Study) -> None:
        start = step.cold_start()
        step.end = study.time.monotonic() + 45 * 1.15 + 2 * step._spare
        assert step.arm(start, "base", 3e-5, 0, []) is not None
        # What is left is enough for one such run and not for four hundred.
        assert step.arm(start, "long", 3e-5, 0, ["flywheel.prompts=40000"]) is None

    monkeypatch.setattr(one_thing, "run", late)
    one_thing.main(arguments(tiny_model, tmp_path))
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["run"] for r in result["runs"]] == ["start", "base, rate 3e-05, seed 0"]
    assert "failed" not in result
    assert "long, rate 3e-05, seed 0: given up, no time" in capsys.readouterr().out


def test_a_result_tells_the_commit_and_the_sources(tmp_path: Path) -> None:
    inside = tmp_path / "repository" / "copy"
    inside.mkdir(parents=True)
    none = {"commit": None, "dirty": None}
    assert provenance.commit(inside) == none, "no repository"
    top = inside.parent
    (top / "a.py").write_text("1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(top)]
    for command in (["init", "-q"], ["add", "a.py"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    clean = provenance.commit(top)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    assert provenance.commit(inside) == none, "the repository of something else"
    known = provenance.digest((top,))
    (top / "notes.txt").write_text("no code")
    assert provenance.digest((top,)) == known
    (top / "a.py").write_text("2")
    assert provenance.commit(top)["dirty"] is True and provenance.digest((top,)) != known


def test_folders_of_weights_are_told_by_their_names(tmp_path: Path) -> None:
    weights = tmp_path / "some-model"
    weights.mkdir()
    settings = study.told(Config.model_validate({"model": {"id": str(weights)}}))
    assert settings["model"]["id"] == "some-model"
    assert study.told(Config.model_validate(settings)) == settings


@pytest.mark.slow
def test_nothing_that_was_made_is_lost(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Details that fail, a run that fails, the same command again, and one with less memory."""
    call = arguments(tiny_model, tmp_path, "data.train_conversations=4")
    file = tmp_path / "out" / "results.json"
    details, score = study.Study.details, study.Study.score

    def broken(self: study.Study, name: str) -> dict[str, object]:
        if name.startswith("original"):
            assert any(r["run"] == name for r in json.loads(file.read_text())["runs"]), (
                "kept before it is read"
            )
            raise RuntimeError("no details")
        return details(self, name)

    def unscored(self: study.Study, name: str, **about: object) -> dict[str, object]:
        if name.startswith("twice"):
            raise RuntimeError("no scores")
        return score(self, name, **about)

    monkeypatch.setattr(study.Study, "details", broken)
    monkeypatch.setattr(study.Study, "score", unscored)
    alone = ["--seed", "0", "--arm"]
    scarce.main([*call, *alone, "original", "--arm", "twice"])
    result = json.loads(file.read_text())
    start, original = result["runs"]
    assert start["detailed"] and "detailed" not in original and len(original["hits"]) == len(start["hits"])
    first, second = result["failed"]
    assert "RuntimeError: no details" in first and "RuntimeError: no scores" in second

    monkeypatch.undo()
    less = ["--set", "sampling.token_budget=4096"]
    scarce.main([*call, *less, *alone, "twice"])
    again = json.loads(file.read_text())
    assert [r["run"].split(",")[0] for r in again["runs"]] == ["start", "original", "twice"]
    assert again["runs"][1] == original and again["failed"] == result["failed"]
    assert again["runs"][0]["written"] == start["written"]
