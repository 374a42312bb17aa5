"""The page: Gradio's controls on the left, what the models answer on the right. All logic is in `engine`, all markup in `templates/`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import CEMGError
from .engine import CARDS, DEFAULT_BEAMS, DEFAULT_BOOST, Controls, Engine, Session
from .pictures import MEDIA_TYPE, Thumbnails
from .render import render
from .theme import theme

HITS = 8
MOST_BEAMS = 200
KEEP = {"Cache-Control": "public, max-age=31536000, immutable"}  # the address changes with every start
SKELETON = f'<div class="skeleton" role="status" aria-label="Loading">{"<i></i>" * CARDS}</div>'
UPLOADS_KEPT = (3600, 3600)  # seconds: how often to look for old uploads, and how old they may get
SESSION_KEPT = 3600  # seconds without a click; what a visitor added is gone then
LOWEST_BOOST, HIGHEST_BOOST = -15.0, 15.0
LONGEST_QUERY, LONGEST_TEXT = 200, 4000  # characters that are read of what is typed


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _dropped_file(payload: ImageData | None) -> str | None:
    """The file behind a picture that was dropped, undecoded: what is no picture is an error of the engine's, which names the remedy."""
    return None if payload is None else payload.path


@dataclass(frozen=True)
class _Page:
    """The components that events read and write."""

    session: gr.State
    shopper: gr.Dropdown
    query: gr.Textbox
    results: gr.HTML
    history: gr.HTML
    exclude: gr.Checkbox
    categories: gr.Dropdown
    beams: gr.Slider
    dense: gr.Slider
    boost: gr.Slider
    recommendations: gr.HTML

    @property
    def reads(self) -> list[Any]:
        return [self.session, self.query, self.exclude, self.categories, self.beams, self.dense, self.boost]

    @property
    def writes(self) -> list[Any]:
        return [self.session, self.results, self.history, self.recommendations]


def create_page(engine: Engine, title: str) -> gr.Blocks:
    """The Gradio app of an engine; `launch` serves it with its pictures."""
    code = _asset("page.js")
    shop = engine.shop
    levels = engine.models[0].model.config.num_levels
    with gr.Blocks(title=title, fill_width=True, analytics_enabled=False, delete_cache=UPLOADS_KEPT) as blocks:
        session = gr.State(time_to_live=SESSION_KEPT)
        gr.HTML(
            render("header", title=title, items=len(shop), levels=levels, shoppers=shop.num_shoppers),
            js_on_load=code,
            apply_default_css=False,
        )
        with gr.Row(elem_id="frame"):
            with gr.Column(elem_id="panel"):
                listed = shop.shopper_ids()
                shopper = gr.Dropdown(
                    listed,
                    value=listed[0] if listed else None,
                    label="Shopper",
                    info=f"{len(listed)} listed; any other user id can be typed" if shop.num_shoppers > len(listed) else None,
                    allow_custom_value=True,
                    visible=bool(listed),
                    elem_id="shopper",
                )
                surprise = gr.Button("Surprise me", visible=bool(listed), elem_id="surprise")
                query = gr.Textbox(
                    label="Search the catalogue", placeholder="A title, a category or an item id", elem_id="query", max_lines=1
                )
                results = gr.HTML(elem_id="results", js_on_load=code, apply_default_css=False)
                history = gr.HTML(elem_id="history", js_on_load=code, apply_default_css=False)
                with gr.Accordion("Tune", open=False, elem_id="tune"):
                    exclude = gr.Checkbox(True, label="Leave out the items of the history", elem_id="exclude")
                    categories = gr.Dropdown(
                        shop.categories,
                        value=[],
                        label="Only these categories",
                        multiselect=True,
                        visible=bool(shop.categories),
                        elem_id="categories",
                    )
                    beams = gr.Slider(
                        CARDS,
                        MOST_BEAMS,
                        DEFAULT_BEAMS,
                        step=1,
                        label="Beams",
                        info="Codes kept open while an item is written",
                        elem_id="beams",
                    )
                    weight = engine.dense_weight
                    dense = gr.Slider(
                        0,
                        1,
                        weight or 0.0,
                        step=0.05,
                        label="Dense weight",
                        info="0: the codes alone. 1: the dense tower alone",
                        visible=weight is not None,
                        elem_id="dense",
                    )
                    boost = gr.Slider(
                        LOWEST_BOOST,
                        HIGHEST_BOOST,
                        DEFAULT_BOOST,
                        step=0.1,
                        label="New item boost",
                        info="Added to the scores of your own items, where codes rank alone",
                        visible=False,
                        elem_id="boost",
                    )
                with gr.Accordion("Add an item of your own", open=False, elem_id="add", visible=engine.takes_items):
                    name = gr.Textbox(label="Title", placeholder="Such as: Mug for campfire evenings", max_lines=2, elem_id="new-title")
                    text = gr.Textbox(label="Description", lines=2, max_lines=5, elem_id="new-text")
                    picture = gr.Image(
                        type="filepath", sources=["upload", "clipboard"], label="Picture", height=170, elem_id="new-picture", buttons=[]
                    )
                    # Not by a subclass: Gradio writes a stub file beside the module of every one.
                    picture.preprocess = _dropped_file  # type: ignore[method-assign]
                    note = gr.HTML(elem_id="new-note", js_on_load=None, apply_default_css=False)
                    add = gr.Button("Add to the catalogue", variant="primary", elem_id="new-add")
            with gr.Column(elem_id="stage"):
                recommendations = gr.HTML(SKELETON, elem_id="recommendations", js_on_load=code, apply_default_css=False)
        page = _Page(session, shopper, query, results, history, exclude, categories, beams, dense, boost, recommendations)
        _connect(engine, blocks, page, surprise)
        add.click(
            _adding(engine),
            [*page.reads, name, text, picture],
            [*page.writes, boost, name, text, picture, note],
            queue=False,
            show_progress="minimal",
            show_progress_on=[recommendations],
            api_visibility="private",
        )
    return blocks


