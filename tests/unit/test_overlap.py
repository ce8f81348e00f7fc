"""Overlap of training and held-out conversations: the rule by hand, what is left out, scores without it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfemo.cli import app
from selfemo.cli.evolve import _show_summary
from selfemo.config import load
from selfemo.data.overlap import Counts, compare_splits, find_overlap, normalised
from selfemo.errors import ConfigError, DataError, StoreError
from selfemo.evaluation.console import evaluation_tables
from selfemo.evaluation.jobs import evaluate_model
from selfemo.evaluation.overlap import clean_scores, runs_of, training_data
from selfemo.evaluation.predictions import score
from selfemo.evaluation.summary import finish
from selfemo.method.types import Completion, Conversation, EmotionDistribution, Place, Utterance
from selfemo.reports.report import build
from selfemo.runs.doctor import check_data
from selfemo.runs.folder import COLD, START, RunFolder, evaluation_name
from selfemo.runs.inputs import cold_start_samples, load_conversations, run_inputs
from selfemo.runs.overlap import OVERLAP_FILE, check_overlap, note_overlap, noted_overlap, overlap_line
from selfemo.stages.coldstart import write_parquet
from selfemo.stages.flywheel import original_prompts
from tests.conftest import MELD, dist, make_prompt, write_jsonl
from tests.support.files import ROOT
from tests.support.runs import Watcher

A, B, C, D = (
    "I told you I would be late.",
    "You never said a word about it!",
    "Well, I am saying it right now.",
    "Then go and wait in the car.",
)


def talk(name: str, split: str, *texts: str, dataset: str = "toy") -> Conversation:
    turns = (Utterance("AB"[i % 2], t, dist(joy=1)) for i, t in enumerate(texts))
    return Conversation(name, dataset, split, tuple(turns), MELD)  # type: ignore[arg-type]


def written(path: Path, conversations: list[Conversation]) -> str:
    write_jsonl(path, conversations)
    return str(path)


# -- the rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Oh, my\u00a0God!  He\u2019s   lost it\u2026 ", "oh my god hes lost it"),
        ("Oh my god - he's lost it...", "oh my god hes lost it"),
        ("\u201cY\u2019know, I_was\u201d there", "yknow iwas there"),
        ("\uff26\uff35\uff2c\uff2c \u2163 \ufb01ne Stra\u00dfe", "full iv fine strasse"),
        ("caf\u00e9 cafe\u0301 cafe", "café café cafe"),
        ("हिन्दी है।", "हिन्दी है"),
        ("?! ... --", ""),
    ],
)
def test_case_punctuation_blanks_and_quotes_do_not_count(text: str, expected: str) -> None:
    assert normalised(text) == unicodedata.normalize("NFC", expected)


marks = st.text("'\u2019\u2018\u201c\u201d\".,!?\u2026-\u2014*_ \u00a0\t", max_size=4)


@given(st.lists(st.sampled_from(["Yes", "no", "don", "t", "ÉTÉ", "4th"]), min_size=1), st.data())
def test_marks_between_words_change_nothing(words: list[str], data: st.DataObject) -> None:
    decorated = "".join(
        f"{data.draw(marks)} {data.draw(marks)}{w.swapcase()}{data.draw(marks)}" for w in words
    )
    assert normalised(decorated) == normalised(" ".join(words))


def test_six_words_are_enough_and_five_are_not() -> None:
    six, five = "one two three four five six", "one two three four five"
    found = find_overlap([talk("h", "dev", six, five)], [talk("t", "train", five, six)])
    assert [(c.held_out, c.training) for c in found.copies] == [(("h", 0), (("t", 1),))]
    assert found.counts == {"toy": Counts(conversations=1, overlapping=1, utterances=1, copies=1)}


def fillers(n: int, name: str) -> list[str]:
    return [f"filler {k} of {name} has seven words" for k in range(n)]


@pytest.mark.parametrize(
    ("copied", "others", "short", "over"),
    [
        (3, 100, 0, True),  # three copies, however many others
        (2, 5, 0, False),  # 2 of 7: .286
        (2, 4, 0, True),  # 2 of 6: .333
        (2, 4, 50, True),  # short utterances are not in the share
        (1, 3, 0, False),  # 1 of 4
        (1, 2, 0, True),  # 1 of 3
        (1, 0, 9, True),  # the only one that counts
        (0, 5, 5, False),
        (0, 0, 5, False),  # none that counts
    ],
)
def test_three_copies_or_over_thirty_percent(copied: int, others: int, short: int, over: bool) -> None:
    held = talk("h", "dev", *(A, B, C)[:copied], *fillers(others, "h"), *["No."] * short)
    found = find_overlap([held], [talk("t", "train", D, C, "No.", B, A.upper())])
    assert found.conversations == (("h",) if over else ())
    assert found.counts["toy"] == Counts(1, int(over), copied + others, copied)


def test_every_place_of_a_copy_is_listed_by_data_set() -> None:
    training = [talk("t1", "train", A, "Hm.", A), talk("t2", "train", D, A)]
    held = [talk("h1", "dev", B, A), talk("h2", "dev", C, dataset="other")]
    found = find_overlap(held, training)
    assert found.counts == {"toy": Counts(1, 1, 2, 1), "other": Counts(1, 0, 1, 0)}
    (copy,) = found.copies
    assert copy.as_dict() == {"text": A, "held_out": "h1/1", "training": ["t1/0", "t1/2", "t2/1"]}
    assert found.training_conversations() == {"t1", "t2"}


utterances = st.sampled_from([A, B, C, D, A.lower(), "No.", *fillers(6, "x")])
talks = st.lists(st.lists(utterances, min_size=1, max_size=6), max_size=6)


@given(talks, talks)
def test_what_is_left_of_the_training_data_overlaps_with_nothing(
    held_texts: list[list[str]], train_texts: list[list[str]]
) -> None:
    held = [talk(f"h{k}", "dev", *t) for k, t in enumerate(held_texts)]
    train = [talk(f"t{k}", "train", *t) for k, t in enumerate(train_texts)]
    found = find_overlap(held, train)
    # Against every pair of turns, compared one by one.
    by_hand = []
    for c in held:
        own = [normalised(t.text) for t in c.turns if len(normalised(t.text).split()) >= 6]
        n = sum(any(o == normalised(t.text) for d in train for t in d.turns) for o in own)
        if n >= 3 or 10 * n > 3 * len(own):
            by_hand.append(c.id)
    assert list(found.conversations) == by_hand
    gone = found.training_conversations()
    assert not find_overlap(held, [c for c in train if c.id not in gone]).conversations
    clean = [c for c in held if c.id not in found.conversations]
    assert not find_overlap(clean, train).conversations


def test_splits_that_are_compared() -> None:
    first = [talk("a", "train", A), talk("b", "dev", B), talk("c", "test", B)]
    second = [talk("d", "test", A, dataset="second"), talk("e", "train", C, dataset="second")]
    found = {
        (c.training, c.held_out): len(c.overlap.copies) for c in compare_splits([("x", first), ("y", second)])
    }
    assert found == {
        ("x train", "x dev"): 0, ("x train", "x test"): 0, ("x train", "y test"): 1, ("x dev", "x test"): 1,
        ("y train", "x dev"): 0, ("y train", "x test"): 0, ("y train", "y test"): 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("train", "dev", "counts"),
    [
        # By the share of all utterances, short ones too, 19 of EmoryNLP's scenes overlap.
        ("meld", "emorynlp", Counts(89, 25, 448, 92)),
        ("emorynlp", "meld", Counts(114, 12, 639, 46)),
        ("meld", "meld", Counts(114, 0, 639, 0)),
        ("emorynlp", "emorynlp", Counts(89, 3, 448, 12)),
    ],
)
def test_meld_and_emorynlp_share_scenes(train: str, dev: str, counts: Counts) -> None:
    from selfemo.data import load as load_data

    if not (ROOT / train).exists() or not (ROOT / dev).exists():
        pytest.skip("MELD and EmoryNLP are not at hand: set SELFEMO_DATA to the folder that holds them")
    held = [c for c in load_data(str(ROOT / dev)).conversations if c.split == "dev"]
    training = [c for c in load_data(str(ROOT / train)).conversations if c.split == "train"]
    found = find_overlap(held, training)
    assert found.counts == {dev: counts} and len(found.copies) == counts.copies


# -- data.exclude_overlap -------------------------------------------------------------------------------


@pytest.fixture
def series(tmp_path: Path) -> list[str]:
    """Two sources. Of `b` h1 is held out, and `a` trains on its scene; t3 and h2 share one of seven."""
    a = [talk("t1", "train", A, B, C), talk("t2", "train", *fillers(3, "t2")), talk("t3", "train", D)]
    b = [
        talk("h1", "test", "Hello.", A, B),
        talk("h2", "test", D, *fillers(6, "h2")),
        talk("h3", "test", *fillers(2, "h3")),
        talk("t4", "train", *fillers(2, "t4")),
    ]
    return [written(tmp_path / "a.jsonl", a), written(tmp_path / "b.jsonl", b)]


def config(series: list[str], *more: str):
    return load([], [f"data.sources={json.dumps(series)}", "evaluation.resamples=20", *more])


def test_an_overlap_of_everything_promises_no_scores_without_it(series: list[str]) -> None:
    found = run_inputs(config(series)).overlap
    whole = {"jsonl": {"conversations": 3, "overlapping": 3}, "meld": {"conversations": 2, "overlapping": 2}}
    assert overlap_line({**found.as_dict(), "data": whole}).endswith(
        "3 of 3 jsonl, 2 of 2 meld conversations of split test; none is left to score without it, so these "
        "scores say nothing of new conversations"
    )
    part = {**whole, "meld": {"conversations": 2, "overlapping": 0}}
    assert "scores without them stand beside" in overlap_line({**found.as_dict(), "data": part})


@pytest.mark.parametrize(
    ("exclude", "training", "held", "left_out", "says"),
    [
        ("no", "t1 t2 t3 t4", "h1 h2 h3", "", "scores without them stand beside"),
        ("train", "t2 t3 t4", "h1 h2 h3", "t1", '"train" left out 1 of 4 conversations of split train'),
        ("eval", "t1 t2 t3 t4", "h2 h3", "h1", '"eval" left out 1 of 3 conversations of split test'),
    ],
)
def test_what_a_run_leaves_out(
    series: list[str], tmp_path: Path, exclude: str, training: str, held: str, left_out: str, says: str
) -> None:
    inputs = run_inputs(config(series, f"data.exclude_overlap={exclude}"))
    assert sorted(c.id for c in inputs.training) == training.split()
    assert sorted(c.id for c in inputs.conversations if c.split == "test") == held.split()
    assert inputs.overlap.left_out == tuple(left_out.split())
    watcher = Watcher()
    note_overlap(tmp_path, inputs.overlap, watcher.say)
    (line,) = watcher.said
    assert (
        line.startswith("Overlap with the training data: 1 of 3 jsonl conversations of split test")
        and says in line
    )
    record = noted_overlap(tmp_path)
    assert record is not None
    assert record["rule"] == {"least_words": 6, "least_copies": 3, "least_share": 0.3}
    assert record["data"] == {"jsonl": {"conversations": 3, "overlapping": 1, "utterances": 11, "copies": 3}}
    assert record["left_out"] == left_out.split() and record["exclude"] == exclude
    assert record["overlapping"] == (["h1"] if exclude == "no" else [])
    assert {c["held_out"]: c["training"] for c in record["copies"]} == {
        "h1/1": ["t1/0"], "h1/2": ["t1/1"], "h2/0": ["t3/0"],
    }  # fmt: skip
    said: list[str] = []
    again = load_conversations(config(series, f"data.exclude_overlap={exclude}").data, said.append)
    assert again == inputs.conversations
    assert said == ([line] if left_out else [])


def test_plain_personas_are_drawn_without_what_is_left_out(tmp_path: Path) -> None:
    """A asks in t1, which is left out, and is like B in t2."""
    t1 = talk("t1", "train", *(f"{(A, B)[k % 2]} {k}{'?!'[k % 2]}" for k in range(12)))
    t2 = talk("t2", "train", *(f"I say {k}." for k in range(12)))
    held = talk("h1", "test", t1.turns[0].text)
    source = [written(tmp_path / "p.jsonl", [t1, t2, held])]
    kept, without = (
        next(c for c in run_inputs(config(source, f"data.exclude_overlap={e}")).conversations if c.id == "h1")
        for e in ("no", "train")
    )
    alone = [written(tmp_path / "q.jsonl", [t2, held])]
    expected = next(c for c in run_inputs(config(alone)).conversations if c.id == "h1")
    assert without.personas == expected.personas != kept.personas
    assert "asks many questions" in kept.personas["A"].description


@pytest.mark.parametrize(("exclude", "split"), [("train", "train"), ("eval", "test")])
def test_nothing_left_is_an_error(exclude: str, split: str) -> None:
    data = load([], [f"data.exclude_overlap={exclude}"]).data
    with pytest.raises(DataError, match=f"leaves no conversation of split '{split}': all 1 overlap"):
        check_overlap([talk("t", "train", A), talk("h", "test", A)], data)
    with pytest.raises(ConfigError, match=r"data\.exclude_overlap.*'no', 'train' or 'eval'"):
        load([], ["data.exclude_overlap=yes"])


def test_nothing_is_said_where_nothing_overlaps(tmp_path: Path) -> None:
    watcher = Watcher()
    note_overlap(tmp_path, run_inputs(load([], [])).overlap, watcher.say)
    record = noted_overlap(tmp_path)
    assert record is not None and not watcher.said and not record["copies"]
    assert record["data"]["sample"]["conversations"] == 30


def test_samples_of_a_file_follow_the_conversations(tmp_path: Path) -> None:
    joy = EmotionDistribution({"joy": 1})
    prompts = [make_prompt(f"{c}/{k}") for c in ("t1", "t2") for k in range(2)]
    file = tmp_path / "cold.parquet"
    write_parquet(file, [(p, Completion(joy, joy, "Good.")) for p in prompts], "none", "expert")
    sft = load([], [f"sft.samples={file}", "sft.max_samples=2"]).sft
    found = cold_start_samples([], sft, "none", 0, {"t1", "t9"})
    assert [p.id for p, _ in found.samples] == ["cold/t2/0", "cold/t2/1"] and found.left_out == 2
    assert cold_start_samples([], sft, "none", 0).left_out == 0
    with pytest.raises(DataError, match=r"all 4 samples are of conversations that data\.exclude_overlap"):
        cold_start_samples([], sft, "none", 0, {"t1", "t2"})


@pytest.mark.parametrize(("exclude", "state"), [("no", "warning"), ("train", "ok"), ("eval", "ok")])
def test_doctor_tells_of_the_overlap(series: list[str], exclude: str, state: str) -> None:
    """What is evaluated though it overlaps is a warning; what is left out is told."""
    findings, kept = check_data(config(series, f"data.exclude_overlap={exclude}"))
    told = {f.what: f for f in findings}
    evaluated = 2 if exclude == "eval" else 3
    trained = 3 if exclude == "train" else told["conversations"].found.split()[0]
    assert told["conversations"].found == f"{trained} to train on, {evaluated} to evaluate on"
    assert told["conversations"].state == "ok" and told["overlap"].state == state
    assert told["overlap"].found.startswith("Overlap with the training data: 1 of 3")
    assert ("data.exclude_overlap=train, or =eval" in told["overlap"].get) == (state == "warning")
    assert ("t1" in {c.id for c in kept}) == (exclude != "train")


@pytest.mark.parametrize("content", ["{", "[]", '{"data": {}}'])
def test_a_broken_record_is_named(tmp_path: Path, content: str) -> None:
    assert noted_overlap(tmp_path) is None
    (tmp_path / OVERLAP_FILE).write_text(content)
    with pytest.raises(StoreError, match=r"overlap\.json: cannot be read"):
        noted_overlap(tmp_path)


# -- data check -----------------------------------------------------------------------------------------


def check(*words: str) -> str:
    result = CliRunner().invoke(app, ["data", "check", *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_data_check_compares_several_sources(series: list[str], tmp_path: Path) -> None:
    out = tmp_path / "copies.jsonl"
    told = check(*series, "--copies", str(out))
    a, b = series
    rows = [line.split("  ") for line in told.splitlines() if line.startswith(str(tmp_path))]
    table = [[c.strip() for c in r if c.strip()] for r in rows]
    assert table[:2] == [
        [f"{b} test", f"{a} train", "3 of 11", "1 of 3"],
        [f"{b} test", f"{b} train", "0 of 11", "0 of 3"],
    ]
    assert "train: 3 conversations, 7 utterances" in told, "the report of each set stays"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0] == {
        "of": f"{b} test", "in": f"{a} train", "text": A, "held_out": "h1/1", "training": ["t1/0"],
    }  # fmt: skip
    assert len(lines) == 3


def test_data_check_of_one_source_tells_only_what_overlaps(tmp_path: Path) -> None:
    assert "Overlap" not in check("sample")
    write_jsonl(tmp_path / "own.jsonl", [talk("t", "train", A, B), talk("h", "test", B), talk("d", "dev", C)])
    told = check(str(tmp_path / "own.jsonl"))
    assert [line.split() for line in told.splitlines() if line.startswith("jsonl ")] == [
        ["jsonl", "test", "jsonl", "train", *["1", "of", "1"] * 2]
    ]


# -- scores without the overlap ---------------------------------------------------------------------------


def row(conversation: str, turn: int, gold: str, predicted: str, dataset: str = "jsonl") -> dict:
    return {
        "evaluation": "e", "prompt": f"{conversation}/{turn}", "dataset": dataset, "failure": None,
        "text": "", "conversation": conversation, "gold": json.dumps({gold: 1}),
        "predicted": json.dumps({predicted: 1}), "believed": None, "r1": float(gold == predicted),
    }  # fmt: skip


ROWS = [
    row("h1", 0, "joy", "joy"), row("h1", 1, "joy", "joy"), row("h2", 0, "joy", "anger"),
    row("h2", 1, "anger", "anger"), row("m", 0, "fear", "joy", "other"),
]  # fmt: skip


def test_clean_scores_by_hand() -> None:
    labels = {"jsonl": MELD, "other": MELD}
    found = clean_scores(ROWS, labels, overlapping={"h1", "x"}, resamples=20)
    # Of `other` nothing overlaps, so it has no row of its own, and the union is 1 right of 3.
    assert set(found) == {"jsonl", "all"}
    assert (found["jsonl"].utterances, found["jsonl"].accuracy.value) == (2, 0.5)
    assert (found["all"].utterances, found["all"].accuracy.value) == (3, pytest.approx(1 / 3))
    assert clean_scores(ROWS, labels, overlapping={"x"}, resamples=20) == {}
    gone = clean_scores(ROWS, labels, overlapping={"h1", "h2"}, resamples=20)
    assert set(gone) == set(), "one data set is left, and nothing overlaps in it"
    assert clean_scores(ROWS[:4], labels, overlapping={"h1", "h2"}, resamples=20) == {}


def scripted(tmp_path: Path) -> str:
    (tmp_path / "answers.txt").write_text('"E: joy"\n')
    return f"scripted:{tmp_path / 'answers.txt'}"


def without_overlap(result):
    return next(t for t in evaluation_tables(result) if t[0].startswith("Without"))


def test_an_evaluation_stands_with_its_clean_part(series: list[str], tmp_path: Path) -> None:
    out, args = tmp_path / "e", ([], ["evaluation.resamples=20"])
    result = evaluate_model(scripted(tmp_path), series[1:], out, *args, Watcher(), train_data=series[:1])
    assert result.scores["jsonl"].utterances == 12
    found = json.loads((out / "scores.json").read_text())["overlap"]
    assert found["conversations"] == ["h1"] and found["average"] is None
    assert found["data"] == {"jsonl": {"conversations": 3, "overlapping": 1, "utterances": 11, "copies": 3}}
    assert found["scores"]["jsonl"]["utterances"] == 9 and found["scores"]["jsonl"]["conversations"] == 2
    title, header, rows = without_overlap(result)
    assert title.endswith("(of split test: 1 of 3 jsonl)") and "training data" in title
    assert rows[0][: header.index("n") + 1] == ["jsonl", "2", "9"]


def test_an_evaluation_of_nothing_but_overlap(series: list[str], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [talk("k", "test", A, B)])
    model, source = scripted(tmp_path), [str(tmp_path / "c.jsonl"), "sample"]
    more = ["evaluation.resamples=20", "data.eval_conversations=1"]
    result = evaluate_model(model, source, None, [], more, Watcher(), train_data=series[:1])
    assert result.overlap is not None and result.overlap["average"] is None
    _, _, rows = without_overlap(result)
    assert rows == [["jsonl", "0", "0", "-", "-", "-", "-", "-"]]


def test_evaluate_says_so_where_nothing_overlaps(series: list[str], tmp_path: Path) -> None:
    command = ["evaluate", scripted(tmp_path), "--data", "sample", "--set", "data.eval_conversations=1"]
    told = CliRunner().invoke(app, [*command, "--train-data", series[0]])
    assert told.exit_code == 0 and "no conversation overlaps with the training data" in told.output
    assert "training data" not in CliRunner().invoke(app, command).output, "not known, nothing to say"


def test_train_data_without_a_training_split_is_refused(series: list[str], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [talk("k", "test", A)])
    with pytest.raises(DataError, match=r"c\.jsonl: --train-data: holds no conversation of split 'train'"):
        training_data(None, [str(tmp_path / "c.jsonl")], False, Watcher().say)
    with pytest.raises(DataError, match="no such file"):
        training_data(None, [str(tmp_path / "none.jsonl")], False, Watcher().say)


COLUMNS = (
    "evaluation",
    "prompt",
    "dataset",
    "conversation",
    "gold",
    "predicted",
    "failure",
    "r1",
    "text",
    "believed",
)


@pytest.fixture
def run(series: list[str], tmp_path: Path) -> Path:
    """A run folder with two evaluated checkpoints, as `evolve` leaves it, without a model."""
    folder, chosen = tmp_path / "run", config(series, "flywheel.iterations=0")
    with RunFolder(folder, chosen) as made:
        inputs = run_inputs(chosen)
        note_overlap(folder, inputs.overlap, Watcher().say)
        with made.store.transaction():
            made.store.add_prompts(original_prompts(inputs.training, 0, 1.0), Place(COLD))
        for name in (START, COLD):
            predicted = {START: "anger", COLD: "joy"}[name]
            kept = [row(c, k, "joy", predicted) for c in ("h1", "h2", "h3") for k in range(2)]
            for r in kept:
                r["evaluation"] = evaluation_name(name)
            kept[0] |= {"predicted": json.dumps({"fear": 1}), "r1": 0.0}
            with made.store.transaction():
                made.store.add_predictions([r[c] for c in COLUMNS] for r in kept)
            scores = score(kept, {"jsonl": MELD}, resamples=20)
            info = {d: s.as_dict() for d, s in scores.items()}
            made.store.set_stage(evaluation_name(name), "done", info=info, seconds=0.0)
        checkpoint = folder / "checkpoints" / COLD
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.json").write_text("{}")
        (checkpoint / "model.safetensors").write_bytes(b"")
    return folder


def test_a_run_has_its_clean_scores_in_summary_console_and_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(run) as opened:
        summary = finish(opened)
        _show_summary(opened, summary, False)
    part = json.loads((run / "summary.json").read_text())["overlap"]
    assert part["exclude"] == "no" and part["data"]["jsonl"]["overlapping"] == 1
    clean = {c: by["jsonl"] for c, by in part["scores"].items()}
    assert [s["utterances"] for s in clean.values()] == [4, 4]
    # On the whole the wrong answer in h1 counts: 5 of 6; without h1 all 4 are right.
    assert summary["scores"][COLD]["jsonl"]["accuracy"][0] == pytest.approx(5 / 6)
    assert clean[COLD]["accuracy"][0] == 1 and clean[START]["accuracy"][0] == 0
    page = tmp_path / "report.html"
    build(run, page)
    for told in ((run / "summary.md").read_text(), capsys.readouterr().out, page.read_text()):
        words = " ".join(told.split())
        assert "of split test: 1 of 3 jsonl" in words
    assert "scores without them stand beside" in (run / "summary.md").read_text()


def test_a_run_without_overlap_says_nothing(run: Path) -> None:
    (run / OVERLAP_FILE).unlink()  # as runs of an earlier version
    with RunFolder(run) as opened:
        assert finish(opened)["overlap"] is None
        note_overlap(run, run_inputs(load([], [])).overlap, Watcher().say)
        assert finish(opened)["overlap"] is None
    assert "verlap" not in (run / "summary.md").read_text()


def test_what_a_runs_model_was_trained_on(run: Path, series: list[str], tmp_path: Path) -> None:
    """A run that began with another run's checkpoint was trained on the data of both."""
    watcher = Watcher()
    assert [c.id for c in training_data(str(run), [], False, watcher.say)] == ["t1", "t2", "t3", "t4"]
    assert training_data(f"{run}@start", [], False, watcher.say) == []
    later = tmp_path / "later"
    base = run / "checkpoints" / COLD
    chosen = config(series, f'model.id="{base}"', "data.exclude_overlap=train", "flywheel.iterations=0")
    RunFolder(later, chosen).close()
    assert runs_of(f"{later}@start") == [run]
    (later / "checkpoints" / COLD).mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (later / "checkpoints" / COLD / name).write_bytes((base / name).read_bytes())
    assert runs_of(str(later)) == [later, run]
    found = [c.id for c in training_data(str(later), [], False, watcher.say)]
    assert found == ["t2", "t3", "t4", "t1", "t2", "t3", "t4"] and not watcher.said
    Path(series[0]).unlink()
    assert training_data(str(run), [], False, watcher.say) == []
    assert "a.jsonl" in watcher.said[0] and "--train-data" in watcher.said[0]
