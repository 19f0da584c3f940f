"""The seam of all codecs: what a codec is, what it is given, and what it must return."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lighttoken.artifact.forms import Form
from lighttoken.artifact.parts import NOT_KEPT, Parts
from lighttoken.codec.prior import Prior, Uniform
from lighttoken.codec.shapes import Fitted, Table
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

Option = TypeVar("Option")
ErrorMetric = Literal["fisher", "backbone", "euclidean"]
Texts = Literal["prior", "model", "corpus"]
# Fields of codecs that the importance of an artifact follows from, or that change no byte.
IMPORTANCE_FIELDS = (
    "prior",
    "error_metric",
    "error_metric_texts",
    "error_metric_sequences",
    "error_metric_damping",
    "device",
)


@dataclass(frozen=True)
class Importance:
    """How much errors cost, by row and by direction.

    weights       (V,) float32 of mean 1
    error_metric  (d, d), symmetric: an error e of a row costs e @ error_metric @ e; None: the Euclidean distance
    settings      how the two were made, plain JSON values, kept in the artifact
    relations     (V,) int32, of `artifact.relations`: which row says something about which; None: not known
    """

    weights: Tensor
    error_metric: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    relations: Tensor | None = None


@dataclass(frozen=True)
class Reporter:
    """Where a codec reports: bars on the screen, curves in Lightning loggers, finished parts of the work in `parts`."""

    progress: bool = True
    loggers: "Sequence[Logger]" = ()
    parts: Parts = NOT_KEPT

    def bar(self, steps: Iterable | None = None, *, description: str, unit: str, total: int | None = None) -> Any:
        """A tqdm bar."""
        return tqdm(steps, description, unit=unit, total=total, disable=not self.progress)


@dataclass(frozen=True)
class Budget:
    """The bytes of a ratio: all files together take at most V * d * 4 / ratio bytes.

    `description_bytes` is what the JSON and the header of the tensors take; `tensor_bytes` is left for the tensors.
    """

    codec: str
    shape: tuple[int, int]  # (V, d)
    ratio: float
    description_bytes: int

    @property
    def table_bytes(self) -> int:
        """Of the table in float32."""
        return self.shape[0] * self.shape[1] * 4

    @property
    def tensor_bytes(self) -> int:
        """Most bytes of all tensors together."""
        return int(self.table_bytes / self.ratio) - self.description_bytes

    def largest(self, options: Iterable[tuple[Option, int]]) -> Option:
        """The option of the most bytes that fits, out of (option, bytes). Raises LighttokenError if none fits."""
        sizes = list(options)
        fitting = [(nbytes, i) for i, (_, nbytes) in enumerate(sizes) if nbytes <= self.tensor_bytes]
        if not fitting:
            raise self.out_of_reach(min((nbytes for _, nbytes in sizes), default=self.table_bytes))
        return sizes[max(fitting)[1]][0]

    def out_of_reach(self, smallest: int) -> LighttokenError:
        """The error for a codec whose smallest tensors take more bytes than the budget has."""
        reach = math.floor(10 * self.table_bytes / (smallest + self.description_bytes)) / 10
        cure = f"choose ratio={reach:g} or a smaller one" if reach > 1 else "the table is too small to compress"
        return LighttokenError(
            f"ratio {self.ratio:g} cannot be met: {self.codec} reaches up to {reach:g} on a table of shape "
            f"{self.shape}; {cure}"
        )


@dataclass(frozen=True)
class Codec:
    """A method that turns a table into a compressed table. Subclasses are frozen dataclasses; fields are settings.

    A codec that reads row weights is a `WeightedCodec`, one that also reads the error metric a `MetricCodec`.
    """

    name: str = ""

    @property
    def form(self) -> Form:
        """The form of the tensors that `fit` returns."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The settings of the compression itself, without those of the importance, as plain JSON values."""
        names = [entry.name for entry in fields(self) if entry.name not in ("name", *IMPORTANCE_FIELDS)]
        return {name: _plain(getattr(self, name)) for name in names}

    def importance_settings(self) -> dict[str, Any]:
        """How a run makes the importance from the backbone, as plain JSON values."""
        return {"prior": "uniform", "error_metric": "euclidean"}

    @property
    def reads_relations(self) -> bool:
        """Whether `fit` reads the importance's relations."""
        return False

    def check_reach(self, table: Table, budget: Budget) -> None:
        """Raise LighttokenError, before the importance is measured, if the budget is out of reach, where that shows."""

    def fit(self, table: Table, importance: Importance, budget: Budget, reporter: Reporter) -> Fitted:
        """The tensors, of at most `budget.tensor_bytes`, and a summary of the work in plain JSON values.

        The summary does not hold errors of the table: `compress_table` measures them.
        Raises LighttokenError if the budget is out of reach.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class WeightedCodec(Codec):
    """A codec that reads row weights. `prior` says how a run makes them from the backbone's tokenizer."""

    prior: Prior = field(default_factory=Uniform)

    def importance_settings(self) -> dict[str, Any]:
        return self.prior.settings() | {"error_metric": "euclidean"}


@dataclass(frozen=True)
class MetricCodec(WeightedCodec):
    """A codec that reads row weights and the error metric, which a run measures on the backbone unless "euclidean".

    "fisher" measures the divergence of a language model's predictions (`codec.fisher`), "backbone" the change of the
    last hidden states (`codec.error_metric`), as "fisher" does for a model without a head. `error_metric_sequences`
    texts measure it, which are drawn from the prior, sampled from the model, or the prior's corpus;
    `error_metric_damping` is the share of the Euclidean distance that is added. `device` is that of the measurement and
    of the codec: auto, cpu or cuda.
    """

    error_metric: ErrorMetric = "fisher"
    error_metric_texts: Texts = "prior"
    error_metric_sequences: int = 1024
    error_metric_damping: float = 0.3
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.error_metric not in get_args(ErrorMetric):
            raise LighttokenError(
                f"unknown error_metric={self.error_metric!r}; choose one of {', '.join(get_args(ErrorMetric))}"
            )
        if self.error_metric_texts not in get_args(Texts):
            raise LighttokenError(
                f"unknown error_metric_texts={self.error_metric_texts!r}; choose one of {', '.join(get_args(Texts))}"
            )
        if self.error_metric_sequences < 1:
            raise LighttokenError(f"error_metric_sequences is {self.error_metric_sequences}; it must be 1 or above")
        if not self.error_metric_damping >= 0:
            raise LighttokenError(f"error_metric_damping is {self.error_metric_damping}; it must be 0 or above")

    def importance_settings(self) -> dict[str, Any]:
        settings = self.prior.settings() | {"error_metric": self.error_metric}
        if self.error_metric != "euclidean":
            settings |= {"sequences": self.error_metric_sequences, "damping": self.error_metric_damping}
        if self.error_metric == "fisher":
            settings |= {"texts": self.error_metric_texts}
        return settings


def resolve_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU where there is one. Raises LighttokenError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise LighttokenError(f"device {name!r} is not there; choose auto or cpu") from error


def resolve_devices(name: str) -> list[torch.device]:
    """The devices that share a search: of `auto` and `cuda` all GPUs. Raises LighttokenError as `resolve_device`."""
    device = resolve_device(name)
    if name not in ("auto", "cuda") or device.type != "cuda":
        return [device]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def _plain(value: Any) -> Any:
    if isinstance(value, partial):
        return {"target": value.func.__name__} | {name: _plain(entry) for name, entry in value.keywords.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"target": type(value).__name__} | asdict(value)
    return value
