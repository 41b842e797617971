"""The gallery: streamed orders, means and counts compared with all samples at once, and the page."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F

from perceiver.inspection.drawing.figures import Frame
from perceiver.inspection.drawing.media import Media
from perceiver.inspection.drawing.thumbnails import thumbnail
from perceiver.inspection.explorer import gallery_page as page_module
from perceiver.inspection.explorer.extremes import MAX_KEPT, ORDERS, Extremes
from perceiver.inspection.explorer.gallery import Gallery, collect, finish
from perceiver.inspection.explorer.gallery_page import gallery_page, page_content, write_gallery
from perceiver.inspection.explorer.mean_maps import MeanMaps
from perceiver.inspection.maps.explainer import Explainer
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.tagging import Tagging
from perceiver.types import Axis, Grid, Outcome, Picture
from tests.inspection.explanations import CLASS_NAMES, explainer, labelled
from tests.inspection.models import captions, grid, perceiver, perceiver_io, perceiver_text, some_masks, without_end
from tests.models import NUM_CLASSES, small_inputs

TOP, NUM_BATCHES = 5, 7


def no_text(modality, raw):
    return None


def batches(masks=None, num_batches=NUM_BATCHES, **targets):
    """Batches of 3 samples with random labels."""
    torch.manual_seed(2)
    found = [labelled(small_inputs(), masks) for _ in range(num_batches)]
    for number, batch in enumerate(found):
        batch.ids = [f"s/{3 * number + row}" for row in range(3)]
        batch.targets = {"label": torch.randint(NUM_CLASSES, (3,))} | {
            name: values[3 * number : 3 * number + 3] for name, values in targets.items()
        }
    return found


def outcomes(count, num_classes, seed=3):
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        true, predicted = draw.integers(num_classes, size=2).tolist()
        sure, truth = draw.random(2).tolist()
        found.append(Outcome(float(draw.gamma(1.0)), "", "", sure, truth, (predicted,), (true,)))
    return found


def test_the_kept_samples_are_those_of_all_sorted():
    """Of each group and order; pairs of classes are sorted by wrongness alone."""
    given, extremes = outcomes(307, 3), Extremes(TOP, 3)
    for number, one in enumerate(given):
        extremes.add(number, one)
    found = {key: [number for _, number in places] for key, places in extremes.places.items()}

    def first(order, chosen):
        return sorted(filter(chosen, range(307)), key=lambda number: (ORDERS[order](given[number]), number))[:TOP]

    assert len({tuple(of_group) for (group, _), of_group in found.items() if group == ("all",)}) == len(ORDERS)
    for order in ORDERS:
        assert found[("all",), order] == first(order, lambda number: True)
        for label in range(3):
            assert found[("true", label), order] == first(order, lambda n, label=label: given[n].true == (label,))
            missed = first(order, lambda n, label=label: given[n].true == (label,) and given[n].predicted != (label,))
            assert found[("missed", label), order] == missed
    cell = first("wrongness", lambda n: (given[n].true, given[n].predicted) == ((2,), (0,)))
    assert found[("cell", 2, 0), "wrongness"] == cell
    assert extremes.counts["predicted", 1] == sum(one.predicted == (1,) for one in given)
    assert extremes.counts["wrong",] == sum(one.true != one.predicted for one in given)


def test_what_is_kept_has_a_limit_whatever_the_number_of_classes():
    for num_classes in (2, 73, 997):
        extremes = Extremes(TOP, num_classes)
        for number, one in enumerate(outcomes(2003, num_classes)):
            extremes.add(number, one)
        kept = sum(map(len, extremes.places.values()))
        assert kept <= 2 * MAX_KEPT + 2 * TOP * len(ORDERS)
        assert extremes.places[("all",), "wrongness"][0][0] == min(
            -one.wrongness for one in outcomes(2003, num_classes)
        )


def test_a_value_that_is_not_known_has_no_place():
    extremes = Extremes(TOP, 0)
    assert extremes.add(0, Outcome(0.7))
    assert {order for _, order in extremes.places} == {"highest_loss", "lowest_loss"}


def test_the_samples_with_the_highest_losses_are_those_of_the_loss():
    model, given = perceiver(), batches()
    asked = explainer(model)
    gallery = finish(asked, collect(asked, given, no_text, Gallery(TOP, CLASS_NAMES)))
    with torch.no_grad():
        logits = torch.cat([model.eval()(batch.inputs)["logits"] for batch in given])
    labels = torch.cat([batch.targets["label"] for batch in given])
    losses = F.cross_entropy(logits, labels, reduction="none")
    (shown,) = gallery.outputs.values()
    kept = shown.extremes.places
    order = losses.argsort(descending=True, stable=True)[:TOP].tolist()
    assert [number for _, number in kept[("all",), "highest_loss"]] == order
    assert [shown.items[number].id for number in order] == [f"s/{number}" for number in order]
    assert [shown.items[number].outcome.loss for number in order] == pytest.approx(losses[order].tolist())
    predicted = logits.argmax(dim=1)
    expected = confusion_matrix(labels, predicted, labels=range(NUM_CLASSES))
    np.testing.assert_array_equal(shown.confusion, expected)
    assert gallery.class_metrics == {}
    item = shown.items[order[0]]
    assert item.thumbnails.keys() == {"image", "depth"}
    assert item.thumbnails["image"].maps.keys() == {"relevance", "rollout"}


def test_mean_maps_are_the_means_of_the_maps_of_their_classes():
    model, given = perceiver_io(), batches()
    asked = explainer(model)
    (shown,) = collect(asked, given, no_text, Gallery(TOP, CLASS_NAMES)).outputs.values()
    maps: dict = {}
    for batch in given:
        explanation = asked.explain(batch)
        span = explanation.record.spans["depth"]
        for row, answers in enumerate(explanation.answers):
            shares = explanation.relevance_shares[row, :, span.start : span.stop].numpy()
            maps.setdefault(("all",), []).append(shares[0])
            maps.setdefault(("predicted", answers[0].label), []).append(shares[0])
            for slot, answer in enumerate(answers):
                if answer.label == batch.targets["label"][row]:
                    maps.setdefault(("true", answer.label), []).append(shares[slot])
    means = shown.means["depth"]
    assert {group for group, kind in means.sums if kind == "relevance"} == maps.keys()
    assert len(maps) > 4
    for group, of_group in maps.items():
        np.testing.assert_allclose(means.mean(group, "relevance"), np.mean(of_group, axis=0), rtol=1e-4, atol=1e-9)
        assert means.counts[group, "relevance"] == len(of_group)


def test_there_is_no_mean_of_different_sizes_and_missing_modalities_do_not_count():
    model = perceiver()
    (shown,) = collect(explainer(model), batches(some_masks()), no_text, Gallery(TOP, CLASS_NAMES)).outputs.values()
    assert "sizes" in shown.means["image"].reason
    assert not shown.means["image"].sums
    assert shown.means["depth"].counts[("all",), "rollout"] == 2 * NUM_BATCHES
    lacking = next(item for number, item in shown.items.items() if number % 3 == 2)
    assert lacking.thumbnails.keys() == {"image"}
    means = MeanMaps()
    means.add(grid(2, 3), [("all",)], {"rollout": np.ones(6)})
    means.add(grid(2, 5), [("all",)], {"rollout": np.ones(10)})
    assert "grids" in means.reason


@pytest.mark.parametrize("masks", [None, some_masks()], ids=["whole", "masked"])
def test_two_processes_give_the_gallery_of_one(masks):
    model = perceiver()
    asked = explainer(model)
    whole = collect(asked, batches(masks), no_text, Gallery(TOP, CLASS_NAMES))
    samples = [(batch, row) for batch in batches(masks) for row in range(3)]
    parts = []
    for start in (0, 1):
        own = [batch.part(slice(row, row + 1)) for batch, row in samples[start::2]]
        parts.append(collect(asked, own, no_text, Gallery(TOP, CLASS_NAMES, start=start, step=2)))
    merged = Gallery.merged(parts[::-1])
    expected, found = whole.arrays, merged.arrays
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert [one.extremes.counts for one in merged.outputs.values()] == [
        one.extremes.counts for one in whole.outputs.values()
    ]


def test_tags_have_metrics_of_classes_and_no_matrix():
    tags = (torch.rand(3 * NUM_BATCHES, NUM_CLASSES, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    task = Tagging(num_classes=NUM_CLASSES, multi_label=True, loss=LossSpec(), mixup=0.0)
    asked = Explainer(model=perceiver(), task=task, class_names=CLASS_NAMES, alpha=0.5)
    gallery = finish(asked, collect(asked, batches(tags=tags), no_text, Gallery(TOP, CLASS_NAMES)))
    (shown,) = gallery.outputs.values()
    assert shown.confusion is None
    counts = shown.extremes.counts
    hits = [counts["true", label] - counts["missed", label] for label in range(NUM_CLASSES)]
    recall = [hit / counts["true", label] for label, hit in enumerate(hits)]
    assert gallery.class_metrics["recall"] == pytest.approx(recall)
    precision = [hit / counts["predicted", label] for label, hit in enumerate(hits) if counts["predicted", label]]
    assert [value for value in gallery.class_metrics["precision"] if value == value] == pytest.approx(precision)
    assert gallery.class_metrics["positives"] == tags.sum(dim=0).tolist()


def test_texts_are_sorted_by_their_probability():
    model = without_end(perceiver_text())
    asked = explainer(model)
    torch.manual_seed(4)
    given = captions(small_inputs(), ["a red circle", "two blue squares", "a green star"])
    (shown,) = collect(asked, [given], no_text, Gallery(TOP, [])).outputs.values()
    explanation = asked.explain(given)
    for number, item in shown.items.items():
        own = item.outcome
        assert own.truth == given.targets["caption"][number]
        assert own.answer == asked.task.tokenizer.decode(explanation.record.queries["logits"][number].tolist())
        assert own.truth_probability == pytest.approx(np.exp(-own.loss), rel=1e-5)
        assert 0 < own.confidence < 1
    assert shown.confusion is None
    assert {group for group, _ in shown.means["image"].sums} == {("all",)}


def test_a_long_sample_has_one_place_with_the_answer_to_all_its_windows():
    model = perceiver()
    batch = labelled(small_inputs())
    long = replace(batch, targets={"label": torch.tensor([1, 0])}, ids=["a", "b"], windows=[("0", "1"), ("0",)])
    gallery = collect(explainer(model), [long], no_text, Gallery(TOP, CLASS_NAMES))
    (shown,) = gallery.outputs.values()
    with torch.no_grad():
        probabilities = model.eval()(batch.inputs)["logits"].softmax(dim=1)
    mean = probabilities[:2].mean(dim=0)
    assert [item.id for _, item in sorted(shown.items.items())] == ["a", "b"]
    assert shown.items[0].outcome.confidence == pytest.approx(float(mean.max()), rel=1e-5)
    assert shown.items[1].outcome.confidence == pytest.approx(float(probabilities[2].max()), rel=1e-5)
    content = page_content("run", gallery, explained=["b 0", "a 1", "a 0"], indices=False)
    found = {item["id"]: (item["window"], item["explained"]) for item in content["outputs"][0]["items"]}
    assert found == {"a": ("0", 2), "b": ("0", 0)}


def test_the_words_of_a_text_have_weights():
    def pieces(modality, raw):
        return [f"w{number} " for number in range(111)] if modality == "depth" else None

    (shown,) = collect(
        explainer(perceiver()), batches(num_batches=1), pieces, Gallery(TOP, CLASS_NAMES)
    ).outputs.values()
    drawn = shown.items[0].thumbnails["depth"]
    assert drawn.picture is None
    assert drawn.words[1] == "w1 "
    for of_kind in drawn.weights.values():
        assert len(of_kind) <= len(drawn.words)
        assert all(0 <= value <= 1 for value in of_kind)


def test_the_page_is_bounded_and_has_no_network(tmp_path, monkeypatch):
    gallery = collect(explainer(perceiver()), batches(), no_text, Gallery(TOP, CLASS_NAMES))
    page = write_gallery(tmp_path / "gallery.html", "run </script><b>", gallery)
    with np.load(tmp_path / "gallery.npz") as arrays:
        assert arrays["logits/confusion"].sum() == arrays["num_samples"] == 3 * NUM_BATCHES
    text = page.read_text()
    assert "connect-src" not in text
    assert "default-src 'none'" in text
    assert "</script><b>" not in text

    def content(**options):
        return json.loads(re.search(r'id="gallery">(.*?)</script>', gallery_page("run", gallery, **options), re.S)[1])

    def sizes(found):
        return [
            page_module._size(drawn) for item in found["outputs"][0]["items"] for drawn in item["thumbnails"].values()
        ]

    whole = content(explained=["s/4", "s/1"])
    linked = {item["id"]: item["explained"] for item in whole["outputs"][0]["items"]}
    assert (linked["s/4"], linked["s/1"], whole["omitted"]) == (0, 1, 0)
    assert {place for id, place in linked.items() if id not in ("s/4", "s/1")} == {None}
    monkeypatch.setattr(page_module, "MAX_MEDIA", sum(sizes(whole)) // 3)
    cut = content()
    assert 0 < sum(sizes(cut)) <= sum(sizes(whole)) // 3
    items = {item["number"]: item for item in cut["outputs"][0]["items"]}
    assert cut["omitted"] == sum(not item["thumbnails"] for item in items.values())
    (shown,) = gallery.outputs.values()
    for order in ORDERS:
        assert items[shown.extremes.places[("all",), order][0][1]]["thumbnails"]  # the first ones stay


def test_a_number_of_samples_below_one_is_an_error():
    with pytest.raises(ValueError, match="top=0"):
        Gallery(0, [])


def test_the_padding_of_a_text_is_not_shown():
    frame = Frame(Grid((5,), (Axis("token", "", 0.0, 5.0),)), None)
    media = Media(texts={"text": [["<bos>", "a", "cat", "<pad>", "<pad>"]]})
    maps = {"rollout": np.array([0.1, 0.2, 0.4, 0.0, 0.3])}
    drawn = thumbnail(frame, "text", 0, media, maps, np.array([True, True, True, False, False]))
    assert drawn.words == ["<bos>", "a", "cat"]
    assert drawn.weights == {"rollout": [0.25, 0.5, 1.0]}


def test_of_a_video_the_frame_with_the_largest_share_is_drawn():
    axes = (Axis("time", "s", 0.0, 1.5), Axis("y", "px", 0.0, 2.0), Axis("x", "px", 0.0, 3.0))
    shape = (3, 2, 3)
    values = torch.zeros(1, 1, *shape)
    values[0, 0, 1] = 1.0  # the second frame is white
    frame = Frame(Grid(shape, axes), Picture(values, Grid(shape, axes), ""))
    maps = {"rollout": np.eye(18)[2 * 3 + 4], "relevance": np.eye(18)[0]}
    drawn = thumbnail(frame, "video", 0, Media(), maps, np.ones(18, dtype=bool))
    assert drawn.place == "time 0.75 s"
    assert pixels(drawn.picture).min() == 255
    peak = pixels(drawn.maps["rollout"])
    assert peak.shape[:2] == (2, 3)
    assert np.unravel_index(peak.sum(axis=2).argmax(), (2, 3)) == (1, 1)
    assert pixels(drawn.maps["relevance"]).std(axis=(0, 1)).max() == 0


def pixels(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))).astype(int)