def _connect(engine: Engine, blocks: gr.Blocks, page: _Page, surprise: gr.Button) -> None:
    """Every event but adding an item."""

    def answer(change: Callable[..., None] | None = None) -> Callable[..., tuple[Any, ...]]:
        """A handler that lets `change` change the session, with what was read beyond `page.reads`, and shows what follows."""

        def handler(session: Session | None, query: str, *values: Any) -> tuple[Any, ...]:
            session = session or engine.start()
            controls, more = _controls(values[:5]), values[5:]
            errors = []
            try:
                if change is not None:
                    change(session, *more)
            except CEMGError as error:
                errors.append(str(error))
            return _parts(engine, session, query, controls, errors)

        return handler

    def acted(
        session: Session | None, query: str, exclude: bool, names: list[str], beams: float, dense: float, boost: float, event: gr.EventData
    ) -> tuple[Any, ...]:
        session = session or engine.start()
        before = _controls((exclude, names, beams, dense, boost))
        after = replace(before, new_item_boost=_act(engine, session, event._data, before.new_item_boost))
        return *_parts(engine, session, query, after), after.new_item_boost

    def surprised(*values: Any) -> tuple[Any, ...]:
        user = engine.shop.shopper_at(random.randrange(engine.shop.num_shoppers)).user_id
        return *answer(engine.become)(*values, user), user

    def entered(session: Session | None, query: str, *values: Any) -> tuple[Any, ...]:
        first = engine.shop.search(query, 1).items
        if not first:
            return *answer()(session, query, *values), query
        return *answer(lambda visitor: engine.append(visitor, first[0].item_id))(session, "", *values), ""

    def searched(session: Session | None, query: str) -> str:
        return _results(engine, session or Session([]), query)

    shared: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    quick: dict[str, Any] = shared | {"show_progress": "hidden"}
    slow: dict[str, Any] = shared | {"show_progress": "minimal", "show_progress_on": [page.recommendations]}
    blocks.load(answer(), page.reads, page.writes, **quick)
    page.shopper.input(answer(engine.become), [*page.reads, page.shopper], page.writes, **slow)
    surprise.click(surprised, page.reads, [*page.writes, page.shopper], **slow)
    # Not `input`, which Gradio does not send for a text that is pasted with the mouse or filled in.
    page.query.change(searched, [page.session, page.query], page.results, trigger_mode="always_last", **quick)
    page.query.submit(entered, page.reads, [*page.writes, page.query], **slow)
    for part in (page.results, page.history, page.recommendations):
        part.act(acted, page.reads, [*page.writes, page.boost], **slow)
    for control in (page.exclude, page.categories, page.beams, page.dense, page.boost):
        control.input(answer(), page.reads, page.writes, trigger_mode="always_last", **slow)


