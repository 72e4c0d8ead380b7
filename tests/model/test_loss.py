"""The training loss against transformers', and the cases that transformers does not have."""

from __future__ import annotations

import pytest
import torch

from panoptile.model.loss import (
    ImageTargets,
    Mask2FormerCriterion,
    PointSampling,
    QueryRoles,
    dice_losses,
    mask_losses,
    match_image,
)

LAYERS, IMAGES, QUERIES, LABELS = 3, 2, 9, 4
SAMPLING = PointSampling(points=300)


def fixed_points(shape: tuple[int, int, int], device: torch.device | None = None) -> torch.Tensor:
    """The same points for every mask, whatever the number of masks that are sampled at once."""
    generator = torch.Generator().manual_seed(shape[1])
    pattern = torch.empty(1, *shape[1:]).uniform_(generator=generator)
    return pattern.expand(shape).contiguous().to(device or "cpu")


def some_predictions(seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(seed)
    classes = [torch.randn(IMAGES, QUERIES, LABELS + 1) for _ in range(LAYERS)]
    masks = [3 * torch.randn(IMAGES, QUERIES, 12, 10) for _ in range(LAYERS)]
    return classes, masks


def some_targets(objects: tuple[int, ...] = (5, 2), seed: int = 1) -> list[ImageTargets]:
    torch.manual_seed(seed)
    return [ImageTargets(torch.rand(n, 48, 40) > 0.5, torch.randint(LABELS, (n,))) for n in objects]


def criterion() -> Mask2FormerCriterion:
    return Mask2FormerCriterion(num_labels=LABELS, sampling=SAMPLING, random_uniform=fixed_points)


@pytest.mark.parametrize("objects", [(5, 2), (1, 1), (12, 3)], ids=["some", "one each", "more than queries"])
def test_equals_transformers_on_shared_points(
    objects: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same predictions and points, every term of every layer is transformers' within 1e-5."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    config = transformers.Mask2FormerConfig(
        num_labels=LABELS, train_num_points=SAMPLING.points, use_auxiliary_loss=True
    )
    class_logits, mask_logits = some_predictions()
    targets = some_targets(objects)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, device=None: fixed_points(shape, device))
        theirs = Mask2FormerLoss(config, weight_dict={})(
            mask_logits[-1],
            class_logits[-1],
            [t.masks.float() for t in targets],
            [t.class_labels for t in targets],
            [
                {"masks_queries_logits": m, "class_queries_logits": c}
                for c, m in zip(class_logits[:-1], mask_logits[:-1], strict=True)
            ],
        )
    ours = criterion()(class_logits, mask_logits, targets)
    suffixes = [*(f"_{i}" for i in range(LAYERS - 1)), ""]
    for name, values in (("cross_entropy", ours.classes), ("mask", ours.mask), ("dice", ours.dice)):
        expected = torch.stack([theirs[f"loss_{name}{suffix}"] for suffix in suffixes])
        torch.testing.assert_close(values, expected.float(), rtol=0, atol=1e-5)
    total = sum(
        weight * float(values.sum())
        for weight, values in ((2.0, ours.classes), (5.0, ours.mask), (5.0, ours.dice))
    )
    assert float(ours.total) == pytest.approx(total, rel=1e-6)


def test_an_empty_image_asks_every_query_for_no_object() -> None:
    """Without objects the mask terms are 0, the class term is that of "no object", and gradients are finite."""
    class_logits, mask_logits = some_predictions()
    leaves = [tensor.requires_grad_() for tensor in (*class_logits, *mask_logits)]
    losses = criterion()(class_logits, mask_logits, some_targets((0, 0)))
    assert losses.mask.tolist() == losses.dice.tolist() == [0.0] * LAYERS
    nothing = class_logits[0].flatten(0, 1).log_softmax(dim=-1)[:, LABELS]
    assert float(losses.classes[0].detach()) == pytest.approx(-float(nothing.detach().mean()), rel=1e-5)
    losses.total.backward()
    assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves)


