"""The tables that the commands print: of a run, of an artifact, of its bytes."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lighttoken.artifact.table import CompressedTable
from lighttoken.backbone.card import healing_text, loading_lines
from lighttoken.run.measure import bytes_by_part
from lighttoken.run.reading import plain_text, read_json
from lighttoken.run.records import MODEL_FOLDER, Record, is_reference
from lighttoken.run.scores import is_score, lower_is_better, retention

HEADS = {"compressed": "tied to the compressed table", "untie": "dense, untied from the table"}


def print_closing_table(record: Record, reference: dict[str, Any] | None) -> None:
    """Print the result of a run: scores, retention, sizes, seconds."""
    table_share, artifact_share = map(_percent, record.table_shares)
    precision = record.config["backbone_precision"]
    rows = [
        *_score_rows(record, reference),
        *([("output head", HEADS[record.tie])] if record.tie else []),
        *([("healed", healing_text(record.healing))] if record.healing else []),
        ("ratio", f"{record.ratio:.2f}" + (f" (asked {record.ratio_asked:g})" if record.ratio_asked else "")),
        ("table", f"{size(record.table_bytes)} -> {size(record.artifact_bytes)}"),
        ("table's share of the model", f"{table_share} -> {artifact_share}"),
        ("model", f"{size(record.model_bytes)} -> {size(record.stored_bytes)}, backbone in {precision}"),
        ("seconds", ", ".join(f"{name} {seconds:.0f}" for name, seconds in record.seconds.items())),
        ("record", str(record.directory / "record.json")),
    ]
    print_rows(f"{record.task} with {record.model}, codec {record.codec}, seed {record.seed}", rows)
    if record.config.get("save_model"):
        print_loading(record.directory / MODEL_FOLDER)


def _score_rows(record: Record, reference: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The scores, and the retention of each score against the uncompressed run."""
    if is_reference(vars(record)):
        return [(name, f"{value:.4f}") for name, value in record.metrics.items()]
    rows = []
    for name, value in record.metrics.items():
        rows.append((name, f"{value:.4f}"))
        if reference and is_score(name) and name in reference["metrics"]:
            uncompressed = reference["metrics"][name]
            kept = retention([value], [uncompressed], lower_is_better([name]))["retention"]
            text = "the reference scored 0" if kept is None else f"{kept:.4f} of {uncompressed:.4f}"
            rows.append((f"retention of {name}", text))
    if reference is None:
        rows.append(("retention", "no finished codec=none run of this recipe and seed yet"))
    return rows


def print_loading(folder: Path) -> None:
    """Print the Python that loads a checkpoint."""
    config = read_json(folder / "config.json")
    packed = "quantization_config" in config
    print_lines("To load it:", loading_lines(config["architectures"][0], folder, packed, str(folder)))


def print_lines(title: str, lines: list[str]) -> None:
    """Print lines that can be copied, whatever the width of the screen."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(escape(plain_text("\n  ".join([title, *lines]))))


def print_plan(compressed: CompressedTable) -> None:
    """Print how an artifact spends its bytes: by tier of rows, where a trellis code has tiers, and by part."""
    summary, (rows, dim) = compressed.summary, compressed.shape
    if "tier_bits" in summary:
        _print_tiers(summary["tier_rows"], summary["tier_bits"], dim)
    parts = Table(title="bytes by part", title_justify="left")
    parts.add_column("part")
    parts.add_column("bytes", justify="right")
    parts.add_column("bits per row", justify="right")
    for part, nbytes in bytes_by_part(compressed).items():
        parts.add_row(escape(plain_text(part)), f"{nbytes:,}", f"{8 * nbytes / rows:.2f}")
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
    table = Table(title=escape(plain_text(title)), show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # nobody can copy a path that is cut short
    for row in rows:
        table.add_row(*(escape(plain_text(cell)) for cell in row))
    Console().print(table)


def size(nbytes: int | None) -> str:
    """Bytes in words; "unknown" for None."""
    if nbytes is None:
        return "unknown"
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.1f} kB"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
