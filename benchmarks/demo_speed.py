"""`cemg demo` in a real Chromium: milliseconds from a click until the page shows what follows, pictures of the new items aside.

    cemg quickstart --output runs/quickstart
    python benchmarks/demo_speed.py runs/quickstart/model

Both the server and the browser run on this machine; it should do nothing else meanwhile, and the load it had is written down.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.demo.app import launch
from cemg_hf.demo.loading import open_demo

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "demo_speed.json"
CLICKS = 31
PAUSE = 100  # ms between clicks
ACTIONS = {
    "open a card": (".face", 1),
    "leave out the history, or not": ("#exclude input", 0),
    "another shopper": ("#surprise", 0),
    "add a search result": (".hit", 7),
}
CLICK = """([selector, number]) => new Promise((done) => {
  const turn = document.querySelector(".rankings").dataset.turn;
  const started = performance.now();
  const observer = new MutationObserver(() => {
    if (document.querySelector(".rankings").dataset.turn === turn) return;
    observer.disconnect();
    requestAnimationFrame(() => done(performance.now() - started));
  });
  observer.observe(document.getElementById("recommendations"), { subtree: true, childList: true, attributes: true });
  document.querySelectorAll(selector)[number].click();
})"""


def measure(page: Page) -> dict[str, dict[str, float]]:
    """Milliseconds per action."""
    page.click("#tune button")
    page.fill("#query input", "a")
    page.wait_for_selector(".hit >> nth=7")
    results = {}
    for name, target in ACTIONS.items():
        taken = []
        for _ in range(CLICKS):
            taken.append(page.evaluate(CLICK, list(target)))
            page.wait_for_timeout(PAUSE)
        results[name] = {"median_ms": round(statistics.median(taken), 1), "p90_ms": round(statistics.quantiles(taken, n=10)[-1], 1)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="one model, or two side by side; folders or Hub ids")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    blocks, address = launch(open_demo(arguments.models), "Speed", host="127.0.0.1", block=False)
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.wait_for_selector(".card")
        metrics = measure(page)
    blocks.close()
    load = round(os.getloadavg()[0], 1)
    command = shlex.join(["python", "benchmarks/demo_speed.py", *sys.argv[1:]])
    envelope = result_envelope(
        {"demo": metrics},
        command=command,
        seeds=[],
        seconds=time.perf_counter() - started,
        clicks=CLICKS,
        load_average=load,
        niceness=os.nice(0),
    )
    write_json(arguments.output, envelope)
    for name, values in metrics.items():
        print(f"{name:32s} median {values['median_ms']:6.1f} ms   90 % within {values['p90_ms']:6.1f} ms")
    print(f"load average {load}; written to {arguments.output}")


if __name__ == "__main__":
    main()
