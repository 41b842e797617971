"""From a model of the next token to whole texts: greedy, by beam search, or by sampling.

A text begins with BOS and ends with EOS, or where it reaches the greatest length. What a strategy goes by is the
log-probability of the next token, as the model gives it; all texts of a batch are generated together.
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

NEVER = (PAD, BOS, UNKNOWN)
"""Tokens that are never generated."""
IMPOSSIBLE = float("-inf")


@dataclass(frozen=True)
class Texts:
    """The texts generated for each sample, best first.

    Attributes:
        ids: from BOS to EOS, followed by PAD.
        log_probabilities: of each text as a whole, its EOS with it, as long as nothing is penalised.
    """

    ids: Int[Tensor, "batch texts length"]
    log_probabilities: Float[Tensor, "batch texts"]


class Generation(ABC):
    """How texts are generated.

    Args:
        presence_penalty: taken off the log-probability of each token that a text has already; 0 for none.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice in a text; 0 for no such rule.
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
        begin: Callable[[int], IncrementalDecoder],
        *,
        batch_size: int,
        num_texts: int,
        max_length: int,
        device: torch.device,
    ) -> Texts:
        """Generate texts.

        Args:
            begin: number of rows a sample -> a decoder with so many.
            batch_size: samples.
            num_texts: texts wanted of each sample.
            max_length: most tokens of a text, BOS and EOS among them.
            device: where the decoder's numbers are.
        """

    def constrain(
        self, log_probabilities: Float[Tensor, "rows vocab"], ids: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows vocab"]:
        """Log-probabilities of the next token, by what may follow `ids`."""
        scores = log_probabilities.index_fill(1, torch.tensor(NEVER, device=ids.device), IMPOSSIBLE)
        if self.presence_penalty:
            scores = scores.scatter(1, ids, scores.gather(1, ids) - self.presence_penalty)
        size = self.no_repeat_ngram_size
        if 0 < size <= ids.shape[1]:
            before = ids.unfold(1, size, 1)
            same = (before[..., :-1] == ids[:, None, ids.shape[1] - size + 1 :]).all(dim=-1)
            last = before[..., -1]
            # PAD, which is impossible already, where nothing is forbidden; EOS never is.
            scores = scores.scatter(1, last.where(same & (last != EOS), PAD), IMPOSSIBLE)
        return scores


class BeamSearch(Generation):
    """The texts of the highest score: log-probability / ((5 + length) / 6)^length_penalty (Wu et al. 2016, eq. 14).

    The length counts the tokens after BOS. The search ends when no unfinished text can overtake the finished ones, not
    earlier.

    Args:
        num_beams: texts that are followed at once; 1 is greedy, where the length penalty has no meaning.
        length_penalty: 0 for none; the larger, the longer the texts.
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
        begin: Callable[[int], IncrementalDecoder],
        *,
        batch_size: int,
        num_texts: int,
        max_length: int,
        device: torch.device,
    ) -> Texts:
        width = max(self.num_beams, num_texts)
        penalty = self.length_penalty if width > 1 else 0.0
        decoder = begin(width)
        ids = torch.full((batch_size, width, 1), BOS, device=device)
        live = torch.full((batch_size, width), IMPOSSIBLE, device=device)
        live[:, 0] = 0.0  # the beams of a sample begin as one
        done_ids = torch.full((batch_size, width, max_length), PAD, device=device)
        done_scores, done = live.new_full(live.shape, IMPOSSIBLE), live.new_full(live.shape, IMPOSSIBLE)
        first_row = torch.arange(batch_size, device=device)[:, None] * width
        for length in range(1, max_length):
            flat = rearrange(ids, "batch beams length -> (batch beams) length")
            following = self.constrain(decoder.next(flat[:, -1]).float(), flat)
            vocab = following.shape[1]
            totals = live[..., None] + rearrange(following, "(batch beams) vocab -> batch beams vocab", beams=width)
            # Each beam gives at most one end, so that twice as many hold enough that go on.
            best, places = totals.flatten(1).topk(min(2 * width, width * vocab), dim=1)
            beams, next_ids = places // vocab, places % vocab
            grown = torch.cat([ids.take_along_dim(beams[..., None], dim=1), next_ids[..., None]], dim=2)
            ends = next_ids == EOS
            if length == max_length - 1:  # whatever is left ends here
                ends = torch.ones_like(ends)
            ended = best.where(ends, IMPOSSIBLE)
            ended[:, width:] = IMPOSSIBLE  # an end counts where it is among the best, as in Wu et al.
            all_scores = torch.cat([done_scores, ended / length_factor(length, penalty)], dim=1)
            done_scores, kept = all_scores.topk(width, dim=1)
            done = torch.cat([done, ended], dim=1).take_along_dim(kept, dim=1)
            padded = torch.nn.functional.pad(grown, (0, max_length - length - 1), value=PAD)
            done_ids = torch.cat([done_ids, padded], dim=1).take_along_dim(kept[..., None], dim=1)
            live, chosen = best.masked_fill(ends, IMPOSSIBLE).topk(width, dim=1)
            attainable = live[:, 0] / length_factor(max_length - 1, penalty)
            if bool((done_scores[:, num_texts - 1] >= attainable).all()):
                break
            ids = grown.take_along_dim(chosen[..., None], dim=1)
            decoder.select((first_row + beams.take_along_dim(chosen, dim=1)).flatten())
        used = int((done_ids != PAD).sum(dim=2).max())
        return Texts(done_ids[:, :num_texts, :used], done[:, :num_texts])


def length_factor(length: int, penalty: float) -> float:
    """What a log-probability of a text of so many tokens is divided by."""
    return ((5.0 + length) / 6.0) ** penalty


class Sampling(Generation):
    """Tokens drawn by their probabilities.

    Args:
        temperature: of the softmax; below 1 likely tokens become likelier.
        top_k: only the so many likeliest tokens are drawn from; 0 for all.
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
        begin: Callable[[int], IncrementalDecoder],
        *,
        batch_size: int,
        num_texts: int,
        max_length: int,
        device: torch.device,
    ) -> Texts:
        decoder = begin(num_texts)
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
        of_sample = rearrange(totals, "(batch texts) -> batch texts", texts=num_texts)
        order = of_sample.argsort(dim=1, descending=True, stable=True)
        texts = rearrange(ids, "(batch texts) length -> batch texts length", texts=num_texts)
        return Texts(texts.take_along_dim(order[..., None], dim=1), of_sample.take_along_dim(order, dim=1))

    def truncate(self, scores: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """Log-probabilities with temperature, and without the tokens that are not drawn from."""
        # Less the highest, so that dividing by next to nothing leaves a finite one.
        scores = (scores - scores.amax(dim=1, keepdim=True)) / self.temperature
        if 0 < self.top_k < scores.shape[1]:
            least = scores.topk(self.top_k, dim=1).values[:, -1:]
            scores = scores.masked_fill(scores < least, IMPOSSIBLE)
        if self.top_p < 1.0:
            ordered, order = scores.sort(dim=1, descending=True)
            probabilities = ordered.softmax(dim=1)
            # A token stays while those before it have less than top_p: the likeliest always does.
            beyond = probabilities.cumsum(dim=1) - probabilities >= self.top_p
            scores = scores.masked_fill(beyond.scatter(1, order, beyond), IMPOSSIBLE)
        return scores
