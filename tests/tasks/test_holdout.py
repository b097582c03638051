"""tasks.holdout: the three parts of the training images."""

import torch

from tasks.data import training_pictures
from tasks.holdout import even_batches, split
from tests.search_program import pictures  # noqa: F401


def test_images_that_move_alphas_evaluate_networks_and_train_weights_are_disjoint(pictures):  # noqa: F811
    parts = split(training_pictures("imagefolder", pictures, 16, 0), 0)
    seen = [
        {tuple(image.flatten().tolist()) for image in part.images}
        for part in (parts.weights, parts.alphas, parts.evaluation)
    ]
    assert [len(s) for s in seen] == [64, 8, 8]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert parts.alphas.labels.bincount().tolist() == parts.evaluation.labels.bincount().tolist() == [2, 2, 2, 2]


def test_even_batches_hold_every_image_once(pictures, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tasks.holdout.BATCH_PIXELS", 32 * 16**2)
    data = training_pictures("imagefolder", pictures, 16, 0)
    batches = [batch() for batch in even_batches(data)]
    assert sorted(len(y) for _, y in batches) == [26, 27, 27]
    assert torch.cat([y for _, y in batches]).bincount().tolist() == [20, 20, 20, 20]
