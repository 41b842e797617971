"""Several tasks on one model: what they lose together, and that each is measured as alone."""

import re

import pytest
import torch
from torch.testing import assert_close

from perceiver.tasks.base import Task
from perceiver.tasks.captioning import Captioning
from perceiver.tasks.classification import Classification
from perceiver.tasks.joint import JointTask
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.tagging import Tagging
from perceiver.tasks.text_metrics import ScoredText
from perceiver.types import Batch
from tests.tasks.captioners import NUM_IDS, SENTENCES, captioning

NUM_CLASSES, NUM_TAGS = 7, 5
NAMES = [f"class{label}" for label in range(NUM_CLASSES)]
WEIGHTS = {"label": 0.3, "caption": 2.0}
"""Of `tags` there is none, which is 1."""


def classification(**options) -> Classification:
    defaults = {"num_classes": NUM_CLASSES, "loss": LossSpec(), "mixup": 0.0, "cutmix": 0.0}
    return Classification(**(defaults | {"output": "label/logits"} | options))


def tagging(**options) -> Tagging:
    defaults = {"num_classes": NUM_TAGS, "multi_label": True, "loss": LossSpec()}
    return Tagging(**(defaults | {"mixup": 0.0, "output": "tags/logits"} | options))


def children() -> dict[str, Task]:
    return {
        "label": classification(loss=LossSpec(class_weights=[0.3, 0.5, 0.7, 1.1, 1.3, 1.7, 1.9])),
        "tags": tagging(),
        "caption": captioning(output="caption/logits"),
    }


def joint(**options) -> JointTask:
    return JointTask(**({"tasks": children(), "weights": WEIGHTS, "monitor": "loss"} | options))


def samples(count: int = len(SENTENCES)) -> tuple[dict[str, torch.Tensor], Batch]:
    """Random outputs, and a batch with targets for each task; captions are of different lengths."""
    tags = (torch.rand(count, NUM_TAGS) < 0.3).float()
    texts = SENTENCES[:count]
    targets = {
        "label": torch.randint(NUM_CLASSES, (count,)),
        "tags": tags,
        "caption": texts,
        "references": [[text] for text in texts],
    }
    batch = Batch(inputs={"x": torch.rand(count, 1, 3)}, targets=targets, ids=list(map(str, range(count))))
    length = captioning().tokenizer.encode_batch(SENTENCES).shape[1] - 1
    outputs = {
        "label/logits": 3 * torch.randn(count, NUM_CLASSES),
        "tags/logits": 3 * torch.randn(count, NUM_TAGS),
        "caption/logits": 3 * torch.randn(count, length, NUM_IDS),
    }
    return outputs, batch


def part(outputs: dict[str, torch.Tensor], batch: Batch, rows: slice) -> tuple[dict[str, torch.Tensor], Batch]:
    """Some samples, their captions no longer than they need to be."""
    some = batch.part(rows)
    length = captioning().tokenizer.encode_batch(some.targets["caption"]).shape[1] - 1
    own = {name: values[rows] for name, values in outputs.items()}
    return own | {"caption/logits": own["caption/logits"][:, :length]}, some


