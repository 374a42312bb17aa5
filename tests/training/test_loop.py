"""The training loop: every sample once, one result however the work is cut, and an interrupted run that ends as if it never was."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import loop_task
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from cemg_hf.errors import CEMGError
from cemg_hf.training.loop import compile_mode
from cemg_hf.training.loop_config import LoopConfig, TrainingReport
from cemg_hf.training.optimizer import parameter_groups
from cemg_hf.training.sampler import GlobalBatchSampler

TASK = Path(loop_task.__file__)
TIMES = {"seconds", "samples_per_second"}


@pytest.fixture(autouse=True, scope="module")
def small_heap() -> Iterator[None]:
    """Accelerate collects garbage at the end of every training; over the imported libraries that takes most of a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Some tests make accelerators of their own, and Accelerate fixes the precision of these once per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weights.detach().clone() for name, weights in model.named_parameters()}


def assert_same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, weights in left.items():
        torch.testing.assert_close(weights, right[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in history]


def log_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


class Killed(Exception):
    pass


class KilledAt(loop_task.Walks):
    """Fails when the n-th sample is loaded."""

    def __init__(self, count: int, at: int) -> None:
        super().__init__(count)
        self.at = at

    def __getitem__(self, index: int) -> torch.Tensor:
        if len(self.loaded) == self.at:
            raise Killed
        return super().__getitem__(index)


# ---- sampler -------------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    samples=st.integers(1, 90),
    processes=st.integers(1, 3),
    micro_batches=st.integers(1, 4),
    extra=st.integers(0, 9),
    bucketed=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_sample_once_per_epoch(samples: int, processes: int, micro_batches: int, extra: int, bucketed: bool, seed: int) -> None:
    batch_size = processes * micro_batches + extra
    lengths = np.random.default_rng(seed).integers(1, 30, samples) if bucketed else None
    shares = [
        GlobalBatchSampler(
            samples, batch_size, seed, micro_batches=micro_batches, num_processes=processes, process_index=index, lengths=lengths
        )
        for index in range(processes)
    ]
    alone = GlobalBatchSampler(samples, batch_size, seed, lengths=lengths)
    for sampler in [*shares, alone]:
        sampler.set_position(1, 0)
    steps = [sorted(batch) for batch in alone]
    assert len(steps) == alone.steps_per_epoch == len(alone)
    assert sorted(index for batch in steps for index in batch) == list(range(samples))
    drawn = [list(sampler) for sampler in shares]
    assert {len(batches) for batches in drawn} == {len(shares[0])}
    first = 0
    for step, expected in enumerate(steps):
        count = shares[0].micro_batches_in(step)
        assert 1 <= count <= micro_batches
        seen: list[int] = []
        for sampler, batches in zip(shares, drawn, strict=True):
            for micro_batch, piece in enumerate(batches[first : first + count]):
                assert 1 <= len(piece) <= -(-batch_size // (processes * micro_batches))
                seen += [] if sampler.is_filler(step, micro_batch) else piece
        assert sorted(seen) == expected
        first += count
    # A position skips exactly what was drawn before it.
    shares[-1].set_position(1, len(steps) // 2)
    skipped = sum(shares[-1].micro_batches_in(step) for step in range(len(steps) // 2))
    assert list(shares[-1]) == drawn[-1][skipped:]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sampler = GlobalBatchSampler(100, 7, seed=1)
    assert np.array_equal(sampler.order(0), GlobalBatchSampler(100, 7, seed=1, num_processes=2, process_index=1).order(0))
    assert not np.array_equal(sampler.order(0), sampler.order(1))
    assert not np.array_equal(sampler.order(0), GlobalBatchSampler(100, 7, seed=2).order(0))


def test_buckets_save_padding_without_fixing_the_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 4000)
    bucketed, plain = GlobalBatchSampler(4000, 16, 0, lengths=lengths), GlobalBatchSampler(4000, 16, 0)
    padded = {name: lengths[s.order(0)].reshape(-1, 16).max(axis=1).sum() * 16 for name, s in (("bucketed", bucketed), ("plain", plain))}
    assert padded["bucketed"] < 1.1 * lengths.sum() < padded["plain"]
    means = lengths[bucketed.order(0)].reshape(-1, 16).mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3, "batches come in random order of length"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0, "batch_size": 4}, "no samples"),
        ({"num_samples": 9, "batch_size": 3, "micro_batches": 2, "num_processes": 2}, "batch_size"),
        ({"num_samples": 9, "batch_size": 3, "lengths": [1, 2]}, "lengths"),
    ],
)
def test_impossible_batches_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CEMGError, match=message):
        GlobalBatchSampler(seed=0, **arguments)


