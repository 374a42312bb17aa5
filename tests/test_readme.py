"""README.md and docs/*.md are true: their Python runs as printed, commands and settings exist, tables are those of the result files."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from command_samples import Command, save_model, save_network
from transformers import dynamic_module_utils

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.cli import app
from cemg_hf.data.sample.behaviour import Behaviour
from cemg_hf.errors import CEMGError
from cemg_hf.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
}
ALL = "\n".join(PAGES.values())
NEEDS_HUB = "<!-- needs the Hub -->\n"
SAMPLE_IDS = [f"item-{row:04d}" for row in range(Behaviour().items)]


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def python_blocks() -> list[tuple[str, str]]:
    """(page, block) of all Python that runs here: what names repositories of the Hub is marked and does not."""
    return [(page, block) for page, text in PAGES.items() for block in blocks("python", without_hub(text))]


def without_hub(text: str) -> str:
    return re.sub(rf"{re.escape(NEEDS_HUB)}```python\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def shell_commands() -> list[list[str]]:
    """Every command of the bash blocks as words, `\\` line ends joined, `&&` split, comments left out."""
    lines = "\n".join(blocks("bash", ALL)).replace("\\\n", " ").splitlines()
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&") if part.strip()]


def script(path: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(Path(path).stem + "_script", ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ---- Python -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def after_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as the quickstart and a run of SASRec leave it, their models untrained."""
    save_model(tmp_path / "runs" / "quickstart" / "model", SAMPLE_IDS)
    save_network(tmp_path / "runs" / "sample-sasrec" / "model", SAMPLE_IDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "block"), python_blocks(), ids=lambda text: text.strip().splitlines()[-1][:40])
