"""LightToken in its published form: low rank, residual hashing with restarts, reconstruction.

After "LightToken: A Task and Model-agnostic Lightweight Token Embedding Framework for Pre-trained Language Models"
(Wang et al., KDD 2023). `LightTokenPaper.compress` reads top to bottom as the method does.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lighttoken.artifact.packing import Precision, dequantize, pack_bits, quantize, stored_bytes
from lighttoken.artifact.table import CompressedTable
from lighttoken.codec.loss import table_errors, table_variance, weighted_error
from lighttoken.codec.lowrank import truncated_svd, weighted_moments
from lighttoken.codec.paper.autoencoder import BinaryAutoencoder, RowBatches
from lighttoken.codec.paper.plan import Plan, plan_budget, split_bits
from lighttoken.codec.paper.progress import StageProgressBar
from lighttoken.codec.paper.saturation import SaturationStop
from lighttoken.codec.paper.schedule import Exponential
from lighttoken.codec.prior import Prior
from lighttoken.codec.refine import refine_codes, refit_decoder


@dataclass(frozen=True)
class LightTokenPaper(Prior):
    """Settings of the codec; `conf/codec/lighttoken_paper.yaml` lists the same defaults and says what each one does."""

    name: str = "lighttoken_paper"
    rank: int | None = None
    stage_bits: int = 112
    coefficient_precision: Precision = "int4"
    matrix_precision: Precision = "int8"
    batch_size: int = 512
    min_gain: float = 0.001
    refine_rounds: int = 0
    refine_tolerance: float = 0.005
    autoencoder: Callable[..., BinaryAutoencoder] = partial(
        BinaryAutoencoder,
        schedule=Exponential(start=1.0, end=0.0005),
        angular_weight=2.0,
        learning_rate=0.001,
        decoder_learning_rate=0.02,
    )
    saturation: Callable[..., SaturationStop] = partial(
        SaturationStop, threshold=0.9, tolerance=0.01, every_n_steps=10, rows=2048
    )
    trainer: Callable[..., L.Trainer] = partial(
        L.Trainer, max_steps=600, accelerator="auto", devices=1, log_every_n_steps=20
    )

    def settings(self) -> dict[str, Any]:
        """All settings of the compression itself as plain JSON values."""
        elsewhere = {"name", *(entry.name for entry in fields(Prior))}
        return {
            entry.name: _describe(getattr(self, entry.name)) for entry in fields(self) if entry.name not in elsewhere
        }

    def compress(
        self,
        table: Tensor,
        weights: Tensor,
        metric: Tensor | None,
        ratio: float,
        empty: CompressedTable,
        progress: bool,
        loggers: Sequence[Logger],
    ) -> CompressedTable:
        """Compress a table (V, d) under row weights (V,); `empty` is the result but for its tensors and summary.

        The published method knows no metric but the Euclidean one: `metric` is left unused.
        """
        with _quiet_lightning():
            device = self.trainer(logger=False, enable_progress_bar=False).strategy.root_device
        table, weights = table.to(device), weights.to(device)
        plan = self.plan(table, weights, ratio, empty)

        # 1. Low rank: the rank-k part, as it will be read back from the artifact.
        left, right, bias = truncated_svd(table, plan.rank, weights)
        tensors = self._store("left", left) | self._store("right", right)
        lowrank = self._read(tensors, "left", plan.rank) @ self._read(tensors, "right", table.shape[1])

        # 2. Residual hashing: a stage on what is left; its codes frozen, the decoder refitted; the next on the rest.
        bits = torch.empty(len(table), 0, dtype=torch.bool, device=device)
        decoder = table.new_empty(0, table.shape[1])
        reconstruction = lowrank + bias
        error = weighted_error(table, reconstruction, weights)
        variance, reports = table_variance(table), []
        for stage, m in enumerate(plan.stages, start=1):
            label = f"stage {stage}/{len(plan.stages)}" if progress else None
            new_bits, report = self.train_stage(table, reconstruction, weights, stage, m, label, loggers)
            all_bits = torch.cat([bits, new_bits], dim=1)
            refitted, refitted_bias = refit_decoder(all_bits, table - lowrank, weights)
            rows = lowrank + all_bits.float() @ refitted + refitted_bias
            new_error = weighted_error(table, rows, weights)
            if new_error > error * (1 - self.min_gain):
                break  # the restart no longer pays: neither this stage nor a later one is kept
            bits, decoder, bias = all_bits, refitted, refitted_bias
            reconstruction, error = rows, new_error
            reports.append(report | {"m": m, "nmse": round(error / variance, 4)})

        refined: list[float] = []
        if self.refine_rounds and bits.shape[1]:
            stored_left = self._read(tensors, "left", plan.rank)
            bits, right, decoder, bias, errors = refine_codes(
                bits, stored_left, table, weights, self.refine_rounds, self.refine_tolerance
            )
            tensors |= self._store("right", right)
            refined = [round(each / variance, 4) for each in errors]

        # 3. Reconstruction: everything as stored; the errors are those of the rows that the artifact decodes to.
        tensors |= {"codes": pack_bits(bits), "bias": bias} | self._store("decoder", decoder)
        compressed = replace(empty, tensors={name: tensor.cpu() for name, tensor in tensors.items()})
        summary = _summary(table.cpu(), weights.cpu(), compressed.decode(), plan, reports)
        return replace(compressed, summary=summary | ({"refined": refined} if refined else {}))

    def plan(self, table: Tensor, weights: Tensor, ratio: float, empty: CompressedTable) -> Plan:
        """Rank, stages and bits per stage for a ratio. Raises LighttokenError if it cannot be met."""
        spectrum = torch.linalg.eigvalsh(weighted_moments(table, weights)[1]).flip(0)
        return plan_budget(
            spectrum=spectrum,
            ratio=ratio,
            table_bytes=table.numel() * 4,
            measure=partial(self._artifact_bytes, empty),
            rank=self.rank,
            stage_bits=self.stage_bits,
            coefficient_precision=self.coefficient_precision,
        )

    def train_stage(
        self,
        table: Tensor,
        reconstruction: Tensor,
        weights: Tensor,
        stage: int,
        m: int,
        label: str | None,
        loggers: Sequence[Logger],
    ) -> tuple[Tensor, dict[str, Any]]:
        """Train one binary autoencoder to just short of saturation; returns its bits (V, m) and a report."""
        residual = table - reconstruction
        autoencoder = self.autoencoder(table.shape[1], m, max(float(residual.std()), 1e-12), stage)
        saturation = self.saturation(residual)
        callbacks: list[L.Callback] = [saturation] + ([StageProgressBar(label)] if label else [])
        with _quiet_lightning():
            trainer = self.trainer(
                callbacks=callbacks,
                logger=list(loggers),
                max_epochs=-1,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
            trainer.fit(autoencoder, RowBatches(table, reconstruction, weights, self.batch_size))
        with torch.no_grad():
            bits = autoencoder.to(table.device).encode(residual)
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

    def _artifact_bytes(self, empty: CompressedTable, rank: int, m: int) -> int:
        """Bytes of the artifact of a rank and m bits: those of its tensors, and a bound of what describes them."""
        vocab_size, dim = empty.shape
        tensors = vocab_size * -(-m // 8) + 4 * dim  # codes and bias
        tensors += stored_bytes(vocab_size, rank, self.coefficient_precision, scale_dim=1)
        tensors += stored_bytes(rank, dim, self.matrix_precision, scale_dim=0)
        tensors += stored_bytes(m, dim, self.matrix_precision, scale_dim=0)
        # The JSON is measured without tensors; then the summary, a report per stage, and the header of the tensors.
        summary = 400 + 100 * len(split_bits(m, self.stage_bits)) + 10 * self.refine_rounds
        header = 96 * 8
        return tensors + empty.nbytes + summary + header


def _summary(table: Tensor, weights: Tensor, rows: Tensor, plan: Plan, reports: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "rank": plan.rank,
        "planned_stages": len(plan.stages),
        "bits_per_row": sum(report["m"] for report in reports),
        "predicted_nmse": round(plan.predicted_nmse, 6),
        **table_errors(table, rows, weights),
        "stages": reports,
    }


def _describe(value: Any) -> Any:
    if isinstance(value, partial):
        return {"target": value.func.__name__} | {name: _describe(entry) for name, entry in value.keywords.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"target": type(value).__name__} | asdict(value)
    return value


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes for a whole run (devices found, tips, logger missing) out of each of many short stages."""
    notes = logging.getLogger("lightning.pytorch")
    level = notes.level
    notes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        notes.setLevel(level)