# ---- one result however the work is cut ----------------------------------------------------------------------------------------


def test_trains_and_reports(tmp_path: Path) -> None:
    model, report = loop_task.run(tmp_path, epochs=8, dropout=0.1)
    assert report.stopped_by == "epochs"
    assert report.steps == 8 * 8  # 61 samples in batches of 8
    assert [row["epoch"] for row in report.history] == list(range(1, 9))
    assert report.history[-1]["train_loss"] < 0.7 * report.history[0]["train_loss"]
    assert report.best_metrics == {"ndcg@10": max(row["ndcg@10"] for row in report.history), "extra": 1.0}
    assert report.samples_per_second > 0
    assert report.seconds > 0
    assert not model.training
    rows = log_rows(tmp_path)
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(5, 65, 5))
    assert [row["epoch"] for row in rows if row["event"] == "epoch"] == list(range(1, 9))
    lrs = [row["lr"] for row in rows if row["event"] == "step"]
    assert lrs[0] > lrs[-1], "cosine"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1, "a finished run keeps its last checkpoint only"
    assert len(list((tmp_path / "best").iterdir())) == 1


def test_loss_is_the_mean_over_target_tokens(tmp_path: Path) -> None:
    """With learning rate ≈ 0 the epoch's loss is the mean over steps of the plain per-token loss of each global batch."""
    model, report = loop_task.run(
        tmp_path, epochs=1, learning_rate=1e-12, weight_decay=0.0, gradient_accumulation_steps=3, log_every_steps=1
    )
    walks = loop_task.Walks(61)
    order = GlobalBatchSampler(61, 8, 5, lengths=walks.lengths).order(0)
    expected = []
    for first in range(0, 61, 8):
        batch = loop_task.collate([walks[int(index)] for index in order[first : first + 8]])
        expected.append(model(**batch, num_items_in_batch=int((batch["labels"] != -100).sum())).loss.item())
    assert report.history[0]["train_loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert [row["loss"] for row in log_rows(tmp_path) if row["event"] == "step"] == pytest.approx(expected, rel=1e-5)


def test_accumulation_does_not_change_the_result(tmp_path: Path) -> None:
    whole, first = loop_task.run(tmp_path / "1", gradient_accumulation_steps=1)
    cut, second = loop_task.run(tmp_path / "4", gradient_accumulation_steps=4)
    assert_same_weights(weights_of(whole), weights_of(cut), tolerance=1e-5)
    assert [row["train_loss"] for row in first.history] == pytest.approx([row["train_loss"] for row in second.history], abs=1e-5)


def test_accelerators_own_accumulation_setting_does_not_matter(tmp_path: Path) -> None:
    """`accelerate launch` may set it by environment variable; the loop accumulates by itself."""
    own, _ = loop_task.run(tmp_path / "own", epochs=1, max_grad_norm=0.1)
    given_one, _ = loop_task.run(tmp_path / "given", epochs=1, max_grad_norm=0.1, accelerator=Accelerator(gradient_accumulation_steps=4))
    assert_same_weights(weights_of(own), weights_of(given_one))


def launch(folder: Path, processes: int, **values: Any) -> dict[str, Any]:
    """The task as a script, under torchrun: on a CPU `accelerate launch --num_processes 2` starts one process unless mpirun is used."""
    folder.mkdir(parents=True, exist_ok=True)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *several, str(TASK), str(folder), json.dumps(values)],
        capture_output=True,
        text=True,
        timeout=170,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    assert report["processes"] == processes
    return report


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(tmp_path: Path) -> None:
    """43 samples in batches of 8, cut in four: the last global batch holds 3 samples, so that the second process has one micro-batch
    without any. The two processes are stopped and continued on the way."""
    values: dict[str, Any] = {"samples": 43, "gradient_accumulation_steps": 2, "ema_decay": 0.9}
    alone, expected = loop_task.run(tmp_path / "1", **values)
    cut = launch(tmp_path / "2", 2, **values, time_budget_s=0.0)
    assert (cut["stopped_by"], cut["steps"]) == ("time_budget", 6), "processes agree on stopping at the end of an epoch"
    report = launch(tmp_path / "2", 2, **values)
    assert report["stopped_by"] == "epochs"
    assert_same_weights(weights_of(alone), load_file(tmp_path / "2/weights.safetensors"), tolerance=1e-5)
    for left, right in zip(expected.history, report["history"], strict=True):
        for name in left.keys() - TIMES:
            assert left[name] == pytest.approx(right[name], abs=1e-4), name
    rows = [[(row["event"], row["step"]) for row in log_rows(folder)] for folder in (tmp_path / "1", tmp_path / "2/run")]
    assert rows[0] == rows[1]


