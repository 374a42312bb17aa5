"""The dense tower: what a state may know, the vectors of items, and the losses against brute force."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from dense_samples import tower, tower_settings
from torch.nn import functional

from cemg_hf.models.cemg.dense_cemg import LAYERS, LOSSES, DenseTower, next_item_loss

NUM_ITEMS, LONGEST = 30, 5
EVERY_LAYER = pytest.mark.parametrize("layer", LAYERS)


def padded(*rows: list[int], width: int = LONGEST) -> torch.Tensor:
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


# ---- states ----------------------------------------------------------------------------------------------------------------------


@EVERY_LAYER
def test_later_items_do_not_change_earlier_states(layer):
    model = tower(NUM_ITEMS, layer=layer)
    vectors = model.item_vectors()
    items = torch.randint(NUM_ITEMS, (4, LONGEST), generator=torch.Generator().manual_seed(0))
    states = model(items, vectors)
    for place in range(LONGEST):
        changed = items.clone()
        changed[:, place:] = (changed[:, place:] + 7) % NUM_ITEMS
        found = model(changed, vectors)
        torch.testing.assert_close(found[:, : place + 1], states[:, : place + 1], atol=1e-6, rtol=0)
        assert (found[:, place + 1 :] - states[:, place + 1 :]).abs().amax(dim=(1, 2)).min() > 1e-3  # and does change later ones


@EVERY_LAYER
def test_padding_and_company_do_not_matter(layer):
    model = tower(NUM_ITEMS, layer=layer)
    vectors = model.item_vectors()
    rows = [[3, 1, 4], [], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9]]
    together = model.last_states(padded(*rows), vectors)
    every = model(padded(*rows), vectors)
    for number, row in enumerate(rows):
        alone = torch.tensor([row], dtype=torch.int64)
        torch.testing.assert_close(model.last_states(alone, vectors)[0], together[number], atol=1e-5, rtol=0)
        torch.testing.assert_close(model(alone, vectors)[0], every[number, : len(row) + 1], atol=1e-5, rtol=0)


def test_positions_count_from_the_last_item():
    """Whatever the length of a history, its last item has the last position, and `<start>` the one before its first."""
    model = tower(NUM_ITEMS)
    for row in ([], [2], [2, 7, 1], [4, 4, 4, 4, 4]):
        model.zero_grad()
        model(padded(row), model.item_vectors())[0, : len(row) + 1].square().sum().backward()
        used = model.position.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
        assert used == list(range(LONGEST - len(row), LONGEST + 1))


def test_the_order_of_items_and_an_empty_history_have_something_to_say():
    model = tower(NUM_ITEMS)
    vectors = model.item_vectors()
    one, other, empty = model.last_states(padded([1, 2, 3], [2, 1, 3], []), vectors)
    assert (one - other).abs().max() > 1e-3
    assert torch.isfinite(empty).all()
    assert empty.std() > 0


@EVERY_LAYER
@pytest.mark.parametrize("content_dim", [0, 3])
def test_the_gradient_reaches_everything_that_is_trained(layer, content_dim):
    model = tower(NUM_ITEMS, layer=layer, content_dim=content_dim, loss="full", feed_forward=2).train()
    vectors = model.item_vectors(content=torch.randn(NUM_ITEMS, content_dim) if content_dim else None)
    states = model(padded([1, 2, 3, 4, 5], [6, 7]), vectors)
    next_item_loss(states[:, :3].flatten(0, 1), torch.arange(6), vectors, model.settings).backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().max() > 1e-12]
    # A key's bias shifts all scores of a query alike, which the softmax takes out again.
    assert {name for name in silent if not name.endswith("attention.key.bias")} == set()


def test_dropout_is_of_training_alone():
    model = tower(NUM_ITEMS, dropout=0.5)
    items = padded([1, 2, 3])
    states = [model.train(mode)(items, model.item_vectors()) for mode in (True, True, False, False)]
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[2], states[3])


# ---- vectors of items --------------------------------------------------------------------------------------------------------------


def test_vectors_are_embedding_plus_content_and_new_items_are_their_content():
    model, content = tower(NUM_ITEMS, content_dim=3), torch.randn(4, 3)
    vectors = model.item_vectors(torch.tensor([7, -1, 0, -1]), content)
    own, projected = model.item_embedding.weight, content @ model.content.weight.T
    torch.testing.assert_close(vectors, torch.stack([own[7], own[0] * 0, own[0], own[0] * 0]) + projected, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.item_vectors(content=torch.zeros(NUM_ITEMS, 3)), own)
    assert torch.equal(model.item_vectors(content=content[[0] * NUM_ITEMS].half()), own + model.content(content[:1].half().float()))


def test_without_content_the_vectors_are_the_embeddings():
    model = tower(NUM_ITEMS)
    assert model.content is None
    assert torch.equal(model.item_vectors(), model.item_embedding.weight)
    vectors = model.item_vectors(torch.tensor([2, -1]), content=torch.randn(2, 3))
    assert torch.equal(vectors, torch.stack([model.item_embedding.weight[2], torch.zeros(8)]))


def test_missing_content_is_an_error():
    with pytest.raises(ValueError, match="trained with content vectors, and none are given"):
        tower(NUM_ITEMS, content_dim=3).item_vectors()


def test_vectors_are_kept_in_evaluation_mode_until_the_weights_the_rows_or_the_content_change():
    model, rows, content = tower(NUM_ITEMS, content_dim=3), torch.tensor([7, -1, 0]), torch.randn(3, 3)

    def found() -> torch.Tensor:
        with torch.no_grad():
            vectors = model.item_vectors(rows, content)
            torch.testing.assert_close(vectors, model._item_vectors(rows, content), atol=0, rtol=0)
            return vectors

    first = found()
    assert found() is first
    other = tower(NUM_ITEMS, seed=5, content_dim=3)
    changes = {
        "weights loaded": lambda: model.load_state_dict(other.state_dict()),
        "weights put in place": lambda: model.load_state_dict(tower(NUM_ITEMS, seed=6, content_dim=3).state_dict(), assign=True),
        "another type": lambda: model.to(torch.bfloat16),
        "and back": lambda: model.to(torch.float32),
        "another projection": lambda: setattr(model, "content", other.content),
        "rows": lambda: rows.copy_(torch.tensor([1, 2, -1])),
        "content": lambda: content.mul_(2),
        "an optimizer in evaluation mode": lambda: optimise(model, rows, content),
    }
    for change in changes.values():
        change()
        assert found() is not first
        first = found()
        assert found() is first
    model.train()
    model.item_embedding.weight.data.add_(1)  # seen by no account of changes, hence all is dropped
    model.eval()
    assert found() is not first


def optimise(model: DenseTower, rows: torch.Tensor, content: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model.item_vectors(rows, content).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_vectors_are_computed_where_they_are_trained_or_hide_behind_an_adapter():
    model, content = tower(NUM_ITEMS, content_dim=3), torch.randn(NUM_ITEMS, 3)
    assert model.item_vectors(content=content).requires_grad
    with torch.no_grad():
        kept = model.item_vectors(content=content)
        assert model.train().item_vectors(content=content) is not kept

        class Adapter(torch.nn.Linear):
            """Its result depends on something that is no weight."""

            scale = 1.0

            def forward(self, values: torch.Tensor) -> torch.Tensor:
                return self.scale * super().forward(values)

        model.eval().content = Adapter(3, 8, bias=False)
        first = model.item_vectors(content=content)
        model.content.scale = 2.0
        assert not torch.equal(model.item_vectors(content=content), first)


def test_scores_are_dot_products_in_single_precision_of_the_vectors_as_they_are():
    model = tower(NUM_ITEMS).to(torch.bfloat16)
    states = torch.randn(2, 8).bfloat16()
    with torch.no_grad():
        for _ in range(3):
            vectors = model.item_vectors()
            assert torch.equal(model.scores(states, vectors), states.float() @ vectors.float().T)
            model.item_embedding.weight.mul_(2)


def test_autocast_does_not_round_scores():
    model = tower()
    vectors, states = model.item_vectors(), torch.randn(3, 8)
    with torch.no_grad():
        expected = model.scores(states, vectors)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.scores(states, vectors), expected)


def test_nothing_that_is_kept_is_saved_or_copied():
    model, content = tower(NUM_ITEMS, content_dim=3), torch.randn(NUM_ITEMS, 3)
    names, size = list(model.state_dict()), len(pickle.dumps(model))
    with torch.inference_mode():
        vectors = model.item_vectors(content=content)
        model.scores(vectors[:1], vectors)
    assert list(model.state_dict()) == names
    assert len(pickle.dumps(model)) == size
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied._vectors._found is None
        with torch.no_grad():
            assert torch.equal(copied.item_vectors(content=content), vectors)
            copied.content.weight.zero_()
            assert not torch.equal(copied.item_vectors(content=content), vectors)
            assert model.item_vectors(content=content) is vectors


def test_a_compiled_tower_follows_its_weights():
    model, content = tower(NUM_ITEMS, content_dim=3), torch.randn(NUM_ITEMS, 3)
    items = padded([1, 2], [3])
    with torch.no_grad():
        model.item_vectors(content=content)  # something to keep
        compiled = torch.compile(lambda: model.last_states(items, model.item_vectors(content=content)), fullgraph=True, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(), model.last_states(items, model.item_vectors(content=content)))
            model.content.weight.add_(1)


def test_id_dropout_hides_whole_items_in_training_and_none_afterwards():
    model, content = tower(400, content_dim=3, id_dropout=0.25), torch.zeros(400, 3)
    hidden = (model.train().item_vectors(content=content) == 0).all(dim=1)
    assert 60 < int(hidden.sum()) < 140
    assert torch.equal(model.item_vectors(content=content)[~hidden].isfinite(), torch.ones(int((~hidden).sum()), 8, dtype=torch.bool))
    assert torch.equal(model.eval().item_vectors(content=content), model.item_embedding.weight)


@pytest.mark.parametrize("content_dim", [0, 3])
def test_scores_are_scaled_cosines_on_request(content_dim):
    model = tower(NUM_ITEMS, content_dim=content_dim, cosine_scale=12.0)
    content = torch.randn(NUM_ITEMS, content_dim) if content_dim else None
    vectors = model.item_vectors(content=content)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(NUM_ITEMS))
    plain = tower(NUM_ITEMS, content_dim=content_dim)
    raw = plain.item_vectors(content=content)
    torch.testing.assert_close(functional.cosine_similarity(vectors, raw), torch.ones(NUM_ITEMS))
    items = padded([1, 2, 3], [])
    scores = model.last_states(items, vectors) @ vectors.T
    state = plain.last_states(items, vectors)
    torch.testing.assert_close(
        scores, 12 * functional.cosine_similarity(state.unsqueeze(1), vectors.unsqueeze(0), dim=-1), atol=1e-4, rtol=0
    )


# ---- losses ------------------------------------------------------------------------------------------------------------------------


def case(count: int = 12, num_items: int = NUM_ITEMS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    states, vectors = torch.randn(count, 8, generator=draw), torch.randn(num_items, 8, generator=draw)
    return states, torch.randint(num_items, (count,), generator=draw), vectors


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_full_softmax_is_brute_force(smoothing):
    states, targets, vectors = case()
    expected = 0.0
    for state, target in zip(states, targets.tolist(), strict=True):
        scores = [float(state @ vector) for vector in vectors]
        normaliser = math.log(sum(math.exp(score) for score in scores))
        log_probs = [score - normaliser for score in scores]
        expected -= (1 - smoothing) * log_probs[target] + smoothing * sum(log_probs) / len(log_probs)
    loss = next_item_loss(states, targets, vectors, tower_settings(loss="full", label_smoothing=smoothing))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_target_is_never_its_own_negative(monkeypatch):
    states, targets, vectors = case()
    drawn = torch.cat([targets[:4], torch.tensor([3, 8])])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: drawn)
    loss = next_item_loss(states, targets, vectors, tower_settings(loss="sampled"))
    expected = 0.0
    for state, target in zip(states, targets.tolist(), strict=True):
        negatives = [item for item in drawn.tolist() if item != target]
        scores = torch.stack([state @ vectors[item] for item in [target, *negatives]])
        expected -= float(scores.log_softmax(0)[0])
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_nothing_but_the_target_drawn_is_no_loss_and_no_broken_gradient():
    states, vectors = torch.randn(3, 8, requires_grad=True), torch.randn(1, 8, requires_grad=True)
    loss = next_item_loss(states, torch.zeros(3, dtype=torch.int64), vectors, tower_settings(loss="sampled", num_negatives=4))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not states.grad.any()
    assert not vectors.grad.any()


def test_with_all_items_as_negatives_the_sampled_softmax_is_the_full_one(monkeypatch):
    states, targets, vectors = case()
    full = float(next_item_loss(states, targets, vectors, tower_settings(loss="full")))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.arange(NUM_ITEMS))
    assert float(next_item_loss(states, targets, vectors, tower_settings(loss="sampled"))) == pytest.approx(full, rel=1e-5)


def test_uniform_negatives_in_the_number_of_the_items_come_close_to_the_full_softmax():
    """The estimate of the normaliser is (N − 1) uniform draws, so that its mean is the sum over the other items."""
    states, targets, vectors = case(count=400, num_items=2000)
    full = float(next_item_loss(states, targets, 0.3 * vectors, tower_settings(loss="full"))) / 400
    torch.manual_seed(0)
    sampled = float(next_item_loss(states, targets, 0.3 * vectors, tower_settings(loss="sampled", num_negatives=1999))) / 400
    assert sampled == pytest.approx(full, abs=0.05)
    fewer = float(next_item_loss(states, targets, 0.3 * vectors, tower_settings(loss="sampled", num_negatives=100))) / 400
    assert fewer < sampled - 2


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_losses_are_finite_above_zero_and_fall_along_their_gradient(loss, scale):
    states, targets, vectors = case()
    states, vectors = (scale * states).requires_grad_(), vectors.requires_grad_()
    settings = tower_settings(loss=loss)

    def value() -> torch.Tensor:
        torch.manual_seed(1)  # the same negatives
        return next_item_loss(states, targets, vectors, settings)

    before = value()
    before.backward()
    assert torch.isfinite(before)
    assert before > 0
    assert torch.isfinite(states.grad).all()
    with torch.no_grad():
        vectors -= 1e-4 / scale * vectors.grad
    assert value() < before


def test_bce_of_one_negative(monkeypatch):
    states, targets, vectors = case()
    negatives = (targets + 1) % NUM_ITEMS
    monkeypatch.setattr(torch, "randint", lambda *_, **__: negatives)
    scores = (states @ vectors.T).gather(1, torch.stack([targets, negatives], dim=1))
    expected = functional.binary_cross_entropy_with_logits(scores, torch.tensor([[1.0, 0.0]]).expand(len(targets), -1), reduction="sum")
    assert float(next_item_loss(states, targets, vectors, tower_settings(loss="bce"))) == pytest.approx(float(expected), rel=1e-5)


def test_no_targets_are_no_loss():
    for loss in LOSSES:
        value = next_item_loss(torch.empty(0, 8), torch.empty(0, dtype=torch.int64), torch.randn(5, 8), tower_settings(loss=loss))
        assert float(value) == 0


def test_low_precision_states_are_scored_in_single_precision():
    states, targets, vectors = case()
    for loss in LOSSES:
        assert next_item_loss(states.bfloat16(), targets, vectors.bfloat16(), tower_settings(loss=loss)).dtype == torch.float32


# ---- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": "mamba"}, "layer: unknown value 'mamba'; choose one of sasrec, ligr"),
        ({"loss": "hinge"}, "loss: unknown value 'hinge'; choose one of sampled, full, bce"),
        ({"hidden_size": 9}, "hidden_size: 9 is not a multiple of num_heads = 2"),
        *(
            ({name: 0}, f"{name}: must be at least 1, got 0")
            for name in ("hidden_size", "num_layers", "num_heads", "feed_forward", "max_history", "num_negatives")
        ),
        *(
            ({name: value}, f"{name}: must be a finite number of at least 0, got {value}")
            for name in ("cosine_scale", "content_dim")
            for value in (-1, math.nan, math.inf)
        ),
        *(({name: value}, f"{name}: must be at least 0 and below 1") for name in ("dropout", "label_smoothing") for value in (-0.1, 1.0)),
        *(({"id_dropout": value}, r"id_dropout: must lie in 0 … 1") for value in (-0.1, 1.1, math.nan)),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        tower_settings(**wrong)


@pytest.mark.parametrize(("layer", "loss"), list(itertools.product(LAYERS, LOSSES)))
def test_training_learns_what_follows_what(layer, loss):
    torch.manual_seed(0)
    model = DenseTower(12, tower_settings(layer=layer, loss=loss, dropout=0.0, hidden_size=16))
    windows = torch.stack([torch.arange(start, start + LONGEST + 1) % 12 for start in range(12)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        vectors = model.item_vectors()
        states = model(windows[:, :-1], vectors)
        loss_value = next_item_loss(states[:, 1:].flatten(0, 1), windows[:, 1:].flatten(), vectors, model.settings)
        optimizer.zero_grad()
        loss_value.backward()
        optimizer.step()
    vectors = model.eval().item_vectors()
    best = (model.last_states(windows[:, :-1], vectors) @ vectors.T).argmax(dim=1)
    assert (best == windows[:, -1]).float().mean() > 0.9
