"""What is handed to loggers."""

import numpy as np
from PIL import Image

from perceiver.training.panels import of_one_size


def test_smaller_pictures_get_white_to_the_right_and_below():
    random = np.random.default_rng(1)
    arrays = [random.integers(255, size=(*size, 3), dtype=np.uint8) for size in ((5, 3), (2, 7), (5, 7))]
    padded = [np.asarray(picture) for picture in of_one_size([Image.fromarray(array) for array in arrays])]
    for array, page in zip(arrays, padded, strict=True):
        rows, columns, _ = array.shape
        assert page.shape == (5, 7, 3)
        assert (page[:rows, :columns] == array).all()
        assert (page[rows:] == 255).all()
        assert (page[:, columns:] == 255).all()


def test_nothing_stays_nothing():
    assert of_one_size([]) == []
