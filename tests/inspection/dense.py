"""The explanation of dense outputs, classes of places of an image, and its page."""

import torch

from perceiver.decoders.dense import DenseDecoder
from perceiver.inspection.drawing.media import Media, page_samples
from perceiver.inspection.explorer.page import explorer_page, page_event
from perceiver.inspection.maps.capture import input_pictures
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.explanation import Explanation
from perceiver.positions import FourierPositions
from perceiver.queries.positions import Positions
from perceiver.tasks.segmentation import Segmentation
from tests.inspection.explanations import arrays_of, labelled
from tests.inspection.models import DECODE_HEADS, perceiver_io
from tests.models import DIM, image_encoder

CLASSES = ["sky", "sea", "land"]
SIZE = (11, 13)


def explainer_of_places(chunk_size: int = 29) -> Explainer:
    """Explains the classes of all places of an image; always the same model."""
    torch.manual_seed(5)
    queries = Positions(axes="yx", positions=FourierPositions(num_bands=3, max_resolution=SIZE), dim=23)
    decoder = DenseDecoder(
        dim=DIM, num_channels=len(CLASSES), queries=queries, attention=DECODE_HEADS, chunk_size=chunk_size
    )
    model = perceiver_io(encoders={"image": image_encoder()}, decoder=decoder)
    task = Segmentation(num_classes=len(CLASSES), modality="image", num_places=7)
    return Explainer(model=model, task=task, class_names=CLASSES, alpha=0.3)


def explained_places(chunk_size: int = 29) -> Explanation:
    """An explanation of two images."""
    explainer = explainer_of_places(chunk_size)
    return explainer.explain(labelled({"image": torch.rand(2, 3, *SIZE)}))


def dense_page(explanation: Explanation) -> str:
    """The page of one explanation."""
    media = Media(input_pictures(perceiver_io(encoders={"image": image_encoder()}), explanation.batch.inputs))
    samples = page_samples(explanation.batch, explanation.record.spans, media, CLASSES)
    return explorer_page("places", samples, {"run": [page_event(arrays_of(explanation))]})