# ---- resuming ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"ema_decay": 0.9, "gradient_accumulation_steps": 2, "schedule": "inverse_sqrt"}])
@pytest.mark.parametrize(("at", "checkpoint_every_s"), [(0, 0.0), (37, 0.0), (117, 1e9), (160, 0.0)])
def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, at: int, checkpoint_every_s: float, changed: dict[str, Any]) -> None:
    """Killed within an epoch (with a checkpoint after every step or epoch), the run ends with the same weights, metrics and log."""
    values: dict[str, Any] = {"dropout": 0.1, "samples": 61, **changed}
    whole, expected = loop_task.run(tmp_path / "whole", **values)
    with pytest.raises(Killed):
        loop_task.run(tmp_path / "killed", **values, dataset=KilledAt(61, at), checkpoint_every_s=checkpoint_every_s)
    torch.manual_seed(99)
    again = loop_task.Walks(61)
    resumed, report = loop_task.run(tmp_path / "killed", **values, dataset=again, checkpoint_every_s=1e9)
    assert_same_weights(weights_of(whole), weights_of(resumed))
    assert without_times(report.history) == without_times(expected.history)
    assert (report.best_epoch, report.best_metrics, report.steps) == (expected.best_epoch, expected.best_metrics, expected.steps)
    assert without_times(log_rows(tmp_path / "killed")) == without_times(log_rows(tmp_path / "whole"))
    seen = 61 if checkpoint_every_s else at
    assert len(again.loaded) <= 3 * 61 - seen + 8, "samples of the steps before the checkpoint are not loaded again"


def test_killed_in_evaluation(tmp_path: Path) -> None:
    """The epoch's steps are not lost, and the evaluation is made up for."""

    class Dies(loop_task.Accuracy):
        def __call__(self, model: nn.Module) -> dict[str, float]:
            if len(self.calls) == 1:
                raise Killed
            return super().__call__(model)

    whole, expected = loop_task.run(tmp_path / "whole", dropout=0.1)
    with pytest.raises(Killed):
        loop_task.run(tmp_path / "killed", dropout=0.1, evaluate=Dies(), checkpoint_every_s=0.0)
    rest = loop_task.Walks(61)
    resumed, report = loop_task.run(tmp_path / "killed", dropout=0.1, dataset=rest)
    assert_same_weights(weights_of(whole), weights_of(resumed))
    assert without_times(report.history) == without_times(expected.history)
    assert len(rest.loaded) == 61


@pytest.mark.parametrize("leftover", ["partial", "old"])
def test_killed_while_writing_a_checkpoint(tmp_path: Path, leftover: str) -> None:
    """Half a checkpoint is no checkpoint; one being replaced is put back."""
    whole, _ = loop_task.run(tmp_path / "whole", dropout=0.1)
    with pytest.raises(Killed):
        loop_task.run(tmp_path / "killed", dropout=0.1, dataset=KilledAt(61, 100), checkpoint_every_s=0.0)
    checkpoints = tmp_path / "killed/checkpoints"
    newest = max(checkpoints.iterdir())
    newest.rename(checkpoints / f".{newest.name}.{leftover}")
    if leftover == "partial":
        (checkpoints / f".{newest.name}.partial" / "progress.json").unlink()
    rest = loop_task.Walks(61)
    resumed, _ = loop_task.run(tmp_path / "killed", dropout=0.1, dataset=rest)
    assert_same_weights(weights_of(whole), weights_of(resumed))
    assert not [path for path in checkpoints.iterdir() if path.name.startswith(".")]
    assert len(rest.loaded) == 3 * 61 - (96 - 3 if leftover == "old" else 88 - 3), "11 or 12 steps of 8; the epoch's last holds 5"


