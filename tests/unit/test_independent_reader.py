"""Agreement of declared emotions with what an independent reader finds, by hand and on planted policies; who
may judge a run; what is kept of the readings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from selfemo.config import load
from selfemo.errors import ConfigError, EngineError
from selfemo.evaluation.expression import (
    OTHERS,
    ReadReply,
    agreement_by_chance,
    cohens_kappa,
    counts_of,
    expected_information,
    expression_record,
    information_interval,
    mutual_information,
    one_against_rest,
)
from selfemo.evaluation.metrics import cluster_weights
from selfemo.evaluation.readers import (
    REAL,
    Reply,
    expression_by_data,
    independent_reader,
    read_replies,
    real_replies,
    weight_sums,
)
from selfemo.evaluation.reading_tables import example_header, example_rows, reading_rows
from selfemo.files import sha256
from selfemo.method.types import LABEL_SETS, Prompt
from selfemo.models.references import CHECKSUMS, READER_FILE
from selfemo.models.reply_readers import Read, Said
from tests.conftest import dist, make_prompt, toy_conversations

LABELS = ("a", "b", "c")
HAND = np.array([[4, 1, 0], [2, 2, 1], [0, 0, 0]])
"""n 10; agree 6; rows 5, 5, 0; columns 6, 3, 1: by chance (30 + 15) / 100."""


def replies(*pairs: str, conversation: str = "", cluster: str = "") -> list[ReadReply]:
    """ "ab": a declared, b read; "a-": not read. Each in a conversation of its own unless named."""
    return [
        ReadReply(conversation or f"c{i}", p[0], None if p[1] == "-" else p[1], cluster)
        for i, p in enumerate(pairs)
    ]


# -- by hand ------------------------------------------------------------------------------------------


def test_kappa_and_information_by_hand() -> None:
    assert cohens_kappa(HAND) == pytest.approx((0.6 - 0.45) / (1 - 0.45))
    assert agreement_by_chance(HAND) == pytest.approx(0.45)
    # sum n_ij / n log(n_ij n / (n_i n_j)): 4 of 5 x 6, 1 of 5 x 3, 2 of 5 x 6, 2 of 5 x 3, 1 of 5 x 1.
    by_hand = (
        0.4 * math.log(40 / 30) + 0.1 * math.log(10 / 15) + 0.2 * math.log(20 / 30)
        + 0.2 * math.log(20 / 15) + 0.1 * math.log(10 / 5)
    )  # fmt: skip
    assert mutual_information(HAND) == pytest.approx(by_hand)
    assert one_against_rest(HAND, 1).tolist() == [[2, 3], [1, 4]]
    assert cohens_kappa(one_against_rest(HAND, 1)) == pytest.approx((0.6 - 0.5) / (1 - 0.5))
    assert cohens_kappa(one_against_rest(HAND, 2)) == 0  # c is never declared


def test_expected_information_is_that_of_all_shuffles() -> None:
    """S a a a b, read a a b b: the mean over all orders of what is read."""
    declared, read = (0, 0, 0, 1), (0, 0, 1, 1)
    found = []
    for order in permutations(read):
        table = np.zeros((3, 3))
        np.add.at(table, (declared, order), 1)
        found.append(mutual_information(table))
    table = np.zeros((3, 3))
    np.add.at(table, (declared, read), 1)
    assert expected_information(table) == pytest.approx(np.mean(found))


def test_one_emotion_throughout_scores_nothing() -> None:
    """Always neutral, and a reader that mostly agrees; and one who reads the same in everything."""
    always = expression_record(replies(*["aa"] * 40, *["ab"] * 10), LABELS, 200)
    constant = expression_record(replies(*["aa"] * 20, *["ba"] * 10, *["ca"] * 5), LABELS, 200)
    both = expression_record(replies(*["aa"] * 30), LABELS, 200)
    for record, plain in ((always, 0.8), (constant, 20 / 35), (both, 1.0)):
        assert record["kappa"] == record["mutual_information"] == [0, 0, 0]
        assert record["agreement"][0] == pytest.approx(plain) and record["by_chance"] == pytest.approx(plain)
        assert all(e["kappa"] == [0, 0, 0] for e in record["by_emotion"].values())
    assert always["declared"]["entropy"] == 0 and always["declared"]["share"] == {"a": 1, "b": 0, "c": 0}
    assert always["by_emotion"]["a"] == {"n": 50, "recall": 0.8, "elsewhere": None, "kappa": [0, 0, 0]}
    assert always["by_emotion"]["b"] == {"n": 0, "recall": None, "elsewhere": 0.2, "kappa": [0, 0, 0]}


def test_a_reader_who_finds_each_s() -> None:
    record = expression_record(replies(*["aa"] * 30, *["bb"] * 20, *["cc"] * 10), LABELS, 200)
    assert record["kappa"] == [1, 1, 1] and record["agreement"] == [1, 1, 1]
    entropy = record["declared"]["entropy"]
    assert entropy == pytest.approx(-sum(p * math.log(p) for p in (1 / 2, 1 / 3, 1 / 6)))
    value, low, high = record["mutual_information"]
    assert low < value < high and 0.9 * entropy < value < entropy
    assert all(e["recall"] == 1 and e["elsewhere"] == 0 for e in record["by_emotion"].values())


def test_shuffled_s_is_chance() -> None:
    rng = np.random.default_rng(0)
    read = ["a"] * 60 + ["b"] * 40 + ["c"] * 20
    declared = [read[i] for i in rng.permutation(len(read))]
    record = expression_record(replies(*(x + y for x, y in zip(declared, read, strict=True))), LABELS, 400)
    for measure in ("kappa", "mutual_information"):
        value, low, high = record[measure]
        assert low <= 0 <= high and abs(value) < 0.1
    assert abs(record["agreement"][0] - record["by_chance"]) < 0.1


def test_what_could_not_be_read_is_counted() -> None:
    read = [*["aa"] * 9, "bb"]
    record = expression_record(replies(*read, "a-", "b-", "b-"), LABELS, 50)
    assert (record["replies"], record["unread"], record["conversations"]) == (13, 3, 13)
    assert record["kappa"][0] == 1 and record["by_emotion"]["b"]["n"] == 1
    for few in (["a-"], [*read[1:], "a-"]):  # none, or nine, were read: no interval can be told
        n, unread = len(few), few.count("a-")
        assert expression_record(replies(*few), LABELS, 50) == {
            "replies": n, "unread": unread, "conversations": n
        }  # fmt: skip


def test_small_clusters_stand_together() -> None:
    many = [
        *replies(*["aa"] * 6, *["bb"] * 6, cluster="calm"), *replies(*["ab"] * 9, cluster="loud"),
        *replies("aa", "bb", "b-"),
    ]  # fmt: skip
    record = expression_record(many, LABELS, 100, clustered=True)
    assert {c: v["n"] for c, v in record["by_cluster"].items()} == {"calm": 12, OTHERS: 11}
    assert record["by_cluster"]["calm"]["kappa"] == [1, 1, 1]
    # OTHERS: a declared 10 times, read as a once; b declared once, read as b: 2/11 against (10 + 10) / 121.
    by_chance = (10 * 1 + 1 * 10) / 121
    assert record["by_cluster"][OTHERS]["kappa"][0] == pytest.approx((2 / 11 - by_chance) / (1 - by_chance))
    assert expression_record(many, LABELS, 100)["by_cluster"] == {}


def test_intervals_are_by_conversation() -> None:
    """Copies of a conversation's replies tell no more than the conversation."""
    alone = [ReadReply(f"c{i}", *pair) for i, pair in enumerate(["aa", "bb", "ab", "ba", "aa", "bb"] * 3)]
    copies = [r for r in alone for _ in range(5)]
    one, five = (expression_record(r, LABELS, 300)["kappa"] for r in (alone, copies))
    assert one == pytest.approx(five)


