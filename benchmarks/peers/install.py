"""One virtual environment for each peer, under ``build/peers/<name>``.

    python benchmarks/peers/install.py            # all of them
    python benchmarks/peers/install.py rectools   # some

Versions are pinned in ``requirements/<name>.txt``. torch is installed first
and alone, from where pip is configured to find its CPU build (``--find-links`` or an index of CPU
builds in pip's own settings). An environment that received a CUDA build is refused. An environment
whose requirements have not changed is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"
PEERS = ROOT / "build" / "peers"


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return PEERS / peer / "bin" / "python"


def install(peer: str) -> None:
    """Make the environment of one peer."""
    wanted = (REQUIREMENTS / f"{peer}.txt").read_text()
    done = PEERS / peer / "installed.txt"
    if done.exists() and done.read_text() == wanted:
        print(f"{peer}: as it should be")
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", PEERS / peer], check=True)
    pip = [python_of(peer), "-m", "pip", "install", "--quiet"]
    torch = [line for line in wanted.splitlines() if line.startswith("torch==")]
    if torch:
        subprocess.run([*pip, *torch], check=True)
        cuda = "import torch; raise SystemExit(torch.version.cuda is not None)"
        if subprocess.run([python_of(peer), "-c", cuda], check=False).returncode:
            raise SystemExit(f"{peer}: pip chose a CUDA build of torch; show it a CPU build")
    subprocess.run([*pip, "-r", REQUIREMENTS / f"{peer}.txt"], check=True)
    done.write_text(wanted)
    print(f"{peer}: installed")


def main() -> None:
    """Make the environments that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    parser.add_argument("peers", nargs="*", help=f"some of {', '.join(known)}; none: all")
    for peer in parser.parse_args().peers or known:
        install(peer)


if __name__ == "__main__":
    main()
