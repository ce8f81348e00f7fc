"""The queue as a whole: its table, its next step, the commands on its page."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from experiments import tables
from experiments.gpu import __main__ as page
from experiments.gpu import baselines, evidence, expression, scarce, steps, study

README = (Path(steps.__file__).parent / "README.md").read_text()


def at(folder: Path, monkeypatch: pytest.MonkeyPatch, **results: dict[str, Any]) -> list[steps.Step]:
    """The steps with other results."""
    monkeypatch.setattr(steps, "RESULTS", folder)
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps({"device": "a card", **result}))
    fresh = tuple(steps.Step(**{k: getattr(s, k) for k in s.__dataclass_fields__}) for s in steps.STEPS)
    monkeypatch.setattr(steps, "STEPS", fresh)
    return list(fresh)


def of(arms: list[str], seed: int) -> dict[str, Any]:
    return {"runs": [{"run": "start"}, *({"run": a, "arm": a, "seed": seed} for a in arms)]}


def test_the_readme_has_the_table_of_the_queue() -> None:
    assert steps.table() in README, "paste the table that `python -m experiments.gpu` prints"
    assert [s.number for s in steps.STEPS] == sorted((s.number for s in steps.STEPS), key=int)


def test_the_readme_tells_the_primary_endpoint_as_the_tables_compute_it() -> None:
    assert f"+{100 * tables.WANTED:.2f} points" in README and tables.PRIMARY == ("start", "full")
    assert tables.PRIMARY_SEEDS == evidence.SEEDS == (0, 1, 2)
    for arm in evidence.ARMS:
        assert f"| `{arm}` |" in README
    assert f"at most {study.START_HITS:.0%} of the dev" in README
    assert f"at most {study.START_NLL:.3f} nats".replace(" 0.", " .") in README
    assert f"{scarce.MOST:,} gold prompts an arm" in README


def test_the_next_step_is_the_first_that_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = list(evidence.FIRST)
    done = {"rl_alone": json.loads((study.HERE / "results" / "rl_alone.json").read_text())}
    done["engine"] = {"planned": ["a", "b"], "rows": {"a": {}, "b": {"failed": "it is told"}}}
    found = at(tmp_path, monkeypatch, **done, evidence_0=of(arms, 0), evidence_1=of(arms[:2], 1))
    states = {s.name: s.state for s in found}
    assert states["evidence, seed 0"] == "done (a card)"
    assert states["evidence, seed 1"] == f"2 of {len(arms)} runs (a card)"
    assert states["evidence, other arms, seed 0"] == f"3 of {len(evidence.ARMS)} runs (a card)"
    assert states["evidence, seed 2"] == "open" and states["expression, seed 0"] == "open"
    page.main()
    told = capsys.readouterr().out
    assert "Next: evidence, seed 1; its result goes to experiments/gpu/results/evidence_1.json" in told
    assert told.rstrip().endswith("--out OUT --after experiments/gpu/results/evidence_1.json")
    # A start that knows nothing is a result; runs of another seed are none of this step.
    again = at(tmp_path, monkeypatch, evidence_1={"runs": [], "stopped": "why"}, evidence_2=of(arms, 0))
    states = {s.name: s.state for s in again}
    assert states["evidence, seed 1"] == "stopped (a card)"
    assert states["evidence, seed 2"].startswith("0 of")
    assert steps.next_step() is again[4]


def test_the_queue_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for s in steps.STEPS:
        runs = [{"run": f"{a}{k}", "arm": a, "seed": k} for a, k in s.runs or ()]
        rows = {"planned": ["a"], "rows": {"a": {}}}
        at(tmp_path, monkeypatch, **{n: {"runs": runs} if s.runs else rows for n in s.results})
    page.main()
    assert "All steps with a script are done." in capsys.readouterr().out


@pytest.mark.parametrize("step", [s for s in steps.STEPS if s.runs], ids=lambda s: s.name)
def test_the_command_of_each_step_is_one(step: steps.Step, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Any]()
    for module in (study, evidence, expression, scarce, baselines):
        monkeypatch.setattr(module, "run_step", lambda args, *rest, **more: made.append(args))
    words = shlex.split(step.command.replace("meld:PATH", "sample").replace("emorynlp:PATH", "sample"))
    module = __import__(words[3], fromlist=["main"])
    module.main(words[4:])
    (args,) = made
    assert args.data == ["sample", "sample"] and args.out == Path("OUT")
    assert (args.after is not None) == bool(step.there)


def shell(part: str) -> str:
    """The commands of the README below a sentence, as one script."""
    _, _, behind = README.partition(part)
    block = re.search(r"\n\n((?:    .*\n)+)\n", behind)
    assert block
    return re.sub(r"^    ", "", block[1], flags=re.MULTILINE)


def test_weights_are_parted_and_joined_by_the_commands_of_the_readme(tmp_path: Path) -> None:
    part = shell("a folder travels in pieces\nof at most 45 MiB").replace("45M", "64k")
    join = shell("There join them")
    weights = tmp_path / "FOLDER"
    (weights / "inside").mkdir(parents=True)
    content = bytes(range(256)) * 1000
    (weights / "model.safetensors").write_bytes(content)
    (weights / "inside" / "config.json").write_text("{}")
    subprocess.run(["bash", "-ec", part], cwd=tmp_path, check=True)
    subprocess.run(["bash", "-ec", part], cwd=tmp_path, check=True)  # pieces of before are gone
    carried = tmp_path / "runs" / "carry"
    pieces = sorted(carried.glob("part-*"))
    assert len(pieces) >= 4 and all(p.stat().st_size <= 64 * 1024 for p in pieces)

    def joined() -> int:
        return subprocess.run(["bash", "-c", join], cwd=carried, capture_output=True).returncode

    kept, model = pieces[1].read_bytes(), carried / "MODEL"
    for fault in (lambda: pieces[1].unlink(), lambda: pieces[1].write_bytes(kept[::-1])):
        fault()
        assert joined() != 0 and not model.exists(), "a missing or damaged piece"
    pieces[1].write_bytes(kept)
    assert joined() == 0
    assert (model / "model.safetensors").read_bytes() == content
    assert (model / "inside" / "config.json").read_text() == "{}"