def _act(engine: Engine, session: Session, data: dict[str, str], boost: float) -> float:
    """What a button of the page asks for; returns the boost of new items, which one of them raises. Pages may send anything."""
    act, item_id = data.get("act"), data.get("item", "")
    if act == "append":
        engine.append(session, item_id)
    elif act == "remove":
        engine.remove(session, _number(data.get("place")))
    elif act == "clear":
        engine.clear(session)
    elif act == "open":
        engine.toggle(session, _number(data.get("model")), item_id)
    elif act == "lift":
        lacking = _within(data.get("by"), 0.0, HIGHEST_BOOST - LOWEST_BOOST, 0.0)
        return round(min(boost + lacking + 0.1, HIGHEST_BOOST), 1)
    return boost


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else -1


def _adding(engine: Engine) -> Callable[..., tuple[Any, ...]]:
    def add(session: Session | None, query: str, *values: Any) -> tuple[Any, ...]:
        session = session or engine.start()
        controls, (title, description, picture) = _controls(values[:5]), values[5:]
        try:
            content = Path(picture).read_bytes() if picture else None
            item = engine.add_item(session, (title or "")[:LONGEST_TEXT], (description or "")[:LONGEST_TEXT], content)
        except CEMGError as error:
            note = render("note", error=str(error), item=None, code="")
            return *_parts(engine, session, query, controls), gr.skip(), title, description, picture, note
        tokenizer = session.models[0].tokenizer
        code = tokenizer.convert_ids_to_tokens(tokenizer.item_tokens[-1].tolist())
        note = render("note", error=None, item=item, code=[part[1:-1] for part in code])
        return *_parts(engine, session, query, controls), gr.update(visible=True), "", "", None, note

    return add


def _controls(values: Sequence[Any]) -> Controls:
    """What stands in the controls; a number that was taken out counts as the default, and none is larger than the page allows."""
    exclude, names, beams, dense, boost = values
    return Controls(
        bool(exclude),
        tuple(names or ()),
        int(_within(beams, CARDS, MOST_BEAMS, DEFAULT_BEAMS)),
        _within(dense, 0.0, 1.0, 0.0),
        _within(boost, LOWEST_BOOST, HIGHEST_BOOST, DEFAULT_BOOST),
    )


def _within(value: Any, lowest: float, highest: float, default: float) -> float:
    """A number of the page, brought into its range."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return min(max(number, lowest), highest) if math.isfinite(number) else default


def _parts(engine: Engine, session: Session, query: str, controls: Controls, errors: Sequence[str] = ()) -> tuple[Any, ...]:
    """Values of `_Page.writes`."""
    session.turn += 1
    rankings = engine.rank(session, controls)
    longest = max(model.model.config.max_history for model in session.models)
    target = session.shopper.bought_next if session.shopper is not None else None
    return (
        session,
        _results(engine, session, query),
        render(
            "history",
            history=[engine.item(session, item_id) for item_id in session.history],
            shopper=session.shopper,
            longest=longest,
            has_shoppers=engine.shop.num_shoppers > 0,
        ),
        render(
            "recommendations",
            rankings=rankings,
            opened=session.opened,
            neighbourhood=engine.neighbourhood(session),
            target=engine.item(session, target) if target is not None else None,
            errors=errors,
            turn=session.turn,
        ),
    )


def _results(engine: Engine, session: Session, query: str) -> str:
    query = query[:LONGEST_QUERY].strip()
    return render("results", query=query, hits=engine.shop.search(query, HITS), history=set(session.history))


def picture_route(thumbnails: Thumbnails) -> Route:
    """Where the page finds the thumbnails of a shop."""

    async def picture(request: Request) -> Response:
        content = None
        if request.path_params["edition"] == thumbnails.edition:
            content = await run_in_threadpool(thumbnails.get, request.path_params["row"])
        if content is None:
            return Response(status_code=404)
        return Response(content, media_type=MEDIA_TYPE, headers=KEEP)

    return Route("/thumbnails/{edition}/{row:int}.webp", picture)


def launch(
    engine: Engine, title: str, *, host: str | None = None, port: int | None = None, share: bool = False, block: bool = True
) -> tuple[gr.Blocks, str]:
    """Serve the demo.

    Args:
        engine: what it shows.
        title: of the page.
        host, port: where to listen; None: what GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say, else this machine alone and the first free
            port from 7860.
        share: also through a public link of gradio.live.
        block: until the process is interrupted.

    Returns: the app, and its address here.

    Raises:
        CEMGError: the port is taken.
    """
    blocks = create_page(engine, title)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=not block,
            theme=theme(),
            css=_asset("style.css"),
            app_kwargs={"routes": [picture_route(engine.shop.thumbnails)]},
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            quiet=not block,
        )
    except OSError as error:
        raise CEMGError(f"--port {port}: {error}; choose another one, or leave it out") from error
    return blocks, address
