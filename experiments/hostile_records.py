"""What the report makes of hostile records: every value of real records replaced by what nobody expects there.

    python -m experiments.hostile_records results/ --figures

Takes the records under tests/samples/records. A run is put next to the untouched records with one value replaced, for
every value of a record and every replacement (of a list, the first and the last entry). The report is made of them:
runs, charts, page and tables, with --figures the pictures too (seconds per record). Prints a line per outcome with its
count, and the first failures. Writes `hostile_records.csv` to the folder: a row per record, with its outcome and the
reason. Exit code 1 if any record made the report fail.

- shown: the run is in the report
- left out and named: the others are in the report, which says why this one is not
- failed: no report, or a report without the run that does not name it
"""

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.rows import RowFile
from lighttoken.dashboard.gather import gather
from lighttoken.dashboard.report import write_report

SAMPLES = Path(__file__).parents[1] / "tests/samples/records"
HOSTILE = {  # name -> JSON text
    "10**30": "1" + 30 * "0",
    "5000 digits": 5000 * "9",
    "1e-320": "1e-320",
    "-1": "-1",
    "true": "true",
    "null": "null",
    "[]": "[]",
    "{}": "{}",
    "empty text": '""',
    "script": '"</script><script>alert(1)</script>"',
    "lone surrogate": r'"\ud800"',
    "control characters": r'"\u0000\u001b[2J\r\n\u202e"',
    "NaN": "NaN",
    "infinity": "Infinity",
    "brackets": 100_000 * "[" + 100_000 * "]",
    "megabyte": f'"{1_000_000 * "x"}"',
    "climbing path": '"../../../etc/passwd"',
}
COLUMNS = ("sample", "value", "hostile", "outcome", "reason")
HOLE = "@hole@"


def holes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A value with one part replaced by HOLE, and the path of the part, for every part."""
    if path:
        yield path, HOLE
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        if isinstance(node, dict) or key in (0, len(node) - 1):
            for name, holed in holes(value, f"{path}.{key}" if path else str(key)):
                copy = node.copy()
                copy[key] = holed
                yield name, copy


def hostile_records(sample: Path) -> Iterator[tuple[str, str, str]]:
    """The path of the value, the name of the replacement, and the JSON text of every hostile record of a sample."""
    for path, holed in holes(json.loads(sample.read_text())):
        before, _, after = json.dumps(holed).partition(f'"{HOLE}"')
        for name, text in HOSTILE.items():
            yield path, name, before + text + after


def outcome(folder: Path, output: Path, figures: bool) -> tuple[str, str]:
    """What the report makes of a folder whose run `hostile` is hostile, and the reason."""
    left_out: dict[Path, str] = {}
    try:
        runs = gather([folder], left_out)
        write_report(runs, output, None, None, left_out, page_only=not figures)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:300]
    names = {run.name for run in runs}
    reason = left_out.get(folder.resolve() / "hostile/record.json", "")
    if len(names) < 2 + ("hostile" in names):
        return "failed", f"other runs are missing: {sorted(names)}"
    if "hostile" in names:
        return "shown", ""
    return ("left out and named", reason) if reason else ("failed", "left out without a word")


def main() -> None:
    """Entry point. Exit code 1: a record made the report fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where hostile_records.csv is written")
    parser.add_argument("--figures", action="store_true", help="draw the pictures of every report too")
    parser.add_argument("--every", type=int, default=1, help="take every Nth record (default: all)")
    arguments = parser.parse_args()
    file = RowFile(arguments.folder / "hostile_records.csv", COLUMNS)
    rows: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "outputs")
        samples = sorted(SAMPLES.glob("*/record.json"))
        for sample in samples:
            (folder / sample.parent.name).mkdir(parents=True)
            (folder / sample.parent.name / "record.json").write_bytes(sample.read_bytes())
        (folder / "hostile").mkdir()
        records = ((sample, *record) for sample in samples for record in hostile_records(sample))
        for number, (sample, path, name, text) in enumerate(records):
            if number % arguments.every == 0:
                (folder / "hostile/record.json").write_text(text)
                result, reason = outcome(folder, Path(scratch, "report"), arguments.figures)
                values = (sample.parent.name, path, name, result, reason)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    file.rows = rows[:-1]
    file.add(rows[-1])  # all at once: there are thousands
    count = Counter(row["outcome"] for row in rows)
    print(f"{len(rows)} hostile records: {', '.join(f'{n} {name}' for name, n in sorted(count.items()))}")
    for row in [row for row in rows if row["outcome"] == "failed"][:10]:
        print(f"failed: {row['value']} = {row['hostile']}: {row['reason']}")
    sys.exit(1 if count["failed"] else 0)


if __name__ == "__main__":
    logging.disable()  # the records that are left out are counted instead
    main()
