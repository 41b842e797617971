"""Generation of texts from next-token probabilities: greedy, by beam search, or by sampling.

A text begins with BOS and ends with EOS or at the maximum length. Strategies use the log-probability of the next token
as the model gives it; all texts of a batch are generated together.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from perceiver.tokenizer import BOS, EOS, PAD, UNKNOWN
from perceiver.types import IncrementalDecoder

NEVER_GENERATED = (PAD, BOS, UNKNOWN)
"""Tokens that are never generated."""
EXCLUDED = float("-inf")


@dataclass(frozen=True)
class Texts:
    """The texts generated for each sample, best first.

    Attributes:
        ids: from BOS to EOS, followed by PAD.
        log_probabilities: of each whole text including EOS, less what was subtracted as a penalty.
    """

    ids: Int[Tensor, "batch texts length"]
    log_probabilities: Float[Tensor, "batch texts"]


class Generation(ABC):
    """A decoding strategy.

    Args:
        presence_penalty: subtracted from the log-probability of each token that the text contains; 0 for none.
        no_repeat_ngram_size: length of token sequences that may not occur twice in a text; 0 for no such rule.
    """

    def __init__(self, *, presence_penalty: float, no_repeat_ngram_size: int) -> None:
        if presence_penalty < 0.0:
            raise ValueError(f"presence_penalty={presence_penalty} must be at least 0")
        if no_repeat_ngram_size < 0:
            raise ValueError(f"no_repeat_ngram_size={no_repeat_ngram_size} must be at least 0")
        self.presence_penalty = presence_penalty
        self.no_repeat_ngram_size = no_repeat_ngram_size

    @abstractmethod
    def __call__(
        self,
        make_decoder: Callable[[int], IncrementalDecoder],
        *,
        batch_size: int,
        num_texts: int,
        max_length: int,
        device: torch.device,
    ) -> Texts:
        """Generate texts.

        Args:
            make_decoder: number of texts per sample -> a decoder with one row for each.
            batch_size: samples.
            num_texts: texts returned for each sample.
            max_length: maximum number of tokens including BOS and EOS.
            device: that of the decoder.
        """

    def constrain(
        self, log_probabilities: Float[Tensor, "rows vocab"], ids: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows vocab"]:
        """Apply the penalties, and exclude tokens that may not follow `ids`."""
        scores = log_probabilities.index_fill(1, torch.tensor(NEVER_GENERATED, device=ids.device), EXCLUDED)
        if self.presence_penalty:
            scores = scores.scatter(1, ids, scores.gather(1, ids) - self.presence_penalty)
        size = self.no_repeat_ngram_size
        if 0 < size <= ids.shape[1]:
            ngrams = ids.unfold(1, size, 1)
            same = (ngrams[..., :-1] == ids[:, None, ids.shape[1] - size + 1 :]).all(dim=-1)
            last = ngrams[..., -1]
            # Where nothing is forbidden, PAD, which is excluded anyway; EOS is never forbidden.
            scores = scores.scatter(1, last.where(same & (last != EOS), PAD), EXCLUDED)
        return scores


class BeamSearch(Generation):
    """The texts with the highest score: log-probability / ((5 + length) / 6)^length_penalty (Wu et al. 2016, eq. 14).

    The length counts the tokens after BOS. The search ends as soon as no unfinished text can exceed the score of the
    finished ones.

    Args:
        num_beams: texts that are extended in parallel; 1 is greedy search, which has no length penalty.
        length_penalty: exponent; 0 for none, larger values give longer texts.
        presence_penalty, no_repeat_ngram_size: see `Generation`.
    """

    def __init__(
        self, *, num_beams: int, length_penalty: float, presence_penalty: float, no_repeat_ngram_size: int
    ) -> None:
        super().__init__(presence_penalty=presence_penalty, no_repeat_ngram_size=no_repeat_ngram_size)
        if num_beams < 1:
            raise ValueError(f"num_beams={num_beams} must be at least 1")
        if length_penalty < 0.0:
            raise ValueError(f"length_penalty={length_penalty} must be at least 0")
        self.num_beams = num_beams
        self.length_penalty = length_penalty

    @torch.no_grad()
    def __call__(
        self,
        make_decoder: Callable[[int], IncrementalDecoder],
        *,
        batch_size: int,
        num_texts: int,
        max_length: int,
        device: torch.device,
    ) -> Texts:
        width = max(self.num_beams, num_texts)
        penalty = self.length_penalty if width > 1 else 0.0
        decoder = make_decoder(width)
        ids = torch.full((batch_size, width, 1), BOS, device=device)
        live = torch.full((batch_size, width), EXCLUDED, device=device)
        live[:, 0] = 0.0  # all beams of a sample start from one text
        done_ids = torch.full((batch_size, width, max_length), PAD, device=device)
        done_scores, done = live.new_full(live.shape, EXCLUDED), live.new_full(live.shape, EXCLUDED)
        first_row = torch.arange(batch_size, device=device)[:, None] * width
        for length in range(1, max_length):
            flat = rearrange(ids, "batch beams length -> (batch beams) length")
            following = self.constrain(decoder.next(flat[:, -1]).float(), flat)
            vocab = following.shape[1]
            totals = live[..., None] + rearrange(following, "(batch beams) vocab -> batch beams vocab", beams=width)
            # Each beam ends at most once, so that among twice as many there are enough unfinished ones.
            best, places = totals.flatten(1).topk(min(2 * width, width * vocab), dim=1)
            beams, next_ids = places // vocab, places % vocab
            grown = torch.cat([ids.take_along_dim(beams[..., None], dim=1), next_ids[..., None]], dim=2)
            ends = next_ids == EOS
            if length == max_length - 1:  # the maximum length
                ends = torch.ones_like(ends)
            ended = best.where(ends, EXCLUDED)
            ended[:, width:] = EXCLUDED  # only ends among the best count, as in Wu et al.
            all_scores = torch.cat([done_scores, ended / length_factor(length, penalty)], dim=1)
            done_scores, kept = all_scores.topk(width, dim=1)
            done = torch.cat([done, ended], dim=1).take_along_dim(kept, dim=1)
            padded = torch.nn.functional.pad(grown, (0, max_length - length - 1), value=PAD)
            done_ids = torch.cat([done_ids, padded], dim=1).take_along_dim(kept[..., None], dim=1)
            live, chosen = best.masked_fill(ends, EXCLUDED).topk(width, dim=1)
            attainable = live[:, 0] / length_factor(max_length - 1, penalty)
            if bool((done_scores[:, num_texts - 1] >= attainable).all()):
                break
            ids = grown.take_along_dim(chosen[..., None], dim=1)
            decoder.select((first_row + beams.take_along_dim(chosen, dim=1)).flatten())
        used = int((done_ids != PAD).sum(dim=2).max())
        return Texts(done_ids[:, :num_texts, :used], done[:, :num_texts])


def length_factor(length: int, penalty: float) -> float:
    """Return the divisor of the log-probability of a text of `length` tokens after BOS."""
    return ((5.0 + length) / 6.0) ** penalty


class Sampling(Generation):
    """Tokens drawn at random from their probabilities.

    Args:
        temperature: of the softmax; below 1, likely tokens become likelier.
        top_k: number of the likeliest tokens that are drawn from; 0 for all.
        top_p: only the likeliest tokens that together have this probability (nucleus; Holtzman et al. 2020); 1 for all.
        presence_penalty, no_repeat_ngram_size: see `Generation`.
    """

    def __init__(
        self, *, temperature: float, top_k: int, top_p: float, presence_penalty: float, no_repeat_ngram_size: int
    ) -> None:
        super().__init__(presence_penalty=presence_penalty, no_repeat_ngram_size=no_repeat_ngram_size)
        if temperature <= 0.0:
            raise ValueError(f"temperature={temperature} must be more than 0")
        if top_k < 0:
            raise ValueError(f"top_k={top_k} must be at least 0")
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p={top_p} must be in (0, 1]")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p

    @torch.no_grad()
    def __call__(
        self,
        make_decoder: Callable[[int], IncrementalDecoder],
        *,
        batch_size: int,
        num_texts: int,
        max_length: int,
        device: torch.device,
    ) -> Texts:
        decoder = make_decoder(num_texts)
        ids = torch.full((batch_size * num_texts, 1), BOS, device=device)
        totals = torch.zeros(len(ids), device=device)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=device)
        for _ in range(1, max_length):
            following = self.constrain(decoder.next(ids[:, -1]).float(), ids)
            drawn = torch.multinomial(self.truncate(following).softmax(dim=1), 1)
            totals += following.gather(1, drawn)[:, 0].masked_fill(ended, 0.0)
            ids = torch.cat([ids, drawn.masked_fill(ended[:, None], PAD)], dim=1)
            ended |= ids[:, -1] == EOS
            if bool(ended.all()):
                break
        by_sample = rearrange(totals, "(batch texts) -> batch texts", texts=num_texts)
        order = by_sample.argsort(dim=1, descending=True, stable=True)
        texts = rearrange(ids, "(batch texts) length -> batch texts length", texts=num_texts)
        return Texts(texts.take_along_dim(order[..., None], dim=1), by_sample.take_along_dim(order, dim=1))

    def truncate(self, scores: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """Apply the temperature, and exclude tokens beyond `top_k` and `top_p`."""
        # Relative to the highest, which stays finite when divided by a tiny temperature.
        scores = (scores - scores.amax(dim=1, keepdim=True)) / self.temperature
        if 0 < self.top_k < scores.shape[1]:
            least = scores.topk(self.top_k, dim=1).values[:, -1:]
            scores = scores.masked_fill(scores < least, EXCLUDED)
        if self.top_p < 1.0:
            ordered, order = scores.sort(dim=1, descending=True)
            probabilities = ordered.softmax(dim=1)
            # A token is kept while those before it sum to less than top_p: the likeliest always is.
            beyond = probabilities.cumsum(dim=1) - probabilities >= self.top_p
            scores = scores.masked_fill(beyond.scatter(1, order, beyond), EXCLUDED)
        return scores
