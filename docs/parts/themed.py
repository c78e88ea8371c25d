"""Pictures in two colors: `<picture>`, as GitHub shows it, becomes two images of which furo shows one.

Of HTML in a page Sphinx knows nothing: it would neither copy the files nor offer the words for translation.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.transforms import SphinxTransform

PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\s*'
    r'<img src="([^"]+)" alt="([^"]+)">\s*</picture>\s*'
)


class ThemedPictures(SphinxTransform):
    default_priority = 9  # before translation

    def apply(self, **options: Any) -> None:
        for node in list(self.document.findall(nodes.raw)):
            found = PICTURE.fullmatch(node.astext())
            if found:
                images = [
                    nodes.image("", uri=uri, alt=found[3], classes=[f"only-{theme}"])
                    for uri, theme in ((found[2], "light"), (found[1], "dark"))
                ]
                for image in images:
                    image.source, image.line = node.source or self.document["source"], node.line
                node.replace_self(nodes.container("", *images, classes=["themed"]))
