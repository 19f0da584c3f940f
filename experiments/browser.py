"""Encoders as ONNX in onnxruntime-web, in headless Chromium, against PyTorch.

    npm install --ignore-scripts onnxruntime-web
    python -m experiments.browser experiments/DATED-FOLDER --checkpoints DENSE COMPRESSED \\
        --onnxruntime-web node_modules/onnxruntime-web/dist

Every model is exported by `torch.onnx.export`, a compressed one with its codes, and once more with its codes as int32
words, and run on two sentences by onnxruntime and, in the browser, by its providers wasm and webgpu (needs
`pip install 'lighttoken[dev]'` and Chromium).
Writes browser.csv: the largest difference to PyTorch's last hidden states, and the seconds of a session's start and of
its first run; and operators-NAME.csv: the operators by the types of what they read and make.
"""

import argparse
import functools
import http.server
import itertools
import shutil
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from playwright.sync_api import sync_playwright
from transformers import AutoModel, AutoTokenizer

import lighttoken
from experiments.rows import RowFile
from lighttoken import CompressedEmbedding

SENTENCES = ("The cat sleeps on the warm window sill.", "The central bank raised interest rates by 0.25 points.")
DYNAMIC = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
COLUMNS = ("checkpoint", "megabytes", "provider", "difference", "start_s", "run_s")
ARGUMENTS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
PAGE = """<script src="ort/ort.all.min.js"></script><script>
async function run(provider, ids, shape) {
  ort.env.wasm.wasmPaths = "/ort/"; ort.env.wasm.numThreads = 1;
  const started = performance.now();
  const session = await ort.InferenceSession.create("model.onnx", {executionProviders: [provider]});
  const made = performance.now();
  const feed = {input_ids: new ort.Tensor("int64", BigInt64Array.from(ids.map(BigInt)), shape)};
  const output = (await session.run(feed))[session.outputNames[0]];
  return {values: Array.from(await output.getData()), start: made - started, run: performance.now() - made};
}
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class LastHiddenState(torch.nn.Module):
    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids).last_hidden_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the CSV files are written")
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True)
    parser.add_argument("--onnxruntime-web", type=Path, required=True, help="its folder with ort.all.min.js")
    arguments = parser.parse_args()
    results = RowFile(arguments.folder / "browser.csv", COLUMNS)
    for checkpoint, words in itertools.product(arguments.checkpoints, (False, True)):
        model = AutoModel.from_pretrained(checkpoint).eval()
        embedding, name = model.get_input_embeddings(), checkpoint.name + ("-int32" if words else "")
        if words and not isinstance(embedding, CompressedEmbedding):
            continue
        site = Path(tempfile.mkdtemp())
        ids, expected = export(model, checkpoint, words, site / "model.onnx")
        list_operators(onnx.load(site / "model.onnx"), arguments.folder / f"operators-{name}.csv")
        (site / "ort").symlink_to(arguments.onnxruntime_web.resolve())
        (site / "index.html").write_text(PAGE)
        megabytes = f"{(site / 'model.onnx').stat().st_size / 1e6:.2f}"
        for provider, values, start, run in answers(site, ids):
            difference = float(np.abs(values.reshape(expected.shape) - expected).max())
            numbers = {"difference": f"{difference:.1e}", "start_s": f"{start:.2f}", "run_s": f"{run:.2f}"}
            results.add({"checkpoint": name, "megabytes": megabytes, "provider": provider} | numbers)
            print(results.rows[-1], flush=True)
        shutil.rmtree(site)


def export(model: Any, checkpoint: Path, words: bool, file: Path) -> tuple[torch.Tensor, np.ndarray]:
    """Write an encoder as ONNX; the ids of the sentences, and PyTorch's last hidden states of them, without words."""
    ids = AutoTokenizer.from_pretrained(checkpoint)([*SENTENCES], padding=True, return_tensors="pt")["input_ids"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        expected = model(input_ids=ids).last_hidden_state.numpy()
        if words:
            model.set_input_embeddings(lighttoken.Int32Embedding(model.get_input_embeddings()))
        settings: Any = {"dynamo": True, "dynamic_shapes": DYNAMIC, "external_data": False, "verbose": False}
        torch.onnx.export(LastHiddenState(model), (ids,), file, **settings)
        return ids, expected


def answers(site: Path, ids: torch.Tensor) -> Iterator[tuple[str, np.ndarray, float, float]]:
    """Provider, its last hidden states, seconds of the start and of the first run."""
    began = time.perf_counter()
    session = onnxruntime.InferenceSession(site / "model.onnx", providers=["CPUExecutionProvider"])
    made = time.perf_counter()
    (values,) = session.run(None, {"input_ids": ids.numpy()})
    yield "onnxruntime", values, made - began, time.perf_counter() - made
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(0)
        page.on("console", lambda message: print("browser:", message.text[:200], flush=True))
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        for provider in ("wasm", "webgpu"):
            answer = page.evaluate(f"run({provider!r}, {ids.flatten().tolist()}, {list(ids.shape)})")
            values = np.array(answer["values"], dtype=np.float32)
            yield f"onnxruntime-web, {provider}", values, answer["start"] / 1000, answer["run"] / 1000
        browser.close()
    server.shutdown()


def list_operators(model: Any, file: Path) -> None:
    """Write the operators with their types, and print the largest tensor."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    name = onnx.TensorProto.DataType.Name
    counts: Counter[tuple[str, str, str]] = Counter()
    for node in graph.node:
        read, made = (
            "+".join(sorted({name(types[value]) for value in values if value in types}))
            for values in (node.input, node.output)
        )
        counts[node.op_type, read, made] += 1
    rows = RowFile(file, ("operator", "reads", "makes", "count"))
    for (operator, read, made), count in sorted(counts.items()):
        rows.add({"operator": operator, "reads": read, "makes": made, "count": count})
    largest = max(graph.initializer, key=lambda tensor: tensor.ByteSize())
    print(f"largest tensor: {largest.name}, {largest.ByteSize() / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
