"""What the commands print: tables of a run, of an artifact, of its bytes."""

import logging
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lighttoken.artifact.table import CompressedTable
from lighttoken.run.measure import bytes_by_part
from lighttoken.run.records import Record, is_reference


def quiet_imports() -> None:
    """Keep out of the terminal what torchao says when transformers looks whether it is there, and faiss of its own.

    To be called before those imports.
    """
    for name in ("torchao", "torch.utils._pytree", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.ERROR)


def print_closing_table(record: Record, reference: dict[str, Any] | None) -> None:
    """Print what came out: scores, retention, sizes, seconds."""
    assert record.table_bytes
    assert record.artifact_bytes
    assert record.model_bytes
    assert record.ratio
    assert record.stored_bytes
    precision = record.config["backbone_precision"]
    itself = is_reference(vars(record))
    rows = []
    for name, value in record.metrics.items():
        rows.append((name, f"{value:.4f}"))
        if reference and not itself and not name.endswith("loss") and name in reference["metrics"]:
            uncompressed = reference["metrics"][name]
            retention = (
                f"{value / uncompressed:.4f} of {uncompressed:.4f}" if uncompressed else "the reference scored 0"
            )
            rows.append((f"retention of {name}", retention))
    if reference is None and not itself:
        rows.append(("retention", "no finished codec=none run of this recipe and seed yet"))
    rows += [
        ("ratio", f"{record.ratio:.2f}" + (f" (asked {record.ratio_asked:g})" if record.ratio_asked else "")),
        ("table", f"{size(record.table_bytes)} -> {size(record.artifact_bytes)}"),
        (
            "table's share of the model",
            f"{record.table_bytes / record.model_bytes:.1%} -> {record.artifact_bytes / record.stored_bytes:.1%}",
        ),
        ("model", f"{size(record.model_bytes)} -> {size(record.stored_bytes)}, backbone in {precision}"),
        ("seconds", ", ".join(f"{name} {seconds:.0f}" for name, seconds in record.seconds.items())),
        ("record", str(record.directory / "record.json")),
    ]
    print_rows(f"{record.task} with {record.model}, codec {record.codec}, seed {record.seed}", rows)


def print_plan(compressed: CompressedTable) -> None:
    """Print how the bytes of an artifact are spent: by tier of rows, where a trellis code has them, and by part."""
    told, (rows, dim) = compressed.summary, compressed.shape
    if "tier_bits" in told:
        _print_tiers(told["tier_rows"], told["tier_bits"], dim)
    parts = Table(title="bytes by part", title_justify="left")
    parts.add_column("part")
    parts.add_column("bytes", justify="right")
    parts.add_column("bits per row", justify="right")
    for part, size in bytes_by_part(compressed).items():
        parts.add_row(part, f"{size:,}", f"{8 * size / rows:.2f}")
    Console().print(parts)


def _print_tiers(rows: list[int], bits: list[int], dim: int) -> None:
    tiers = Table(title="tiers of rows, by rising importance", title_justify="left")
    for name in ("tier", "rows", "bits per row", "bits per number", "share of the bits"):
        tiers.add_column(name, justify="right")
    total = sum(n * k for n, k in zip(rows, bits, strict=True))
    for tier, (n, k) in enumerate(zip(rows, bits, strict=True)):
        share = f"{n * k / max(total, 1):.1%}"
        tiers.add_row(str(tier), f"{n:,}", str(k), f"{k / dim:.2f}", share)
    Console().print(tiers)


def print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a titled table of names and values."""
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # a path that is cut short is of no use
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def size(nbytes: int) -> str:
    """Bytes in words."""
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.1f} kB"