# -- properties ---------------------------------------------------------------------------------------

tables = arrays(np.int64, (4, 4), elements=st.integers(0, 12)).filter(lambda t: t.sum() > 0)


@given(tables, st.permutations(range(4)))
def test_kappa_is_bounded_and_knows_no_order_of_labels(table: np.ndarray, order: Sequence[int]) -> None:
    kappa = float(cohens_kappa(table))
    assert -1 <= kappa <= 1
    moved = table[np.ix_(order, order)]
    assert cohens_kappa(moved) == pytest.approx(kappa)
    assert mutual_information(moved) == pytest.approx(float(mutual_information(table)))
    if np.count_nonzero(table.sum(0)) == 1 or np.count_nonzero(table.sum(1)) == 1:
        assert kappa == 0 and mutual_information(table) == pytest.approx(0, abs=1e-12)


@given(tables)
def test_measures_agree_with_scikit_learn(table: np.ndarray) -> None:
    rows, columns = (np.repeat(i.ravel(), table.ravel()) for i in np.indices(table.shape))
    assert mutual_information(table) == pytest.approx(sk.mutual_info_score(rows, columns), abs=1e-9)
    if len({*rows, *columns}) > 1:
        assert cohens_kappa(table) == pytest.approx(sk.cohen_kappa_score(rows, columns), abs=1e-9)


