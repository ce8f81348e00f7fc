"""Reference systems: the protocol by hand, each recipe's own part, folders that go on, the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from selfemo.cli import app
from selfemo.config import DataConfig, load
from selfemo.errors import ConfigError, DataError, EngineError, SelfEmoError, StoreError
from selfemo.evaluation import baseline_jobs as jobs
from selfemo.evaluation.baselines import BASELINES, baseline
from selfemo.evaluation.baselines.base import Plain, Reader, Task, choice_score, tops
from selfemo.evaluation.baselines.constant import ConstantConfig, Majority, Prior
from selfemo.evaluation.baselines.embeddings import EmbeddingsConfig, with_earlier
from selfemo.evaluation.baselines.regression import RegressionConfig, fit_regression
from selfemo.evaluation.baselines.tfidf import Tfidf, TfidfConfig
from selfemo.evaluation.metrics import MEASURES
from selfemo.method.types import LABEL_SETS, Conversation, EmotionDistribution, LabelSet, Utterance
from selfemo.progress import Quiet, Stopped, StopRequest
from tests.conftest import toy_conversations, write_jsonl

MELD = LABEL_SETS["meld"]
OWN = LabelSet("own:up,down", ("up", "down"))


def talk(name: str, *turns: tuple[str, str], split: str = "train", labels: LabelSet = MELD) -> Conversation:
    """A conversation of turns as (text, emotion); "" for a turn without one."""
    return Conversation(
        name, "toy", split,
        tuple(Utterance("AB"[i % 2], t, EmotionDistribution({e: 1}) if e else None)
              for i, (t, e) in enumerate(turns)),
        labels,
    )  # fmt: skip


def task(
    train: Sequence[Conversation], choose: Sequence[Conversation] = (), folder: Path = Path(".")
) -> Task:
    return Task(train, choose, 0, folder / "states", folder / "shared", "cpu", Quiet(), StopRequest())


# -- recipes ------------------------------------------------------------------------------------------


SIX = [
    talk("a", ("x", "joy"), ("x", "joy"), ("x", "anger"), ("x", "")),
    talk("b", ("x", "joy"), ("x", "neutral"), ("x", "anger")),
    talk("c", ("x", "down"), labels=OWN),
]
"""3 joy, 2 anger, 1 neutral; and 1 down of two labels of another set."""


def test_the_majority_label_has_all_of_it() -> None:
    a, b = Majority(ConstantConfig()).train(task(SIX)).read([SIX[0], SIX[2]])
    assert a.tolist() == [[0, 1, 0, 0, 0, 0, 0]] * 4 and b.tolist() == [[0, 1]]


def test_the_first_of_equals_is_the_majority() -> None:
    (found,) = Majority(ConstantConfig()).train(task([talk("a", ("x", "fear"), ("x", "joy"))])).read(SIX[:1])
    assert found[0].argmax() == MELD.index("joy")


def test_label_shares_have_one_added_to_each_count() -> None:
    a, b = Prior(ConstantConfig()).train(task(SIX)).read([SIX[0], SIX[2]])
    assert np.allclose(a, [[2 / 13, 4 / 13, 1 / 13, 3 / 13, 1 / 13, 1 / 13, 1 / 13]] * 4)
    assert np.allclose(b, [[1 / 3, 2 / 3]])


def test_top_labels_are_numbers_of_the_label_set() -> None:
    mixed = EmotionDistribution({"joy": 1, "neutral": 1})
    c = talk("a", ("x", "fear"), ("x", ""))
    assert tops(c) == [6, -1]
    assert tops(replace(c, turns=(Utterance("A", "x", mixed),))) == [0], "ties go to the label named first"


def test_tfidf_sees_the_turns_before() -> None:
    c = talk("a", ("one", ""), ("two", ""), ("three", ""), ("four", ""))
    assert Tfidf(TfidfConfig(window=2)).earlier(c) == ["", "one", "one two", "two three"]
    assert Tfidf(TfidfConfig(window=0)).earlier(c) == ["", "", "", ""]


def test_embeddings_stand_beside_the_mean_of_those_before() -> None:
    turns = np.array([[2.0, 0.0], [4.0, 2.0], [6.0, 6.0], [0.0, 1.0]])
    assert with_earlier(turns, 2).tolist() == [
        [2, 0, 0, 0], [4, 2, 2, 0], [6, 6, 3, 1], [0, 1, 5, 4],
    ]  # fmt: skip
    assert with_earlier(turns, 0) is turns


@given(st.integers(1, 8), st.integers(0, 4), st.integers(0, 8))
def test_embeddings_take_nothing_of_later_turns(t: int, window: int, keep: int) -> None:
    x = np.random.default_rng(t).normal(size=(t, 3))
    other = np.concatenate([x[:keep], x[keep:] + 7])
    assert np.array_equal(with_earlier(x, window)[:keep], with_earlier(other, window)[:keep])


class ByScore(Plain):
    """Says the label whose number each text is."""

    def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        return [np.eye(len(c.label_set))[[int(t.text) for t in c.turns]] for c in conversations]


def test_the_score_of_a_choice_is_the_mean_over_data_sets() -> None:
    """MELD: of joy, joy, anger two are right (joy: P 1, R 1/2, F1 2/3; anger: P 1/2, R 1, F1 2/3):
    weighted F1 2/3. The other: both right, 1. The turn without gold counts nothing."""
    a = talk("a", ("1", "joy"), ("3", "joy"), ("3", "anger"), ("0", ""))
    b = replace(talk("b", ("0", "up"), ("1", "down"), labels=OWN), dataset="own")
    assert choice_score(ByScore(), [a]) == pytest.approx(2 / 3)
    assert choice_score(ByScore(), [a, b]) == pytest.approx((2 / 3 + 1) / 2)
    assert choice_score(ByScore(), [talk("c", ("1", ""))]) == choice_score(ByScore(), []) == 0


def test_a_probability_that_is_no_number_is_an_error_of_each_class() -> None:
    class Broken(ByScore):
        def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
            return [np.full_like(x, np.nan) for x in super().read(conversations)]

    c = talk("a", ("1", "joy"))
    assert choice_score(Broken(), [c]) == 0
    with pytest.raises(EngineError, match="not finite; lower its learning rate"):
        jobs.read_all(Broken(), [c])


def points(conversations: Sequence[Conversation]) -> np.ndarray:
    return np.array([[float(t.text), 1.0] for c in conversations for t in c.turns])


def test_regression_takes_the_strength_that_is_best_on_held_out_turns() -> None:
    """Trained on 4 joy at 1 and 2 anger at -1: a C near 0 says the majority, joy, always; a large one
    tells the
    two apart. Held-out turns with anger at -1 choose the large one, those with joy at -1 the small one."""
    train = [talk("t", *[("1", "joy")] * 4, *[("-1", "anger")] * 2)]
    apart = [talk("d", ("1", "joy"), ("-1", "anger"))]
    alike = [talk("d", ("1", "joy"), ("-1", "joy"))]
    config = RegressionConfig(strengths=(1e-4, 10.0))
    for choose, said in ((apart, "anger"), (alike, "joy")):
        reader = fit_regression(config, points, task(train, choose))
        (p,) = reader.read([talk("x", ("-1", ""))])
        assert MELD.labels[int(p[0].argmax())] == said
    first = fit_regression(config, points, task(train)).read([talk("x", ("-1", ""))])[0]
    assert MELD.labels[int(first[0].argmax())] == "joy", "without a choice the first strength stays"


def test_a_regression_ends_at_the_optimum() -> None:
    """The order of the turns moves how sums are rounded, and so where a search that stops early stops.

    Sixty features that are nearly one: with scikit-learn's own tolerance the two differ by 0.01.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 60))
    x[:, 1:] = x[:, :1] + x[:, 1:] * 0.05
    x *= np.logspace(0, -1.5, 60)
    turns = [(str(k), ("joy", "anger", "fear")[rng.integers(3)]) for k in range(300)]

    def rows(conversations: Sequence[Conversation]) -> np.ndarray:
        return x[[int(t.text) for c in conversations for t in c.turns]]

    config, held = RegressionConfig(strengths=(100.0,)), talk("x", *turns[:50])
    found = [
        fit_regression(config, rows, task([talk("t", *order)])).read([held])[0]
        for order in (turns, turns[::-1])
    ]
    np.testing.assert_allclose(*found, atol=1e-3)