@pytest.mark.slow
def test_sigkill(tmp_path: Path) -> None:
    """Killed for real twice, the run ends with the very weights of the uninterrupted one."""
    values = {"dropout": 0.1, "ema_decay": 0.9, "checkpoint_every_s": 0.05, "epochs": 4}
    expected = launch(tmp_path / "whole", 1, **values)
    folder = tmp_path / "killed"
    folder.mkdir()
    for step in (5, 20):
        command = [sys.executable, str(TASK), str(folder), json.dumps({**values, "seconds_per_sample": 0.005})]
        with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                if any(int(path.name[5:]) >= step for path in folder.glob("run/checkpoints/step_*")):
                    break
                time.sleep(0.02)
            assert process.poll() is None, "the run ended before it could be killed"
            process.send_signal(signal.SIGKILL)
    assert not (folder / "report.json").exists()
    report = launch(folder, 1, **values)
    assert_same_weights(load_file(tmp_path / "whole/weights.safetensors"), load_file(folder / "weights.safetensors"))
    assert without_times(report["history"]) == without_times(expected["history"])
    assert without_times(log_rows(folder / "run")) == without_times(log_rows(tmp_path / "whole/run"))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_leave_a_checkpoint(tmp_path: Path, number: signal.Signals, error: type[BaseException]) -> None:
    class Interrupted(loop_task.Walks):
        def __getitem__(self, index: int) -> torch.Tensor:
            if len(self.loaded) == 70:
                os.kill(os.getpid(), number)
            return super().__getitem__(index)

    before = signal.getsignal(number)
    whole, _ = loop_task.run(tmp_path / "whole", dropout=0.1)
    stopped = Interrupted(61)
    with pytest.raises(error):
        loop_task.run(tmp_path / "stopped", dropout=0.1, dataset=stopped)
    assert signal.getsignal(number) == before
    rest = loop_task.Walks(61)
    resumed, _ = loop_task.run(tmp_path / "stopped", dropout=0.1, dataset=rest)
    assert_same_weights(weights_of(whole), weights_of(resumed))
    assert len(stopped.loaded) + len(rest.loaded) == 3 * 61, "no step was lost"


def test_time_budget_stops_and_the_next_call_continues(tmp_path: Path) -> None:
    whole, expected = loop_task.run(tmp_path / "whole", dropout=0.1)
    calls = 0
    while True:
        model, report = loop_task.run(tmp_path / "cut", dropout=0.1, dataset=loop_task.Walks(61, 0.002), time_budget_s=0.1)
        calls += 1
        if report.stopped_by != "time_budget":
            break
        assert calls < 50
    assert calls > 2
    assert report.stopped_by == "epochs"
    assert report.seconds > 0.1 * (calls - 1), "time adds up over the calls"
    assert_same_weights(weights_of(whole), weights_of(model))
    assert without_times(report.history) == without_times(expected.history)


