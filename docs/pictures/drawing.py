"""An SVG of boxes, arrows and letters, in the colours of the page that it is in."""

from __future__ import annotations

import math
from html import escape

STYLE = (
    "<style>svg { --ink: #1b1f24; --soft: #eaeef3; --edge: #8a929c; --value: #1f5fbf; --gradient: #b3261e }\n"
    "@media (prefers-color-scheme: dark) { svg { --ink: #e6e8eb; --soft: #2a2f37; --edge: #7d8590; "
    "--value: #86b5ff; --gradient: #ff9a8f } }</style>"
)
WIDTH = 340


class Drawing:
    def __init__(self, name: str, height: float, title: str, description: str) -> None:
        self.name, self.height = name, height
        self.parts = [f'<title id="{name}-title">{escape(title)}</title>']
        self.parts.append(f'<desc id="{name}-desc">{escape(description)}</desc>')

    def add(self, markup: str) -> None:
        self.parts.append(markup)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        color: str = "ink",
        anchor: str = "middle",
        size: float = 12,
        code: bool = False,
    ) -> None:
        font = "monospace" if code else "sans-serif"
        style = f"fill:var(--{color});font:{number(size)}px {font}"
        self.add(f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}" style="{style}">{escape(text)}</text>')

    def box(
        self, x: float, y: float, w: float, h: float, fill: str = "soft", edge: str = "edge", dash: bool = False
    ) -> None:
        inside = "none" if fill == "none" else f"var(--{fill})"
        style = f"fill:{inside};stroke:var(--{edge})" + (";stroke-dasharray:3 3" if dash else "")
        numbers = " ".join(
            f'{key}="{number(v)}"' for key, v in zip(("x", "y", "width", "height"), (x, y, w, h), strict=True)
        )
        self.add(f'<rect {numbers} style="{style}"/>')

    def path(
        self,
        *points: tuple[float, float],
        color: str = "ink",
        width: float = 1.4,
        arrow: bool = True,
        dash: bool = False,
    ) -> None:
        """A line through points, with an arrowhead at its end."""
        way = " L".join(f"{number(x)} {number(y)}" for x, y in points)
        style = f"fill:none;stroke:var(--{color});stroke-width:{number(width)}" + (
            ";stroke-dasharray:3 3" if dash else ""
        )
        self.add(f'<path d="M{way}" style="{style}"/>')
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            angle, head = math.atan2(y1 - y0, x1 - x0), 4 + width
            corners = [(x1, y1)] + [
                (x1 - head * math.cos(angle + turn), y1 - head * math.sin(angle + turn)) for turn in (0.45, -0.45)
            ]
            triangle = " ".join(f"{number(x)},{number(y)}" for x, y in corners)
            self.add(f'<polygon points="{triangle}" style="fill:var(--{color})"/>')

    def circle(self, x: float, y: float, r: float, fill: str = "value", edge: str = "none") -> None:
        inside, outside = ("none" if name == "none" else f"var(--{name})" for name in (fill, edge))
        self.add(f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(r)}" style="fill:{inside};stroke:{outside}"/>')

    def plus(self, x: float, y: float) -> None:
        self.circle(x, y, 9, "soft", "ink")
        self.path((x - 5, y), (x + 5, y), arrow=False)
        self.path((x, y - 5), (x, y + 5), arrow=False)

    def svg(self) -> str:
        labels = f'role="img" aria-labelledby="{self.name}-title {self.name}-desc"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {number(self.height)}" {labels}>'
        return "\n".join([head, STYLE, *self.parts, "</svg>", ""])


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