# -- the interval of the information ------------------------------------------------------------------


def drawn_counts(
    rng: np.random.Generator, conversations: int, each: int, alike: float, shown: float
) -> np.ndarray:
    """(c, 7, 7) replies whose S is found with probability `shown`, and is else apart from what is read.

    Args:
        alike: above 0, each conversation has shares of its own for S and for what is read, apart from each
            other; the lower, the more they differ.
    """
    share = np.array([0.45, 0.17, 0.12, 0.1, 0.08, 0.05, 0.03])
    share /= share.sum()
    counts = np.zeros((conversations, 7, 7))
    for of in counts:
        declared, read = (rng.dirichlet(share * alike) if alike else share for _ in range(2))
        s = rng.choice(7, each, p=declared)
        np.add.at(of, (s, np.where(rng.random(each) < shown, s, rng.choice(7, each, p=read))), 1)
    return counts


@pytest.mark.parametrize(("conversations", "each", "alike"), [(50, 1, 0.0), (50, 2, 0.0), (30, 8, 4.0)])
def test_the_interval_holds_0_where_s_tells_nothing(conversations: int, each: int, alike: float) -> None:
    """In 88% of the draws at least; in fewer than that by the pivotal interval where replies are few."""
    held, pivotal, rng = [], [], np.random.default_rng(1)
    for _ in range(200):
        counts = drawn_counts(rng, conversations, each, alike, 0.0)
        weights = cluster_weights(conversations, 200)
        drawn = (weights @ counts.reshape(conversations, -1)).reshape(-1, 7, 7)
        found = information_interval(counts, drawn)
        held.append(found.low <= 0 <= found.high)
        plain, draws = float(mutual_information(counts.sum(0))), mutual_information(drawn)
        pivotal.append(2 * plain - np.quantile(draws, 0.975) <= 0)
    assert np.mean(held) >= 0.88
    if conversations * each <= 100:
        assert np.mean(pivotal) < 0.88 < 0.95 <= np.mean(held)


def test_a_planted_dependence_is_found_and_not_overstated() -> None:
    rng = np.random.default_rng(2)
    truth = float(mutual_information(drawn_counts(rng, 1, 200_000, 0.0, 0.4).sum(0)))
    found = []
    for _ in range(100):
        counts = drawn_counts(rng, 60, 4, 0.0, 0.4)
        drawn = (cluster_weights(60, 200) @ counts.reshape(60, -1)).reshape(-1, 7, 7)
        found.append(information_interval(counts, drawn))
    assert np.mean([f.low > 0 for f in found]) >= 0.95
    assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.88
    assert np.mean([f.value for f in found]) == pytest.approx(truth, rel=0.15)


def test_kappa_finds_what_is_planted_and_nothing_else() -> None:
    rng, low = np.random.default_rng(3), dict[float, list[bool]]()
    for shown in (0.0, 0.3):
        for _ in range(100):
            counts = drawn_counts(rng, 50, 2, 0.0, shown)
            drawn = (cluster_weights(50, 200) @ counts.reshape(50, -1)).reshape(-1, 7, 7)
            low.setdefault(shown, []).append(np.quantile(cohens_kappa(drawn), 0.025) > 0)
    assert np.mean(low[0.0]) <= 0.08 and np.mean(low[0.3]) >= 0.95


# -- what is read -------------------------------------------------------------------------------------


class Finds:
    """Finds the label that a reply names, and cannot read one that names none."""

    def read(self, said: Sequence[Said]) -> list[Read]:
        return [next((dist(**{e: 1}) for e in p.label_set.labels if e in text), None) for p, text in said]

    def expect(self, prompts: Sequence[Prompt]) -> list[Read]:
        raise NotImplementedError


def reply(i: int, declared: str, text: str, prompt: Prompt | None = None) -> Reply:
    return Reply(replace(prompt or make_prompt(), id=f"c{i}/1", conversation_id=f"c{i}"),
                 dist(**{declared: 1}), text)  # fmt: skip