class TestLoss:
    def test_it_is_the_mean_over_samples_of_the_weighted_sum_of_their_terms(self):
        outputs, batch = samples()
        total = 0.0
        for name, task in children().items():
            total += WEIGHTS.get(name, 1.0) * float(task.loss(outputs, batch)) * float(task.num_terms(batch))
        task = joint()
        assert float(task.loss(outputs, batch)) == pytest.approx(total / len(batch), rel=1e-5)
        assert float(task.num_terms(batch)) == len(batch)

    def test_it_does_not_depend_on_how_samples_are_divided_among_batches(self):
        outputs, batch = samples()
        whole, halves = joint(), joint()
        loss = whole.loss(outputs, batch)
        whole.update("val", outputs, loss, batch)
        total = 0.0
        for rows in (slice(0, 2), slice(2, None)):
            own, some = part(outputs, batch, rows)
            of_some = halves.loss(own, some)
            halves.update("val", own, of_some, some)
            total += float(of_some) * float(halves.num_terms(some))
        assert total / len(batch) == pytest.approx(float(loss), rel=1e-5)
        found, expected = (
            {name: value for name, value in task.compute("val").items() if "CIDEr" not in name}
            for task in (halves, whole)
        )
        assert found.keys() >= {"loss", "label/accuracy", "tags/mAP", "caption/perplexity"}
        assert_close(found, expected, equal_nan=True)

    def test_each_task_gets_the_gradient_of_its_own_loss(self):
        outputs, batch = samples()
        outputs = {name: values.requires_grad_() for name, values in outputs.items()}
        found = torch.autograd.grad(joint().loss(outputs, batch), [*outputs.values()])
        for (name, task), gradient in zip(children().items(), found, strict=True):
            own = outputs[task.output]
            (expected,) = torch.autograd.grad(task.loss(outputs, batch), own)
            assert_close(gradient, expected * WEIGHTS.get(name, 1.0) * task.num_terms(batch) / len(batch))


class TestMetrics:
    @pytest.mark.parametrize("stage", ["train", "val", "test"])
    @pytest.mark.filterwarnings("ignore:The ``compute`` method of metric TextMetrics was called before")
    def test_they_are_those_of_each_task_alone_behind_its_name(self, stage):
        (outputs, batch), task = samples(), joint()
        task.update(stage, outputs, task.loss(outputs, batch), batch)
        expected = {"loss": task.loss(outputs, batch)}
        for name, alone in children().items():
            alone.update(stage, outputs, alone.loss(outputs, batch), batch)
            expected |= {f"{name}/{key}": value for key, value in alone.compute(stage).items()}
        assert_close(task.compute(stage), expected, equal_nan=True)
        assert {"loss", "label/accuracy", "tags/loss", "caption/perplexity"} <= {*task.metric_names(stage)}
        assert len({id(metric) for metric in task.metric_parts(stage).values()}) == len(task.metric_parts(stage))
        if stage != "train":
            names = ("AP", "AUC", "precision", "recall", "positives")
            assert task.class_metrics(stage).keys() == {f"tags/{name}" for name in names}
        task.reset(stage)
        assert all(part.update_count == 0 for part in task.metric_parts(stage).values())

    @pytest.mark.parametrize(
        ("monitor", "mode"),
        [
            *(("loss", "min"), ("tags/mAP", "max"), ("caption/perplexity", "min"), ("caption/CIDEr-D", "max")),
            ("label/red_accuracy", "max"),
        ],
    )
    def test_any_of_them_may_choose_the_checkpoint(self, monitor, mode):
        task = joint(monitor=monitor)
        task.build_metrics()
        assert (task.monitor, task.monitor_mode) == (monitor, mode)

    @pytest.mark.parametrize("monitor", ["CIDEr-D", "label/CIDEr-D", "captions/CIDEr-D", "red_accuracy"])
    def test_others_are_refused_with_those_that_are_known(self, monitor):
        task = joint(monitor=monitor)
        with pytest.raises(ValueError, match=re.escape(f"monitor='{monitor}'")) as raised:
            task.build_metrics()
        listed = set(str(raised.value).partition(": ")[2].split(", "))
        outputs, batch = samples()
        task.update("val", outputs, task.loss(outputs, batch), batch)
        task.update_generated("val", {"caption/logits": [ScoredText(text, [text], {}, "") for text in SENTENCES]})
        assert {"loss", "caption/perplexity"} <= listed <= task.compute("val").keys()

    def test_class_counts_reach_those_that_need_them(self):
        tags = tagging(loss=LossSpec(positive_weight="balanced"))
        task = JointTask(tasks={"label": classification(), "tags": tags}, monitor="loss")
        assert task.needs_class_counts
        task.set_class_counts(torch.tensor([1, 2, 3, 5, 7]), 17)
        assert_close(tags.positive_weight, torch.tensor([16.0, 15 / 2, 14 / 3, 12 / 5, 10 / 7]))
        assert task.state_dict().keys() == {"tasks.tags.positive_weight"}
        assert not joint().needs_class_counts


