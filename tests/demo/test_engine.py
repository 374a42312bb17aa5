from __future__ import annotations

import math

import pytest
from demo_samples import BARE, picture

from cemg_hf.demo.engine import CARDS, MOST_ADDED, MOST_HISTORY, Controls, Engine, Ranking, Session
from cemg_hf.errors import CEMGError


def ids(ranking: Ranking) -> list[str]:
    return [card.item.item_id for card in ranking.cards]


def test_a_visitor_begins_with_a_real_shopper(engine: Engine, session: Session) -> None:
    assert session.shopper is not None
    assert session.history == list(session.shopper.history)
    assert session.history


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("beams", [1, 20, 48])
def test_cards_are_what_the_model_recommends(engine: Engine, session: Session, exclude: bool, beams: int) -> None:
    (ranking,) = engine.rank(session, Controls(exclude_history=exclude, num_beams=beams))
    expected = engine.models[0].model.recommend(session.history, k=CARDS, exclude_history=exclude, num_beams=max(beams, CARDS))
    assert [(card.item.item_id, card.score) for card in ranking.cards] == [tuple(item) for item in expected]
    assert [card.place for card in ranking.cards] == list(range(1, CARDS + 1))
    assert not (exclude and set(ids(ranking)) & set(session.history))
    assert ranking.unread == max(len(session.history) - 5, 0)
    for card in ranking.cards:
        assert sum(code.log_prob for code in card.codes) == pytest.approx(card.score, abs=1e-4)
        tokens = [f"<{letter}_" for letter in "abc"]
        assert [code.text.startswith(token) for code, token in zip(card.codes, tokens, strict=True)] == [True] * 3
        assert card.start_share + sum(glance.share for glance in card.glances) == pytest.approx(1, abs=1e-4)
        assert [glance.item.item_id for glance in sorted(card.glances, key=lambda seen: session.history.index(seen.item.item_id))] == (
            session.history[-5:]
        )
        shares = [glance.share for glance in card.glances]
        assert shares == sorted(shares, reverse=True)
        assert card.strength == pytest.approx(math.exp(card.score - ranking.cards[0].score))
        assert (card.alpha is None) == (card.item.item_id == BARE)


def test_categories_are_an_allow_list(engine: Engine, session: Session) -> None:
    (ranking,) = engine.rank(session, Controls(categories=("Wear", "Clocks")))
    assert ranking.cards
    assert all({"Wear", "Clocks"} & set(card.item.categories) for card in ranking.cards)
    (nothing,) = engine.rank(session, Controls(categories=("no such category",)))
    assert nothing.cards == []


def test_what_was_bought_next_is_marked(engine: Engine, session: Session) -> None:
    (ranking,) = engine.rank(session, Controls(num_beams=48))
    place = ids(ranking)[3]
    assert session.shopper is not None
    session.shopper = type(session.shopper)("someone", (), place)
    (ranking,) = engine.rank(session, Controls(num_beams=48))
    assert [card.item.item_id for card in ranking.cards if card.bought_next] == [place]
    engine.clear(session)
    (ranking,) = engine.rank(session, Controls())
    assert not any(card.bought_next for card in ranking.cards)
    assert all(card.glances == [] and card.start_share == pytest.approx(1) for card in ranking.cards)


def test_a_history_is_built_and_taken_apart(engine: Engine, session: Session) -> None:
    engine.clear(session)
    for item_id in ("item-01", "item-02", "no such item", "item-01"):
        engine.append(session, item_id)
    assert session.history == ["item-02", "item-01"]
    engine.remove(session, 0)
    engine.remove(session, 5)
    engine.remove(session, -1)
    assert session.history == ["item-01"]
    session.history = ["item-02"] * (MOST_HISTORY + 5)
    engine.append(session, "item-03")
    assert session.history == ["item-02"] * (MOST_HISTORY - 1) + ["item-03"]
    with pytest.raises(CEMGError, match="no shopper"):
        engine.become(session, "nobody")