def test_data_sets_are_counted_apart() -> None:
    """Each data set has one S and one reading of its own: together they would seem to depend."""
    other = replace(make_prompt(), dataset="own", label_set=LABEL_SETS["emorynlp"])
    said = [reply(i, "joy", "joy!") for i in range(10)]
    said += [reply(10 + i, "mad", "mad!", other) for i in range(10)]
    found = read_replies(Finds(), said, lambda n: None)
    by = expression_by_data(said, found, {}, 50)
    assert list(by) == ["toy", "own"] and all(r["kappa"] == [0, 0, 0] for r in by.values())
    same = replace(make_prompt(), label_set=LABEL_SETS["emorynlp"])
    mixed = [said[0], reply(20, "mad", "mad!", same)]
    by = expression_by_data(mixed, read_replies(Finds(), mixed, lambda n: None), {}, 50)
    assert list(by) == ["toy (meld)", "toy (emorynlp)"]
    assert by["toy (emorynlp)"]["named"] == 1 and by["toy (meld)"]["named"] == 1
    assert expression_by_data([reply(0, "joy", "Great!")], {"c0/1": None}, {}, 50)["toy"]["named"] == 0


def test_readings_survive_their_file_and_clusters_are_those_of_the_answerer() -> None:
    texts = ["What joy!", "So much fear.", "Well."] * 5
    said = [reply(i, e, t) for i, (e, t) in enumerate(zip(["joy", "joy", "fear"] * 5, texts, strict=True))]
    told: list[int] = []
    found = read_replies(Finds(), said, told.append)
    assert sum(told) == 15
    kept = json.loads(json.dumps(found))
    again = [Reply.kept(r.prompt, json.loads(json.dumps(r.record))) for r in said]
    assert again == said
    record = expression_by_data(again, kept, {said[0].prompt.persona.description: "scared"}, 50)["toy"]
    assert (record["replies"], record["unread"]) == (15, 5)
    assert record["by_emotion"]["joy"]["recall"] == 0.5 and record["by_cluster"]["scared"]["n"] == 10


def test_the_ceiling_is_the_next_turns_of_other_speakers() -> None:
    (conversation,) = toy_conversations(1)
    found = real_replies([conversation])
    assert [r.text for r in found] == [t.text for t in conversation.turns[1:]]
    assert [r.declared for r in found] == [t.emotion for t in conversation.turns[1:]]
    assert all(r.prompt.answerer == conversation.turns[k + 1].speaker for k, r in enumerate(found))
    alone = replace(conversation, turns=tuple(replace(t, speaker="Ann") for t in conversation.turns))
    assert real_replies([alone]) == []


def test_examples_are_drawn_by_the_seed_and_not_by_what_was_found() -> None:
    ids = [f"c{i}/1" for i in range(40)]
    prompts = {i: replace(make_prompt(), id=i) for i in ids}
    declared = {i: {"self_emotion": {"joy": 0.7, "fear": 0.3}, "reply": f"to {i}"} for i in ids}
    found = {i: {"joy": 0.5, "fear": 0.25, "anger": 0.25} for i in ids}
    result = {"prompts": ids, "replies": {"start": {}, "last": declared}}
    rows = [
        example_rows(result, {"found": {"last": f}}, prompts, ["start", "last"], 7)
        for f in (found, dict.fromkeys(ids))
    ]
    assert [r[4] for r in rows[0]] == [r[4] for r in rows[1]] and len(rows[0]) == 5
    first = rows[0][0]
    assert len(first) == len(example_header(["start", "last"]))
    assert first[0] == "Bo: It was only the cat, I promise." and "no reply" in first[1]
    assert first[5:] == ["joy 70%, fear 30%", "joy 50%, fear 25%"] and rows[1][0][6] == "-"
    other = example_rows(result, {"found": {}}, {}, ["last"], 8)
    assert [r[0] for r in other] != [r[1].removeprefix("to ") for r in rows[0]]
    assert all(r[0] in ids for r in other), "a prompt whose text is gone is named"


def test_a_checkpoint_without_replies_has_a_row() -> None:
    record = expression_record(replies(*["aa", "bb"] * 5), LABELS, 50)
    reading = {"expression": {"start": {}, "last": {"toy": record}, REAL: {"toy": record}}}
    rows = reading_rows({"checkpoints": {"start": 0, "last": 0, "unread": 0}}, reading, "toy")
    assert [r[:3] for r in rows] == [
        ["start", "0/0", "-"], ["last", "10/10", "1.000 [1.000, 1.000]"],
        [REAL, "10/10", "1.000 [1.000, 1.000]"],
    ]  # fmt: skip