@pytest.mark.parametrize("strengths", [(0.0,), (1.0, -1.0), ()])
@pytest.mark.parametrize("kind", [TfidfConfig, EmbeddingsConfig])
def test_strengths_are_above_zero(kind: type[RegressionConfig], strengths: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        kind(strengths=strengths)


def test_the_strength_that_is_taken_is_told_with_its_data_set() -> None:
    said: list[str] = []

    class Says(Quiet):
        def say(self, line: str) -> None:
            said.append(line)

    train = [talk("t", *[("1", "joy")] * 4, *[("-1", "anger")] * 2)]
    choose = [talk("d", ("1", "joy"), ("-1", "anger"))]
    found = replace(task(train, choose), reporter=Says())
    fit_regression(RegressionConfig(strengths=(1e-4, 1.0, 10.0)), points, found)
    fit_regression(RegressionConfig(strengths=(1e-4, 10.0)), points, found)
    assert said[0] == "toy: C 1 is best, with weighted F1 1.0000 on held-out turns"
    assert said[1].startswith("toy: C 10 is best") and said[1].endswith("an end of baseline.strengths")


def test_a_label_that_never_occurs_has_no_probability() -> None:
    train = [talk("t", *[("1", "joy")] * 3, *[("-1", "anger")] * 3, ("5", ""))]
    (p,) = fit_regression(RegressionConfig(), points, task(train)).read(
        [talk("x", ("1", ""), ("-1", "fear"))]
    )
    assert p.shape == (2, 7) and np.allclose(p.sum(1), 1)
    assert (p[:, [0, 2, 4, 5, 6]] == 0).all() and (p[:, [1, 3]] > 0).all()


def test_what_cannot_be_learned_from_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="fewer than two labels of meld"):
        fit_regression(RegressionConfig(), points, task([talk("t", ("1", "joy"), ("2", "joy"))]))
    with pytest.raises(DataError, match="too few: no word stands in two"):
        Tfidf(TfidfConfig()).train(task([talk("t", ("one", "joy"), ("two", "anger"))]))