def test_one_card_is_open_at_a_time(engine: Engine, session: Session) -> None:
    assert engine.neighbourhood(session) is None
    engine.toggle(session, 0, "item-01")
    engine.toggle(session, 0, "item-02")
    near = engine.neighbourhood(session)
    assert near is not None
    assert [len(items) for _, items in near.branches] == [len(branch.items) for branch, _ in near.branches]
    assert "item-02" not in {item.item_id for _, items in near.branches for item in items}
    engine.toggle(session, 0, "item-02")
    assert session.opened is None
    for model, item_id in ((7, "item-02"), (0, "no such item"), (-1, "item-02")):
        engine.toggle(session, model, item_id)
        assert engine.neighbourhood(session) is None


def test_an_added_item_is_recommended_to_who_added_it_alone(both: Engine) -> None:
    mine, other = both.start(), both.start()
    before = [ids(ranking) for ranking in both.rank(other, Controls())]
    item = both.add_item(mine, "Red Mug", "", picture("red"))
    assert item.picture is not None
    assert item.picture.startswith("data:image/webp;base64,")
    ranking, hybrid = both.rank(mine, Controls(new_item_boost=15, dense_weight=0.5))
    assert ids(ranking)[0] == item.item_id
    assert ranking.cards[0].is_new
    assert ranking.cards[0].alpha is not None
    assert {item.item_id for item in [waiting.item for waiting in hybrid.waiting] + [card.item for card in hybrid.cards]} >= {item.item_id}
    assert (ranking.hybrid, hybrid.hybrid) == (False, True)

    assert [ids(ranking) for ranking in both.rank(other, Controls())] == before
    assert [ids(ranking) for ranking in both.rank(both.start(), Controls())] == before
    both.append(other, item.item_id)
    assert item.item_id not in other.history
    both.append(mine, item.item_id)
    assert mine.history[-1] == item.item_id
    (glances, *_) = [card.glances for card in both.rank(mine, Controls())[0].cards]
    assert item.item_id in {glance.item.item_id for glance in glances}


def test_it_is_said_what_an_absent_item_lacks(engine: Engine, session: Session) -> None:
    item = engine.add_item(session, "Red Mug")
    (ranking,) = engine.rank(session, Controls(new_item_boost=-15))
    (waiting,) = ranking.waiting
    assert waiting.item == item
    assert waiting.lacking is not None
    assert waiting.lacking > 0
    (lifted,) = engine.rank(session, Controls(new_item_boost=-15 + waiting.lacking + 0.1))
    assert item.item_id in ids(lifted)
    assert lifted.waiting == []
    (filtered,) = engine.rank(session, Controls(categories=("Wear",), new_item_boost=15))
    assert [(entry.item, entry.lacking) for entry in filtered.waiting] == [(item, None)]
    engine.append(session, item.item_id)
    (known,) = engine.rank(session, Controls(new_item_boost=-15))
    assert known.waiting == []  # it is left out as an item of the history


def test_items_that_cannot_be_added_change_nothing(engine: Engine, session: Session) -> None:
    for arguments, message in [
        (("", " ", None), "a title, a picture, or both"),
        (("Mug", "", b"no picture"), "the picture cannot be read"),
        (("%%% !!", "", None), "no new item has"),
    ]:
        with pytest.raises(CEMGError, match=message):
            engine.add_item(session, *arguments)
    assert session.added == {}
    assert session.models == engine.models
    session.added = {f"new-{number}": engine.shop.item("item-00") for number in range(MOST_ADDED)}
    with pytest.raises(CEMGError, match="you have added 20 items"):
        engine.add_item(session, "Red Mug")


def test_two_models_say_where_the_other_ranks_an_item(both: Engine) -> None:
    first, second = both.rank(both.start(), Controls(dense_weight=0.5))
    assert (first.model, second.model) == ("tiny", "dense")
    for ranking, other in ((first, second), (second, first)):
        places = {card.item.item_id: card.place for card in other.cards}
        assert [card.also for card in ranking.cards] == [places.get(item_id) for item_id in ids(ranking)]
    assert ids(first) != ids(second)
    _, alone = both.rank(both.start(), Controls(dense_weight=0.0))
    assert [card.score for card in alone.cards] != [card.score for card in second.cards]
    assert both.dense_weight == 0.5