def test_python_runs_as_printed(
    page: str, block: str, after_quickstart: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(after_quickstart / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # transformers appends that folder
    exec(compile(block, page, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_python_that_needs_the_hub_is_python_and_little() -> None:
    marked = [block for text in PAGES.values() for block in blocks("python", text) if block not in blocks("python", without_hub(text))]
    assert len(marked) == ALL.count(NEEDS_HUB) == 2
    for block in marked:
        ast.parse(block)
        assert "org/" in block


def test_the_printed_recommendations_are_items(after_quickstart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    found = re.findall(r"item_id='([^']+)', score=(-[\d.]+)", capsys.readouterr().out)
    assert len({item_id for item_id, _ in found}) == 5
    assert {item_id for item_id, _ in found} <= set(SAMPLE_IDS)


def test_item_ids_of_the_python_blocks_are_in_the_sample() -> None:
    named = {
        node.value
        for _, block in python_blocks()
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("item-")
    }
    assert named
    assert named <= set(SAMPLE_IDS)
    # The sample's k-core must not thin the shop, or ids that exist there would be missing from the model.
    assert Behaviour().kept >= load_recipe("sample").prepare.min_interactions


# ---- commands -----------------------------------------------------------------------------------------------------------------


def cemg_commands() -> Iterator[list[str]]:
    """The arguments of every `cemg`, also where a launcher starts it as a module."""
    for words in shell_commands():
        if Path(words[0]).name == "cemg":
            yield words[1:]
        elif "cemg_hf.cli" in words:
            yield words[words.index("cemg_hf.cli") + 1 :]


def test_cemg_commands_and_their_options_exist() -> None:
    group: Any = typer.main.get_command(app)
    named = [words[0] for words in cemg_commands()]
    assert set(named) <= set(group.commands)
    used = {"quickstart", "run", "prepare", "encode", "tokenize", "finetune", "evaluate", "recommend", "publish", "demo"}
    assert used <= set(named)
    for name, *arguments in cemg_commands():
        context = group.commands[name].make_context(name, list(arguments))  # parses, and ends the test on what does not exist
        if "recipe" in context.params:
            load_recipe(context.params["recipe"], context.params["assignments"] or [])


def test_settings_named_in_the_text_exist() -> None:
    named = set(re.findall(r"`((?:prepare|encode|tokenize|finetune|evaluate)(?:\.\w+)+)", ALL))
    assert named
    for path in named:
        place: Any = load_recipe("sample", ["finetune.lora.rank=4"])
        for name in path.split("."):
            assert hasattr(place, name), path
            place = getattr(place, name)
    for text in re.findall(r"--set ((?:prepare|encode|tokenize|finetune|evaluate)[\w.]+=[^\s`'\"]+)", ALL):
        load_recipe("sample", [text])


def test_launched_scripts_take_the_arguments_given(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = [words for words in shell_commands() if words[:2] == ["accelerate", "launch"]]
    scripts = [(words, place) for words in launched for place, word in enumerate(words) if word.endswith(".py")]
    assert scripts
    for words, place in scripts:
        module = script(words[place])
        monkeypatch.setattr(sys, "argv", words[place:])
        arguments = module.parse_arguments()
        load_recipe(arguments.config, arguments.set)


def test_repeated_assignments_of_the_script_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("training/finetune.py")
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--config", "sample", "--set", "a=1", "b=2", "--set", "c=3"])
    assert module.parse_arguments().set == ["a=1", "b=2", "c=3"]


def test_installation_names_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"\"\.\[(\w+)\]\"", ALL))
    assert {"test", "serve", "demo"} <= named <= set(extras)


def test_the_first_two_commands_need_nothing_before() -> None:
    first, second = (block.strip() for block in blocks("bash")[:2])
    assert first == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/cemg quickstart"
    assert second == 'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest'


def test_ci_takes_its_test_command_from_here() -> None:
    runner = ROOT / ".ci" / "run"
    assert os.access(runner, os.X_OK)
    subprocess.run(["bash", "-n", runner], check=True)
    pattern = re.search(r"pattern='(.*)'", runner.read_text())
    assert pattern is not None
    assert re.findall(pattern[1], TEXT, re.MULTILINE) == [blocks("bash")[1].strip()]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, _, anchor in re.findall(r"\]\(([^)#:\s]*)(#([\w-]+))?\)", PAGES[page]):
        place = (ROOT / page).parent / target if target else ROOT / page
        assert place.exists(), target
        if anchor:
            assert anchor in headings(place.read_text(encoding="utf-8")), f"{target}#{anchor}"


def headings(text: str) -> list[str]:
    """The anchors that GitHub gives to headings."""
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]


def test_folders_exist() -> None:
    folders = re.findall(r"^([\w/]+/) {2,}", ALL, re.MULTILINE)
    assert folders
    for target in folders:
        assert (ROOT / target).exists(), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", TEXT))
    assert linked == set(PAGES) - {"README.md"}


def test_the_picture_is_an_image_with_a_description() -> None:
    root = ElementTree.parse(ROOT / "docs" / "images" / "pipeline.svg").getroot()
    texts = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert {"title", "desc"} <= texts
    assert re.search(r"!\[[^\]]{20,}\]\(docs/images/pipeline\.svg\)", TEXT)


def test_every_picture_is_shown_and_described() -> None:
    shown = dict(re.findall(r"!\[([^\]]+)\]\((?:docs/)?(images/[\w.-]+)\)", ALL))
    shown |= {text: target for target, text in re.findall(r"<img src=\"(images/[\w.-]+)\"[^>]* alt=\"([^\"]+)\">", ALL)}
    assert set(shown.values()) == {f"images/{path.name}" for path in (ROOT / "docs" / "images").iterdir()}
    assert all(len(text) >= 20 for text in shown)


def test_the_output_contract_is_the_envelopes() -> None:
    (printed,) = blocks("json", PAGES["docs/how-it-works.md"])
    envelope = result_envelope({}, command="", seeds=[], seconds=0.0, std={})
    assert set(json.loads(printed)) == set(envelope)


# ---- tables -------------------------------------------------------------------------------------------------------------------

SECTION = "before\n<!-- results:one -->\nold\n<!-- /results -->\nafter\n"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script("benchmarks/readme_tables.py")


def test_the_tables_are_those_of_the_result_files(tables: ModuleType) -> None:
    for page, text in PAGES.items():
        assert tables.fill(text, ROOT / "benchmarks" / "results") == text, f"{page}: run `python benchmarks/readme_tables.py`"


def test_a_single_figure_is_filled_in_and_a_missing_one_is_an_error(tables: ModuleType, tmp_path: Path) -> None:
    metrics = {"a, b": {"rates": [0.1234, {"x": 5}]}}
    write_json(tmp_path / "one.json", result_envelope(metrics, command="", seeds=[3], seconds=1))
    text = "<!-- value: one | {} -->old<!-- /value -->"
    for keys, expected in (("a, b | rates | 0 | .1%", "12.3%"), ("a, b | rates | 1 | x | d", "5"), ("/seeds | 0 | .2f", "3.00")):
        marked = text.format(keys)
        filled = tables.fill(f"It is {marked}.", tmp_path)
        assert filled == f"It is {marked.replace('old', expected)}."
        assert tables.fill(filled, tmp_path) == filled
    for keys in ("c | .1f", "a, b | rates | 2 | .1f", "a, b | rates | 0 | d"):
        with pytest.raises(CEMGError, match=r"one\.json: has no figure"):
            tables.fill(text.format(keys), tmp_path)
    with pytest.raises(CEMGError, match="stands alone"):
        tables.fill("<!-- value: one | a -->", tmp_path)


PAIR = {"a": "ours, codes only", "b": "theirs", "difference": -0.02, "low": -0.03, "high": 0.01, "p_holm": 0.0364, "slice": "test"}
STALE = "(p <!-- value: one | /pairs | theirs − ours, codes only | test | p_holm | p -->.5<!-- /value -->)"


def test_what_a_pair_differs_by_is_filled_in_either_way_round(tables: ModuleType, tmp_path: Path) -> None:
    pairs = [PAIR, PAIR | {"slice": "test_cold", "p_holm": 0.0004}, PAIR | {"b": "others", "p_holm": 1.0}]
    write_json(tmp_path / "one.json", result_envelope({}, command="", seeds=[], seconds=1, pairs=pairs))
    text = "<!-- value: one | /pairs | {} -->old<!-- /value -->"
    for keys, expected in (
        ("ours, codes only − theirs | test | p_holm | p", ".036"),
        ("theirs − ours, codes only | test | p_holm | p", ".036"),
        ("ours, codes only − theirs | test_cold | p_holm | p", "< .001"),
        ("others − ours, codes only | test | p_holm | p", "1.000"),
        ("ours, codes only − theirs | test | difference | +.3f", "-0.020"),
        ("theirs − ours, codes only | test | difference | +.3f", "+0.020"),
        ("theirs − ours, codes only | test | low | +.3f", "-0.010"),
        ("theirs − ours, codes only | test | high | +.3f", "+0.030"),
    ):
        filled = tables.fill(f"({text.format(keys)})", tmp_path)
        assert filled == f"({text.format(keys).replace('>old<', f'>{expected}<')})"
        assert tables.fill(filled, tmp_path) == filled, "what is filled in, < among it, is filled in again"
    for keys in ("theirs − others | test | p_holm | p", "theirs − ours | test_cold_0 | p_holm | p", "theirs | p_holm | p", "a − b | p"):
        with pytest.raises(CEMGError, match=r"one\.json: has no figure"):
            tables.fill(text.format(keys), tmp_path)
    write_json(tmp_path / "one.json", result_envelope({}, command="", seeds=[], seconds=1, pairs=[PAIR, PAIR]))
    with pytest.raises(CEMGError, match="2 paired tests of 'theirs − ours, codes only' on 'test'"):
        tables.fill(STALE, tmp_path)


def pairs_of(name: str) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["pairs"]
    return pairs


@pytest.mark.parametrize(
    ("page", "said", "name", "part", "level"),
    [
        ("README.md", "p < .01 after Holm's correction", "beauty", "test_excluding_history", {"cemg-lightgcn"}),
        ("README.md", "ahead of all of these (p < .01)", "beauty", "test", {"cemg, codes only"}),
        ("docs/reproducing.md", "paired where lists were kept, p < .001", "yelp", "test", set()),
    ],
)
def test_a_bound_over_several_pairs_holds(tables: ModuleType, page: str, said: str, name: str, part: str, level: set[str]) -> None:
    """`cemg` is ahead of all that its lists were tested against, with a p below what the page says, but of those that it names."""
    bound = re.search(r"p < (\.\d+)", said)
    assert bound is not None
    assert said in PAGES[page]
    pairs = pairs_of(name)
    others = {system for pair in pairs if "cemg" in (pair["a"], pair["b"]) for system in (pair["a"], pair["b"])} - {"cemg"}
    tests = {other: tables.pair_of(pairs, f"cemg − {other}", part) for other in others}
    assert len(tests) > 3
    ahead = {other for other, test in tests.items() if test["difference"] > 0 and test["p_holm"] < float(bound[1])}
    assert others - ahead == level


def test_the_answers_say_of_systems_beside_sasrec_what_was_tested(tables: ModuleType) -> None:
    rows = re.findall(
        r"^\|.*?value: ([\w-]+) \| sasrec(?:, H100)? .*, (ahead|level|behind) \|.*, (ahead|level|behind) \|$",
        PAGES["docs/faq.md"],
        re.MULTILINE,
    )
    assert [name for name, *_ in rows] == ["beauty", "sports", "yelp", "movielens-100k"]
    for name, *said in rows:
        tests = [tables.pair_of(pairs_of(name), f"{system} − sasrec", "test_excluding_history") for system in ("cemg, codes only", "cemg")]
        found = ["level" if test["p_holm"] >= 0.01 else "ahead" if test["difference"] > 0 else "behind" for test in tests]
        assert said == found, name


def slices(hr: float | None) -> dict[str, Any]:
    row = {"hr@5": 0.0, "hr@10": hr, "ndcg@10": None if hr is None else hr / 2, "n": 1700.0}
    return {"test": row, "test_excluding_history": row, "test_cold": row | {"n": 12.0}, "test_cold_0": row}


def test_accuracy_tables_have_systems_and_slices(tables: ModuleType, tmp_path: Path) -> None:
    metrics = {"cemg": slices(0.25), "popularity": slices(None)}
    envelope = result_envelope(metrics, command="cemg quickstart --ablations", seeds=[1, 2], seconds=300, std={"cemg": slices(0.01)})
    write_json(tmp_path / "one.json", envelope)
    filled = tables.fill(SECTION, tmp_path)
    assert "\nold\n" not in filled
    assert filled.startswith("before\n<!-- results:one -->\n")
    assert filled.endswith("<!-- /results -->\nafter\n")
    header, _, cemg, popularity = (line for line in filled.splitlines() if line.startswith("|"))
    assert header.count("|") == 8
    assert header.startswith("| System | HR@10, all items (n = 1,700) | NDCG@10, all items (n = 1,700) | HR@10, history excluded")
    assert header.endswith("NDCG@10, cold targets (n = 12) |")
    assert cemg == "| cemg |" + " 0.2500 ± 0.0100 | 0.1250 ± 0.0050 |" * 3
    assert popularity == "| popularity |" + " – |" * 6
    assert "`cemg quickstart --ablations` · seeds 1, 2 · " in filled
    assert " · 5 min · " in filled
    assert tables.fill(filled, tmp_path) == filled


def test_accuracy_of_a_single_seed_stands_with_its_interval(tables: ModuleType, tmp_path: Path) -> None:
    intervals = {"cemg": {part: {"hr@10": [0.2, 0.3], "ndcg@10": None} for part in slices(0.25)}}
    envelope = result_envelope({"cemg": slices(0.25)}, command="cemg evaluate", seeds=[1], seconds=3, intervals=intervals)
    write_json(tmp_path / "one.json", envelope)
    row = next(line for line in tables.fill(SECTION, tmp_path).splitlines() if line.startswith("| cemg"))
    assert row == "| cemg |" + " 0.2500 [0.2000, 0.3000] | 0.1250 |" * 3


def test_a_study_says_what_its_runs_took_and_shows_its_tests(tables: ModuleType, tmp_path: Path) -> None:
    rows = {name: {"recipe": "shop", "label": name, "part": "", "seeds": [1]} for name in ("cemg", "without text")}
    pair = {"recipe": "shop", "table": "ablations", "a": "without text", "b": "cemg", "difference": -0.1, "low": -0.2, "high": -0.05}
    envelope = result_envelope(
        {"cemg": slices(0.25), "without text": slices(0.05)},
        command="cemg study rq2 shop",
        seeds=[1],
        seconds=9000,
        seconds_of_call=1.2,
        study="rq2",
        set=[],
        recipes={"shop": {"description": "", "budget": "small", "headline": "", "cold_threshold": 5}},
        rows=rows,
        pairs=[pair | {"p_holm": 0.0004}],
    )
    write_json(tmp_path / "one.json", envelope)
    filled = tables.fill(SECTION, tmp_path)
    assert " · 2.5 h of runs · " in filled
    (row,) = (line for line in filled.splitlines() if line.startswith("| without text"))
    assert row.endswith("| −0.1000 [−0.2000, −0.0500], < .001 |")


def test_benchmark_tables_show_every_quantity(tables: ModuleType, tmp_path: Path) -> None:
    metrics = {"edge_index": {"seconds_per_step": 0.12345, "edges": 154000}, "csr": {"seconds_per_step": 4.2e-7, "speedup": 6.913}}
    write_json(tmp_path / "one.json", result_envelope(metrics, command="python benchmarks/x.py", seeds=[0], seconds=10))
    rows = [line for line in tables.fill(SECTION, tmp_path).splitlines() if line.startswith("|")]
    assert rows == [
        "| Variant | seconds per step | edges | speedup |",
        "|---|---:|---:|---:|",
        "| edge_index | 0.123 | 154,000 | – |",
        "| csr | 4.2e-07 | – | 6.91 |",
    ]


def test_a_missing_file_is_said_and_a_broken_one_is_an_error(tables: ModuleType, tmp_path: Path) -> None:
    assert "Not measured yet." in tables.fill(SECTION, tmp_path)
    for content in ("{", "[]", '{"metrics": {"cemg": 1}}', '{"metrics": {}}'):
        (tmp_path / "one.json").write_text(content)
        with pytest.raises(CEMGError, match=r"one\.json: not a results file"):
            tables.fill(SECTION, tmp_path)


@pytest.mark.parametrize("broken", [SECTION.replace("<!-- /results -->\n", ""), SECTION.replace("results:one", "results:")])
def test_a_lone_marker_is_an_error(tables: ModuleType, tmp_path: Path, broken: str) -> None:
    with pytest.raises(CEMGError, match="stands alone"):
        tables.fill(broken, tmp_path)


def test_check_writes_nothing(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(SECTION)
    options = ["readme_tables.py", str(readme), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*options, "--check"])
    assert tables.main() == 1
    assert readme.read_text() == SECTION
    monkeypatch.setattr(sys, "argv", options)
    assert tables.main() == 0
    monkeypatch.setattr(sys, "argv", [*options, "--check"])
    assert tables.main() == 0
    assert readme.read_text() != SECTION


def test_check_finds_a_stale_p_value(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "one.json", result_envelope({}, command="", seeds=[], seconds=1, pairs=[PAIR]))
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["readme_tables.py", str(page), "--results", str(tmp_path), "--check"])
    for shown, status in ((".5", 1), (".036", 0), (".037", 1)):
        page.write_text(STALE.replace("-->.5<", f"-->{shown}<"))
        assert tables.main() == status


# ---- the whole of it ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_quickstart_and_the_three_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    done = Command(monkeypatch, capsys)("quickstart")
    assert done.status == 0, done.errors
    metrics = json.loads(Path("runs/quickstart/metrics.json").read_text())["metrics"]
    assert metrics["cemg"]["test"]["hr@10"] >= 3 * metrics["popularity"]["test"]["hr@10"]
    printed = done.output[done.output.index("user user-") :].splitlines()
    (shown,) = blocks("text")
    shape = r"(user \S+ bought \(last 5\):|  item-\d{4}  .+|the model recommends:|  item-\d{4}  .+  \(-\d+\.\d\d\))"
    assert [line for line in shown.splitlines() if not re.fullmatch(shape, line)] == []
    assert len(printed) == len(shown.splitlines())
    assert [line for line in printed if not re.fullmatch(shape, line)] == []
    done = Command(monkeypatch, capsys)("run", "sample", "--system", "sasrec")  # into runs/sample-sasrec, which docs/python.md opens
    assert done.status == 0, done.errors
    for page, block in python_blocks():
        exec(compile(block, page, "exec"), {})
    assert "item-" in capsys.readouterr().out
