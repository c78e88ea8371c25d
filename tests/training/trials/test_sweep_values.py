"""What --sweep asks for: its settings and their values, the mistakes in them, and the names of the runs' folders."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence
from tests.training.trials.helpers import SWEEP
from tinygpt.cli.parser import OptionParser
from tinygpt.errors import UsageError
from tinygpt.training.settings.config_file import keys_of
from tinygpt.training.trials.sweep import TRIED, Search, _require_tried, read_sweep, rows_of

KEYS = keys_of(OptionParser(source="tinygpt.cli.train").parse_args([]))


@pytest.mark.parametrize(
    ("asked", "values"),
    [
        (SWEEP, {"lr": [1e-4, 0.02], "dropout": [0.0, 0.1]}),
        ("lr=3e-4", {"lr": [3e-4]}),
        ("  lr = 1 , .5;\nn-layer=1,2 ;", {"lr": [1.0, 0.5], "n_layer": [1, 2]}),
        ("bias=true,False optimizer=adamw,lion", {"bias": [True, False], "optimizer": ["adamw", "lion"]}),
        ("freeze='wte,wpe',\"h.0\"", {"freeze": ["wte,wpe", "h.0"]}),
    ],
)
def test_what_is_asked_for(asked: str, values: dict[str, Any]) -> None:
    found = read_sweep(asked, KEYS)
    assert list(found.items()) == list(values.items())
    assert read_sweep(Search(Path(), "train", found, {}).asked, KEYS) == found
    assert [type(value) for part in found.values() for value in part] == [
        type(value) for part in values.values() for value in part
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("", "is not of the form key=value,value"),
        ("lr", "'lr' is not of the form"),
        ("lr=", "'lr=' is not of the form"),
        ("lr=1,,2", "'lr=1,,2' is not of the form"),
        ("lr=1,dropout=0", "is not of the form"),
        ("lr=1 2", "'2' is not of the form"),
        ("learning_rate=1", r"there is no setting learning_rate: did you mean lr\?"),
        ("droput=0,0.1", r"there is no setting droput: did you mean dropout\?"),
        ("lr=fast", 'lr must be a number, not "fast"'),
        ("batch_size=4.0", "batch_size must be a whole number, not 4.0"),
        ("bias=1", 'bias must be true or false, not "1"'),
        ("optimizer=adamv", "optimizer must be one of adamw, .*, not 'adamv'"),
        ("lr=1 dropout=0 lr=2", "lr is there twice"),
        ("lr=1e-4,0.0001", "lr has the value 0.0001 twice"),
        ("block_size=8,16", "block_size changes what the validation loss is measured on"),
        ("data=a,b", "data changes what the validation loss is measured on"),
        ("tokenizer=bpe,byte", "tokenizer changes what"),
        ("out=a,b", "out says where a run goes"),
        ("resume=true", "resume can be given on the command line only"),
        ("log_every=1,2", "log_every changes nothing of what a run learns"),
        ("watts=1,2", "watts changes nothing of what a run learns"),
        ("lr=0.1,nan", "lr=nan: .*lr must be above 0, not nan"),
        ("lr=0.1,0", "lr=0: training: lr must be above 0"),
        ("n_head=2,3", "n_head=3: .*n_head"),
        ("batch_size=2,4", "give --eval-batches 0"),
        ("epochs=1,2 steps=3", "give either --epochs or --steps"),
        ("lora_rank=2,4", "--lora-rank trains an adapter"),
    ],
)
def test_mistakes_are_said_before_the_first_run(train: Any, tmp_path: Path, asked: str, words: str) -> None:
    assert_one_sentence(train(asked), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_it_is_decided_for_each_setting_whether_it_is_searched_over(command: str) -> None:
    for name in (keys := keys_of(OptionParser(source=f"tinygpt.cli.{command}").parse_args([]))):
        with contextlib.nullcontext() if name in TRIED else pytest.raises(UsageError) as refused:
            _require_tried(name)
        assert name in TRIED or "is not searched over" not in str(refused.value), name
    assert {"lr", "seed", "dropout", "batch_size", "lora_rank", "optimizer"} <= TRIED
    assert "lr" in keys


def test_names_of_folders_differ_and_are_readable() -> None:
    found = [row.folder for row in rows_of({"lr": [1e-4, 1e-05], "freeze": ["h.0/x", "h.0:x"], "bias": [True]})]
    assert found[0] == "lr=0.0001,freeze=h.0_x,bias=true"
    assert found[1] == f"{found[0]}-2"
    assert found[2] == "lr=1e-05,freeze=h.0_x,bias=true"
    long = [row.folder for row in rows_of({"freeze": ["h." * 200 + end for end in "ab"]})]
    assert len(set(long)) == 2
    assert max(map(len, long)) < 200