# -- which conversations ------------------------------------------------------------------------------


def many(dataset: str = "toy", **splits: int) -> list[Conversation]:
    found = [c for split, n in splits.items() for c in toy_conversations(n, split)]
    return [replace(c, id=f"{dataset}/{c.id}", dataset=dataset) for c in found]


def ids(conversations: Sequence[Conversation]) -> set[str]:
    return {c.id for c in conversations}


def test_dev_chooses_where_test_is_scored() -> None:
    everything = many(train=20, dev=5, test=4)
    parts = jobs.parts_of(everything, DataConfig())
    assert [len(parts.train), len(parts.choose), len(parts.held)] == [20, 5, 4]
    assert {c.split for c in parts.choose} == {"dev"} and {c.split for c in parts.held} == {"test"}
    assert parts.told == ("toy: 20 conversations to train on, 5 to choose on (split dev), 4 to score (test)")


@pytest.mark.parametrize(("half", "other", "scored"), [("claim", "tuning", 3), ("tuning", "claim", 4)])
def test_one_half_of_dev_chooses_for_the_other(half: Any, other: str, scored: int) -> None:
    everything = many(train=20, dev=7, test=4)
    parts = jobs.parts_of(everything, DataConfig(eval_split="dev", eval_half=half))
    assert len(parts.held) == scored and not ids(parts.held) & ids(parts.choose)
    assert ids(parts.held) | ids(parts.choose) == {c.id for c in everything if c.split == "dev"}
    assert f"7 to choose on (the {other} half of dev)".replace("7", str(7 - scored)) in parts.told


@pytest.mark.parametrize(
    "data", [DataConfig(eval_split="dev"), DataConfig(eval_split="test")], ids=["all of dev", "no dev"]
)
def test_else_a_tenth_of_the_training_split_chooses(data: DataConfig) -> None:
    everything = many(train=30, **{data.eval_split: 4})
    parts = jobs.parts_of(everything, data)
    assert len(parts.train) == 27 and len(parts.choose) == 3 and len(parts.held) == 4
    assert not ids(parts.train) & ids(parts.choose), "what chooses is not trained on"
    assert {c.split for c in parts.choose} == {"train"} and "a tenth of the training split" in parts.told
    again = jobs.parts_of(everything, data)
    assert again == parts


def test_a_part_of_the_training_split() -> None:
    parts = jobs.parts_of(many(train=20, dev=5, test=4), DataConfig(train_conversations=6))
    assert len(parts.train) == 6 and len(parts.choose) == 5


def test_each_data_set_has_parts_of_its_own() -> None:
    everything = [*many("one", train=20, dev=5, test=4), *many("two", train=10, test=3)]
    parts = jobs.parts_of(everything, DataConfig(train_conversations=8))
    counts = [[sum(c.dataset == d for c in part) for part in (parts.train, parts.choose, parts.held)]
              for d in ("one", "two")]  # fmt: skip
    assert counts == [[8, 5, 4], [8, 1, 3]]


def test_a_single_conversation_of_dev_is_not_halved() -> None:
    everything = [*many("one", train=20, dev=6), *many("two", train=20, dev=1)]
    parts = jobs.parts_of(everything, DataConfig(eval_split="dev", eval_half="tuning"))
    assert sum(c.dataset == "two" for c in parts.held) == 1
    assert {c.split for c in parts.choose if c.dataset == "two"} == {"train"}


def test_a_data_set_without_training_conversations_is_named() -> None:
    everything = [*many("one", train=20, test=4), *many("two", dev=5, test=3)]
    with pytest.raises(DataError, match="two has no conversation of split train to train a baseline on"):
        jobs.parts_of(everything, DataConfig())
    with pytest.raises(DataError, match="no conversation in split 'test'"):
        jobs.parts_of(many(train=4, dev=2), DataConfig())


# -- means over seeds ---------------------------------------------------------------------------------


