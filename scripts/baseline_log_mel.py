"""Linear baselines on a sound data set: `uv run scripts/baseline_log_mel.py experiment=audio_tagging`.

With the splits and the spectrogram of an experiment, sounds are described by the mean over time of their log-mels (and
in a second row also by the standard deviation). Prints the test metrics of the task for logistic and ridge regression,
with regularization chosen by cross-validation on the training samples.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import hydra
import numpy as np
from omegaconf import DictConfig

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import ConfigError, report_user_errors

if TYPE_CHECKING:
    from perceiver.data.dataset import Split
    from perceiver.spectrogram import LogMel


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="baseline_log_mel")
@report_user_errors
def main(cfg: DictConfig) -> None:
    from rich.table import Table

    from perceiver.runtime.config import resolved
    from perceiver.runtime.summary import console
    from perceiver.runtime.torch_settings import prepare_torch
    from perceiver.training.build import build

    config = resolved(cfg)
    prepare_torch(config)
    parts = build(config)
    encoders = parts.model.encoders
    if "audio" not in encoders:
        raise ConfigError(f"experiment: its model reads {', '.join(encoders)}, and no audio")
    log_mel = encoders["audio"].log_mel
    test = parts.data.splits["test"]
    if test is None:
        raise ConfigError("data: there are no test samples")
    train_x, train_y = statistics(parts.data.train_samples, log_mel, parts.data.dataset.num_classes)
    test_x, test_y = statistics(test, log_mel, parts.data.dataset.num_classes)
    table = Table("features", "model", *metrics(test_y, test_y))
    for features, size in (("mean of log-mels", train_x.shape[1] // 2), ("mean and deviation", train_x.shape[1])):
        for name, scores in test_scores(train_x[:, :size], train_y, test_x[:, :size]):
            table.add_row(features, name, *(f"{value:.3f}" for value in metrics(scores, test_y).values()))
    console.print(table)


def statistics(split: "Split", log_mel: "LogMel", num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation over time of log-mels [samples, 2 mels], and classes [samples, classes]."""
    import torch

    rows, tags = [], np.zeros((len(split), num_classes), dtype=int)
    for index in range(len(split)):
        sample = split[index]
        windows = [log_mel(window.inputs["audio"])[0] for window in sample.split()]
        frames = torch.cat(windows, dim=1)
        rows.append(torch.cat([frames.mean(dim=1), frames.std(dim=1)]).numpy())
        tags[index, list(split.sample_classes(index))] = 1
    return np.stack(rows), tags


def test_scores(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each model and its scores of the test samples [samples, classes]."""
    from sklearn.linear_model import LogisticRegression, RidgeClassifierCV, RidgeCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    single = bool((train_y.sum(axis=1) == 1).all())
    strengths = np.logspace(-3, 3, 7)
    logistic: Any = GridSearchCV(LogisticRegression(max_iter=2000), {"C": 1 / strengths}, cv=3)
    ridge: Any = RidgeClassifierCV(strengths * 100) if single else RidgeCV(strengths * 100)
    for name, model in (("logistic regression", logistic), ("ridge regression", ridge)):
        if single:
            pipeline = make_pipeline(StandardScaler(), model).fit(train_x, train_y.argmax(axis=1))
            yield name, pipeline.decision_function(test_x)
        elif model is ridge:
            yield name, make_pipeline(StandardScaler(), model).fit(train_x, train_y).predict(test_x)
        else:
            pipeline = make_pipeline(StandardScaler(), OneVsRestClassifier(model)).fit(train_x, train_y)
            yield name, pipeline.predict_proba(test_x)


def metrics(scores: np.ndarray, tags: np.ndarray) -> dict[str, float]:
    """Return mAP, AUC, d′, and top-1 accuracy if each sample has one class."""
    import torch

    from perceiver.tasks.ranking import Ranking

    ranking = Ranking(tags.shape[1])
    ranking.update(torch.from_numpy(scores).float(), torch.from_numpy(tags > 0))
    found = {name: float(value) for name, value in ranking.compute().items()}
    if (tags.sum(axis=1) == 1).all():
        found["accuracy"] = float((scores.argmax(axis=1) == tags.argmax(axis=1)).mean())
    return found


if __name__ == "__main__":
    main()
