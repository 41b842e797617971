"""Reconstruction: what is hidden is not read, only what is asked for counts, and metrics are those by brute force."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver.attention import BlockSpec
from perceiver.decoders.dense import DenseDecoder
from perceiver.encoders.text import TextEncoder
from perceiver.positions import FourierPositions, LearnedPositions
from perceiver.queries.positions import Positions
from perceiver.tasks.fidelity import IdFidelity, SignalFidelity
from perceiver.tasks.joint import JointTask
from perceiver.tasks.masking import Replacement
from perceiver.tasks.reconstruction import SHOWN_PLACES, Reconstruction
from perceiver.tasks.reconstruction_targets import Patches, TokenIds
from perceiver.types import Batch, cell_centers
from tests.models import DIM, image_encoder, small_perceiver, video_encoder, waveform_encoder

BATCH, LENGTH, VOCABULARY, FIRST_ID = 3, 13, 29, 3
NAMES = [f"id{number}" for number in range(VOCABULARY)]
PATCHES = {"mean": 0.3, "std": 0.7, "loss": "l2", "measure": "PSNR"}
RAW = {"image": (3, 11, 13), "video": (3, 5, 7, 11), "audio": (1, 101)}
SIZES = {"image": [3, 3], "video": [2, 3, 2], "audio": [43]}
CELLS = {"image": 4 * 5, "video": 3 * 3 * 6, "audio": 3, "text": LENGTH}
ENCODERS = {
    "image": image_encoder,
    "video": video_encoder,
    "audio": waveform_encoder,
    "text": lambda: TextEncoder(
        vocab_size=VOCABULARY, dim=11, positions=LearnedPositions(shape=[LENGTH], dim=11, init_std=1.0, anchored=True)
    ),
}
KINDS = list(ENCODERS)


def target_of(kind, **options) -> Patches | TokenIds:
    if kind == "text":
        return TokenIds(**{"vocab_size": VOCABULARY, "length": LENGTH, "first_id": FIRST_ID} | options)
    return Patches(**{"patch_size": SIZES[kind], "channels": RAW[kind][0]} | PATCHES | options)


def task_of(kind="image", target=None, **options) -> Reconstruction:
    settings = {"masked": 0.0, "masked_in_evaluation": None, "replacement": None, "num_places": 7, "monitor": "loss"}
    return Reconstruction(modality=kind, target=target or target_of(kind), **settings | options)


def batch_of(kind="image", rows=BATCH) -> Batch:
    raw = torch.randint(FIRST_ID, VOCABULARY, (rows, 1, LENGTH)) if kind == "text" else torch.rand(rows, *RAW[kind])
    return Batch({kind: raw}, {}, [f"sample {row}" for row in range(rows)])


def model_of(kind="image", chunk_size=99):
    num_axes = len(SIZES.get(kind, [1]))
    positions = FourierPositions(num_bands=2, max_resolution=[7] * num_axes)
    decoder = DenseDecoder(
        dim=DIM,
        num_channels=target_of(kind).num_channels,
        queries=Positions(axes=[str(axis) for axis in range(num_axes)], positions=positions, dim=11),
        attention=BlockSpec(num_heads=1),
        chunk_size=chunk_size,
    )
    return small_perceiver(encoders={kind: ENCODERS[kind]()}, decoder=decoder)


def hidden_cells(task, batch) -> torch.Tensor:
    return task.hidden(batch)[task.modality].flatten(1)


class TestTargets:
    @pytest.mark.parametrize("kind", KINDS)
    def test_an_input_is_restored_from_its_values(self, kind):
        target, raw = target_of(kind), batch_of(kind).inputs[kind]
        values = target.values(raw)
        assert values.shape == (BATCH, CELLS[kind], target.num_values)
        assert math.prod(target.shape(raw)) == CELLS[kind]
        assert_close(target.restored(raw, values), raw)

    def test_values_of_a_patch_are_those_at_its_place(self):
        raw = batch_of().inputs["image"]
        cells = target_of("image").values(raw).reshape(BATCH, 4, 5, 3, 3, 3)  # rows, columns, y, x, channels
        for row, column in ((0, 0), (2, 3)):
            expected = raw[:, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            assert_close(cells[:, row, column], expected.permute(0, 2, 3, 1))

    @pytest.mark.parametrize(("loss", "function"), [("l1", F.l1_loss), ("l2", F.mse_loss)])
    def test_losses_are_those_of_normalized_values(self, loss, function):
        task, batch = task_of(target=target_of("image", loss=loss, patch_size=[11, 13])), batch_of()
        values = task.target.values(batch.inputs["image"])
        output = torch.randn_like(values)
        assert_close(task.loss({"logits": output}, batch), function(output, (values - 0.3) / 0.7))
        assert_close(task.target.predicted((values - 0.3) / 0.7), values)

    def test_losses_of_samples_are_those_of_their_parts_of_a_prepared_batch(self):
        task = task_of(masked=0.5)
        batch = task.prepare(batch_of(rows=5), train=True)
        output = torch.randn(5, *task.target.values(batch.inputs["image"]).shape[1:])[:, : task.num_places]
        losses, terms = task.sample_losses({"logits": output}, batch)
        assert_close(terms, torch.ones(5))
        for row in range(5):
            alone = task.loss({"logits": output[row : row + 1]}, batch.part(slice(row, row + 1)))
            assert_close(losses[row], alone)
        assert_close(losses.mean(), task.loss({"logits": output}, batch))
        batch.windows = [("0", "1"), ("0", "1", "2")]
        batch.ids = ["a", "b"]
        of_long, terms = task.sample_losses({"logits": output}, batch)
        assert_close(of_long, torch.stack([losses[:2].mean(), losses[2:].mean()]))
        assert terms.tolist() == [2, 3]

    def test_a_place_of_a_text_does_not_depend_on_padding(self):
        task, batch = task_of("text"), batch_of("text")
        padded = Batch({"text": F.pad(batch.inputs["text"][..., :5], (0, 4))}, {}, batch.ids)
        padded.masks["text"] = torch.arange(9)[None].expand(BATCH, -1) < 5
        for one, length in ((batch, LENGTH), (padded, 9)):
            places = task.queries(one)["logits"]
            cells = task._asked(one).choice.cells
            assert_close(places[..., 0], (cells + 0.5) / LENGTH)
            assert cells.shape == (BATCH, length)
        assert task._asked(padded).scored.sum() == 5 * BATCH


class TestMetrics:
    @pytest.mark.parametrize("measure", ["PSNR", "SNR"])
    def test_they_are_computed_from_the_sums_of_all_batches(self, measure):
        batches, parts, total = [], [], SignalFidelity(measure)
        for count in (3, 5):
            shape = (count, 7, 11)
            batches.append((torch.rand(shape), torch.randn(shape), torch.rand(shape) < 0.7))
            parts.append(SignalFidelity(measure))
            parts[-1].update(*batches[-1])
            total.update(*batches[-1])
        true = torch.cat([values[scored] for _, values, scored in batches])
        error = torch.cat([(predicted - values)[scored] for predicted, values, scored in batches])
        power = 1.0 if measure == "PSNR" else true.square().mean()
        expected = 10 * torch.log10(power / error.square().mean())
        assert_close(total.compute()[measure], expected)
        parts[0].merge_state(parts[1])  # as of two processes
        assert_close(parts[0].compute(), total.compute())
        assert SignalFidelity(measure).compute()[measure].isnan()

    def test_that_of_the_mean_is_what_the_mean_color_of_each_sample_and_silence_have(self):
        patches = Patches(patch_size=[2, 3], channels=5, **PATCHES)
        raw = 3.0 + torch.randn(4, 5, 8, 9) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None, None]
        metric, values = patches.metric(), patches.values(raw)
        mean = patches.values(raw.mean(dim=(2, 3), keepdim=True).expand_as(raw))
        metric.update(mean, values, torch.ones_like(values, dtype=torch.bool))
        found = metric.compute()
        assert_close(found["PSNR"], found["PSNR_of_mean"])
        metric, sound = SignalFidelity("SNR"), torch.randn(4, 7, 11)
        sound -= sound.mean(dim=(1, 2), keepdim=True)
        metric.update(torch.zeros_like(sound), sound, torch.ones_like(sound, dtype=torch.bool))
        assert_close(metric.compute(), {"SNR": torch.tensor(0.0), "SNR_of_mean": torch.tensor(0.0)})

    def test_those_of_the_best_constant_are_what_the_frequencies_of_the_ids_predict(self):
        ids, scored = torch.randint(3, 11, (5, 7, 1)) // 2, torch.rand(5, 7, 1) < 0.8
        counts = ids[scored].bincount(minlength=11).double()
        logits = (counts / counts.sum()).log().expand(5, 7, 11)
        metric, parts = IdFidelity(11), [IdFidelity(11), IdFidelity(11)]
        metric.update(logits, ids, scored)
        for part, rows in zip(parts, (slice(2), slice(2, 5)), strict=True):
            part.update(logits[rows], ids[rows], scored[rows])
        parts[0].merge_state(parts[1])  # as of two processes
        found = metric.compute()
        assert_close(parts[0].compute(), found)
        for name in metric.sample_names:
            assert_close(found[f"{name}_of_constant"], found[name])
        assert IdFidelity(11).compute()["perplexity_of_constant"].isnan()

    @pytest.mark.parametrize("kind", KINDS)
    def test_they_are_those_of_all_samples_alone_and_in_a_joint_task(self, kind):
        task, model = task_of(kind, masked=0.6), model_of(kind)
        joint = JointTask(tasks={"again": task_of(kind, masked=0.6)}, monitor="again/loss")
        batches = [batch_of(kind, rows) for rows in (2, 3)]
        for batch in batches:
            outputs = task.outputs(model, batch)
            for one in (task, joint):
                one.update("val", outputs, one.loss(outputs, batch), batch)
        together = Batch(
            {kind: torch.cat([one.inputs[kind] for one in batches])}, {}, [id for one in batches for id in one.ids]
        )
        outputs = task.outputs(model, together)
        expected = task_of(kind, masked=0.6)
        expected.update("val", outputs, expected.loss(outputs, together), together)
        found = task.compute("val")
        assert set(found) == {"loss", *task.target.metric().names}
        assert_close(found, expected.compute("val"))
        assert_close(
            {f"again/{name}": value for name, value in found.items()}.items() <= joint.compute("val").items(), True
        )
        rows = task.table_rows(outputs, together, {}, [])["reconstructions"]
        assert [row.values["id"] for row in rows] == together.ids

    def test_those_of_ids_are_those_of_places_that_are_asked_for(self):
        task, model, batch = task_of("text", masked=0.4), model_of("text"), batch_of("text")
        logits = task.outputs(model, batch)["logits"]
        asked = task._asked(batch)
        ids = batch.inputs["text"][:, 0].gather(1, asked.choice.cells)
        losses, valid = F.cross_entropy(logits.mT, ids, reduction="none"), asked.choice.valid
        task.update("val", {"logits": logits}, torch.tensor(0.0), batch)
        found = task.compute("val")
        assert_close(found["perplexity"], losses[valid].mean().exp())
        assert_close(found["accuracy"], (logits.argmax(-1) == ids)[valid].float().mean())
        by_sample = [losses[row][valid[row]].mean() for row in range(BATCH)]
        assert_close(task.loss({"logits": logits}, batch), torch.stack(by_sample).mean())


class TestPlaces:
    @pytest.mark.parametrize("kind", KINDS)
    def test_in_training_some_are_drawn_whose_outputs_are_those_among_all_in_any_chunks(self, kind):
        task, batch = task_of(kind, num_places=3 if kind == "audio" else 5), batch_of(kind)
        models = [model_of(kind, chunk_size) for chunk_size in (99, 2)]
        models[1].load_state_dict(models[0].state_dict())
        with torch.no_grad():
            whole, chunked = (task.outputs(model, batch)["logits"] for model in models)
        assert_close(whole, chunked)
        first, second = (task.prepare(batch, train=True) for _ in range(2))
        some, cells, every = (
            task.outputs(models[0], first)["logits"],
            task._asked(first).choice.cells,
            task._asked(batch),
        )
        assert cells.shape == (BATCH, task.num_places)
        assert not cells.equal(task._asked(second).choice.cells)
        where = (every.choice.cells[:, None] == cells[..., None]).int().argmax(dim=-1)
        assert_close(some, whole.gather(1, where[..., None].expand_as(some)))

    def test_samples_that_lack_the_modality_have_no_loss_and_change_none(self):
        task, model, batch = task_of("text"), model_of("text"), batch_of("text")
        batch.masks["text"] = torch.tensor([True, False, True])
        alone = Batch({"text": batch.inputs["text"][::2]}, {}, batch.ids[::2])
        assert task.num_terms(batch) == 2
        ranks = [row.rank for row in task.table_rows(task.outputs(model, batch), batch, {}, [])["reconstructions"]]
        assert max(ranks[0], ranks[2]) < ranks[1]
        assert_close(task.loss(task.outputs(model, batch), batch), task.loss(task.outputs(model, alone), alone))
        batch.masks["text"][:] = False
        assert task.num_terms(batch) == task.loss(task.outputs(model, batch), batch) == 0

    def test_a_modality_that_no_sample_has_is_queried_if_its_size_is_known(self):
        batch = Batch({"depth": torch.rand(BATCH, 1, 5, 7)}, {}, ["a", "b", "c"])
        known, unknown = (task_of(target=target_of("image", size=size)) for size in ([11, 13], None))
        assert known.queries(batch)["logits"].shape == (BATCH, 20, 2)
        assert known.num_terms(known.prepare(batch, train=True)) == 0
        with pytest.raises(ValueError, match="modality='image': size"):
            unknown.queries(batch)


class TestMasking:
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_hidden_changes_no_output_and_is_all_that_is_asked_for(self, kind):
        task, model, batch = task_of(kind, masked=0.6), model_of(kind), batch_of(kind)
        hidden, asked = hidden_cells(task, batch), task._asked(batch)
        assert hidden.sum(dim=1).sub(0.6 * CELLS[kind]).abs().max() < 1
        for row in range(BATCH):
            assert sorted(asked.choice.cells[row][asked.choice.valid[row]]) == hidden[row].nonzero()[:, 0].tolist()
        raw = batch.inputs[kind]
        values = task.target.values(raw)
        other = task.target.random(values)
        changed, visible = (
            Batch({kind: task.target.restored(raw, torch.where(where[..., None], other, values))}, {}, batch.ids)
            for where in (hidden, ~hidden)
        )
        expected, found = task.outputs(model, batch)["logits"], task.outputs(model, changed)["logits"]
        assert_close(found, expected)
        assert not torch.allclose(task.outputs(model, visible)["logits"], expected)

    def test_positions_are_those_of_the_whole_input(self):
        task, model, batch = task_of(masked=0.6), model_of(), batch_of()
        whole, part = model.tokens(batch.inputs), model.tokens(batch.inputs, None, task.hidden(batch))
        assert part.mask.equal(~hidden_cells(task, batch))
        assert_close(part.values[part.mask], whole.values[part.mask])
        assert not part.values[~part.mask].any()

    def test_a_hidden_cell_hides_the_tokens_whose_centers_it_contains(self):
        model, batch = model_of("audio"), batch_of("audio")
        hidden = torch.zeros(BATCH, 7, dtype=torch.bool)
        hidden[:, 3] = True  # from 3/7 to 4/7
        assert model.tokens(batch.inputs, None, {"audio": hidden}).mask.tolist() == BATCH * [[True, False, True]]
        with pytest.raises(ValueError, match="axes"):
            model.tokens(batch.inputs, None, {"audio": hidden[..., None]})

    def test_cells_are_drawn_anew_in_training_and_fixed_for_each_sample_in_evaluation(self):
        task, batch = task_of(masked=0.5), batch_of()
        in_training = [hidden_cells(task, task.prepare(batch, train=True)) for _ in range(2)]
        assert not in_training[0].equal(in_training[1])
        fixed = hidden_cells(task, batch)
        assert fixed.equal(hidden_cells(task, task.prepare(batch, train=False)))
        one = Batch({"image": batch.inputs["image"][1:2]}, {}, batch.ids[1:2])
        assert hidden_cells(task, one).equal(fixed[1:2])
        assert len({tuple(row) for row in fixed.tolist()}) == BATCH
        torch.manual_seed(5)
        first = hidden_cells(task, task.prepare(batch, train=True))
        torch.manual_seed(5)
        assert first.equal(hidden_cells(task, task.prepare(batch, train=True)))

    def test_it_may_differ_in_evaluation_and_padding_is_never_chosen(self):
        task = task_of("text", masked=0.0, masked_in_evaluation=1.0)
        batch = batch_of("text")
        batch.inputs["text"][:, 0, 0] = FIRST_ID - 1  # such as the start of a text
        batch.masks["text"] = torch.arange(LENGTH)[None] < torch.tensor([[13], [7], [2]])
        expected = batch.masks["text"].clone()
        expected[:, 0] = False
        assert hidden_cells(task, batch).equal(expected)
        assert task.hidden(task.prepare(batch, train=True)) == {}

    def test_shares_are_right_on_average_for_any_number_of_cells(self):
        rows = 2000
        batch = Batch({"text": torch.full((rows, 1, 3), FIRST_ID)}, {}, [str(row) for row in range(rows)])
        for one in (batch, task_of("text", masked=0.4).prepare(batch, train=True)):
            counts = hidden_cells(task_of("text", masked=0.4), one).sum(dim=1)
            assert set(counts.tolist()) == {1, 2}
            assert counts.float().mean() == pytest.approx(1.2, abs=0.05)

    def test_some_are_replaced_or_kept_in_training_alone(self):
        rows, replacement = 1000, Replacement(random=0.1, kept=0.1)
        task = task_of("text", masked=0.5, replacement=replacement, num_places=LENGTH)
        batch = batch_of("text", rows)
        batch.masks["text"] = torch.arange(LENGTH)[None].expand(rows, -1) < LENGTH - 2
        prepared = task.prepare(batch, train=True)
        asked, hidden = task._asked(prepared), hidden_cells(task, prepared)
        chosen = torch.zeros_like(hidden).scatter(1, asked.choice.cells, asked.choice.valid)
        changed = (prepared.inputs["text"] != batch.inputs["text"])[:, 0]
        total = chosen.sum()
        assert not (hidden & ~chosen).any()
        assert not (changed & (hidden | ~chosen)).any()
        assert total / rows == pytest.approx(0.5 * (LENGTH - 2), abs=0.1)
        assert hidden.sum() / total == pytest.approx(0.8, abs=0.02)
        # A random id is the same as before once in a while.
        assert changed.sum() / total == pytest.approx(0.1 * (1 - 1 / (VOCABULARY - FIRST_ID)), abs=0.02)
        assert prepared.inputs["text"][changed[:, None]].min() >= FIRST_ID
        assert_close(asked.values[..., 0], batch.inputs["text"][:, 0].gather(1, asked.choice.cells))
        assert task.prepare(batch, train=False).inputs["text"] is batch.inputs["text"]


class TestPredictions:
    def test_reconstructions_have_predictions_where_cells_are_hidden_and_the_input_elsewhere(self):
        task, model, batch = task_of(masked=0.6), model_of(), batch_of()
        found = task.reconstructions(model, batch)["image"]
        hidden, asked = hidden_cells(task, batch), task._asked(batch)
        values = {name: task.target.values(raw) for name, raw in found.items()}
        assert list(values) == ["visible", "reconstruction"]
        for shown in values.values():
            assert_close(shown[~hidden], task.target.values(batch.inputs["image"])[~hidden])
        predicted = task.target.predicted(task.outputs(model, batch)["logits"])
        padding = task.target.values(torch.ones_like(batch.inputs["image"])) == 0
        for row, column in ((0, 1), (2, 3)):
            cell = asked.choice.cells[row, column]
            inside = ~padding[row, cell]
            assert_close(values["reconstruction"][row, cell][inside], predicted[row, column][inside])
            assert (values["visible"][row, cell][inside] == 0.3).all()
        assert list(task_of().reconstructions(model, batch)["image"]) == ["reconstruction"]

    def test_answers_are_the_most_probable_ids_at_hidden_places(self):
        task, model, batch = task_of("text", masked=0.3), model_of("text"), batch_of("text")
        queries = task.answer_queries(model, batch)
        assert_close(queries["logits"], cell_centers((LENGTH,)).expand(BATCH, -1, -1))
        outputs = model(batch.inputs, None, queries, task.hidden(batch))
        best = outputs["logits"].argmax(-1)
        rows = task.answers(outputs, queries, batch, NAMES)
        predictions = task.predictions(model, batch, NAMES, top=2)
        for row, answers in enumerate(rows):
            hidden = hidden_cells(task, batch)[row].nonzero()[:, 0].tolist()
            assert [one.queries for one in answers] == [(place,) for place in hidden][:SHOWN_PLACES]
            assert all(one.name == NAMES[best[row, one.queries[0]]] for one in answers)
            assert [one["answer"] for one in predictions[row]] == sorted(
                (one["answer"] for one in predictions[row]), key=lambda name: name not in [one.name for one in answers]
            )
        assert_close(task.probabilities(outputs)["logits"].sum(dim=-1), torch.ones(BATCH, LENGTH))
        assert task_of().answers({}, {}, batch_of(), NAMES) == BATCH * [[]]

    def test_those_of_values_are_metrics(self):
        task, model, batch = task_of(), model_of(), batch_of()
        rows = task.predictions(model, batch, [], top=3)
        for row, found in enumerate(rows):
            one = Batch({"image": batch.inputs["image"][row : row + 1]}, {}, ["x"])
            task.reset("val")
            task.update("val", task.outputs(model, one), torch.tensor(0.0), one)
            expected = task.compute("val")
            assert found == [
                {"answer": name, "value": pytest.approx(float(expected[name]), abs=1e-3)}
                for name in ("PSNR", "PSNR_of_mean")
            ]

    def test_windows_are_scored_on_their_own(self):
        task, model, batch = task_of("audio", masked=0.5), model_of("audio"), batch_of("audio", 5)
        windows = Batch(batch.inputs, {}, ["a", "b"], windows=[("0", "1", "2"), ("0", "1")])
        outputs = task.average_windows(task.outputs(model, windows), windows)
        assert task.num_terms(windows) == 5
        rows = task.table_rows(outputs, windows, {}, [])["reconstructions"]
        assert [row.values["id"] for row in rows] == ["a 0", "a 1", "a 2", "b 0", "b 1"]
        assert len(task.predictions(model, windows, [], top=1)) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: task_of(masked=1.2), "masked=1.2"),
        (lambda: task_of(masked_in_evaluation=-0.1), "masked_in_evaluation=-0.1"),
        (lambda: task_of(num_places=0), "num_places=0"),
        (lambda: task_of(monitor="SNR").build_metrics(), "monitor='SNR'"),
        (lambda: Replacement(random=0.7, kept=0.4), "random=0.7 and kept=0.4"),
        (lambda: target_of("image", patch_size=[3, 0]), r"patch_size=\[3, 0\]"),
        (lambda: target_of("image", size=[3]), r"size=\[3\]"),
        (lambda: target_of("image", channels=0), "channels=0"),
        (lambda: target_of("image", std=0.0), "std=0.0"),
        (lambda: target_of("image", loss="l3"), "loss='l3'"),
        (lambda: target_of("image", measure="SSIM"), "measure='SSIM'"),
        (lambda: target_of("text", first_id=VOCABULARY), f"first_id={VOCABULARY}"),
        (lambda: target_of("text", length=0), "length=0"),
        (lambda: task_of().queries(Batch({"image": torch.rand(BATCH, 3, 7)}, {}, ["x"])), r"\[3, 3, 7\]"),
        (lambda: target_of("text").shape(torch.zeros(1, 1, LENGTH + 1, dtype=torch.long)), f"length={LENGTH}"),
        (lambda: task_of().loss({"logits": torch.zeros(BATCH, 20, 5)}, batch_of()), "num_channels=5 .* 27"),
        (lambda: SignalFidelity("PSNR", peak=0.0), "peak=0.0"),
    ],
)
def test_errors_name_the_value(change, named):
    with pytest.raises(ValueError, match=named):
        change()
