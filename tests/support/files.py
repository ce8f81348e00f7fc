"""Small files in the forms of the data sets, with invented text; and where the real ones are."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

ROOT = Path(os.environ.get("SELFEMO_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
MELD_HEAD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode\n"
EMORY_HEAD = "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,Start_Time,End_Time\n"


def meld(folder: Path, *rows: str, name: str = "train_sent_emo.csv", head: str = MELD_HEAD) -> Path:
    path = folder / name
    path.write_bytes((head + "".join(r + "\n" for r in rows)).encode())
    return path


def emory_json(**changes) -> str:
    utterance = {"utterance_id": "u1", "speakers": ["Ann"], "transcript": "Hey.", "emotion": "Scared"}
    for key, value in changes.items():
        if value is None:
            del utterance[key]
        else:
            utterance[key] = value
    scene = {"scene_id": "s01_e02_c03", "utterances": [utterance]}
    return json.dumps({"episodes": [{"episode_id": "s01_e02", "scenes": [scene]}]})


def iemocap(root: Path, session: int = 1, evaluation: str | None = None) -> Path:
    name = f"Ses0{session}F_test01"
    base = root / f"Session{session}" / "dialog"
    (base / "transcriptions").mkdir(parents=True, exist_ok=True)
    (base / "EmoEvaluation").mkdir(parents=True, exist_ok=True)
    (base / "transcriptions" / f"{name}.txt").write_text(
        f"{name}_M000 [005.0000-006.0000]: Where is the key?\n"
        f"{name}_F000 [001.0000-002.0000]: Good morning.\n"
        f"{name}_F001 [007.0000-008.0000]: How should I know!\n"
        "F: aside without a time\n"
    )
    (base / "EmoEvaluation" / f"{name}.txt").write_text(
        evaluation
        or "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        f"[1.0000 - 2.0000]\t{name}_F000\tneu\t[2.5, 2.5, 2.5]\n"
        "C-E2:\tNeutral;\t()\nC-E3:\tNeutral;\t()\nC-E4:\tExcited;\t()\nC-F1:\tAnger;\t()\n"
        "A-E3:\tval 3; act 3; dom  3;\t()\n\n"
        f"[5.0000 - 6.0000]\t{name}_M000\txxx\t[2.5, 2.5, 2.5]\nC-E2:\tAnger;\t()\n\n"
        f"[7.0000 - 8.0000]\t{name}_F001\tfru\t[2.5, 2.5, 2.5]\nC-E2:\tOther;\t(annoyed)\n"
    )
    return root


def model_folder(folder: Path) -> Path:
    """A model folder with all its files and no tensor in them: enough for what loads no weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder
