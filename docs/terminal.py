"""The picture of tinygpt at work, docs/terminal.svg: what two commands print in a terminal.

    python docs/terminal.py --data tinyshakespeare.txt    # runs them, and writes terminal.txt and terminal.svg
    python docs/terminal.py                               # draws terminal.svg again from terminal.txt

terminal.txt is the record: each command after a `$`, and its output below, unchanged. The tests hold the picture
against it.
"""

from __future__ import annotations

import argparse
import html
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
RECORD, PICTURE = DOCS / "terminal.txt", DOCS / "terminal.svg"
COMMANDS = (
    "tinygpt train shakespeare.txt --preset fast --out out/fast",
    'tinygpt sample --model out/fast --prompt "ROMEO:" --max-new-tokens 240 --stats',
)
COLUMNS = 100
WIDTH, HEIGHT, MARGIN, SIZE = 7.8, 18, 20, 13  # of a character, of a line, around, of the letters; in pixels
STYLE = (
    "text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d8dee9}"
    ".command{fill:#a3be8c;font-weight:700}"
)


def record(data: Path) -> str:
    """What the commands print, in a folder of their own, one after the other."""
    program = shutil.which("tinygpt") or sys.exit("there is no program tinygpt: pip install -e .")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(data, Path(folder) / "shakespeare.txt")
        for command in COMMANDS:
            print(command, flush=True)
            done = subprocess.run(
                [program, *shlex.split(command)[1:]], cwd=folder, text=True, check=True, encoding="utf-8",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUTF8": "1"},
            )  # fmt: skip
            lines += [f"$ {command}", *done.stdout.rstrip().splitlines(), ""]
    return "\n".join(lines)


def picture(text: str) -> str:
    """The record as SVG; a line that is too long goes on in the next, as in a terminal."""
    rows = []
    for line in text.splitlines():
        kind = "command" if line.startswith("$ ") else ""
        rows += [(line[i : i + COLUMNS], kind) for i in range(0, max(1, len(line)), COLUMNS)]
    width, height = round(COLUMNS * WIDTH) + 2 * MARGIN, len(rows) * HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="tinygpt in a terminal" font-size="{SIZE}">',
        f'<style>{STYLE}</style><rect width="100%" height="100%" rx="8" fill="#2e3440"/>',
    ]
    for number, (row, kind) in enumerate(rows):
        if not row.strip():
            continue
        y, length = MARGIN + (number + 0.75) * HEIGHT, round(len(row) * WIDTH, 1)
        shown = html.escape(row, quote=False)
        attributes = f' class="{kind}"' * bool(kind) + f' x="{MARGIN}" y="{y:g}" textLength="{length:g}"'
        parts.append(f'<text{attributes} xml:space="preserve">{shown}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="tinyshakespeare: run the commands on it")
    options = parser.parse_args()
    if options.data is not None:
        RECORD.write_text(record(options.data), encoding="utf-8")
    PICTURE.write_text(picture(RECORD.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
