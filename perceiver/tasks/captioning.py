"""Captions of samples of any modality, scored as in the COCO caption evaluation."""

from collections.abc import Sequence

from perceiver.tasks.generation import Generation
from perceiver.tasks.text_generation import TextGeneration
from perceiver.tasks.text_metrics import ScoredText, caption_metrics, caption_words, rouge_l
from perceiver.tokenizer import Tokenizer


class CaptionMetrics:
    """Metrics of the COCO caption evaluation, and the ROUGE-L of one caption."""

    def __call__(self, texts: Sequence[ScoredText]) -> dict[str, float]:
        return caption_metrics(texts)

    def of_text(self, text: ScoredText) -> dict[str, float]:
        references = [caption_words(reference) for reference in text.references]
        return {"ROUGE-L": rouge_l([caption_words(text.text)], [references])}


class Captioning(TextGeneration):
    """Captions, with the metrics of `text_metrics.caption_metrics`.

    Args:
        captions_per_sample: captions of each training sample in one step: 1 for its `caption`; for more, its
            `references` in turn, repeated where there are fewer. The sample is encoded once for all of them.
        tokenizer, label_smoothing, monitor, generation, output: see `TextGeneration`.
    """

    answer_key = "caption"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        label_smoothing: float,
        captions_per_sample: int,
        monitor: str,
        generation: Generation,
        output: str = "logits",
    ) -> None:
        if captions_per_sample < 1:
            raise ValueError(f"captions_per_sample={captions_per_sample} must be at least 1")
        super().__init__(
            tokenizer=tokenizer,
            measure=CaptionMetrics(),
            label_smoothing=label_smoothing,
            texts_per_sample=captions_per_sample,
            monitor=monitor,
            generation=generation,
            output=output,
        )
