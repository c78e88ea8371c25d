"""Search in Chinese, which has no spaces between words: the index has each character and each pair of neighbours.

What a reader types is taken apart in the same way, so any word that stands on a page is found, whatever a dictionary
takes for a word; Sphinx's own search in Chinese needs one (jieba, 19 MB), and the browser has none to split a
reader's words with. Latin words are stemmed as on the English pages.
"""

from __future__ import annotations

import re
from pathlib import Path

import snowballstemmer
from sphinx.application import Sphinx
from sphinx.search import SearchLanguage
from sphinx.search.en import SearchEnglish

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{HAN}]+|[^\W{HAN}]+")

# The same in the browser. A word of one character is looked up as it is, of a longer one each pair.
SPLIT_QUERY = rf"""
var splitQuery = (query) => (query.match(/[{HAN}]+|(?:(?![{HAN}])[\p{{L}}\p{{N}}_])+/gu) || []).flatMap((word) =>
  /^[{HAN}]{{2,}}$/.test(word) ? Array.from({{length: word.length - 1}}, (_, i) => word.slice(i, i + 2)) : [word]);
"""


def split(text: str) -> list[str]:
    """The terms of a text: words, and of Chinese the characters and the pairs of neighbours."""
    found = []
    for word in _WORDS.findall(text):
        if re.match(f"[{HAN}]", word):
            found += [*word, *(word[i : i + 2] for i in range(len(word) - 1))]
        else:
            found.append(word)
    return found


class ChineseByPairs(SearchLanguage):
    """For `app.add_search_language`: Sphinx takes it for zh_CN."""

    lang = "zh"
    language_name = SearchEnglish.language_name  # by this name the page looks for the stemmer
    js_stemmer_rawcode = SearchEnglish.js_stemmer_rawcode
    js_splitter_code = SPLIT_QUERY
    stopwords = SearchEnglish.stopwords

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__(options)
        self.stemmer = snowballstemmer.stemmer("english")

    def split(self, input: str) -> list[str]:
        return split(input)

    def stem(self, word: str) -> str:
        return str(self.stemmer.stemWord(word.lower()))


# What stands in the SVGs of the pages, beyond names; other pictures show programs, which speak English.
PICTURES = {
    "loss on the validation text (nats a character)": "验证文本上的损失（奈特每字符）",  # noqa: RUF001
    "seconds of training": "训练时间（秒）",  # noqa: RUF001
}


def translate_pictures(app: Sphinx, exception: Exception | None) -> None:
    """Write the Chinese words into the pictures of a Chinese site."""
    if not app.config.language.startswith("zh"):
        return
    for path in (Path(app.outdir) / "_images").glob("*.svg"):
        english = chinese = path.read_text(encoding="utf-8")
        for words, translation in PICTURES.items():
            chinese = chinese.replace(f">{words}<", f">{translation}<")
        if chinese != english:
            path.write_text(chinese, encoding="utf-8")