def predicted(answers: Sequence[str]) -> list[Any]:
    """Predictions of two conversations of two turns, gold joy joy / anger anger."""
    held = [talk("a", ("x", "joy"), ("x", "joy"), split="test"),
            talk("b", ("x", "anger"), ("x", "anger"), split="test")]  # fmt: skip

    class Says(Plain):
        def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
            rows = 0.4 / 6 + (0.6 - 0.4 / 6) * np.eye(7)[[MELD.index(a) for a in answers]]
            return [rows[:2], rows[2:]]

    rows = []
    for p in jobs.read_all(Says(), held):
        believed = p.believed
        assert believed is not None
        rows.append(
            {
                "prompt": p.prompt.id, "dataset": "toy", "conversation": p.prompt.conversation_id,
                "gold": json.dumps(dict(p.prompt.target or {})), "predicted": json.dumps(dict(believed)),
                "believed": json.dumps(dict(believed)), "failure": None, "r1": 0.0, "text": "",
                "sampled_alternative": None,
            }
        )  # fmt: skip
    return rows


def test_scores_are_means_over_seeds() -> None:
    """Seed 0 has all right: accuracy 1; seed 1 says joy always: 1/2. Mean .75, deviation .354."""
    first = predicted(["joy", "joy", "anger", "anger"])
    second = predicted(["joy", "joy", "joy", "joy"])
    labels = {"toy": MELD}
    found = jobs.mean_scores([first, second], labels, resamples=200)["toy"]
    assert found["accuracy"][0] == pytest.approx(0.75)
    assert found["sd"]["accuracy"] == pytest.approx(np.sqrt(2) / 4)
    # Weighted F1: 1, and of joy always (2 / 3 + 0) / 2.
    assert found["weighted_f1"][0] == pytest.approx((1 + 1 / 3) / 2)
    assert found["sd"]["weighted_f1"] == pytest.approx((1 - 1 / 3) / np.sqrt(2))
    assert (found["utterances"], found["conversations"]) == (4, 2)
    # Both seeds see the same conversations drawn: of a a, a b, b b the accuracies are 1, .75, .5.
    assert found["accuracy"][1:] == [0.5, 1.0]


def test_the_same_predictions_twice_are_one_seed() -> None:
    """Seeds are resampled by the same conversations: a copy narrows no interval."""
    rows = predicted(["joy", "fear", "anger", "joy"])
    once, twice = (jobs.mean_scores([rows] * n, {"toy": MELD}, resamples=300)["toy"] for n in (1, 2))
    for m in MEASURES:
        assert once[m] == pytest.approx(twice[m]) and twice["sd"][m] == pytest.approx(0)
        assert once["sd"][m] is None, "of one seed there is none"
    assert once["calibration"] == pytest.approx(twice["calibration"])


# -- folders ------------------------------------------------------------------------------------------