class TestAnswers:
    def test_outputs_of_each_are_merged_and_made_probabilities_by_its_own_rules(self):
        outputs, batch = samples(4)
        rows = {name: values.repeat_interleave(2, dim=0) for name, values in outputs.items()}
        batch.windows = [("a", "b")] * 4
        task = joint()
        merged = task.average_windows(rows, batch)
        assert merged.keys() == outputs.keys()
        assert_close(task.probabilities(merged), task.probabilities(outputs), atol=1e-5, rtol=1e-4)
        assert_close(task.probabilities(outputs)["tags/logits"], outputs["tags/logits"].sigmoid())

    def test_predictions_and_answers_are_of_all(self):
        outputs, batch = samples()
        tasks = {name: task for name, task in children().items() if not isinstance(task, Captioning)}
        task = JointTask(tasks=tasks, monitor="loss")
        found = task.predictions(lambda *_: outputs, batch, NAMES, 2)
        assert [[one["task"] for one in row] for row in found] == [["label"] * 2 + ["tags"] * 2] * len(batch)
        assert {tuple(one) for row in found for one in row} == {("task", "answer", "score")}
        best = [NAMES[label] for label in outputs["label/logits"].argmax(dim=1)]
        assert [row[0]["answer"] for row in found] == best
        for row in task.answers(outputs, {}, batch, NAMES):
            assert [answer.output for answer in row] == ["label/logits"] * 3 + ["tags/logits"] * 3
        assert task.table_rows(outputs, batch, {}, NAMES).keys() == {"label_predictions", "tags_predictions"}

    def test_token_ids_are_asked_for_by_the_output_that_needs_them(self):
        outputs, batch = samples()
        task = joint()
        assert task.given_queries == {"caption/logits": "token_ids"}
        ids = captioning().tokenizer.encode_batch(SENTENCES)
        prepared = task.prepare(batch, train=True)
        assert {name: found.tolist() for name, found in task.queries(prepared).items()} == {
            "caption/logits": ids[:, :-1].tolist()
        }
        assert_close(task.loss(outputs, prepared), task.loss(outputs, batch))

    def test_a_text_that_was_predicted_is_explained_and_not_another_one(self):
        _, batch = samples()
        texts = SENTENCES[::-1]
        rows = [
            [{"task": "label", "answer": NAMES[0], "score": 0.5}, {"task": "caption", "answer": text, "score": -1.0}]
            for text in texts
        ]
        found = joint().answer_queries(None, batch, rows)["caption/logits"]
        tokenizer = captioning().tokenizer
        assert [tokenizer.decode(ids) for ids in found.tolist()] == texts


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tasks": {}}, r"tasks=\{\}"),
        ({"tasks": {"all": joint()}, "weights": {}}, r"tasks\.all: .* label, tags, caption"),
        ({"weights": {"labels": 2.0}}, r"weights\.labels=2\.0.* label, tags, caption"),
        ({"weights": {"label": -1.0}}, r"weights\.label=-1\.0"),
        ({"weights": {"label": float("nan")}}, r"weights\.label=nan"),
        ({"weights": {"label": float("inf")}}, r"weights\.label=inf"),
        ({"monitor": "accuracy"}, "monitor='accuracy' .*label/accuracy"),
        ({"tasks": {"label": classification(mixup=0.2)}, "weights": {}}, r"tasks\.label: .*mix"),
        ({"tasks": {"label": classification(cutmix=0.2)}, "weights": {}}, r"tasks\.label: .*mix"),
        ({"tasks": {"tags": tagging(mixup=0.2)}, "weights": {}}, r"tasks\.tags: .*mix"),
        (
            {"tasks": {"label": classification(), "other": classification()}, "weights": {}},
            r"tasks\.label\.output=label/logits.*tasks\.other",
        ),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=named):
        joint(**wrong).build_metrics()