def test_ignored_pixels_change_nothing() -> None:
    """Loss and gradients are the same whatever the labels and predictions are under the ignored pixels."""
    ignored = torch.zeros(48, 40, dtype=torch.bool)
    ignored[:, 16:] = True
    results = []
    for noise_seed in (5, 6):
        class_logits, mask_logits = some_predictions()
        torch.manual_seed(noise_seed)
        for logits in mask_logits:
            logits[..., 5:] = torch.randn(
                IMAGES, QUERIES, 12, 5
            )  # beyond column 4.5 / 10 no counted point looks
        changed = []
        for target in some_targets():
            masks = target.masks.clone()
            masks[:, :, 17:] = torch.rand(masks[:, :, 17:].shape) > 0.5
            changed.append(ImageTargets(masks, target.class_labels, ignored))
        leaf = mask_logits[0].requires_grad_()
        uniform = Mask2FormerCriterion(
            num_labels=LABELS,
            sampling=PointSampling(points=200, importance=0.0),
            random_uniform=fixed_points,
        )
        losses = uniform(class_logits, mask_logits, changed)
        losses.total.backward()
        assert leaf.grad is not None
        results.append((losses.mask.detach(), losses.dice.detach(), leaf.grad[..., :5].clone(), leaf.grad))
    torch.testing.assert_close(results[0][:3], results[1][:3], rtol=0, atol=1e-6)
    assert float(results[0][3][..., 6:].abs().max()) == 0.0


def test_an_image_that_is_ignored_whole_has_no_mask_loss() -> None:
    """No counted point at all gives a mask loss of 0, not a division by zero."""
    nothing = torch.zeros(3, 7)
    assert mask_losses(torch.randn(3, 7), torch.ones(3, 7), nothing).tolist() == [0.0] * 3
    assert dice_losses(torch.randn(3, 7), torch.ones(3, 7), nothing).tolist() == [0.0] * 3


def test_matching_finds_the_shuffled_truth() -> None:
    """Queries that predict the objects exactly, in another order, are matched to them in every layer."""
    torch.manual_seed(3)
    target = some_targets((6,))[0]
    order = torch.randperm(QUERIES)[:6]
    masks = torch.full((2, QUERIES, 48, 40), -8.0)
    classes = torch.zeros(2, QUERIES, LABELS + 1)
    masks[:, order] = 16.0 * target.masks.float() - 8.0
    classes[:, order, target.class_labels] = 6.0
    for queries, objects in match_image(classes, masks, target, weights=criterion().weights, points=400):
        assert objects.tolist() == list(range(6))
        assert queries.tolist() == order.tolist()


def test_wrong_class_labels_are_named() -> None:
    """A label outside the model's classes stops with the labels, before it becomes "no object"."""
    class_logits, mask_logits = some_predictions()
    targets = [ImageTargets(t.masks, t.class_labels + LABELS) for t in some_targets()]
    with pytest.raises(ValueError, match=r"the model knows 0…3"):
        criterion()(class_logits, mask_logits, targets)


def test_roles_decide_between_equal_queries() -> None:
    """Where all queries predict alike, a thing goes to the nearest query and stuff to the query of its class."""
    masks = torch.zeros(3, 40, 40, dtype=torch.bool)
    masks[0, 2:10, 2:10] = True  # top left
    masks[1, 30:38, 28:36] = True  # bottom right
    masks[2, :, 20:] = True  # stuff that covers half
    target = ImageTargets(masks, torch.tensor([0, 0, 3]))
    places = torch.tensor([[0.75, 0.25], [0.8, 0.8], [0.2, 0.2]])
    roles = QueryRoles(places, stuff=(2, 3), weight=20.0)
    logits, mask_logits = torch.zeros(1, 5, LABELS + 1), torch.zeros(1, 5, 10, 10)
    ((queries, objects),) = match_image(
        logits, mask_logits, target, weights=criterion().weights, points=50, roles=roles
    )
    assert dict(zip(objects.tolist(), queries.tolist(), strict=True)) == {0: 2, 1: 1, 2: 4}
