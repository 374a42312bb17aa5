"""What a catalogue of a million items costs the tokenizer: time, memory of the process, and disk.

A synthetic catalogue (768-d text features and 64-d collaborative ones in overlapping clusters, float16 on disk) goes through every step
that touches all items: projecting raw features, quantising, giving every item a code of its own, saving and loading the tokenizer. Each
step runs in a process of its own. Memory is the largest anonymous resident set (RssAnon), sampled while the step works: pages of files
that are mapped count in `peak_resident_mb` alone, the system drops them when others need the room.

    OMP_NUM_THREADS=2 python benchmarks/tokenizer_scale.py --items 1000000 100000 10000

The RQ-VAE has the default size; it starts from PCA and k-means on a sample, as training does, and is not trained further.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.errors import CEMGError
from cemg_hf.features.projection import Projection
from cemg_hf.features.store import FeatureBlocks, FeatureStore, write_features
from cemg_hf.models.cemg import CEMGTokenizer
from cemg_hf.models.cemg.assignment_cemg import assign_unique_codes
from cemg_hf.models.cemg.modeling_rqvae import CEMGRQVAE, CEMGRQVAEConfig
from cemg_hf.training.codebooks import initialise_autoencoder, initialise_codebooks
from cemg_hf.training.quantise import FeatureBatches
from cemg_hf.training.quantise import quantise as quantise_items

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "tokenizer_scale.json"
WIDTHS = {"collaborative": 64, "text": 768}
LEVELS, CODES = 4, 256
FACTORS = 64  # directions in which items differ, apart from noise
ITEMS_PER_CLUSTER = 200
REPEATS = 0.05  # share of items with the features of another
SAMPLE = 20_000
ROWS = 16_384
COLUMNS = {
    "project, items/s": "project.items_per_second",
    "quantise, items/s": "quantise.items_per_second",
    "quantise, peak MB": "quantise.peak_anonymous_mb",
    "items that collide": "assign.colliding_items",
    "unique codes, s": "assign.seconds",
    "unique codes, peak MB": "assign.peak_anonymous_mb",
    "build tokenizer, s": "save.build_seconds",
    "save, s": "save.seconds",
    "load, s": "load.seconds",
    "MB on disk": "save.disk_mb",
}

Measured = dict[str, Any]


def main() -> None:
    arguments = parse_arguments()
    if arguments.step is not None:
        run_step(arguments)
        return
    started = time.perf_counter()
    metrics = {}
    for items in arguments.items:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            metrics[f"{items:,} items"] = measure(arguments, items, Path(folder))
    envelope = result_envelope(
        metrics,
        command=f"python {shlex.join(sys.argv)}",
        seeds=[arguments.seed],
        seconds=time.perf_counter() - started,
        columns=COLUMNS,
        settings={
            "threads": torch.get_num_threads(),
            "dimensions": WIDTHS,
            "num_levels": LEVELS,
            "codebook_size": CODES,
            "batch_size": arguments.batch_size,
        },
    )
    write_json(arguments.output, envelope)
    print(f"written to {arguments.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=positive, nargs="+", default=[1_000_000], help="sizes of the catalogues")
    parser.add_argument("--batch-size", type=positive, default=8192, help="items quantised at once")
    parser.add_argument("--folder", type=Path, help="where the temporary catalogues go (4 GB per million items; no RAM disk)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the catalogue and of k-means")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="where the result JSON goes")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    return parser.parse_args()


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def measure(arguments: argparse.Namespace, items: int, folder: Path) -> Measured:
    """All steps, each in its own process, on a catalogue of `items` in `folder`."""
    print(f"{items:,} items")
    found: Measured = {}
    for step in STEPS:
        settings = {"items": items, "folder": folder, "seed": arguments.seed, "batch-size": arguments.batch_size}
        options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        done = subprocess.run([sys.executable, __file__, "--step", step, *options], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise CEMGError(f"step {step} of {items} items ended with status {done.returncode}; its message is above")
        found[step] = json.loads(done.stdout.splitlines()[-1])
        seconds, cpu, rate, memory = (found[step][name] for name in ("seconds", "cpu_seconds", "items_per_second", "peak_anonymous_mb"))
        print(f"{step:>10}  {seconds:8.1f} s  {cpu:8.1f} s of CPU  {rate:12,.0f} items/s  {memory:7.0f} MB anonymous", flush=True)
    return found


def run_step(arguments: argparse.Namespace) -> None:
    """One step in this process; what it measured is the last line of the output, as JSON."""
    torch.manual_seed(arguments.seed)
    with PeakMemory() as memory:
        found = STEPS[arguments.step](arguments.folder, arguments.items[0], arguments)
    items = arguments.items[0]
    rates = {"items_per_second": items / found["seconds"], "items_per_cpu_second": items / found["cpu_seconds"]}
    print(json.dumps(found | rates | memory.report()))


class Stopwatch:
    """Wall seconds, and seconds of processor time, which a busy machine does not stretch much."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> Measured:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}