class Counted(Prior):
    """A recipe with a random part, which counts its trainings and can be stopped."""

    trained: list[int] = []
    stop_at: int | None = None

    @property
    def seeded(self) -> bool:
        return True

    @property
    def keeps(self) -> bool:
        return True

    def train(self, task: Task) -> Reader:
        if task.seed == Counted.stop_at:
            raise Stopped
        Counted.trained.append(task.seed)
        shares = super().train(task)

        class Keeps:
            def read(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
                rng = np.random.default_rng(task.seed)
                return [rng.dirichlet(np.ones(x.shape[1]), len(x)) for x in shares.read(conversations)]

            def save(self, folder: Path) -> None:
                (folder / "model.txt").write_text(str(task.seed))

        return Keeps()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    """The recipe in place of "prior"."""
    monkeypatch.setattr(Counted, "trained", [])
    monkeypatch.setattr(Counted, "stop_at", None)
    monkeypatch.setattr(jobs, "baseline", lambda name: Counted)
    return Counted


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "toy.jsonl"
    write_jsonl(path, [*toy_conversations(12), *toy_conversations(4, "dev"), *toy_conversations(8, "test")])
    return path


def run(name: str, source: Path, out: Path, *more: str) -> Result:
    sets = ["--set", "evaluation.resamples=50"]
    return CliRunner().invoke(app, ["baseline", name, "--data", str(source), "--out", str(out), *sets, *more])


def test_finished_seeds_are_not_trained_again(counted: type[Counted], source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("prior", source, out, "--seeds", "2").exit_code == 0
    assert counted.trained == [0, 1]
    first = json.loads((out / "scores.json").read_text())
    assert first["seeds"] == [0, 1] and first["model"].endswith("(mean of 2 seeds)")
    assert run("prior", source, out, "--seeds", "2").exit_code == 0
    assert counted.trained == [0, 1] and json.loads((out / "scores.json").read_text()) == first
    assert run("prior", source, out, "--seeds", "3").exit_code == 0
    assert counted.trained == [0, 1, 2]
    assert json.loads((out / "scores.json").read_text())["seeds"] == [0, 1, 2]
    assert {f.name for f in (out / "seed-1").iterdir()} == {
        "store.sqlite",
        "scores.json",
        "predictions.parquet",
    }


def test_a_stopped_job_goes_on(counted: type[Counted], source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counted.stop_at = 1
    done = run("prior", source, out, "--seeds", "3")
    assert done.exit_code == 130 and f"run the same command again to go on in {out}" in done.stderr
    assert not (out / "scores.json").exists()
    table = CliRunner().invoke(app, ["baseline", "table", str(out)])
    assert isinstance(table.exception, StoreError) and "it is not finished: run its" in str(table.exception)
    counted.stop_at = None
    assert run("prior", source, out, "--seeds", "3").exit_code == 0
    assert counted.trained == [0, 1, 2]


def test_what_a_recipe_misses_in_the_data_is_told_before_it_trains(
    counted: type[Counted], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees all conversations: those to train on, to choose on and to score."""
    seen: list[str] = []

    def check(self: Counted, conversations: Sequence[Conversation]) -> None:
        seen.extend(c.split for c in conversations)
        raise DataError("no text for toytest0/0")

    monkeypatch.setattr(Counted, "check_data", check)
    done = run("prior", source, tmp_path / "out")
    assert isinstance(done.exception, DataError) and not counted.trained
    assert {s: seen.count(s) for s in seen} == {"train": 12, "dev": 4, "test": 8}
    assert not (tmp_path / "out").exists()


def test_a_table_takes_the_seeds_that_are_finished(
    counted: type[Counted], source: Path, tmp_path: Path
) -> None:
    """More seeds are under way, or were stopped: the table is of those before."""
    out = tmp_path / "out"
    assert run("prior", source, out, "--seeds", "2").exit_code == 0
    counted.stop_at = 2
    assert run("prior", source, out, "--seeds", "3").exit_code == 130
    table = CliRunner().invoke(app, ["baseline", "table", str(out), "--json"])
    assert json.loads(table.stdout)["rows"][0]["seeds"] == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--set", "data.train_conversations=4"], "data.train_conversations: 0 there, 4 now"),
        (["--split", "dev"], 'data.eval_split: "test" there, "dev" now'),
        (["--set", "evaluation.resamples=60"], "evaluation.resamples: 50 there, 60 now"),
    ],
)
def test_other_settings_are_refused(
    counted: type[Counted], source: Path, tmp_path: Path, more: list[str], says: str
) -> None:
    out = tmp_path / "out"
    assert run("prior", source, out, "--seeds", "1").exit_code == 0
    done = run("prior", source, out, "--seeds", "1", *more)
    assert isinstance(done.exception, StoreError)
    assert str(done.exception).startswith(f"{out} holds a baseline with other settings (")
    assert says in str(done.exception) and counted.trained == [0]


def test_other_data_are_refused(counted: type[Counted], source: Path, tmp_path: Path) -> None:
    """The settings are the same, the file's content is not."""
    out, held = tmp_path / "out", tmp_path / "toy.jsonl"
    held.write_text(source.read_text())
    assert run("prior", held, out, "--seeds", "1").exit_code == 0
    write_jsonl(held, [*toy_conversations(11), *toy_conversations(4, "dev"), *toy_conversations(8, "test")])
    done = run("prior", held, out, "--seeds", "1")
    assert isinstance(done.exception, StoreError) and "holds an evaluation of other data" in str(
        done.exception
    )


def test_a_stopped_training_is_gone_on_with_by_its_own_settings_alone(
    counted: type[Counted], source: Path, tmp_path: Path
) -> None:
    """What has an epoch is kept; what failed before one leaves the folder to the next command."""
    out = tmp_path / "out"
    counted.stop_at = 0
    assert run("prior", source, out).exit_code == 130
    assert run("prior", source, out, "--set", "data.train_conversations=4").exit_code == 130
    state = out / "seed-0" / "training" / "epochs.json"
    state.parent.mkdir()
    state.write_text("[]")
    settings = (out / "settings.toml").read_text()
    done = run("prior", source, out)
    assert isinstance(done.exception, StoreError)
    assert "data.train_conversations: 4 there, 0 now" in str(done.exception)
    assert (out / "settings.toml").read_text() == settings
    done = CliRunner().invoke(app, ["evaluate", "scripted:x", "--data", str(source), "--out", str(out)])
    assert not (out / "store.sqlite").exists() and done.exit_code == 1
    counted.stop_at = None
    assert run("prior", source, out, "--seeds", "1", "--set", "data.train_conversations=4").exit_code == 0


def test_predictions_without_scores_are_work_too(
    counted: type[Counted], source: Path, tmp_path: Path
) -> None:
    """As a full disk leaves them; and a settings.toml that was broken by hand is named."""
    assert run("prior", source, tmp_path, "--seeds", "1").exit_code == 0
    (tmp_path / "seed-0" / "scores.json").unlink()
    done = run("prior", source, tmp_path, "--seeds", "1", "--set", "data.train_conversations=4")
    assert isinstance(done.exception, StoreError) and "0 there, 4 now" in str(done.exception)
    assert run("prior", source, tmp_path, "--seeds", "1").exit_code == 0 and counted.trained == [0]
    (tmp_path / "settings.toml").write_text("[data")
    done = run("prior", source, tmp_path, "--seeds", "1")
    assert isinstance(done.exception, StoreError) and "settings.toml: cannot be read" in str(done.exception)


def test_a_finished_job_asks_for_nothing_that_training_needs(
    counted: type[Counted], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that cannot be reached now."""
    assert run("prior", source, tmp_path, "--seeds", "2").exit_code == 0

    def check(self: Counted) -> None:
        raise EngineError("the hub cannot be reached")

    monkeypatch.setattr(Counted, "check", check)
    assert run("prior", source, tmp_path, "--seeds", "2").exit_code == 0
    assert isinstance(run("prior", source, tmp_path, "--seeds", "3").exception, EngineError)
    assert isinstance(run("prior", source, tmp_path, "--seeds", "2", "--keep").exception, EngineError)


def test_fewer_seeds_than_a_folder_has_change_nothing(
    counted: type[Counted], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("prior", source, out, "--seeds", "2").exit_code == 0
    whole = (out / "scores.json").read_text()
    done = run("prior", source, out, "--seeds", "1")
    assert done.exit_code == 0 and f"seed 1 is in {out} already, and is part of the mean" in done.stderr
    assert (out / "scores.json").read_text() == whole and counted.trained == [0, 1]
    assert run("prior", source, out, "--seeds", "1", "--keep").exit_code == 0
    assert counted.trained == [0, 1, 0], "models of the seeds that were asked for"


def test_evaluations_and_baselines_have_folders_of_their_own(source: Path, tmp_path: Path) -> None:
    """A table would give the figures of one the name of the other."""
    out, script = tmp_path / "out", tmp_path / "script.txt"
    script.write_text(json.dumps("E: joy\nS: joy\nR: Yes."))
    evaluate = ["evaluate", f"scripted:{script}", "--data", str(source), "--out"]
    assert run("majority", source, out).exit_code == 0
    before = (out / "scores.json").read_text()
    done = CliRunner().invoke(app, [*evaluate, str(out)])
    assert isinstance(done.exception, StoreError)
    assert f"{out} is a folder of `selfemo baseline`" in str(done.exception)
    assert (out / "scores.json").read_text() == before
    assert CliRunner().invoke(app, [*evaluate, str(tmp_path / "other")]).exit_code == 0
    done = run("majority", source, tmp_path / "other")
    assert isinstance(done.exception, StoreError) and "holds an evaluation; give --out" in str(done.exception)


def test_conversations_without_a_split_are_held_out_as_for_a_run(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    with mine.open("w") as f:
        for k in range(20):
            turns = [{"speaker": "AB"[i % 2], "text": f"word{k} here", "emotion": "joy"} for i in range(3)]
            turns[k % 3]["emotion"] = "anger"
            f.write(json.dumps({"id": f"c{k}", "turns": turns}) + "\n")
    done = run("majority", mine, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "16 conversations to train on, 2 to choose on" in done.stderr
    assert "a fifth is held out as split dev, which is scored" in done.stderr
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["split"] == "dev, claim half"
    first = mine.read_text().splitlines()[:5]
    mine.write_text("\n".join(first))
    done = run("majority", mine, tmp_path / "few")
    assert done.exit_code == 0, "one held-out conversation has no halves"
    assert json.loads((tmp_path / "few" / "scores.json").read_text())["split"] == "dev"


def test_scores_without_what_overlaps_stand_beside(counted: type[Counted], tmp_path: Path) -> None:
    """One of two held-out conversations is a training one: the means over seeds are of the other too."""
    data = tmp_path / "two.jsonl"
    (first, *train), (alone,) = toy_conversations(4), toy_conversations(1, "test")
    said = [
        replace(t, text=f"The {i}th of five lines that are long enough.") for i, t in enumerate(first.turns)
    ]
    first = replace(first, turns=tuple(said))
    again = replace(first, id="again", split="test")
    write_jsonl(data, [first, *train, *toy_conversations(2, "dev"), alone, again])
    out = tmp_path / "out"
    done = run("prior", data, out, "--seeds", "2")
    assert done.exit_code == 0 and "Without the conversations that overlap" in done.stdout
    found = json.loads((out / "scores.json").read_text())
    assert found["overlap"]["conversations"] == ["again"]
    clean = found["overlap"]["scores"]["jsonl"]
    each = [json.loads((out / f"seed-{n}" / "scores.json").read_text())["overlap"]["scores"] for n in (0, 1)]
    assert clean["conversations"] == 1 and clean["utterances"] == len(alone.turns)
    assert clean["accuracy"][0] == pytest.approx(np.mean([s["jsonl"]["accuracy"][0] for s in each]), abs=1e-5)
    assert clean["sd"]["accuracy"] is not None


def test_an_unknown_setting_names_where_the_known_ones_are(source: Path, tmp_path: Path) -> None:
    done = run("tfidf", source, tmp_path, "--set", "baseline.lr=0.1")
    said = str(done.exception)
    assert isinstance(done.exception, ConfigError) and "did you mean" not in said
    assert "`selfemo baseline settings tfidf` lists the settings of tfidf" in said
    done = run("tfidf", source, tmp_path, "--set", "baseline.windov=2")
    assert "did you mean baseline.window?" in str(done.exception)


def test_training_again_for_a_model_is_said(counted: type[Counted], source: Path, tmp_path: Path) -> None:
    assert "trained again" not in run("prior", source, tmp_path, "--seeds", "1").stderr
    done = run("prior", source, tmp_path, "--seeds", "1", "--keep")
    assert "prior, seed 0, trained again since its model was not kept" in done.stderr


def test_models_are_kept_where_they_can_be_used_again(
    counted: type[Counted], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("prior", source, out, "--seeds", "1").exit_code == 0
    assert not (out / "seed-0" / "model").exists()
    before = (out / "seed-0" / "scores.json").read_text()
    assert run("prior", source, out, "--seeds", "1", "--keep").exit_code == 0
    assert (out / "seed-0" / "model" / "model.txt").read_text() == "0"
    assert (out / "seed-0" / "scores.json").read_text() == before
    assert counted.trained == [0, 0]
    assert run("prior", source, out, "--seeds", "1", "--keep").exit_code == 0
    assert counted.trained == [0, 0], "a model that is kept is not trained again"


def test_nothing_is_kept_of_what_has_no_model(source: Path, tmp_path: Path) -> None:
    done = run("majority", source, tmp_path / "out", "--keep")
    assert done.exit_code == 0 and "--keep has no effect: models of majority are" in done.stderr
    assert not (tmp_path / "out" / "seed-0" / "model").exists()


def test_one_seed_stands_for_all_of_what_is_not_random(source: Path, tmp_path: Path) -> None:
    done = run("prior", source, tmp_path, "--seeds", "5", "--json")
    found = json.loads(done.stdout)
    assert "prior has no random part: one seed stands for all" in done.stderr
    assert found["seeds"] == [0] and found["model"] == "label shares" and not found["sees_later"]
    assert found == json.loads((tmp_path / "scores.json").read_text())
    assert [f.name for f in tmp_path.glob("seed-*")] == ["seed-0"]


def test_a_baseline_that_sees_the_turn_alone_says_so(source: Path, tmp_path: Path) -> None:
    found = json.loads(run("tfidf", source, tmp_path, "--set", "baseline.window=0", "--json").stdout)
    assert found["model"] == "TF-IDF, the turn alone"


def test_dev_is_scored_by_its_claim_half_unless_the_settings_say_otherwise(
    source: Path, tmp_path: Path
) -> None:
    found = json.loads(run("prior", source, tmp_path / "a", "--split", "dev", "--json").stdout)
    assert found["split"] == "dev, claim half"
    sets = tmp_path / "half.toml"
    for half, told in (("all", "dev"), ("tuning", "dev, tuning half")):
        sets.write_text(f'[data]\neval_split = "dev"\neval_half = "{half}"\n')
        done = run("prior", source, tmp_path / half, "-c", str(sets), "--json")
        assert json.loads(done.stdout)["split"] == told
    more = ["--split", "dev", "--set", "data.eval_half=all", "--json"]
    assert json.loads(run("prior", source, tmp_path / "d", *more).stdout)["split"] == "dev"


# -- the rest of the commands ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tfidf and majority on the same conversations."""
    home = tmp_path_factory.mktemp("two")
    for name, more in (("tfidf", ["--set", "baseline.strengths=[10]"]), ("majority", [])):
        done = run(name, source, home / name, *more)
        assert done.exit_code == 0, done.output
    return home


def test_tfidf_learns(two: Path) -> None:
    scores = json.loads((two / "tfidf" / "scores.json").read_text())
    assert scores["scores"]["jsonl"]["weighted_f1"][0] > 0.9
    assert scores["constants"]["jsonl"]["majority"]["weighted_f1"][0] < 0.3


def own_labels(path: Path, labels: Sequence[str], **more: str) -> Path:
    """Conversations with labels of their own, which their texts name; two in three turns have the first."""
    with path.open("w") as f:
        for split, n in (("train", 6), ("dev", 3), ("test", 3)):
            for k in range(n):
                said = [labels[0], labels[1], labels[0]]
                turns = [{"speaker": "A", "text": f"{w} there", "emotion": w} for w in said]
                record = {"id": f"{path.stem}{split}{k}", "split": split, "labels": labels, "turns": turns}
                f.write(json.dumps(record | more) + "\n")
    return path


def test_two_data_sets_in_one_job(tmp_path: Path) -> None:
    """The sample set, and conversations with labels of their own."""
    own = own_labels(tmp_path / "own.jsonl", ["up", "down"])
    done = run("majority", own, tmp_path / "out", "--data", "sample")
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["trained_on"] == ["jsonl", "sample"] and len(scores["scores"]) == 3
    assert scores["scores"]["jsonl"]["accuracy"][0] == pytest.approx(2 / 3, abs=1e-4)
    table = CliRunner().invoke(app, ["baseline", "table", str(tmp_path / "out"), "--json"])
    assert [r["dataset"] for r in json.loads(table.stdout)["rows"]] == ["jsonl", "sample"]


def test_files_with_other_labels_are_data_sets_of_their_own_names(tmp_path: Path) -> None:
    heights, sides = ["up", "down"], ["left", "right", "straight"]
    one, two = own_labels(tmp_path / "one.jsonl", heights), own_labels(tmp_path / "two.jsonl", sides)
    done = run("tfidf", one, tmp_path / "out", "--data", str(two))
    assert isinstance(done.exception, DataError) and not (tmp_path / "out").exists()
    said = str(done.exception)
    assert "'jsonl' have different labels (up, down and left, right, straight)" in said
    assert 'key "dataset"' in said
    own_labels(two, sides, dataset="ways")
    done = run("tfidf", one, tmp_path / "out", "--data", str(two))
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert set(scores) == {"jsonl", "ways", "all"} and scores["ways"]["accuracy"][0] == 1
    own_labels(two, sides, dataset="meld")
    done = run("tfidf", one, tmp_path / "more", "--data", str(two))
    assert "dataset 'meld' is another data set's name" in str(done.exception)
    own_labels(two, ["down", "up"])
    assert run("majority", one, tmp_path / "order", "--data", str(two)).exit_code == 0, (
        "labels in another order"
    )
    own_labels(two, sides, dataset="all")
    done = run("tfidf", one, tmp_path / "more", "--data", str(two))
    assert isinstance(done.exception, DataError) and "may be called 'all'" in str(done.exception)


def test_seeds_are_evaluations_for_the_other_commands(two: Path) -> None:
    seed = two / "tfidf" / "seed-0"
    for words in (["table1", str(two / "tfidf")], ["table1", str(seed)], ["table1", "--cross", str(seed)],
                  ["table1", "--cross", str(two / "tfidf")]):  # fmt: skip
        done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exit_code == 0, (words, done.exception)
        assert "TF-IDF" in done.stdout


def test_a_comparison_is_with_the_folder_of_a_seed(two: Path) -> None:
    from selfemo.evaluation.jobs import predictions_of

    assert len(predictions_of(two / "tfidf" / "seed-0")) == 40
    with pytest.raises(StoreError, match=r"folder of `selfemo baseline`; name that of one .*tfidf/seed-0"):
        predictions_of(two / "tfidf")


def test_baselines_are_listed_with_their_settings() -> None:
    found = json.loads(CliRunner().invoke(app, ["baseline", "list", "--json"]).stdout)
    assert list(found) == list(BASELINES) and all(x["what"] and x["title"] for x in found.values())
    assert "majority" in CliRunner().invoke(app, ["baseline", "list"]).stdout


@pytest.mark.parametrize("name", BASELINES)
def test_settings_are_printed_as_they_can_be_set(name: str) -> None:
    lines = CliRunner().invoke(app, ["baseline", "settings", name]).stdout.splitlines()
    assert all(line.startswith("baseline.") for line in lines)
    kind = jobs.settings_class(name)
    sets = [line for line in lines if not line.endswith("=null")]
    assert load([], sets, kind) == load([], [], kind)


def test_an_unknown_baseline_is_refused_with_those_that_exist() -> None:
    with pytest.raises(
        ConfigError, match=r"no baseline 'tfdif'; did you mean tfidf\? There are: majority, prior"
    ):
        baseline("tfdif")
    done = CliRunner().invoke(app, ["baseline", "settings", "tfdif"])
    assert isinstance(done.exception, ConfigError)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("baseline.epoch=3", "did you mean baseline.epochs?"),
        ("baseline.later=-2", "baseline.later"),
        ("baseline.encoder=builtin:bert", "no built-in encoder 'builtin:bert'"),
        ("data.eval_split=dve", "data.eval_split"),
        ("sampling.group_size=3", "sampling"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    source: Path, tmp_path: Path, setting: str, says: str
) -> None:
    done = run("encoder", source, tmp_path / "out", "--set", setting)
    assert isinstance(done.exception, SelfEmoError) and says in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_a_folder_and_data_named_twice(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    done = run("majority", source, tmp_path / "out")
    assert isinstance(done.exception, StoreError)
    assert f"{tmp_path / 'out'} is a file; give a folder" in str(done.exception)
    done = run("majority", source, tmp_path / "more", "--data", str(source))
    assert isinstance(done.exception, DataError)
    assert f"{source} is named twice in data.sources" in str(done.exception)


def test_a_folder_of_a_run_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    done = run("majority", source, tmp_path)
    assert isinstance(done.exception, StoreError) and "is a run folder" in str(done.exception)
