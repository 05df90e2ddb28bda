"""CrowS-Pairs and StereoSet from malformed files: well-formed items or a message, nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.crows_pairs import CrowsPairs
from fedbias_plugin.metrics.stereoset import StereoSet
from fedbias_plugin.scoring.items import ids_hash
from tests.hostile_data.generators import cases, csv_bytes, damaged, is_text, json_bytes, outcome, texts, values

CROWS_COLUMNS = ("id", "sent_more", "sent_less", "stereo_antistereo", "bias_type")
LABELS = ("stereotype", "anti-stereotype", "unrelated")


@st.composite
def pairs(draw: st.DrawFn) -> list[dict[str, str]]:
    """Up to five pairs, most of them whole."""
    found = []
    for number in range(draw(st.integers(0, 5))):
        row = {"id": str(number), "sent_more": f"He {number}.", "sent_less": f"She {number}."}
        row |= {"stereo_antistereo": "stereo", "bias_type": "gender"}
        if draw(st.integers(0, 3)) == 0:
            row[draw(st.sampled_from(CROWS_COLUMNS))] = draw(texts)
        found.append(row)
    return found


@st.composite
def clusters(draw: st.DrawFn) -> list[Any]:
    """Up to four clusters, most of them whole."""
    found: list[Any] = []
    for number in range(draw(st.integers(0, 4))):
        sentences = [{"id": f"{number}-{label}", "sentence": label, "gold_label": label} for label in LABELS]
        cluster = {"id": str(number), "target": "chess player", "bias_type": "profession", "context": "A BLANK."}
        if draw(st.integers(0, 3)) == 0:
            damage = draw(st.sampled_from((cluster, *sentences)))
            damage[draw(st.sampled_from(sorted(damage)))] = draw(texts | values)
        whole = {**cluster, "sentences": sentences if draw(st.integers(0, 9)) else draw(values)}
        found.append(whole if draw(st.integers(0, 19)) else draw(values))
    return found


def check_names(names: list[str], texts_of_items: list[str]) -> None:
    """Names survive an array, a file of scores and a hash; texts survive every file."""
    assert all(map(is_text, [*names, *texts_of_items]))
    assert all(text.strip() for text in [*names, *texts_of_items])
    buffer = io.BytesIO()
    np.savez(buffer, names=np.asarray(names, dtype=np.str_))
    buffer.seek(0)
    assert np.load(buffer, allow_pickle=False)["names"].tolist() == names
    ids_hash(names)


@cases(75)
@given(data=st.data())
def test_a_malformed_crows_pairs_file_gives_pairs_or_a_message(folder, data):
    path = folder / "crows.csv"
    path.write_bytes(data.draw(damaged(csv_bytes(data.draw(pairs()), CROWS_COLUMNS))))
    found = outcome(lambda: CrowsPairs.load(path), path)
    if found is not None:
        check_names(found.ids, [text for pair in found.pairs for text in (pair.more, pair.less)])
        check_names(found.strata, [])
        assert len(set(found.ids)) == len(found.pairs)


@cases(100)
@given(ascii_only=st.booleans(), data=st.data())
def test_a_malformed_stereoset_file_gives_clusters_or_a_message(folder, ascii_only, data):
    document = {"data": {kind: data.draw(clusters()) for kind in ("intrasentence", "intersentence")}}
    path = folder / "stereoset.json"
    path.write_bytes(data.draw(damaged(json_bytes(document, ascii_only))))
    found = outcome(lambda: StereoSet.load(path), path)
    if found is not None:
        check_names([*found.ids, *found.strata], [text for one in found.clusters for text in one.sentences])
        check_names([name for one in found.clusters for name in (one.target, *one.sentence_ids)], [])


@cases(50)
@given(data=st.data())
def test_malformed_predictions_give_scores_or_a_message(folder, data):
    (folder / "one.json").write_text(json.dumps({"data": {"intrasentence": [whole_cluster()]}}))
    benchmark = StereoSet.load(folder / "one.json")
    rows: list[Any] = [{"id": f"0-{label}", "score": 0.5} for label in LABELS]
    if data.draw(st.booleans()):
        rows[data.draw(st.integers(0, 2))] = data.draw(values | st.just({"id": "0-unrelated", "score": 10**4000}))
    path = folder / "predictions.json"
    path.write_bytes(data.draw(damaged(json_bytes({"intrasentence": rows}, True))))
    scores = outcome(lambda: benchmark.score_predictions(path), path)
    assert scores is None or np.isfinite(scores.values).all()


def whole_cluster(**changed: Any) -> dict[str, Any]:
    """A cluster with some fields replaced."""
    sentences = [{"id": f"0-{label}", "sentence": label, "gold_label": label} for label in LABELS]
    cluster = {"id": "0", "target": "nurse", "bias_type": "gender", "context": "BLANK", "sentences": sentences}
    return cluster | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": "x" * 1_000_000}, "target 'xxx.* has 1,000,000 characters; at most 200"),
        ({"bias_type": "a\0"}, r"bias_type .* holds U\+0000"),
        ({"id": "\ud800"}, r"id holds half a character \(lone surrogate U\+D800\)"),
        ({"context": "a \udfff"}, r"context holds half a character \(lone surrogate U\+DFFF\)"),
    ],
)
def test_a_name_that_no_array_or_file_could_hold_is_refused(folder, changed, message):
    path = folder / "stereoset.json"
    path.write_text(json.dumps({"data": {"intrasentence": [whole_cluster(**changed)]}}))
    with pytest.raises(UserError, match=message):
        StereoSet.load(path)


def test_a_bias_type_of_a_hundred_kilobytes_does_not_make_every_item_as_large(folder):
    path = folder / "crows.csv"
    row = {"id": "1", "sent_more": "a", "sent_less": "b", "stereo_antistereo": "stereo", "bias_type": "x" * 100_000}
    path.write_bytes(csv_bytes([row], CROWS_COLUMNS))
    with pytest.raises(UserError, match=r"line 2: the bias_type 'xxx.* has 100,000 characters; at most 200"):
        CrowsPairs.load(path)


@pytest.mark.parametrize("depth", [900, 3_000, 200_000])
def test_deep_nesting_is_a_message(folder, depth):
    path: Path = folder / "deep.json"
    path.write_text('{"data": {"intrasentence": [{"id": ' + "[" * depth + "]" * depth + "}]}}")
    assert outcome(lambda: StereoSet.load(path), path) is None
