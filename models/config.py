"""A recipe: everything that learning depends on, frozen and checked before a GPU is booked.

Order of precedence: the defaults below < the recipe file < overrides ("train.epochs=3"). Dataclasses rather than
pydantic, because models runs with only torch, timm, numpy, pyarrow and onnx.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from models.errors import ConfigError
from models.registry import Range, closest
from models.tables import build, set_key

RECIPES = Path(__file__).parent / "recipes"

Positive = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network of the ensemble."""

    backbone: str = "resnet10t"  # any timm name
    size: Annotated[int, Range(16, 1024)] = 96  # pixels it is trained and asked at
    seed: Annotated[int, Range(0)] = 0
    weights: str = ""  # a .safetensors or torch file to start from; "" starts at random
    args: dict = field(default_factory=dict)  # passed on to timm.create_model, e.g. {pad_type = "same"}
    mean: tuple[float, ...] = ()  # of the normalisation, RGB in [0, 1]; () takes timm's for the backbone
    std: tuple[float, ...] = ()
    head: Literal["linear", "arcface"] = "linear"
    margin_rad: Annotated[float, Range(0, 1.5)] = 0.3  # of arcface, that a label's angle counts as larger
    scale: Annotated[float, Range(0, open_low=True)] = 16.0  # of arcface's cosines
    centres: Annotated[int, Range(1, 10)] = 1  # of a class, of arcface

    def __post_init__(self) -> None:
        if self.centres > 1 and self.head != "arcface":
            raise ConfigError(
                f'members.centres: {self.centres}, and members.head = "{self.head}" has one; set head="arcface", or leave it out'
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, 3):
                raise ConfigError(
                    f"members.{name}: {getattr(self, name)} has not three values; give red, green and blue"
                )
        if 0 in self.std:
            raise ConfigError(
                f"members.std: {self.std} holds a 0, and pixels are divided by it; leave std out for timm's"
            )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Name in models.losses and its own parameters."""

    name: str = "gce"
    params: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("name", "num_classes"):
            if key in self.params:
                raise ConfigError(f"loss.params.{key}: not for the recipe to say; leave it out")


@dataclass(frozen=True, kw_only=True)
class Meta:
    """The loss's own numbers learnt while the network is, from photos whose labels are trusted."""

    photos: str = ""  # a file of ids, or "val" for the validation photos as they are; "" learns nothing
    replay: str = ""  # metrics.jsonl of a training that learnt them: its schedule is followed, without trusted photos
    lr: Annotated[float, Range(0, open_low=True)] = 0.05  # of Adam on the unbounded form of each number
    every: Positive = 10  # training steps to one step of learning
    batch_size: Annotated[int, Range(2)] = 64  # trusted photos
    ignore_length: bool = True  # of the step looked ahead to, which AdamW makes its own; false: the published gradient
    head_only: bool = True  # look ahead with the classifier alone; false: with all that is trained

    def __post_init__(self) -> None:
        if self.photos and self.replay:
            raise ConfigError("meta.replay: follows a schedule, and meta.photos learns one; leave one of them empty")

    @property
    def file(self) -> str:
        """Digest of what `photos` or `replay` names; "" of no file."""
        return content(self.photos or self.replay)