def test_weights_in_one_buffer_are_all_in_the_checkpoint(tmp_path: Path) -> None:
    """cuDNN lays a recurrent network's weights into one buffer, and Accelerate takes tensors of one storage for tied ones."""

    def flat() -> loop_task.NextToken:
        model = loop_task.new_model()
        parameters = list(model.recurrent.parameters())
        buffer = torch.cat([parameter.detach().flatten() for parameter in parameters])
        for parameter, part in zip(parameters, buffer.split([parameter.numel() for parameter in parameters]), strict=True):
            parameter.data = part.view_as(parameter)
        return model

    whole, _ = loop_task.run(tmp_path / "whole", model=flat())
    with pytest.raises(Killed):
        loop_task.run(tmp_path / "cut", model=flat(), dataset=KilledAt(61, 61 + 20))
    resumed, _ = loop_task.run(tmp_path / "cut", model=flat())
    assert_same_weights(weights_of(whole), weights_of(resumed))


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    model, report = loop_task.run(tmp_path)
    log = (tmp_path / "training_log.jsonl").read_bytes()
    untouched = loop_task.Walks(61)
    again, repeated = loop_task.run(tmp_path, dataset=untouched)
    assert untouched.loaded == []
    assert_same_weights(weights_of(model), weights_of(again))
    assert (repeated.history, repeated.best_epoch, repeated.stopped_by) == (report.history, report.best_epoch, report.stopped_by)
    assert (tmp_path / "training_log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"learning_rate": 0.02}, "learning_rate 0.01 → 0.02"),
        ({"seed": 6}, "seed 5 → 6"),
        ({"samples": 62}, "samples 61 → 62"),
        ({"lengths": None}, "lengths"),
        ({"identity": "other data"}, "identity"),
        ({"schedule": "linear"}, "schedule"),
    ],
)
def test_checkpoint_of_other_settings_is_refused(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    loop_task.run(tmp_path, epochs=1)
    with pytest.raises(CEMGError, match="delete") as caught:
        loop_task.run(tmp_path, epochs=1, **changed)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- selection -----------------------------------------------------------------------------------------------------------------


class Scripted(loop_task.Accuracy):
    """Returns given values, whatever the model."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def __call__(self, model: nn.Module) -> dict[str, float]:
        super().__call__(model)
        return {"ndcg@10": self.values[len(self.calls) - 1]}


def test_early_stopping_restores_the_best_weights(tmp_path: Path) -> None:
    evaluate = Scripted([0.1, 0.5, 0.5, 0.4, 0.3, 0.9])
    model, report = loop_task.run(tmp_path, epochs=6, patience=3, evaluate=evaluate)
    assert report.stopped_by == "patience"
    assert len(report.history) == 5
    assert report.best_epoch == 2, "the first of equals"
    assert report.best_metrics == {"ndcg@10": 0.5}
    assert_same_weights(weights_of(model), {name: evaluate.calls[1][name] for name in weights_of(model)})
    assert not torch.equal(model.embedding.weight, evaluate.calls[4]["embedding.weight"])
    assert model.head.weight is model.embedding.weight


def test_early_stopping_counts_over_a_restart(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        loop_task.run(tmp_path, epochs=6, patience=3, evaluate=Scripted([0.5, 0.4, 0.3]), dataset=KilledAt(61, 3 * 61 + 2))
    evaluate = Scripted([0.2, 0.9])
    _, report = loop_task.run(tmp_path, epochs=6, patience=3, evaluate=evaluate)
    assert (report.stopped_by, report.best_epoch, len(evaluate.calls)) == ("patience", 1, 1)


def test_evaluates_every_few_epochs_and_at_the_end(tmp_path: Path) -> None:
    _, report = loop_task.run(tmp_path, epochs=5, eval_every=2)
    assert [row["epoch"] for row in report.history] == [2, 4, 5]
    assert [row["epoch"] for row in log_rows(tmp_path) if row["event"] == "epoch"] == [1, 2, 3, 4, 5]


def test_max_steps_ends_within_an_epoch(tmp_path: Path) -> None:
    _, report = loop_task.run(tmp_path, epochs=5, max_steps=11)
    assert (report.steps, report.stopped_by) == (11, "max_steps")
    assert [row["step"] for row in report.history] == [8, 11]


def test_without_evaluation_the_last_weights_stay(tmp_path: Path) -> None:
    reference = Scripted([0.1, 0.2, 0.3])
    loop_task.run(tmp_path / "evaluated", evaluate=reference)
    model, report = loop_task.run(tmp_path / "plain", evaluate=None)
    assert (report.history, report.best_epoch, report.best_metrics) == ([], None, {})
    assert_same_weights(weights_of(model), {name: reference.calls[-1][name] for name in weights_of(model)})


def test_without_a_metric_the_last_of_the_evaluated_weights_stay(tmp_path: Path) -> None:
    falling = Scripted([0.3, 0.2, 0.1])
    model, report = loop_task.run(tmp_path, metric_for_best="", patience=1, evaluate=falling)
    assert report.best_epoch == 3
    assert_same_weights(weights_of(model), {name: falling.calls[-1][name] for name in weights_of(model)})
    finished, _ = loop_task.run(tmp_path, metric_for_best="", patience=1, evaluate=falling)
    assert_same_weights(weights_of(model), weights_of(finished))


def test_every_step_is_told_with_its_number_also_after_a_restart(tmp_path: Path) -> None:
    told: list[int] = []
    for _ in range(20):
        _, report = loop_task.run(tmp_path, epochs=2, time_budget_s=0.0, on_step=told.append)
        if report.stopped_by != "time_budget":
            break
    assert told == list(range(1, report.steps + 1))


def test_average_of_weights(tmp_path: Path) -> None:
    """What is evaluated and returned follows the recursion on the weights of the very same run without averaging."""
    plain = Scripted([0.1, 0.2, 0.3, 0.4])
    loop_task.run(tmp_path / "plain", epochs=4, evaluate=plain, batch_size=61)
    averaged = Scripted([0.1, 0.2, 0.3, 0.4])
    model, _ = loop_task.run(tmp_path / "averaged", epochs=4, evaluate=averaged, batch_size=61, ema_decay=0.2)
    expected = weights_of(loop_task.new_model())
    for step, (own, seen) in enumerate(zip(plain.calls, averaged.calls, strict=True), start=1):
        decay = min(0.2, (1 + step) / (10 + step))
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * own[name]
            torch.testing.assert_close(seen[name], expected[name], rtol=1e-5, atol=1e-6)
    assert_same_weights(weights_of(model), {name: averaged.calls[-1][name] for name in expected})


def test_missing_or_meaningless_metric(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"recall@5.*ndcg@10, extra"):
        loop_task.run(tmp_path / "a", metric_for_best="recall@5")
    with pytest.raises(CEMGError, match="nan"):
        loop_task.run(tmp_path / "b", evaluate=Scripted([float("nan")]))


# ---- precision, settings, trackers ---------------------------------------------------------------------------------------------


def test_bf16(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Watched(loop_task.Accuracy):
        def __call__(self, model: nn.Module) -> dict[str, float]:
            seen.append(model(**self.batch, num_items_in_batch=1).logits.dtype)
            return super().__call__(model)

    model = loop_task.new_model()
    _, report = loop_task.run(tmp_path / "bf16", epochs=6, mixed_precision="bf16", evaluate=Watched(), model=model)
    assert report.history[-1]["train_loss"] < 0.8 * report.history[0]["train_loss"]
    assert set(seen) == {torch.bfloat16}
    assert {weights.dtype for weights in model.parameters()} == {torch.float32}
    batch = loop_task.Accuracy().batch
    assert model(**batch, num_items_in_batch=1).logits.dtype == torch.float32, "the model itself is left unpatched"
    seen.clear()
    loop_task.run(tmp_path / "no", epochs=1, mixed_precision="no", evaluate=Watched(), model=model)
    assert set(seen) == {torch.float32}, "the next training of a process has a precision of its own"


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="GPU"):
        loop_task.run(tmp_path, mixed_precision="fp16", accelerator=Accelerator(mixed_precision="fp16", cpu=True))


def test_tracker_gets_what_the_log_gets(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, report = loop_task.run(tmp_path, tracker="tensorboard")
    (events,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*") if path.parent.name == "training"}
    reader = accumulator.EventAccumulator(str(events))
    reader.Reload()
    assert [event.step for event in reader.Scalars("epoch/ndcg@10")] == [row["step"] for row in report.history]
    assert [event.value for event in reader.Scalars("epoch/ndcg@10")] == pytest.approx([row["ndcg@10"] for row in report.history])


def test_workers_and_unbucketed_batches(tmp_path: Path) -> None:
    alone, _ = loop_task.run(tmp_path / "0", lengths=None, epochs=2)
    with_worker, _ = loop_task.run(tmp_path / "1", lengths=None, epochs=2, dataloader_workers=1)
    assert_same_weights(weights_of(alone), weights_of(with_worker))


def test_decay_spares_vectors_and_embeddings() -> None:
    model = loop_task.new_model()
    decayed, others = parameter_groups(model, 0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in decayed["params"]} == {"recurrent.weight_ih_l0", "recurrent.weight_hh_l0"}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_diverged_loss_is_reported(tmp_path: Path) -> None:
    model = loop_task.new_model()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(CEMGError, match=r"loss is nan at step 5"):
        loop_task.run(tmp_path, model=model)


def test_frozen_model_and_missing_labels(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="no trainable parameters"):
        loop_task.run(tmp_path / "a", model=loop_task.new_model().requires_grad_(False))
    with pytest.raises(CEMGError, match=r"'targets'.*input_ids, labels"):
        loop_task.run(tmp_path / "b", label_key="targets")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("schedule", "cos"),
        ("mixed_precision", "fp8"),
        ("ema_decay", 1.0),
        ("warmup_ratio", 1.0),
        ("learning_rate", 0.0),
    ],
)
def test_senseless_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(CEMGError, match=name):
        LoopConfig(**{name: value})


def test_every_setting_has_a_help_text() -> None:
    assert all(entry.metadata.get("help") for kind in (LoopConfig, TrainingReport) for entry in fields(kind))


def test_a_gpu_replays_graphs_unless_gradients_are_summed_over_replays() -> None:
    """The memory of a replayed gradient is that of the next one: https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html"""
    assert compile_mode("cuda", micro_batches=1) == "reduce-overhead"
    assert compile_mode("cuda", micro_batches=2) is None
    assert compile_mode("cpu", micro_batches=1) is None
