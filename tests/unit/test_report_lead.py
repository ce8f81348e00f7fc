"""The first three sentences of a report, from hand-made records of runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from selfemo.config import load
from selfemo.evaluation.changes import VERDICTS
from selfemo.reports.lead import Facts, sentences

NAMES = ["evaluate-start", "cold-start", "evaluate-cold-start"]
ROUND = ["iteration-1-rl", "evaluate-iteration-1-rl", "iteration-1-refit", "evaluate-iteration-1"]
LABELS = ["neutral", "joy", "anger"]
# Gold: 10 neutral, 6 joy, 4 anger; 8 + 3 + 1 = 12 of 20 right; always neutral has 10 of 20.
ROWS = [[8, 2, 0, 0], [2, 3, 1, 0], [3, 0, 1, 0]]


def scores(accuracy: list[float], rows: list[list[int]] = ROWS) -> dict[str, Any]:
    n = sum(map(sum, rows))
    return {
        "utterances": n, "conversations": 5, "accuracy": accuracy,
        "confusion": {"labels": LABELS, "rows": rows},
    }  # fmt: skip


def change(verdict: str, accuracy: float = 0.1, nll: float | None = -0.25) -> dict[str, Any]:
    assert verdict in VERDICTS.values() or "not known" in verdict
    nll_at_t = None if nll is None else {"difference": [nll, nll - 0.1, nll + 0.1]}
    return {
        "accuracy": {"difference": [accuracy, accuracy - 0.05, accuracy + 0.05]},
        "nll_at_t": nll_at_t,
        "verdict": verdict,
    }


def step(stage: str, verdict: str, rolled_back: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "stage": stage,
        "copied": False,
        "rolled_back": rolled_back,
        "by": {"sample": change(verdict, **more)},
    }


def beside_majority(last: dict[str, Any]) -> dict[str, Any]:
    """The constants of `summary.constants_part`: the majority of gold, and accuracy minus its share."""
    constants, against = {}, {}
    for d, s in last.items():
        gold = [sum(row) for row in s["confusion"]["rows"]]
        value, low, high = (v - max(gold) / sum(gold) for v in s["accuracy"])
        constants[d] = {"label": LABELS[gold.index(max(gold))]}
        verdict = "not told apart" if low <= 0 <= high else "above" if low > 0 else "below"
        against[d] = {"accuracy": {"difference": [value, low, high]}, "verdict": verdict}
    return {"constants": constants, "against_constants": against}


def facts(
    names: list[str] = [*NAMES, *ROUND],  # noqa: B006 (it is not changed)
    by: dict[str, Any] | None = None,
    changes: list[dict[str, Any]] = [],  # noqa: B006
    whole: dict[str, Any] | None = None,
    settings: tuple[str, ...] = (),
    *,
    finished: bool = True,
    running: bool = False,
) -> Facts:
    config = load([], ['data.sources=["sample"]', "flywheel.iterations=1", "flywheel.prompts=36", *settings])
    stages = [{"name": n, "status": "done"} for n in names]
    if running:
        stages[-1]["status"] = "running"
    found = {} if by is None else by
    beside = beside_majority(list(found.values())[-1] if found else {})
    return Facts(config, stages, found, changes, whole, finished, "selfemo evolve --resume RUN", beside)


def said(f: Facts) -> list[str]:
    questions, found = zip(*sentences(f), strict=True)
    asked = ("What ran", "Did it help", "Where it fails")
    assert questions == (*asked, *["Do replies show their emotion"] * f.config.expresses)
    assert all(s.endswith(".") and s.count(". ") == 0 for s in found), "each is one sentence"
    return list(found)


AFTER = {"iteration-1": {"sample": scores([0.6, 0.55, 0.65])}}


def test_a_run_that_helped() -> None:
    steps = [
        step("cold start (labels)", "better"),
        step("RL 1", "better"),
        step("refit 1", "no change beyond noise"),
    ]
    ran, helped, fails = said(facts(by=AFTER, changes=steps, whole=change("better")))
    model = load([], []).model.id
    assert ran == (
        f"{model} was trained on sample by a cold start, then 1 iteration of self-play with RL and a refit "
        "(36 prompts); it was evaluated on 20 held-out turns of 5 conversations (test split)."
    )
    assert helped == (
        "After the cold start, self-play, RL and refits made the model better: accuracy +10.0 points "
        "[+5.0, +15.0], NLL at T -0.250 nats [-0.350, -0.150] (by stage, cold start (labels) and RL 1: "
        "better; refit 1: no change beyond noise); its accuracy, 60.0% [55.0%, 65.0%], beats always "
        "answering “neutral” (+10.0 points [+5.0, +15.0])."
    )
    # anger is the least, 1 of 4, but of few turns: of those with five, joy 3 of 6 and neutral 8 of 10 are.
    assert fails == (
        "It recognises joy (3 of 6) and neutral (8 of 10) least; the most frequent confusion is anger taken "
        "for neutral (3 of 4 turns)."
    )


def test_a_refit_that_did_not_take_place_is_not_said_to_have_helped() -> None:
    kept = {"stage": "refit 1", "copied": True, "rolled_back": False, "by": {}}
    steps = [step("cold start (labels)", "better"), step("RL 1", "better"), kept]
    ran, helped, _ = said(facts(by=AFTER, changes=steps, whole=change("better")))
    assert "1 iteration of self-play with RL (36 prompts)" in ran
    assert helped.startswith("After the cold start, self-play and RL made the model better")
    assert "(by stage, cold start (labels) and RL 1: better; refit 1: none took place)" in helped


@pytest.mark.parametrize(
    ("source", "name"),
    [("far/away/talks.jsonl", "talks.jsonl"), ("jsonl:far/away/talks.jsonl", "talks.jsonl"),
     ("meld:/data/MELD", "meld"), ("sample", "sample")],
)  # fmt: skip
def test_data_are_called_without_the_folders_above_them(source: str, name: str) -> None:
    ran = said(facts(by=AFTER, whole=change("better"), settings=(f'data.sources=["{source}"]',)))[0]
    assert f" was trained on {name} by " in ran


@pytest.mark.parametrize("verdict", [v for v in VERDICTS.values() if v != "better"])
def test_a_run_that_did_not_help_is_called_what_its_verdict_says(verdict: str) -> None:
    _, helped, _ = said(facts(by=AFTER, changes=[step("RL 1", verdict)], whole=change(verdict)))
    assert verdict in helped
    assert "made the model better" not in helped and not helped.startswith("It helped")


def test_what_is_not_above_the_majority_is_said() -> None:
    at = {"iteration-1": {"sample": scores([0.5, 0.4, 0.6])}}
    assert said(facts(by=at, whole=change("better")))[1].endswith(
        "; its accuracy, 50.0% [40.0%, 60.0%], is not told apart from always answering “neutral” "
        "(+0.0 points [-10.0, +10.0])."
    )
    noisy = {"iteration-1": {"sample": scores([0.6, 0.45, 0.7])}}
    assert "60.0% [45.0%, 70.0%], is not told apart from always answering" in said(facts(by=noisy))[1]


def test_several_data_sets_have_a_majority_each() -> None:
    other = scores([0.2, 0.1, 0.3], [[1, 0, 4, 0], [0, 0, 4, 0], [0, 10, 1, 0]])
    both = {"cold-start": {"meld": scores([0.6, 0.55, 0.65]), "own": other, "all": scores([0.4, 0.3, 0.5])}}
    helped = said(facts(by=both))[1]
    assert "its accuracy on meld, 60.0% [55.0%, 65.0%], beats" in helped
    assert "its accuracy on own, 20.0% [10.0%, 30.0%], is below always answering “anger” (-35.0" in helped
    assert " on all" not in helped


def test_a_run_without_rl() -> None:
    at = {"start": {"sample": scores([0.2, 0.1, 0.3])}, "cold-start": {"sample": scores([0.6, 0.55, 0.65])}}
    steps = [step("cold start (labels)", "scores higher; NLL at T is not known", nll=None)]
    ran, helped, _ = said(facts(NAMES, at, steps, settings=("flywheel.iterations=0",)))
    assert "by a cold start, without self-play and RL; it was evaluated" in ran
    assert helped.startswith(
        "The cold start (labels): scores higher; NLL at T is not known: accuracy +10.0 points [+5.0, +15.0]; "
    )
    assert "RL" not in helped and "by stage" not in helped


def test_an_unfinished_run() -> None:
    at = {"cold-start": {"sample": scores([0.6, 0.55, 0.65])}}
    steps = [step("cold start (labels)", "better")]
    f = facts([*NAMES, "iteration-1-rl"], at, steps, finished=False, running=True)
    ran, helped, _ = said(f)
    assert ran.startswith("The run has not finished: ")
    assert "0 of 1 iteration done, iteration-1-rl is not done (selfemo evolve --resume RUN goes on)" in ran
    assert helped.startswith("So far: the cold start (labels) made the model better: ")
    # A finished run that was resumed with more iterations has a summary, and is not finished.
    assert said(facts(by=AFTER, settings=("flywheel.iterations=3",)))[0].startswith(
        "The run has not finished: "
    )
    assert said(facts([], finished=False))[0].startswith("The run has not begun: ")


def test_a_rolled_back_stage_is_named() -> None:
    steps = [step("RL 1", "worse", rolled_back=True), step("refit 1", "better")]
    assert (
        "RL 1 (rolled back): worse; refit 1: better"
        in said(facts(by=AFTER, changes=steps, whole=change("better")))[1]
    )


def test_a_run_without_evaluation() -> None:
    ran, helped, fails = said(facts())
    assert ran.endswith("; no checkpoint has been evaluated.")
    assert (
        helped == "That is not known: no checkpoint has been evaluated (selfemo evolve --resume RUN does it)."
    )
    assert fails == "That is not known before an evaluation."


def test_a_folder_of_one_stage() -> None:
    ran, helped, _ = said(facts(["cold-start"], finished=False, settings=("model.id=/models/mine",)))
    assert ran == "mine went through cold-start alone, on sample; no checkpoint has been evaluated."
    assert helped.startswith("That is not known")


def test_where_a_collapsed_model_fails() -> None:
    rows = [[9, 0, 0, 1], [6, 0, 0, 0], [4, 0, 0, 0]]
    fails = said(facts(by={"iteration-1": {"sample": scores([0.45, 0.4, 0.5], rows)}}))[2]
    assert fails == (
        "It answers “neutral” on 19 of 20 turns; it never recognises joy (0 of 6) and anger (0 of 4); the "
        "most frequent confusion is joy taken for neutral (6 of 6 turns); 1 of 20 answers could not be read."
    )
    right = [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0]]
    fails = said(facts(by={"iteration-1": {"sample": scores([1, 1, 1], right)}}))[2]
    assert fails == "It made no error on 5 held-out turns."


def test_whether_replies_show_their_emotion() -> None:
    f = facts(by=AFTER, settings=("reward.expression=listener", "grpo.credit=causal"))
    f = replace(f, read_replies="selfemo analyse RUN --reader ENCODER")
    assert said(f)[3] == (
        "Replies were rewarded for it, and no independent reader has judged them yet: selfemo analyse RUN "
        "--reader ENCODER asks one."
    )

    def kappa(value: float) -> dict[str, Any]:
        return {"sample": {"kappa": [value, value - 0.1, value + 0.1]}}

    given = {
        "cold-start": kappa(0.3), "cold-start, S given": kappa(0.0), "iteration-1-rl, S given": kappa(0.1),
        "iteration-1": kappa(0.5), "iteration-1, S given": kappa(0.25), "real next turns": kappa(0.4),
    }  # fmt: skip
    own = {"iteration-1": kappa(0.5)}
    few = {"iteration-1": {"sample": {"replies": 3}}}  # too few were read to say anything
    names: dict[str, Any] = {c: {} for c in ("cold-start", "iteration-1-rl", "iteration-1")}

    def read_by(**expression: Any) -> str:
        readers = {reader: {"expression": e} for reader, e in expression.items()}
        return said(replace(f, analysis={"checkpoints": names, "readers": readers}))[3]

    assert read_by(enc=given, other=own, poor=few) == (
        "Kappa of the declared emotion, S, and what is read in the reply (0 is chance): sample, read by enc, "
        "iteration-1, S given, 0.250 [0.150, 0.350] (cold-start 0.000 [-0.100, 0.100], real next turns "
        "0.400 [0.300, 0.500]); sample, read by other, iteration-1, 0.500 [0.400, 0.600]."
    )
    assert read_by(poor=few) == "Too few replies could be read to say."
    assert len(said(facts(by=AFTER))) == 3, "without R3 nothing is said of replies"