@dataclass(frozen=True, kw_only=True)
class Train:
    """The training loop."""

    epochs: Positive = 24
    batch_size: Positive = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd: with momentum .9
    lr: Annotated[float, Range(0, open_low=True)] = 2e-3  # after the warm-up
    backbone_lr_scale: Share = 1.0  # 0 freezes the backbone: its features are computed once and only the head learns
    weight_decay: Annotated[float, Range(0)] = 0.05
    warmup_epochs: Annotated[float, Range(0)] = 1.0  # of the learning rate, linear
    schedule: Literal["cosine", "step"] = (
        "cosine"  # of the learning rate after it: to 0, or a tenth at each of step_epochs
    )
    step_epochs: tuple[Annotated[float, Range(0, open_low=True)], ...] = (14.0, 20.0)  # done, when it falls
    sampling_power: Share = 1.0  # a class is drawn in proportion to n^q: 1 instance-balanced, 0 class-balanced
    progressive: bool = False  # from there to class-balanced over the epochs
    balanced_epochs: Annotated[int, Range(0)] = 0  # the last of the epochs, class-balanced
    best_epochs: Annotated[int, Range(0)] = 0  # the last of the epochs, on the best-scored photos of each class
    best_photos: Positive = 30  # of a class, in them
    epoch_length: Annotated[int, Range(0)] = 0  # draws; 0: as many as photos
    class_weights: Literal["", "inverse", "effective"] = ""  # of the loss
    class_beta: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.999  # of effective numbers
    photo_weights: str = ""  # a file of ids and weights; others weigh 1
    har: Annotated[float, Range(0)] = 0.0  # heteroskedastic adaptive regularisation
    l1: Annotated[float, Range(0)] = 0.0  # penalty on the absolute values of matrices and convolutions
    ema: Annotated[float, Range(0, 1, open_high=True)] = (
        0.0  # decay per step of the mean of weights that is kept; 0: off
    )
    soup_epochs: Annotated[int, Range(0)] = 0  # the last of the epochs, the mean of whose weights is kept; 0: off
    state: str = ""  # a samples.parquet of an earlier training; what its loss remembers of the photos is carried over
    head_rows: Annotated[int, Range(0)] = 0  # classifier and loss see so many rows of a batch at a time; 0: all
    workers: Annotated[int, Range(0)] = 1  # processes that share one training; 0: one per GPU
    threads: Annotated[int, Range(0)] = 1  # CPU threads of one training process; 0 lets torch decide
    checkpoint_minutes: Annotated[float, Range(0)] = 10.0  # between two in mid-epoch; 0: after every step

    def __post_init__(self) -> None:
        if 0 < self.epoch_length < self.batch_size:
            raise ConfigError(
                f"train.epoch_length: {self.epoch_length} draws do not fill a batch of train.batch_size = {self.batch_size}; "
                "raise it, or set 0 for as many draws as photos"
            )
        for name in ("balanced_epochs", "best_epochs", "soup_epochs"):
            if getattr(self, name) > self.epochs:
                raise ConfigError(
                    f"train.{name}: {getattr(self, name)} of train.epochs = {self.epochs}; lower it, or train longer"
                )
        late = [epoch for epoch in self.step_epochs if epoch >= self.epochs]
        if self.schedule == "step" and late:
            raise ConfigError(
                f"train.step_epochs: {late[0]:g} is not within train.epochs = {self.epochs}; lower it, or train longer"
            )
        if self.ema and self.soup_epochs:
            raise ConfigError("train.soup_epochs: averages weights, and so does train.ema; set one of them to 0")
        if self.har and self.head_rows:
            raise ConfigError("train.har: needs all logits of a batch at a time; set train.head_rows=0, or har=0")

    @property
    def averages(self) -> bool:
        """Whether a mean of weights is kept."""
        return self.ema > 0 or self.soup_epochs > 0

    @property
    def decisive(self) -> Train:
        """Without the keys that leave the result as it is."""
        return dataclasses.replace(self, workers=1, checkpoint_minutes=10.0)

    def light(self, epochs: int) -> Train:
        """Of what judges photos: so many epochs, on all photos to the end; rates fall, weights are averaged at the same shares."""
        share = epochs / self.epochs
        step_epochs = (
            tuple(epoch * share for epoch in self.step_epochs) if self.schedule == "step" else self.step_epochs
        )
        return dataclasses.replace(self, epochs=epochs, balanced_epochs=0, best_epochs=0, step_epochs=step_epochs,
                                   soup_epochs=math.ceil(self.soup_epochs * share))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random views of a training photo; all ranges are symmetric about 'unchanged'."""

    zoom: Annotated[float, Range(0, 0.9)] = 0.3  # the view covers 1 - zoom to 1 of the side
    rotate_deg: Annotated[float, Range(0, 180)] = 8.0
    colour: Share = 0.3  # brightness, contrast and saturation each vary by this share
    hue_deg: Annotated[float, Range(0, 180)] = 0.0  # turn of the colours, either way
    flip: bool = True
    flip_vertical: bool = False
    blur: Share = 0.0  # probability of Gaussian blur
    erase: Share = 0.3  # probability of blank rectangles (coarse dropout)
    holes: Annotated[int, Range(1, 32)] = 1  # rectangles then; together about as large as one
    mixup: Annotated[float, Range(0)] = 0.0  # alpha of Beta(alpha, alpha), from which shares are drawn; 0: off
    cutmix: Annotated[float, Range(0)] = 0.0  # likewise

    @property
    def mixes(self) -> bool:
        """Whether a view shows two photos."""
        return self.mixup > 0 or self.cutmix > 0


Rule = Literal[
    "report", "self_confidence", "log_margin", "confident_learning", "neighbours", "product", "linear", "posterior"
]


@dataclass(frozen=True, kw_only=True)
class Clean:
    """One cleaning round: out-of-sample probabilities, then decisions."""

    rounds: Annotated[int, Range(0, 10)] = 1
    member: Annotated[int, Range(0)] = 0  # the member whose network gives the probabilities
    folds: Annotated[int, Range(2, 20)] = 3
    epochs: Positive = 12  # lightly trained finds errors better
    rule: Rule = "log_margin"  # of models.cleaning
    margin: float = -0.5  # by the rule log_margin, a photo whose log margin is below is suspect
    neighbours: Annotated[int, Range(1, 1000)] = 10  # photos that vote, by rules that ask them
    budget: Share = 1.0  # at most this share of the training photos is decided away in a round
    floor_share: Share = 0.3  # a class keeps at least this share of its photos
    floor_count: Annotated[int, Range(1)] = 5  # and at least so many

    @property
    def asks_embeddings(self) -> bool:
        """Whether the rule compares photos."""
        return self.rule in ("neighbours", "product", "linear", "posterior")


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Classifier re-balancing on frozen features."""

    method: Literal["best", "none", "tau", "logit_adjustment", "ncm", "lws", "crt"] = "best"
    epochs: Annotated[int, Range(0)] = 10  # of cRT and LWS; 0 tries neither
    lr: Annotated[float, Range(0, open_low=True)] = 2e-3
    best_photos: Annotated[int, Range(0)] = 0  # of a class that cRT, LWS and NCM learn from; 0: all
    tau_max: Annotated[float, Range(0, 4)] = 2.0  # 0 switches tau-normalisation off
    adjust_max: Annotated[float, Range(0, 4)] = 1.5  # 0 switches logit adjustment off
    tau_step: Annotated[float, Range(0.01, 1)] = 0.05

    def __post_init__(self) -> None:
        if self.method in ("lws", "crt") and not self.epochs:
            raise ConfigError(
                f'balance.epochs: 0, and balance.method = "{self.method}" has to learn; set 10, or another method'
            )

    @property
    def needs_training_photos(self) -> bool:
        """Whether photos are learnt from, and not only judged by."""
        return self.method in ("best", "ncm", "lws", "crt")


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is fused into the one graph."""

    input_size: Annotated[int, Range(16, 2048)] = 160
    enlarge: Annotated[float, Range(1, 4)] = 1.25
    crops: Annotated[int, Range(1, 10)] = 10  # 1, 2, 5 or 10
    keep: Positive = 10  # best classes of a member that take part in the mean
    top_k: Positive = 5


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How much worse than the serving model a new one may be, in points of the same test photos."""

    mean_class: Annotated[float, Range(-1, 1)] = 0.0
    tail: Annotated[float, Range(-1, 1)] = 0.02


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A retraining, completely described."""

    name: str
    members: tuple[Member, ...] = (Member(),)
    loss: Loss = Loss()
    meta: Meta = Meta()
    train: Train = Train()
    augment: Augment = Augment()
    clean: Clean = Clean()
    balance: Balance = Balance()
    export: Export = Export()
    gate: Gate = Gate()

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("members: a recipe needs at least one; add a [[members]] table")
        if self.export.crops not in (1, 2, 5, 10):
            raise ConfigError(f"export.crops: {self.export.crops} is not one of 1, 2, 5, 10")
        if self.export.keep < self.export.top_k:
            raise ConfigError(
                f"export.keep: {self.export.keep} classes cannot fill export.top_k = {self.export.top_k} answers"
            )
        if self.clean.member >= len(self.members):
            raise ConfigError(f"clean.member: {self.clean.member}, but the recipe has {len(self.members)} members")
        if self.train.har and any(member.head == "arcface" for member in self.members):
            raise ConfigError('train.har: is derived for members.head = "linear"; set har=0, or that head')
        if self.augment.mixes and self.meta.photos:
            raise ConfigError("meta.photos: learns from whole photos; set augment.mixup=0 and augment.cutmix=0")
        if self.train.backbone_lr_scale == 0:
            self._check_frozen()

    def _check_frozen(self) -> None:
        """Of a frozen backbone features are computed once, of whole photos and their mirror images."""
        for name in ("hue_deg", "flip_vertical", "blur", "holes", "cutmix"):
            if getattr(self.augment, name) != getattr(Augment, name):
                raise ConfigError(
                    f"augment.{name}: has no effect on a frozen backbone (train.backbone_lr_scale=0), whose features are "
                    "computed once; leave it out"
                )


def recipe_names() -> list[str]:
    """The recipes that ship with CleanShelf."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str, *, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name (or at that path), with overrides such as "train.epochs=3" or "members.0.size=64".

    Raises:
        ConfigError: an unknown recipe, key or value; the message names the field and the file.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    tables = _read(path, name)
    for override in overrides:
        set_key(tables, override)
    try:
        return from_dict({"name": path.stem} | tables)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"no recipe {name!r}{closest(name, recipe_names())}; known: {', '.join(recipe_names())}"
        raise ConfigError(f"{what}; or give the path of a .toml file that exists") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML in UTF-8 ({error}); models/recipes/ has examples") from None


def from_dict(tables: Mapping[str, Any]) -> Recipe:
    """A Recipe from plain tables, as `to_dict` gives them."""
    recipe = build(Recipe, tables)
    assert isinstance(recipe, Recipe)
    return recipe


def to_dict(config: Any) -> dict[str, Any]:
    """Plain tables of any part of a recipe, fit for JSON."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(config))))


def content(path: str) -> str:
    """Digest of a file; "" of none."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ""


def digest(*parts: Any) -> str:
    """A hex name, 16 digits, of any mixture of recipe parts, strings and numbers: the key of a stage's result."""
    plain = [to_dict(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
