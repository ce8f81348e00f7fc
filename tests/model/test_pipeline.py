"""The whole loop on a tiny model that really learns the format, resume, and bad input to the command."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import selfemo.cli
from selfemo.cli import app
from selfemo.config import load
from selfemo.errors import DataError, EngineError, StoreError
from selfemo.evaluation.jobs import evaluate_model
from selfemo.evaluation.rendering import rounded
from selfemo.evaluation.summary import finish
from selfemo.models.generation.local import LocalSampler
from selfemo.progress import Stopped, StopRequest
from selfemo.reports.figures import draw
from selfemo.runs.folder import RunFolder
from selfemo.stages.flywheel import labels_record
from tests.support.runs import (
    SHORT,
    Silent,
    Watcher,
    assert_goes_on_as_if_never_stopped,
    assert_same_run,
    begun,
    content,
    evolve,
    settings,
)


def test_the_loop_learns_the_format_and_writes_everything(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    start, cold = (summary["scores"][c]["jsonl"] for c in ("start", "cold-start"))
    assert start["parse_rate"][0] == 0 and cold["parse_rate"][0] > 0.9
    assert cold["accuracy"][0] > 0.5
    assert summary["change"]["from"] == "cold-start"
    assert summary["change"]["to"] == "iteration-2"
    assert summary["figures"] == [
        "reward", "entropy", "parse_rate", "scores_jsonl", "emotions_jsonl"
    ]  # fmt: skip
    figures = finished / "figures"
    assert {f.name for f in figures.iterdir()} == {
        f"{n}.{suffix}" for n in summary["figures"] for suffix in ("svg", "png", "csv")
    }
    with (figures / "scores_jsonl.csv").open(newline="") as f:
        for row in csv.DictReader(f):
            drawn = [float(row[k]) for k in ("value", "low", "high")]
            assert drawn == summary["scores"][row["checkpoint"]]["jsonl"][row["measure"]]
    rounds = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    with (figures / "reward.csv").open(newline="") as f:
        assert [float(row["r1"]) for row in csv.DictReader(f)] == [
            m["r1"] for m in rounds if m["stage"].endswith("-rl")
        ]
    for checkpoint in ("cold-start", "iteration-1-rl", "iteration-1", "iteration-2"):
        assert (finished / "checkpoints" / checkpoint / "model.safetensors").exists()
    assert not list((finished / "checkpoints").glob(".*")), "partial states are cleaned up"
    dialogues = (finished / "dialogues.txt").read_text()
    assert "reads" in dialogues and "feels" in dialogues
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    assert all("stage" in json.loads(line) for line in lines)


def test_lineage_and_eq_7_hold_in_the_store(finished: Path) -> None:
    db = sqlite3.connect(finished / "store.sqlite")
    db.row_factory = sqlite3.Row
    children = db.execute("SELECT * FROM prompts WHERE parent IS NOT NULL").fetchall()
    assert children
    for child in children:
        best = db.execute(
            "SELECT * FROM rollouts WHERE prompt = ? AND stage = ? AND step = ? AND best = 1",
            (child["parent"], child["stage"], child["step"]),
        ).fetchone()
        assert best["gate"] == "pass" and best["r1"] >= 0.5
        assert json.loads(child["target"]) == json.loads(best["self_emotion"])
        assert json.loads(child["history"])[-1][1] == best["reply"]
    answered = db.execute(
        "SELECT count(DISTINCT prompt) FROM rollouts r JOIN prompts p ON p.id = r.prompt "
        "WHERE p.parent IS NOT NULL"
    ).fetchone()[0]
    assert answered > 0, "self-play went past its first turn"
    groups = db.execute("SELECT count(*) AS n, sum(best) AS b FROM rollouts GROUP BY stage, step, prompt")
    assert all(g["n"] == 4 and g["b"] == 1 for g in groups)


def test_a_finished_run_resumes_to_itself(finished: Path, tmp_path: Path) -> None:
    before = content(finished)
    evolve(finished, None, Silent()).close()
    scores = json.loads((finished / "summary.json").read_text())["scores"]
    names = ["start", "cold-start", "iteration-1-rl", "iteration-1", "iteration-2-rl", "iteration-2"]
    assert list(scores) == names
    assert content(finished) == before


@pytest.mark.parametrize(
    "stop_at", ["iteration-1-rl", "evaluate-iteration-1-rl", "iteration-2-refit", "evaluate-iteration-1"]
)
def test_an_interrupted_stage_resumes_to_the_same_run(finished: Path, tmp_path: Path, stop_at: str) -> None:
    """Interrupted in the middle of a stage, then resumed: same store, metrics and weights."""
    folder, n = begun(finished, stop_at, tmp_path / "run"), 0

    def interrupt(stage: str, note: str) -> None:
        nonlocal n
        n += stage == stop_at
        if n == (1 if stop_at.startswith("evaluate") else 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(folder, None, Watcher(on_advance=interrupt))
    assert_goes_on_as_if_never_stopped(folder, finished, stop_at)


@pytest.mark.parametrize("stop_at", ["evaluate-start", "cold-start", "iteration-1-rl", "iteration-1-refit"])
def test_a_stop_request_ends_the_step_and_saves_it(
    finished: Path, short: Path, tiny_model: Path, data: Path, tmp_path: Path, stop_at: str
) -> None:
    """The first two from the very beginning of a run, without save.every_steps: the stop saves."""
    stop, steps = StopRequest(), {"before": 0, "after": 0}

    def ask(stage: str, note: str) -> None:
        if stage == stop_at:
            steps["before"] += bool(note)
            stop.asked = steps["before"] == 2 or stage == "evaluate-start"

    def count(stage: str, note: str) -> None:
        steps["after"] += bool(note) and stage == stop_at

    folder = tmp_path / "run"
    if "iteration" in stop_at:
        whole, config = finished, settings(tiny_model, data)
        begun(whole, stop_at, folder, config)
    else:
        whole, config = short, settings(tiny_model, data, *SHORT, "save.every_steps=0")
    with pytest.raises(Stopped):
        evolve(folder, None if folder.exists() else config, Watcher(on_advance=ask), stop)
    assert_goes_on_as_if_never_stopped(folder, whole, stop_at, Watcher(on_advance=count))
    if stop_at != "evaluate-start":
        total = sum(m[0] == stop_at for m in content(whole)["metrics"])
        assert steps == {"before": 2, "after": total - 2}, "no step is done twice"


def test_a_damaged_training_state_starts_its_stage_again(finished: Path, tmp_path: Path) -> None:
    folder = begun(finished, "iteration-1-rl", tmp_path / "run")

    def interrupt(stage: str, note: str) -> None:
        if list(folder.glob("checkpoints/.*/step-1.*")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(folder, None, Watcher(on_advance=interrupt))
    (state,) = folder.glob("checkpoints/.*/step-1.safetensors")
    state.write_bytes(state.read_bytes()[:5000])
    watcher = Watcher()
    assert_goes_on_as_if_never_stopped(folder, finished, "iteration-1-rl", watcher)
    assert any("step-1.safetensors: not a whole training state" in s for s in watcher.said)
    assert "iteration-1-rl starts again" in watcher.said


@pytest.mark.slow
@pytest.mark.extended
def test_sigkill_and_resume(short: Path, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Killed in the cold start and, resumed, in the RL stage."""
    from selfemo.config import to_toml

    folder, toml = tmp_path / "run", tmp_path / "c.toml"
    toml.write_text(to_toml(settings(tiny_model, data, *SHORT)))
    command = [sys.executable, "-m", "selfemo.cli", "evolve"]

    def arguments() -> list[str]:
        resuming = (folder / "config.toml").exists()
        return [
            *command,
            *(["--resume", str(folder)] if resuming else ["-c", str(toml), "--out", str(folder)]),
        ]

    def steps(stage: str) -> int:
        with suppress(sqlite3.OperationalError):
            db = sqlite3.connect(f"file:{folder / 'store.sqlite'}?mode=ro", uri=True)
            with closing(db):
                query = "SELECT count(*) FROM metrics WHERE stage = ?"
                return db.execute(query, [stage]).fetchone()[0]
        return 0

    for stage in ("cold-start", "iteration-1-rl"):
        process = subprocess.Popen(arguments(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not steps(stage):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    done = subprocess.run(arguments(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "From cold-start to iteration-1: " in done.stdout
    assert_same_run(folder, short)


@pytest.mark.parametrize("after", [0.0, 2.0])
def test_sigterm_says_how_to_resume(tiny_model: Path, data: Path, tmp_path: Path, after: float) -> None:
    from selfemo.config import to_toml

    folder, toml = tmp_path / "run", tmp_path / "c.toml"
    toml.write_text(to_toml(settings(tiny_model, data, "sft.epochs=500")))
    process = subprocess.Popen(
        [sys.executable, "-m", "selfemo.cli", "evolve", "-c", str(toml), "--out", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(600):
        if (folder / "store.sqlite").exists():
            break
        time.sleep(0.1)
    time.sleep(after)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"selfemo evolve --resume {folder}" in err.replace("\n", "")
    assert "Traceback" not in err


def test_refit_from_base_and_none(finished: Path, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    for refit in ("base", "none"):
        config = settings(
            tiny_model, data, f"flywheel.refit={refit}", "flywheel.iterations=1",
            "flywheel.prompts=6",
        )  # fmt: skip
        folder = begun(finished, "iteration-1-rl", tmp_path / refit, config)
        run = evolve(folder, None, Silent())
        info = json.loads(run.store.stage("iteration-1-refit")["info"])
        rl, after = (
            (folder / "checkpoints" / n / "model.safetensors").read_bytes()
            for n in ("iteration-1-rl", "iteration-1")
        )
        assert (rl == after) == (refit == "none")
        if refit == "base":
            cold = run.store.rows("SELECT count(*) AS n FROM samples WHERE source = 'gold'")[0]["n"]
            assert info["samples"] == cold + info["used"]
        run.close()


def test_a_model_that_never_parses_is_reported_not_a_crash(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    config = settings(
        tiny_model, data, "sft.epochs=1", "sft.lr=1e-9", "flywheel.iterations=1", "flywheel.prompts=6"
    )
    run = evolve(tmp_path / "run", config, Silent())
    info = json.loads(run.store.stage("iteration-1-rl")["info"])
    assert info.pop("labels_digest") == labels_record(run.store.labels_drawn())["labels_digest"]
    assert info == {"unparsed": 6, "labels": 6, "labelled_prompts": 6}
    refit = json.loads(run.store.stage("iteration-1-refit")["info"])
    assert refit["refit"].startswith("none")
    summary = finish(run, draw)
    scores = summary["scores"]["iteration-1"]["jsonl"]
    assert scores["parse_rate"][0] == 0 and sum(scores["failures"].values()) == 15
    run.close()


def test_long_histories_are_shortened_counted_or_skipped(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    config = settings(
        tiny_model, data, "prompt.max_tokens=150", "sft.epochs=1", "flywheel.iterations=1",
        "flywheel.prompts=6",
    )  # fmt: skip
    run = evolve(tmp_path / "run", config, Silent())
    info = json.loads(run.store.stage("cold-start")["info"])
    assert info["shortened"] > 0 and info["turns_dropped"] >= info["shortened"]
    run.close()
    tight = settings(
        tiny_model, data, "prompt.max_tokens=20", "sft.epochs=1", "flywheel.iterations=1",
        "flywheel.prompts=6",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"prompt\.max_tokens"):
        evolve(tmp_path / "tight", tight, Silent())


# -- refused input, through the command as a user meets it -------------------------------------------


def cli(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """The entry point of the command, in this process: what it prints and its exit code."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "argv", ["selfemo", *args])
        m.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            selfemo.cli.run()
    said = capsys.readouterr()
    assert "Traceback" not in said.err, said.err
    code = ended.value.code
    assert isinstance(code, int)
    return code, said.out + said.err


def test_bad_input_is_one_message(
    tiny_model: Path, data: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[grpo]\nlam_mx = 1\n")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "a", "turns": [{"speaker": "A", "text": "x", "emotion": "glee"}]}\n')
    (tmp_path / "folder").mkdir()
    for args, says in [
        (("evolve", "-c", str(bad)), f"error: {bad}: grpo.lam_mx: unknown key; did you mean grpo.lam_max?"),
        (("evolve", "-c", str(tmp_path / "no.toml")), "no such configuration file"),
        (("evolve", "--resume", str(tmp_path / "folder")), "is not a run folder"),
        (("evolve", "--resume", str(finished), "--set", "grpo.lr=1"), "a run that is resumed takes only"),
        (("data", "check", str(broken)), f"error: {broken}:1: turns[0]: unknown label 'glee'"),
        (("data", "check", str(tmp_path / "none.csv")), "no such file or folder"),
        (("evaluate", str(tmp_path / "folder"), "--data", str(data)), "not a model folder"),
        (
            ("predict", str(tmp_path / "none"), "-m", str(tiny_model), "--out", "x.csv"),
            "no such file or folder",
        ),
    ]:
        code, text = cli(capsys, *args)
        assert code == 1 and says in text.replace("\n", " "), (args, text)
    # And once as a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "selfemo.cli", "evolve", "-c", str(bad)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout and done.stderr.startswith(f"error: {bad}:")


def test_a_run_folder_is_used_by_one_process(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, data)
    run = RunFolder(tmp_path / "run", config)
    with pytest.raises(StoreError, match="in use by another process"):
        RunFolder(tmp_path / "run", None)
    run.close()
    with pytest.raises(StoreError, match="already holds a run"):
        RunFolder(tmp_path / "run", config)


def test_an_altered_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    weights = copy / "checkpoints" / "iteration-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    run = RunFolder(copy, None)
    with pytest.raises(EngineError, match="missing or altered"):
        run.weights("iteration-1")
    run.close()


# -- the stages alone ------------------------------------------------------------------------------


def test_stages_alone(finished: Path, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    runner = CliRunner()

    def call(*args: str) -> str:
        result = runner.invoke(app, [str(a) for a in args], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    out = json.loads(
        call("evaluate", finished, "--data", data, "--split", "test", "--out", tmp_path / "e", "--json")
        .strip().splitlines()[-1]
    )  # fmt: skip
    whole = json.loads((finished / "summary.json").read_text())["scores"]["iteration-2"]["jsonl"]
    assert out["scores"]["jsonl"] == rounded(whole) and out["trained_on"] == ["jsonl"]

    text = call("predict", data, "--model", finished, "--out", tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(lines) == 13 * 5 and "65 turns" in text
    assert lines[0]["text"] and lines[0]["predicted_emotion"] in lines[0]["distribution"]
    assert "emotion" in lines[0], "its gold is kept beside the prediction"

    played = call("selfplay", finished, "--data", data, "--prompts", "3", "--out", tmp_path / "sp")
    assert "store.sqlite" in played

    toml = tmp_path / "c.toml"
    from selfemo.config import to_toml

    toml.write_text(to_toml(settings(tiny_model, data)))
    call("sft", "--out", tmp_path / "model", "-c", toml, "--set", "sft.epochs=2")
    assert (tmp_path / "model" / "config.json").exists()
    call("train", tmp_path / "model", "--out", tmp_path / "rl", "-c", toml, "--set", "flywheel.prompts=6")
    assert (tmp_path / "rl" / "checkpoints" / "iteration-1-rl" / "config.json").exists()


def test_a_stopped_cold_start_goes_on(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """The command itself is stopped in the middle, says how to go on, and ends with the same weights."""
    from selfemo.config import to_toml

    toml, steps = tmp_path / "c.toml", 0
    toml.write_text(to_toml(settings(tiny_model, data, "sft.epochs=4", "save.every_steps=1")))

    def stop(stage: str, note: str) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), signal.SIGINT)

    def call(out: Path, *more: str):
        return CliRunner().invoke(app, ["sft", "--out", str(out), *more])

    assert call(tmp_path / "whole", "-c", str(toml)).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfemo.cli.output.reporter", lambda: Watcher(on_advance=stop))
        stopped = call(tmp_path / "cold", "-c", str(toml))
    assert stopped.exit_code == 130 and not (tmp_path / "cold").exists()
    beside = call(tmp_path / "cold", "--resume", "--set", "sft.epochs=2")
    assert beside.exit_code == 1 and "leave out the others" in str(beside.exception)
    nothing = call(tmp_path / "other", "--resume")
    assert nothing.exit_code == 1 and "is not a run folder" in str(nothing.exception)
    assert (done := call(tmp_path / "cold", "--resume")).exit_code == 0, done.output
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cold")]
    assert same[0] == same[1]


def test_a_stopped_evaluation_goes_on(finished: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    import selfemo.evaluation.predictions as evaluation

    monkeypatch.setattr(LocalSampler, "chunk", 4)
    asked: list[int] = []
    real = evaluation.predict

    def counted(sampler, prompts, *settings, beliefs):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return real(sampler, prompts, *settings, beliefs=beliefs)

    monkeypatch.setattr(evaluation, "predict", counted)
    args = (str(finished), [str(data)], tmp_path / "e", [], ["data.eval_split=test"], Silent())
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(*args)
    assert asked == [4, 4]
    asked.clear()
    asked.append(-1)
    monkeypatch.setattr(evaluation, "predict", real)
    scores = evaluate_model(*args).scores
    assert scores["jsonl"].utterances == 15
    whole = json.loads((finished / "summary.json").read_text())["scores"]["iteration-2"]["jsonl"]
    found = scores["jsonl"].as_dict()
    for key in ("temperature", "nll_tempered"):  # parts of another size round otherwise
        assert found["calibration"].pop(key) == pytest.approx(whole["calibration"].pop(key), rel=1e-3)
    assert found == whole


def test_a_stop_request_ends_an_evaluation_after_its_chunk(
    finished: Path, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(LocalSampler, "chunk", 4)
    stop = StopRequest()

    class Asking(Silent):
        def bar(self, label: str, total: int):
            @contextmanager
            def counted():
                def advance(k: int = 1, note: str = "") -> None:
                    stop.asked = True

                yield advance

            return counted()

    out = tmp_path / "e"
    args = (str(finished), [str(data)], out, [], ["data.eval_split=test"])
    with pytest.raises(Stopped):
        evaluate_model(*args, Asking(), stop=stop)
    assert len(content_of(out)) == 4 and not (out / "scores.json").exists()
    result = evaluate_model(*args, Silent(), other=finished)
    assert len(content_of(out)) == 15
    same = result.comparison["jsonl"]
    assert same.prompts == 15 and same.measures["mean_r1"].difference.value == 0
    with pytest.raises(StoreError, match=r"another model: iteration-2 .* there, tiny"):
        evaluate_model(str(tiny_model), [str(data)], out, [], ["data.eval_split=test"], Silent())


def test_predictions_by_probability(finished: Path, data: Path, tmp_path: Path) -> None:
    """Two data sets with label sets of their own in one evaluation; the untouched model is readable too."""
    from selfemo.method.rewards import weighted_iou
    from selfemo.runs.store import read_distribution

    sources, asked = [str(data), "sample"], "evaluation.span=probabilities"
    more = ["data.eval_split=test", "data.eval_conversations=2", asked]
    last, untouched = (
        evaluate_model(str(finished) + at, sources, tmp_path / f"e{at}", [], more, Silent())
        for at in ("", "@start")
    )
    for d, scores in untouched.scores.items():
        assert scores.parse_rate.value == 1 and not scores.failures, d
    with closing(sqlite3.connect(tmp_path / "e" / "store.sqlite")) as db:
        rows = db.execute("SELECT dataset, gold, predicted, r1, text FROM predictions").fetchall()
    assert {r[0] for r in rows} == {"jsonl", "sample"}
    for _, gold, predicted, r1, text in rows:
        said, truth = read_distribution(predicted), read_distribution(gold)
        assert sum(w for _, w in said.items()) == pytest.approx(1) and len(said) > 1
        assert r1 == pytest.approx(weighted_iou(said, truth)) and 0 < r1 < 1
        assert text == f"E: {max(said.items(), key=lambda x: x[1])[0]}"
    # It has learned the labels of the one and never saw the other.
    r1 = {name: e.scores["jsonl"].mean_r1.value for name, e in (("last", last), ("start", untouched))}
    assert r1["last"] > r1["start"]
    written = evaluate_model(
        str(finished), sources, None, [], [*more[:-1], "evaluation.span=emotion"], Silent()
    )
    assert last.scores["jsonl"].accuracy.value == written.scores["jsonl"].accuracy.value
    with pytest.raises(StoreError, match="with other settings"):
        evaluate_model(str(finished), sources, tmp_path / "e", [], more[:-1], Silent())


def test_samples_are_softened_and_a_cold_start_takes_them(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From gold samples of two data sets; what the model believes is what `evaluate` reads of it."""
    pytest.importorskip("polars")
    from selfemo.runs.inputs import cold_start_samples
    from selfemo.stages.coldstart import read_parquet, write_parquet

    gold, own, soft = (tmp_path / f"{n}.parquet" for n in ("gold", "own", "soft"))
    assert cli(capsys, "coldstart", "generate", "sample", "--conversations", "3", "--out", str(gold))[0] == 0
    assert cli(capsys, "coldstart", "generate", str(data), "--out", str(own))[0] == 0
    code, text = cli(
        capsys, "coldstart", "soften", str(finished), str(gold), str(own), "--out", str(soft),
        "--own-weight", "0.6", "--json",
    )  # fmt: skip
    counts = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    before = [*read_parquet(gold), *read_parquet(own)]
    after = read_parquet(soft)
    assert code == 0 and counts["samples"] == len(after) == len(before)
    several = 0
    for (p, c), (q, d) in zip(before, after, strict=True):
        assert p == q and c.reply == d.reply
        for given, got in ((c.emotion, d.emotion), (c.self_emotion, d.self_emotion)):
            assert got.weight(given.top(p.label_set)) >= 0.6 if len(given) == 1 else got == given
        several += len(d.emotion) > 1
    assert counts["several_emotions"] == several > 0
    config = load([], [f"sft.samples={soft}"])
    assert cold_start_samples([], config.sft, config.prompt.reasoning, 0)[0][0][1] == after[0][1]
    write_parquet(
        tmp_path / "thought.parquet", [(p, replace(c, reasoning="So.")) for p, c in before[:1]], "brief", "x"
    )
    for args, says in [
        (("--own-weight", "0.5"), "valid are 0.6 to 1"),
        ((str(gold),), "occurs twice"),
        ((str(tmp_path / "no.parquet"),), "cannot be read as Parquet"),
        ((str(tmp_path / "thought.parquet"),), "reason, and prompt.reasoning"),
    ]:
        files = () if "thought" in args[0] else (str(gold),)
        code, text = cli(capsys, "coldstart", "soften", str(finished), *files, *args, "--out", "x")
        assert code == 1 and says in text.replace("\n", " "), (args, text)


def content_of(folder: Path) -> list:
    db = sqlite3.connect(folder / "store.sqlite")
    return db.execute("SELECT prompt, text FROM predictions").fetchall()


def test_analysis_goes_on_by_checkpoint_and_says_the_same(finished: Path, tmp_path: Path) -> None:
    from selfemo.evaluation.analysis import analyse

    home = tmp_path / "run"
    shutil.copytree(finished, home)
    whole = analyse(home, 0, Silent())
    names = ["start", "cold-start", "iteration-1-rl", "iteration-1", "iteration-2-rl", "iteration-2"]
    assert list(whole["checkpoints"]) == names
    start, cold = whole["checkpoints"]["start"], whole["checkpoints"]["cold-start"]
    assert start["parsed"] == 0 and start["round_trip"]["r1"] is None
    assert start["entropy"]["emotion"] is None and start["entropy"]["all"][0] > 0
    assert cold["parsed"] > 2 and sum(cold["self_emotion"]["share"].values()) == pytest.approx(1)
    for span in ("emotion", "self_emotion", "reply"):
        value, low, high = cold["entropy"][span]
        assert 0 <= low <= value <= high < start["entropy"]["all"][0]
        assert cold["tokens"][span] >= cold["parsed"]
    trained = [whole["checkpoints"][c]["round_trip"] for c in ("cold-start", "iteration-1")]
    assert any(0 < t["r1"][0] <= 1 for t in trained)
    assert all(t["unread"] <= cold["prompts"] for t in trained)
    # A stop after two checkpoints, then the rest: the same content in the same order. One in the middle too,
    # which an earlier version did not analyse.
    saved = json.loads((home / "analysis.json").read_text())
    for name in ("iteration-1-rl", "iteration-2-rl", "iteration-2"):
        del saved["checkpoints"][name]
    saved["checkpoints"]["start"]["kept"] = True
    (home / "analysis.json").write_text(json.dumps(saved))
    again = analyse(home, 0, Silent())
    assert again["checkpoints"]["start"].pop("kept"), "what is done is not done again"
    assert again == whole and list(again["checkpoints"]) == names
    # Other prompts are another analysis; weights that are gone leave their checkpoint out.
    shutil.rmtree(home / "checkpoints" / "iteration-1")
    other = analyse(home, 4, Silent())
    assert list(other["checkpoints"]) == [n for n in names if n != "iteration-1"]
    (home / "analysis.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match=r"analysis\.json: not an analysis"):
        analyse(home, 4, Silent())


def test_the_report_is_one_file_that_asks_for_nothing_and_is_the_same_twice(
    finished: Path, tmp_path: Path
) -> None:
    from html.parser import HTMLParser

    home = tmp_path / "run"
    shutil.copytree(finished, home)
    db = sqlite3.connect(home / "store.sqlite")
    attack = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\x07\u202egnp"
    with db:
        db.execute("UPDATE predictions SET text = ?", (attack,))
        db.execute("UPDATE rollouts SET reply = ? WHERE best = 1", (attack,))
    db.close()
    judged = tmp_path / attack.split("/")[1][:12]
    judged.mkdir()
    kind = {"wins": 3, "ties": 1, "losses": 2, "win_rate": [0.6, 0.2, 0.9], "p_value": 0.7,
            "alpha": 0.4, "position_bias": 0.1, "flips": 1}  # fmt: skip
    record = {"a": attack, "b": "cold-start", "kinds": {"reply": kind}}
    (judged / "judge.json").write_text(json.dumps(record))
    pages = []
    for name in ("one", "two"):
        out = tmp_path / name / "report.html"
        result = CliRunner().invoke(app, ["report", str(home), "--judge", str(judged), "--out", str(out)])
        assert result.exit_code == 0, result.output
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]
    drawn = {f.name: f.read_bytes() for f in (tmp_path / "one" / "report-figures").iterdir()}
    names = ("fig3_judge", "fig5_held_out", "fig5_self_play", "entropy")
    assert {f"{n}.{suffix}" for n in names for suffix in ("svg", "png", "csv")} <= drawn.keys()
    for name, bytes_ in drawn.items():
        assert (tmp_path / "two" / "report-figures" / name).read_bytes() == bytes_, name
    page = pages[0].decode()
    assert page.count("&lt;script&gt;alert(1)") > 5 and "[U+0007][U+202E]gnp" in page
    assert "\x07" not in page and "\u202e" not in page
    found: list[tuple[str, dict]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs) -> None:
            found.append((tag, dict(attrs)))

    Reader().feed(page)
    assert not [t for t, _ in found if t in ("script", "iframe", "object", "embed", "base")]
    for tag, attrs in found:
        assert not [a for a in attrs if a.startswith("on")], (tag, attrs)
        for key in ("src", "href", "xlink:href"):
            assert (attrs.get(key) or "#").startswith(("#", "data:")), (tag, attrs)
    ids = [a["id"] for _, a in found if "id" in a]
    assert len(ids) == len(set(ids)), "ids are unique over all drawings"
    assert {"result", "table1", "curves", "judge", "dialogues", "failures", "config"} <= set(ids)
    assert f"selfemo analyse {home}" in page, "what is missing says how to make it"


def test_the_report_refuses_what_is_no_run_or_no_judgement(finished: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "r.html")]
    result = CliRunner().invoke(app, ["report", str(tmp_path), *out])
    assert isinstance(result.exception, StoreError) and "not a run folder" in str(result.exception)
    (tmp_path / "judge.json").write_text('{"kinds": {"reply": {}}}')
    result = CliRunner().invoke(app, ["report", str(finished), "--judge", str(tmp_path), *out])
    assert isinstance(result.exception, StoreError) and "judge.json" in str(result.exception)
    result = CliRunner().invoke(app, ["report", str(finished), "--ablation", str(tmp_path), *out])
    assert isinstance(result.exception, StoreError) and "ablation.json" in str(result.exception)
    result = CliRunner().invoke(app, ["report", str(finished), "--personas", str(tmp_path), *out])
    assert isinstance(result.exception, StoreError) and "persona clusters" in str(result.exception)
    result = CliRunner().invoke(app, ["report", str(finished), "--out", str(tmp_path)])
    assert isinstance(result.exception, StoreError) and "is a folder" in str(result.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["judge.json"], "no figures are left"
