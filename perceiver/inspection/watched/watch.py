"""Attention of any PyTorch model, found while it runs, without changes to the model or its outputs.

    with watch(model, inputs={"image": images}) as attention:
        model(images)
    explanation = attention.explain(class_names=names)

The result is a record like those of models of this package, from which everything else follows. Sequences that read no
other one are tokens; a sequence that reads others consists of outputs if it starts as token ids, and of latents if it
starts as parameters. If no outputs read a memory, the elements of the sequences that no other one reads are outputs
themselves; the queries of an answer are then those whose last attention affects its logit, such as the class token.

Deviation from `capture`: the model runs in its own mode. A compiled model runs uncompiled within the context, so that
its outputs are those of the uncompiled model to the bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from perceiver.inspection.drawing.media import Media
from perceiver.inspection.evaluation.evaluator import Evaluation, Evaluator
from perceiver.inspection.evaluation.faithfulness import FaithfulnessCurves, faithfulness
from perceiver.inspection.evaluation.knockout import KINDS, KnockOut, Silence, knock_out_parts
from perceiver.inspection.maps.explanation import Explanation
from perceiver.inspection.maps.rollout import Alpha
from perceiver.inspection.watched.answers import LOGITS, Read, WatchedAnswers, usual_logits
from perceiver.inspection.watched.explainer import WatchedExplainer
from perceiver.inspection.watched.grids import GivenInput
from perceiver.inspection.watched.record import WatchedRecord
from perceiver.inspection.watched.rerun import ModelCall
from perceiver.inspection.writer import ExplanationWriter
from perceiver.types import Batch


class WatchedAttention(WatchedRecord):
    """The attention of the last call of a watched model, and what is computed from it."""

    def __init__(self, call: ModelCall, inputs: Mapping[str, GivenInput], roles: Mapping[str, str]) -> None:
        super().__init__(call, inputs, roles)
        self._answers = WatchedAnswers(usual_logits, str, 0.5)

    def explain(
        self,
        logits: Read | None = None,
        *,
        class_names: Sequence[str] | Callable[[int], str] = str,
        top: int | None = None,
        positions: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
        alpha: Alpha = 0.5,
        foil: str | None = None,
    ) -> Explanation:
        """Explain the answers of the last call, which must have been made with gradients.

        Args:
            logits: takes the logits from what the model returned; None: `usual_logits`. Of [batch, classes], the `top`
                classes of each sample are explained; of [batch, length, vocab] the likeliest token at some positions.
            class_names: names of classes or tokens: a sequence, or a function of their number.
            top: classes of each sample; None: `SHOWN_CLASSES`, or all if there are fewer.
            positions: of a text; None: the first `MAX_WORDS`.
            labels: true classes of the samples, if they are known.
            ids: names of the samples.
            alpha: α of the rollout, a number; see `rollout`.
            foil: name of the class or token with which each answer is contrasted first, or `contrast.SECOND`; None for
                no contrasts.

        Raises:
            ValueError: no attention was found, the logits have another shape or no gradient, alpha is not a number,
                names, labels or ids do not fit them, there are fewer than `top` classes, or no answer is called `foil`.
        """
        self.check(alpha)
        for key, given in (("labels", labels), ("ids", ids)):
            if given is not None and len(given) != self.num_rows:
                raise ValueError(f"{key}: {len(given)} for {self.num_rows} samples")
        name = class_names if callable(class_names) else partial(_name_in, class_names)
        targets = {} if labels is None else {"label": torch.as_tensor(labels)}
        batch = Batch(
            {name: given.values for name, given in self.inputs.items() if isinstance(given.values, Tensor)},
            targets,
            [str(row) for row in range(self.num_rows)] if ids is None else list(ids),
        )
        self._answers = WatchedAnswers(logits or usual_logits, name, alpha)
        return self._answers.explain(self, batch, top=top, positions=positions, foil=foil)

    def faithfulness(self, explanation: Explanation, *, num_orders: int = 20) -> FaithfulnessCurves:
        """Compute the curves of the maps of an explanation; see `faithfulness_curves`.

        No query attends to a masked token. Whatever of it reaches the outputs without attention remains, for example in
        a mean over all tokens. Special tokens are not masked.

        Args:
            explanation: of the last call.
            num_orders: random orders of tokens, whose curves are averaged.
        """
        return faithfulness(WatchedExplainer(self, self._answers, {}), explanation, num_orders=num_orders)

    def knock_out(self, explanation: Explanation, kinds: Sequence[str] = KINDS) -> list[KnockOut]:
        """Silence parts of the model one at a time, and return the changes of the answers; see `knock_out_parts`.

        Only attention is silenced: the bias of a projection after it remains, and so does whatever reaches the outputs
        without attention, for example in a mean over all elements.
        """

        def run(rows: Int[Tensor, " cases"], silence: Silence) -> dict[str, Tensor]:
            heads = dict(silence.heads)
            for name, alive in silence.layers.items():
                whole = alive[:, None].expand(-1, self.layers[name].num_heads)
                heads[name] = heads[name] & whole if name in heads else whole
            return {LOGITS: self._answers.read(self.run(rows, silence.visible, heads)).float().softmax(dim=-1)}

        with torch.no_grad():
            return knock_out_parts(explanation, run, kinds)

    def evaluate(
        self, explanation: Explanation, *, num_orders: int = 20, rivals: bool = False, randomize: bool = False
    ) -> Evaluation:
        """Evaluate the maps of an explanation, as for models of this package.

        Args:
            explanation: of the last call.
            num_orders: see `faithfulness`.
            rivals: compare with the methods of `attribution`, from the embeddings of the tokens; masked tokens are then
                also zeros there, so that nothing of them remains.
            randomize: compare with the maps of the model with random weights; the model is restored.

        Raises:
            ValueError: `rivals`, and tokens are not embedded in a tensor that the answers depend on.
        """
        answers = self._answers
        explainer = WatchedExplainer.with_embeddings(self, answers) if rivals else WatchedExplainer(self, answers, {})
        evaluator = Evaluator(num_samples=self.num_rows, num_orders=num_orders, rivals=rivals, randomize=randomize)
        return evaluator.evaluate(explainer, [explanation], with_localization=False, with_faithfulness=True)

    def write_page(
        self,
        folder: str | Path,
        explanation: Explanation,
        *,
        step: int = 0,
        epoch: int = 0,
        evaluation: Evaluation | None = None,
        knock_outs: Sequence[KnockOut] = (),
        max_megabytes: float = 32.0,
    ) -> Path:
        """Write the exact maps of an explanation into a folder, and the explorer's page; return the page's path.

        Args:
            folder: created if needed; the page shows all steps in it, which must be of the same samples.
            explanation: of the last call.
            step, epoch: of a training.
            evaluation: of its maps; None: `evaluate` is called.
            knock_outs: see `knock_out`.
            max_megabytes: limit of the exact weights.
        """
        evaluation = self.evaluate(explanation) if evaluation is None else evaluation
        return replace(self.writer(explanation), knock_outs=knock_outs).write_page(
            Path(folder), step=step, epoch=epoch, evaluation=evaluation, max_megabytes=max_megabytes
        )

    def writer(self, explanation: Explanation) -> ExplanationWriter:
        """Return the writer of an explanation of the last call."""
        pictures = {name: picture for name, given in self.inputs.items() if (picture := given.drawn) is not None}
        return ExplanationWriter(explanation, Media(pictures, texts=self.texts))


def _name_in(names: Sequence[str], number: int) -> str:
    if number >= len(names):
        raise ValueError(f"class_names: there are {len(names)}, none of which is that of {number}")
    return names[number]


@contextmanager
def watch(
    model: nn.Module,
    *,
    inputs: Mapping[str, GivenInput] | None = None,
    roles: Mapping[str, str] | None = None,
    method: str = "forward",
    gradients: bool = False,
) -> Iterator[WatchedAttention]:
    """Record the attention of each call of a model inside the context, whoever wrote it; see `WatchedAttention`.

    Outputs, gradients, random numbers and the mode of the model are as without it. A compiled model runs uncompiled.
    Attention in kernels that are not torch functions, such as those of `flash_attn`, is not found. `print(attention)`
    says what was found.

    Args:
        model: any module.
        inputs: name -> the input that tokens belong to: images [batch, channels, height, width], the text of each
            token for each sample, or an `Input`; in the order of the sequences. Tokens without an input have one axis.
        roles: pattern of module paths -> the sequence that their attention updates, to correct a wrong guess:
            `tokens`, `latents` or `outputs`.
        method: the method of the model that is called.
        gradients: give the outputs of attention a gradient even if all parameters before them are frozen, for
            `explain`; the outputs of the model then have one, too, and torch's fast paths, which have none, are not
            taken.
    """
    own = getattr(model, method)
    attention = WatchedAttention(ModelCall(model, own), inputs or {}, roles or {})
    is_own = method in vars(model)

    def watched(*args: Any, **kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() != -1:
            return own(*args, **kwargs)
        return attention.record_call(args, kwargs, gradients=gradients)

    setattr(model, method, watched)  # a hook would switch off fast paths
    try:
        with torch.compiler.set_stance("force_eager"):
            yield attention
    finally:
        if is_own:
            setattr(model, method, own)
        else:
            delattr(model, method)
