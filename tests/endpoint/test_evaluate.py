"""`selfemo evaluate` of an endpoint over real HTTP: faults, resume, refusals, comparison."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfemo.errors import ConfigError, DataError, EndpointError, StoreError
from selfemo.evaluation.jobs import endpoint_of, evaluate_model, predictions_of
from selfemo.evaluation.predictions import gold_prompts
from selfemo.method.prompts import messages
from selfemo.models.generation import endpoint
from selfemo.progress import Quiet, Stopped, StopRequest
from selfemo.runs.inputs import load_conversations
from selfemo.runs.settings import settings_for
from tests.support.expert_server import format_answer
from tests.support.experts import write_conversations

HTTP = ("429-after", "429", "500", "drop", "cut-body", "no-chat")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.02)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_conversations(tmp_path / "data.jsonl", 20)


def run(url: str, data: Path, out: Path | None, *overrides: str, **more):
    model = f"e={url},model=planted,timeout=1,attempts=12,concurrency=4"
    return evaluate_model(model, [str(data)], out, [], list(overrides), Quiet(), **more)


def predictions(out: Path) -> dict:
    return {r["prompt"]: (r["predicted"], r["failure"], r["r1"], r["text"]) for r in predictions_of(out)}


def test_answers_are_read_as_a_local_models_are(expert, data: Path, tmp_path: Path) -> None:
    result = run(expert(), data, tmp_path / "e")
    config, _ = settings_for("builtin:smollm2-135m", [str(data)], [], [])
    prompts = gold_prompts(load_conversations(config.data))
    found = predictions(tmp_path / "e")
    assert len(found) == len(prompts) == 80
    failed = 0
    for p in prompts:
        said = format_answer(messages(p))
        predicted, failure, r1, text = found[p.id]
        assert text == said
        if "melancholy" in said:
            assert predicted is None and failure == "unknown_emotion" and r1 == 0
            failed += 1
        else:
            first = said.split()[1]
            assert json.loads(predicted)[first] == 0.7
    scores = result.scores["jsonl"]
    assert 0 < failed == scores.failures["unknown_emotion"]
    assert sum(row[-1] for row in scores.confusion["rows"]) == failed
    assert scores.calibration["n"] == 80 - failed
    assert json.loads((tmp_path / "e" / "scores.json").read_text()) == json.loads(
        json.dumps(result.as_dict())
    )


def test_parquet_holds_every_prediction(expert, data: Path, tmp_path: Path) -> None:
    import polars as pl

    result = run(expert(), data, tmp_path / "e")
    frame = pl.read_parquet(tmp_path / "e" / "predictions.parquet")
    assert frame.height == 80 and frame["turn"].unique().sort().to_list() == [0, 1, 2, 3]
    accuracy = (frame["gold"] == frame["predicted"]).mean()
    assert accuracy == pytest.approx(result.scores["jsonl"].accuracy.value)
    assert frame["r1"].mean() == pytest.approx(result.scores["jsonl"].mean_r1.value)


@pytest.mark.parametrize("fault", HTTP)
def test_faults_change_nothing(expert, data: Path, tmp_path: Path, fault: str) -> None:
    calm = run(expert(), data, tmp_path / "calm")
    rough = run(expert(only=fault, times=2), data, tmp_path / "rough")
    assert predictions(tmp_path / "rough") == predictions(tmp_path / "calm")
    assert rough.scores == calm.scores


def test_a_stop_request_keeps_what_was_answered_and_goes_on(expert, data: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    url = expert(log=log, latency=0.01)
    stop = StopRequest()

    class Asking(Quiet):
        def bar(self, label: str, total: int):
            from contextlib import contextmanager

            @contextmanager
            def bar():
                done = 0

                def advance(n: int = 1, note: str = "") -> None:
                    nonlocal done
                    done += n
                    stop.asked = done >= 10

                yield advance

            return bar()

    model = f"e={url},model=planted,concurrency=4"
    with pytest.raises(Stopped):
        evaluate_model(model, [str(data)], tmp_path / "e", [], [], Asking(), stop=stop)
    kept = predictions(tmp_path / "e")
    assert 10 <= len(kept) < 40 and len(log.read_text().split()) == len(kept)
    run(url, data, tmp_path / "e")
    assert len(log.read_text().split()) == 80, "no answer is asked for twice"
    again = run(url, data, tmp_path / "e")
    assert len(log.read_text().split()) == 80
    assert again.scores == run(expert(), data, tmp_path / "fresh").scores


def test_sigint_and_kill_9_through_the_command(expert, tmp_path: Path) -> None:
    data, log = write_conversations(tmp_path / "d.jsonl", 60), tmp_path / "log"
    url = expert(log=log, latency=0.05)
    command = [sys.executable, "-m", "selfemo.cli", "evaluate",
               f"e={url},model=planted,concurrency=4", "--data", str(data), "--out",
               str(tmp_path / "e"), "--json"]  # fmt: skip

    def started() -> subprocess.Popen[str]:
        before = len(log.read_text().split()) if log.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3000):
            if log.exists() and len(log.read_text().split()) > before + 20:
                return process
            time.sleep(0.02)
        raise AssertionError("it never asked")

    process = started()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in err.replace("\n", " "), err
    assert "Traceback" not in err
    process = started()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["scores"]["jsonl"]["utterances"] == 240
    assert len(log.read_text().split()) <= 240 + 4, "at most those under way at the kill come twice"


def test_prompts_left_without_an_answer_are_no_failures_and_are_asked_again(
    expert, data: Path, tmp_path: Path
) -> None:
    """One attempt a question, a quarter of them fail: each run leaves some, and goes on with those."""
    url, left = expert(faults=0.25, hang=1.2), []
    model = f"e={url},model=planted,timeout=1,concurrency=8,attempts=1"
    for _ in range(12):
        try:
            evaluate_model(model, [str(data)], tmp_path / "e", [], [], Quiet())
            break
        except EndpointError as e:
            left.append(int(re.search(r"left (\d+) of", str(e))[1]))
            assert len(predictions(tmp_path / "e")) == 80 - left[-1]
    assert left and left == sorted(left, reverse=True)
    found = predictions(tmp_path / "e")
    assert len(found) == 80
    kinds = {f for _, f, *_ in found.values()} - {None}
    assert kinds <= {"unknown_emotion", "extra_text", "no_emotion"}, "only what was answered fails"


def test_a_dead_endpoint_is_one_message(data: Path, tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="nothing answers at"):
        evaluate_model("e=http://127.0.0.1:9/v1,model=m", [str(data)], None, [], [], Quiet())


def test_a_folder_of_another_evaluation_is_refused(expert, data: Path, tmp_path: Path) -> None:
    url, out = expert(), tmp_path / "e"
    run(url, data, out)
    before = (out / "scores.json").read_text()
    with pytest.raises(StoreError, match=r"other settings: .*max_new_tokens 512.*max_new_tokens 9.* now"):
        run(url, data, out, "evaluation.max_new_tokens=9")
    with pytest.raises(StoreError, match="another model: planted at"):
        evaluate_model(f"e={url},model=other", [str(data)], out, [], [], Quiet())
    with pytest.raises(StoreError, match="other data: 80 prompts"):
        run(url, write_conversations(tmp_path / "other.jsonl", 20, "fear"), out)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    with pytest.raises(StoreError, match="is a run folder"):
        run(url, data, tmp_path / "run")
    assert (out / "scores.json").read_text() == before


def test_compare_on_the_same_prompts(expert, data: Path, tmp_path: Path) -> None:
    first, second = expert(), expert(salt="other")
    a = run(first, data, tmp_path / "a")
    b = run(second, data, tmp_path / "b", other=tmp_path / "a")
    found = b.comparison["jsonl"]
    assert found.prompts == found.of == 80 and found.conversations == 20
    for m in ("accuracy", "weighted_f1", "mean_r1"):
        values = [getattr(r.scores["jsonl"], m).value for r in (a, b)]
        assert found.measures[m].difference.value == pytest.approx(values[1] - values[0])
    same = run(first, data, tmp_path / "c", other=tmp_path / "a").comparison["jsonl"]
    assert same.measures["weighted_f1"].p_value == 1
    part = run(first, write_conversations(tmp_path / "part.jsonl", 5), tmp_path / "p", other=tmp_path / "a")
    assert (part.comparison["jsonl"].prompts, part.comparison["jsonl"].of) == (20, 80)
    with pytest.raises(DataError, match="another gold emotion"):
        run(first, write_conversations(tmp_path / "f.jsonl", 5, "fear"), None, other=tmp_path / "a")
    with pytest.raises(StoreError, match="evaluate the other model with --out first"):
        run(first, data, None, other=tmp_path)


def test_how_an_endpoint_is_named() -> None:
    assert endpoint_of("builtin:smollm2-135m") is None and endpoint_of("runs/a=b") is None
    spec = endpoint_of("gpt=https://host/v1,model=m")
    assert spec.temperature == 0 and spec.model == "m"
    assert endpoint_of("gpt=https://host/v1,model=m,temperature=0.7").temperature == 0.7
    with pytest.raises(ConfigError, match="leave json= out"):
        endpoint_of("gpt=https://host/v1,model=m,json=schema")
    with pytest.raises(ConfigError, match="model: is missing"):
        endpoint_of("gpt=https://host/v1")


def test_an_endpoint_has_no_probabilities_to_read(tmp_path: Path) -> None:
    asked = ["evaluation.span=probabilities"]
    with pytest.raises(ConfigError, match=r"gpt: .*needs the weights of the model"):
        evaluate_model("gpt=https://host/v1,model=m", ["sample"], tmp_path / "e", [], asked, Quiet())


def test_scripted_answers_are_evaluated_without_a_model(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "answers.jsonl"
    script.write_text(json.dumps("E: joy 7, fear 3\nS: joy\nR: Hooray."))
    result = evaluate_model(
        f"scripted:{script}", [str(data)], tmp_path / "e", [], ["evaluation.span=all"], Quiet()
    )
    found = predictions(tmp_path / "e")
    assert len(found) == 80 and {text for *_, text in found.values()} == {
        "E: joy 7, fear 3\nS: joy\nR: Hooray."
    }
    joys = sum(r1 > 0.5 for _, _, r1, _ in found.values())
    assert result.scores["jsonl"].accuracy.value == pytest.approx(joys / 80)
