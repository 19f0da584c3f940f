"""LightToken in its published form: low rank, residual hashing with restarts, reconstruction.

After "LightToken: A Task and Model-agnostic Lightweight Token Embedding Framework for Pre-trained Language Models"
(Wang et al., KDD 2023). `LightTokenPaper.fit` reads top to bottom as the method does.

Letters: V rows of the table, d columns, k rank, m bits of a row.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lighttoken.artifact.forms import Bits
from lighttoken.artifact.packing import Precision, dequantize, pack_bits, quantize, stored_bytes
from lighttoken.codec import shapes
from lighttoken.codec.interface import Budget, ErrorMetric, Importance, MetricCodec, Reporter
from lighttoken.codec.loss import table_variance, weighted_error
from lighttoken.codec.lowrank import truncated_svd, weighted_moments
from lighttoken.codec.metric_roots import metric_roots
from lighttoken.codec.paper.autoencoder import BinaryAutoencoder, RowBatches
from lighttoken.codec.paper.plan import Plan, plan_budget, split_bits
from lighttoken.codec.paper.saturation import SaturationStop
from lighttoken.codec.paper.schedule import Exponential, TemperatureSchedule
from lighttoken.codec.refine import refine_codes, refit_decoder
from lighttoken.codec.shapes import Fitted, Table, Weights

REPORT_BYTES = 100  # of the summary, for every stage


@dataclass(frozen=True)
class LightTokenPaper(MetricCodec):
    """Settings of the codec; `conf/codec/lighttoken_paper.yaml` lists the same defaults and explains them.

    The published method knows the Euclidean distance alone. Under another error metric G the rows are multiplied by
    its square root first, and what decodes them by the inverse: lengths and angles are then those that G sees.
    """

    name: str = "lighttoken_paper"
    error_metric: ErrorMetric = "euclidean"
    rank: int | None = None
    stage_bits: int = 112
    coefficient_precision: Precision = "int4"
    matrix_precision: Precision = "int8"
    batch_size: int = 512
    min_gain: float = 0.001
    refine_rounds: int = 0
    refine_tolerance: float = 0.005
    schedule: TemperatureSchedule = Exponential(start=1.0, end=0.0005)
    autoencoder: Callable[..., BinaryAutoencoder] = partial(
        BinaryAutoencoder, angular_weight=2.0, learning_rate=0.001, decoder_learning_rate=0.02
    )
    saturation: Callable[..., SaturationStop] = partial(
        SaturationStop, threshold=0.9, tolerance=0.01, every_n_steps=10, rows=2048
    )
    trainer: Callable[..., L.Trainer] = partial(
        L.Trainer, max_steps=600, accelerator="auto", devices=1, log_every_n_steps=20
    )
    form = Bits()

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """See `Codec.fit`: the tensors of the form `Bits` with its low-rank part, the plan and a report per stage."""
        with _quiet_lightning():
            device = self.trainer(logger=False, enable_progress_bar=False).strategy.root_device
        root, inverse_root = (matrix.to(table) for matrix in metric_roots(importance.error_metric, table.shape[1]))
        root, inverse_root = root.to(device), inverse_root.to(device)
        table, weights = table.to(device) @ root, importance.weights.to(device)
        plan = self.plan(table, weights, budget)

        # 1. Low rank: the rank-k part, as it will be read back from the artifact.
        left, right, bias = truncated_svd(table, plan.rank, weights)
        tensors = self._store("left", left) | self._store("right", right @ inverse_root)
        left = self._read(tensors, "left", plan.rank)
        lowrank = left @ (self._read(tensors, "right", table.shape[1]) @ root)

        # 2. Residual hashing: a stage on the residual; its codes frozen, the decoder refitted; the next on the rest.
        bits = torch.empty(len(table), 0, dtype=torch.bool, device=device)
        decoder, reconstruction = table.new_empty(0, table.shape[1]), lowrank + bias
        error = weighted_error(table, reconstruction, weights)
        variance, reports = table_variance(table), []
        for stage, m in enumerate(plan.stages, start=1):
            batches = RowBatches(table, reconstruction, weights, self.batch_size)
            stage_bits, report = self.train_stage(batches, stage, m, len(plan.stages), reporter)
            all_bits = torch.cat([bits, stage_bits], dim=1)
            new_decoder, new_bias = refit_decoder(all_bits, table - lowrank, weights)
            rows = lowrank + all_bits.float() @ new_decoder + new_bias
            new_error = weighted_error(table, rows, weights)
            if new_error > error * (1 - self.min_gain):
                break  # the restart no longer pays: this stage and all later ones are dropped
            bits, decoder, bias = all_bits, new_decoder, new_bias
            reconstruction, error = rows, new_error
            reports.append(report | {"m": m, "nmse": round(error / variance, 4)})

        # 3. Refinement, if asked for: bits and matrices fitted to each other in turn.
        summary = plan.describe() | {"bits_per_row": bits.shape[1], "stages": reports}
        if self.refine_rounds and bits.shape[1]:
            bits, right, decoder, bias, errors = refine_codes(
                bits, left, table, weights, self.refine_rounds, self.refine_tolerance
            )
            tensors |= self._store("right", right @ inverse_root)
            summary["refined"] = [round(error / variance, 4) for error in errors]
        tensors |= self._store("decoder", decoder @ inverse_root)
        return tensors | {"codes": pack_bits(bits), "bias": bias @ inverse_root}, summary

    def plan(self, table: Table, weights: Weights, budget: Budget) -> Plan:
        """Rank, stages and bits per stage. Raises LighttokenError if the budget is out of reach."""
        return plan_budget(
            spectrum=torch.linalg.eigvalsh(weighted_moments(table, weights)[1]).flip(0),
            budget=budget,
            measure=partial(self._nbytes, *table.shape),
            rank=self.rank,
            stage_bits=self.stage_bits,
            coefficient_precision=self.coefficient_precision,
        )

    def train_stage(
        self, batches: RowBatches, stage: int, m: int, stages: int, reporter: Reporter
    ) -> tuple[shapes.Bits, dict[str, Any]]:
        """Train one binary autoencoder to just short of saturation; returns its bits and a report."""
        residual = batches.table - batches.reconstruction
        scale = max(float(residual.std()), 1e-12)
        autoencoder = self.autoencoder(residual.shape[1], m, scale, stage, schedule=self.schedule)
        saturation = self.saturation(residual)
        with _quiet_lightning(), reporter.bar(description=f"stage {stage}/{stages}", unit="step") as bar:
            trainer = self.trainer(
                callbacks=[saturation, StepBar(bar)],
                logger=list(reporter.loggers),
                max_epochs=-1,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
            trainer.fit(autoencoder, batches)
        with torch.no_grad():
            bits = autoencoder.to(residual.device).encode(residual)
        constant = float((bits.all(0) | ~bits.any(0)).float().mean())
        return bits, {
            "steps": saturation.steps,
            "saturation": round(saturation.saturation, 4),
            "constant_units": round(constant, 4),
        }

    def _store(self, name: str, matrix: Tensor) -> dict[str, Tensor]:
        precision = self.coefficient_precision if name == "left" else self.matrix_precision
        values, scale = quantize(matrix, precision, scale_dim=1 if name == "left" else 0)
        return {name: values} | ({f"{name}.scale": scale} if scale is not None else {})

    def _read(self, tensors: dict[str, Tensor], name: str, columns: int) -> Tensor:
        return dequantize(tensors[name], tensors.get(f"{name}.scale"), columns)

    def _nbytes(self, vocab_size: int, dim: int, rank: int, m: int) -> int:
        """Bytes of the tensors of a rank and m bits, and of the reports of their stages."""
        nbytes = vocab_size * -(-m // 8) + 4 * dim  # codes and bias
        nbytes += stored_bytes(vocab_size, rank, self.coefficient_precision, scale_dim=1)
        nbytes += stored_bytes(rank, dim, self.matrix_precision, scale_dim=0)
        nbytes += stored_bytes(m, dim, self.matrix_precision, scale_dim=0)
        return nbytes + REPORT_BYTES * len(split_bits(m, self.stage_bits)) + 10 * self.refine_rounds


class StepBar(L.Callback):
    """Moves a tqdm bar with the steps of one stage; Lightning's own bar counts epochs, of which a stage has none."""

    def __init__(self, bar: Any):
        self.bar = bar

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.reset(total=trainer.max_steps)

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self.bar.update(trainer.global_step - self.bar.n)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes for a whole run (devices, tips, logger missing) out of each of many short stages."""
    notes = logging.getLogger("lightning.pytorch")
    level = notes.level
    notes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        notes.setLevel(level)