# -- who may judge ------------------------------------------------------------------------------------

ENDPOINT = "judge=http://localhost:1/v1,model=y"


def weights(folder: Path, content: str, *, checksums: bool = False) -> Path:
    """A folder that passes for a model's until it is loaded."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_text(content)
    if checksums:
        sums = {"model.safetensors": sha256(folder / "model.safetensors")}
        (folder / CHECKSUMS).write_text(json.dumps(sums))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    home = tmp_path / "runs" / "mine"
    weights(home / "checkpoints" / "cold-start", "weights of the run", checksums=True)
    (home / "config.toml").write_text("")
    return home


@pytest.mark.parametrize(
    ("reader", "says"),
    [
        ("{run}", "it is of the run that it is to judge"),
        ("{run}@cold-start", "it is of the run that it is to judge"),
        ("{run}@start", "it is of the run that it is to judge"),
        ("{run}/checkpoints/cold-start", "it is of the run that it is to judge"),
        ("{here}/link", "it is of the run that it is to judge"),
        ("{here}/copy", "it has the weights of a checkpoint of the run"),
        ("{here}/base", "the model that .*mine began with"),
        ("{here}/listener/", "the listener that rewards in this run"),
    ],
)
def test_a_reader_of_the_run_itself_is_refused(reader: str, says: str, run: Path, tmp_path: Path) -> None:
    weights(tmp_path / "copy", "weights of the run")
    weights(tmp_path / "base", "base")
    weights(tmp_path / "listener", "listener")
    (tmp_path / "link").symlink_to(run / "checkpoints" / "cold-start")
    config = load([], [f'model.id="{tmp_path / "base"}"'])
    config = config.model_copy(
        update={"reward": config.reward.model_copy(update={"listener": str(tmp_path / "listener")})}
    )
    with pytest.raises(ConfigError, match=says):
        independent_reader(reader.format(run=run, here=tmp_path), run, config, [make_prompt()])


def test_the_listeners_endpoint_is_refused_however_it_is_written(run: Path) -> None:
    config = load([])
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"listener": ENDPOINT})})
    same = ENDPOINT.replace("judge", "other") + ",concurrency=2"
    with pytest.raises(ConfigError, match=r"the listener .*selfemo baseline encoder --keep"):
        independent_reader(same, run, config, [make_prompt()])


@pytest.mark.parametrize(
    ("reader", "says"),
    [
        ("nobody", "nobody: no such folder"),
        ("./none/model", "no model folder"),
        ("vlm:x", "no backend 'vlm'"),
        ("{here}/baseline", "the encoder that was kept is .*baseline/seed-0/model; name that folder"),
        ("{here}/baseline/seed-0", "the encoder that was kept is .*baseline/seed-0/model; name that folder"),
    ],
)
def test_an_unknown_reader(reader: str, says: str, run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "baseline" / "seed-0" / "model"
    kept.mkdir(parents=True)
    (kept / READER_FILE).write_text("{}")
    with pytest.raises(EngineError, match=f"--reader .*: .*{says}"):
        independent_reader(reader.format(here=tmp_path), run, load([]), [make_prompt()])


def test_another_model_may_judge(run: Path, tmp_path: Path) -> None:
    """A scripted one: it is opened, and has read a reply of each label set."""
    (tmp_path / "answers.jsonl").write_text('"E: joy"\n')
    reference = f"scripted:{tmp_path / 'answers.jsonl'}"
    reader = independent_reader(reference, run, load([], ["prompt.reasoning=brief"]), [make_prompt()])
    assert weight_sums(reference) == [] and len(reader.read([(make_prompt(), "Well.")])) == 1


def test_weights_are_known_by_their_content(run: Path, tmp_path: Path) -> None:
    copy, other = weights(tmp_path / "copy", "weights of the run"), weights(tmp_path / "other", "others")
    assert weight_sums(str(copy)) == weight_sums(f"{run}@cold-start") != weight_sums(str(other))


def test_counts_are_by_conversation() -> None:
    rows = [ReadReply("x", "a", "b"), ReadReply("y", "a", "a"), ReadReply("x", "a", "b"),
            ReadReply("z", "b", None)]  # fmt: skip
    found = counts_of(rows, LABELS)
    assert found.shape == (2, 3, 3) and found[0, 0, 1] == 2 and found[1, 0, 0] == 1 and found.sum() == 3
