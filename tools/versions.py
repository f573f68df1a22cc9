"""Run `tools/smoke.py` on every version that can be had here, and write docs/versions.md: what was run, what was not.

    python tools/versions.py                     # make versions
    python tools/versions.py --only 2.13         # those whose line holds the text
    python tools/versions.py --keep .versions    # where the environments are kept between runs

One environment at a time: a CUDA build of torch takes 5 GB of disk. What cannot be installed is listed as not run, with
pip's own last line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Version(NamedTuple):
    """One environment: a Python, a torch, and a transformers or none."""

    python: str
    torch: str
    transformers: str | None

    def __str__(self) -> str:
        return f"python {self.python}, torch {self.torch}, transformers {self.transformers or 'none'}"


VERSIONS = (
    Version("3.11", "2.11.0", "5.23.0"),
    Version("3.11", "2.12.1", "5.23.0"),
    Version("3.11", "2.13.0", "5.23.0"),
    Version("3.11", "2.13.0", "5.24.0"),
    Version("3.11", "2.13.0", None),
    Version("3.11", "2.14.1", "5.24.0"),
    Version("3.11", "2.15.0", "5.24.0"),
    Version("3.10", "2.13.0", "5.24.0"),
    Version("3.12", "2.13.0", "5.24.0"),
    Version("3.13", "2.13.0", "5.24.0"),
)


class Ran(NamedTuple):
    """What an environment said: the answers of the smoke set by check, or why it could not be asked."""

    version: Version
    about: dict[str, str]
    checks: dict[str, dict[str, str]]
    reason: str = ""


ABOVE = """# Versions that were run

{written} Each row is an environment of its own in which
`tools/smoke.py` ran: the meaning against loops over ints, block tables against torch's, attention with gradients, one
graph over lengths, a compiled block mask, a transformers model under `install()`. The whole suite (`make test`) runs on
Python 3.11 and torch 2.13 with transformers 5.23 and 5.24. On a GPU nothing has been run yet; `make gpu` is what to run
there."""


def run(version: Version, folder: Path, keep: bool, free_gb: float) -> Ran:
    """Make the environment, install, run the smoke set."""
    python = shutil.which(f"python{version.python}")
    if python is None:
        return Ran(version, {}, {}, f"no python{version.python} here")
    if shutil.disk_usage(folder).free < free_gb * 1e9:
        return Ran(version, {}, {}, f"less than {free_gb:.0f} GB of disk are free")
    place = folder / f"py{version.python}-torch{version.torch}-hf{version.transformers or 'none'}"
    own = place / "bin" / "python"
    try:
        if not (place / "installed").exists():
            _call([python, "-m", "venv", "--clear", str(place)])
            wanted = [f"torch=={version.torch}"]
            _call([str(own), "-m", "pip", "install", "--quiet", *wanted])
            others = [str(ROOT), "numpy"] + ([f"transformers=={version.transformers}"] if version.transformers else [])
            _call([str(own), "-m", "pip", "install", "--quiet", *wanted, *others])
            (place / "installed").touch()
        done = subprocess.run(
            [str(own), str(ROOT / "tools" / "smoke.py"), "--json"], capture_output=True, text=True, timeout=1800
        )
        said = json.loads(done.stdout)
        return Ran(version, said["about"], said["checks"])
    except subprocess.CalledProcessError as error:
        return Ran(version, {}, {}, _last_line(error.stderr))
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        return Ran(version, {}, {}, f"{type(error).__name__} in the smoke set")
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)


def _last_line(text: str) -> str:
    lines = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR")]
    return lines[-1] if lines else "the installation failed"


def page(ran: list[Ran]) -> str:
    """docs/versions.md."""
    names = list(dict.fromkeys(name for entry in ran for name in entry.checks))
    written = (
        f"Written by `make versions` on {datetime.date.today()}, {platform.system()} {platform.machine()}, CPU only."
    )
    lines = [
        *ABOVE.format(written=written).splitlines(),
        "",
        "| Python | torch | transformers | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for entry in ran:
        if entry.checks:
            about = [entry.about["python"], entry.about["torch"], entry.version.transformers or "none"]
            cells = [_cell(entry.checks[name]) for name in names]
            lines.append("| " + " | ".join(about + cells) + " |")
    missing = [entry for entry in ran if not entry.checks]
    if missing:
        lines += ["", "Not run:", "", *(f"- {entry.version}: {entry.reason}" for entry in missing)]
    return "\n".join(lines) + "\n"


def _cell(check: dict[str, str]) -> str:
    return check["result"] if check["result"] == "passed" else f"{check['result']}: {check['words']}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/versions.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only the versions whose line holds this text")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the environments there for the next run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "versions.md")
    parser.add_argument("--free-gb", type=float, default=12.0, help="disk wanted for an environment")
    options = parser.parse_args()
    folder = options.keep or ROOT / ".versions"
    folder.mkdir(parents=True, exist_ok=True)
    ran = []
    for version in VERSIONS:
        if options.only not in str(version):
            continue
        ran.append(run(version, folder, options.keep is not None, options.free_gb))
        words = ran[-1].reason or ", ".join(f"{name} {c['result']}" for name, c in ran[-1].checks.items())
        print(f"{version}: {words}", flush=True)
    if not options.only:
        options.out.write_text(page(ran))
        print(f"wrote {options.out}")
    return int(any(c["result"] == "failed" for entry in ran for c in entry.checks.values()))


if __name__ == "__main__":
    sys.exit(main())