class PeakMemory:
    """Largest anonymous resident set of this process while the block runs."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = status("RssAnon")
        self.ended = threading.Event()
        self.sampler = threading.Thread(target=self._sample, daemon=True)
        self.sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.sampler.join()

    def _sample(self) -> None:
        while not self.ended.wait(0.01):
            self.peak = max(self.peak, status("RssAnon"))

    def report(self) -> Measured:
        return {"before_mb": self.before, "peak_anonymous_mb": self.peak, "peak_resident_mb": status("VmHWM")}


def status(name: str) -> float:
    """An entry of /proc/self/status, in MB (10⁶ bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise CEMGError(f"/proc/self/status: no entry {name}; memory is measured on Linux only")


# ---- the steps; each returns its seconds, without imports and without reading what it works on where that is not the point ---------


def generate(folder: Path, items: int, arguments: argparse.Namespace) -> Measured:
    """Raw features to disk, block by block: what encoders would have written."""
    started = Stopwatch()
    write(folder / "raw", items, {name: clustered(items, width, arguments.seed) for name, width in WIDTHS.items()})
    return {**started.read(), "disk_mb": size_of(folder / "raw")}


def project(folder: Path, items: int, arguments: argparse.Namespace) -> Measured:
    """PCA of the raw features and their blocks to disk."""
    started = Stopwatch()
    raw = FeatureStore.load(folder / "raw")
    fitted = {name: Projection.fit(part.vectors, part.mask, 768)[0] for name, part in raw.modalities.items()}
    fitting = started.read()
    blocks = {name: fitted[name].transform_blocks(part.vectors, part.mask) for name, part in raw.modalities.items()}
    write(folder / "features", items, blocks, fitted)
    return {**started.read(), "fit_seconds": fitting["seconds"], "disk_mb": size_of(folder / "features")}


def initialise(folder: Path, items: int, arguments: argparse.Namespace) -> Measured:
    """PCA and k-means on a sample: an RQ-VAE as training starts from."""
    started = Stopwatch()
    data = FeatureBatches.from_store(FeatureStore.load(folder / "features"), resident_bytes=0)
    rqvae = CEMGRQVAE(rqvae_config()).eval()
    batch = data.batch(data.sample(SAMPLE, torch.Generator().manual_seed(arguments.seed)))
    with torch.no_grad():
        initialise_autoencoder(rqvae, rqvae.fuse(*batch).x)
        initialise_codebooks(rqvae, rqvae.encode(*batch))
    save_file({name: value.contiguous() for name, value in rqvae.state_dict().items()}, folder / "rqvae.safetensors")
    return started.read()


def quantise(folder: Path, items: int, arguments: argparse.Namespace) -> Measured:
    """Nearest codes and latents of all items."""
    store, rqvae = FeatureStore.load(folder / "features"), load_rqvae(folder)
    started = Stopwatch()
    # One pass reads every row once: there is nothing to gain from holding them all.
    found = quantise_items(rqvae, FeatureBatches.from_store(store, resident_bytes=0), batch_size=arguments.batch_size)
    taken = started.read()
    assert found.latent is not None
    np.save(folder / "latent.npy", found.latent.numpy())
    save_file({"codes": found.codes}, folder / "codes.safetensors")
    return {**taken, **found.metrics}


def assign(folder: Path, items: int, arguments: argparse.Namespace) -> Measured:
    """A code of its own for every item."""
    latent = torch.from_numpy(np.load(folder / "latent.npy", mmap_mode="c"))
    codes, rqvae = load_file(folder / "codes.safetensors")["codes"], load_rqvae(folder)
    started = Stopwatch()
    unique, report = assign_unique_codes(codes, latent, rqvae.codebooks)
    taken = started.read()
    save_file({"codes": unique}, folder / "unique.safetensors")
    colliding = round(report.collision_rate_before * items)
    return {**taken, "colliding_items": colliding, "moved": report.moved, "spilled": report.spilled}


def save(folder: Path, items: int, arguments: argparse.Namespace) -> Measured:
    """The tokenizer to disk; `build_seconds` is what making it from ids and codes took before."""
    store, rqvae = FeatureStore.load(folder / "features"), load_rqvae(folder)
    codes = load_file(folder / "unique.safetensors")["codes"]
    projections = {
        name: {part: torch.tensor(getattr(features.projection, part)) for part in ("mean", "components", "scale")}
        for name, features in store.modalities.items()
    }
    encoders = {name: dict(features.encoder) for name, features in store.modalities.items()}
    started = Stopwatch()
    tokenizer = CEMGTokenizer(
        item_ids=store.item_ids,
        item_codes=codes,
        num_levels=LEVELS,
        codebook_size=CODES,
        rqvae=rqvae,
        encoders=encoders,
        projections=projections,
    )
    building, started = started.read(), Stopwatch()
    tokenizer.save_pretrained(folder / "tokenizer")
    taken = started.read()
    catalogue = size_of(folder / "tokenizer", "item_*")
    return {
        **taken,
        "build_seconds": building["seconds"],
        "disk_mb": size_of(folder / "tokenizer"),
        "catalogue_bytes_per_item": catalogue * 1e6 / items,
    }


def load(folder: Path, items: int, arguments: argparse.Namespace) -> Measured:
    """The tokenizer from disk; its catalogue is compared with what was saved."""
    started = Stopwatch()
    tokenizer = CEMGTokenizer.from_pretrained(folder / "tokenizer")
    taken = started.read()
    codes = load_file(folder / "unique.safetensors")["codes"]
    if not torch.equal(tokenizer.item_codes, codes) or tokenizer.item_ids[-1] != item_id(items - 1):
        raise CEMGError(f"{folder / 'tokenizer'}: the catalogue that was loaded is not the one that was saved")
    return taken


STEPS: dict[str, Callable[[Path, int, argparse.Namespace], Measured]] = {
    step.__name__: step for step in (generate, project, initialise, quantise, assign, save, load)
}


# ---- the catalogue ------------------------------------------------------------------------------------------------------------


def clustered(items: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """Float16 vectors (items, width) in blocks: items of Gaussian clusters, seen through a map and noise of the modality's own.

    An item's place in its cluster is the same in every modality, and some directions matter more than others. One item in twenty repeats
    another's features: variants of a product, whose codes collide.
    """
    catalogue, modality = np.random.default_rng(seed), np.random.default_rng((seed, width))
    strength = (1 / np.sqrt(1 + np.arange(FACTORS) / 4)).astype(np.float32)
    centres = strength * catalogue.standard_normal((max(2, items // ITEMS_PER_CLUSTER), FACTORS), dtype=np.float32)
    view = modality.standard_normal((FACTORS, width), dtype=np.float32)
    for start in range(0, items, ROWS):
        rows = min(ROWS, items - start)
        place = centres[catalogue.integers(0, len(centres), rows)]
        place += np.float32(0.5) * strength * catalogue.standard_normal((rows, FACTORS), dtype=np.float32)
        block = place @ view + modality.standard_normal((rows, width), dtype=np.float32)
        repeated = np.where(catalogue.random(rows) < REPEATS, catalogue.integers(0, rows, rows), np.arange(rows))
        yield block[repeated].astype(np.float16)


def write(
    folder: Path, items: int, blocks: Mapping[str, Iterator[np.ndarray]], projections: Mapping[str, Projection] | None = None
) -> None:
    """A feature folder of vectors that every item has; without projections the identity stands in their place."""
    modalities = {}
    for name, vectors in blocks.items():
        width = WIDTHS[name]
        identity = Projection(np.zeros(width, np.float32), np.eye(width, dtype=np.float32), np.asarray(1, np.float32))
        projection = identity if projections is None else projections[name]
        encoder = {"modality": name, "kind": "synthetic", "name": "clusters", "fingerprint": "synthetic", "dimension": width}
        modalities[name] = FeatureBlocks(vectors, projection.dimension, np.ones(items, dtype=bool), projection, encoder, "F16")
    write_features(folder, [item_id(row) for row in range(items)], modalities)


def item_id(row: int) -> str:
    """Ten characters, as Amazon's."""
    return f"B{row:09d}"


def rqvae_config() -> CEMGRQVAEConfig:
    return CEMGRQVAEConfig(modality_dims=WIDTHS, num_levels=LEVELS, codebook_size=CODES)


def load_rqvae(folder: Path) -> CEMGRQVAE:
    rqvae = CEMGRQVAE(rqvae_config())
    rqvae.load_state_dict(load_file(folder / "rqvae.safetensors"))
    return rqvae.eval()


def size_of(folder: Path, pattern: str = "*") -> float:
    """Files of a folder in MB."""
    return sum(file.stat().st_size for file in folder.glob(pattern)) / 1e6


if __name__ == "__main__":
    try:
        main()
    except CEMGError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
